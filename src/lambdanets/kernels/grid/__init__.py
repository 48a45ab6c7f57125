"""Kernels for the grid term: one file each."""
