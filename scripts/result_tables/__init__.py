"""Tables and figures of README.md and docs/ from the files in results/, a module for each subject.

Each module has ``TABLES`` and ``FIGURES``, what makes the Markdown by the name between the markers.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["RESULTS", "ROOT"]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
