"""The op: its terms, the kernels for the grid term and the planner that chooses among them, and its derivatives."""
