"""The ways through the grid term: one file each."""
