"""Terms of the sum: one file each."""
