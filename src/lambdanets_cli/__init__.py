"""The command ``lambdanets``: one file a command; turns words into calls."""
