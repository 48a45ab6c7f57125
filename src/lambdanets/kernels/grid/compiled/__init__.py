"""Kernels for CPUs in C++; without a compiler at install time they are absent, and the plain ones serve."""
