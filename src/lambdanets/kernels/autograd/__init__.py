"""Library ops, their derivatives, and scratch memory."""
