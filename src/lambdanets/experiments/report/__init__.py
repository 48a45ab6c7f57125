"""Tables and plots from rows."""
