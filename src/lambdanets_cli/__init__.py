"""The command ``lambdanets``: one file a command; turns words into calls."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; Ctrl-C ends it also while its modules are still imported."""
    try:
        from lambdanets_cli.app import main as run
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    run()
