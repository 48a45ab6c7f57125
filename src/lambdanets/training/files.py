"""Text, JSON and CSV files, all of them or nothing."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lambdanets.files import replacing

__all__ = ["naming_failed_writes", "read_csv", "replacing", "write_csv", "write_json", "write_text"]


@contextmanager
def naming_failed_writes(path: Path) -> Iterator[None]:
    """Turns the errors that safetensors and torch raise when they cannot write into an OSError naming ``path``."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise OSError(f"cannot write {path}: {error}. Is the disk full?") from error


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` to ``path``, all of it or nothing."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        # Without this a power cut may keep the new name and lose the content. A pipe cannot be synced.
        if temporary.is_file():
            os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as indented JSON, all of it or nothing."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of one shape as CSV with a header line, all of them or nothing."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, float]]:
    """Reads back what ``write_csv`` wrote, every value as a number; a missing file has no rows."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float:
    """Whole numbers stay whole, so that written again they look the same."""
    try:
        return int(text)
    except ValueError:
        return float(text)
