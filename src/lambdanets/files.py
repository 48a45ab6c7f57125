"""Text, JSON and CSV files: refused early where they cannot be written, and written whole or not at all."""

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

__all__ = [
    "check_file",
    "check_folder",
    "naming_failed_writes",
    "read_csv",
    "replacing",
    "write_csv",
    "write_json",
    "write_text",
]


def check_file(path: Path, name: str) -> None:
    """Refuse a path where no file can be written, before work is done for it.

    Args:
        path: the file to write.
        name: what gave it, for messages: "--csv".

    Raises:
        ValueError: its folder does not exist, or it is a folder itself.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{name} {path} is in {path.parent}, which is no folder; make it first")
    if path.is_dir():
        raise ValueError(f"{name} {path} is a folder; name a file in it")


def check_folder(path: Path) -> None:
    """Refuse a path where no folder is or can be made, before work is done for it.

    Raises:
        ValueError: it is a file, or inside of one.
    """
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            inside = "" if part == path else f"inside {part}, which is "
            raise ValueError(f"the output {path} is {inside}a file; give a folder")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder, and moves it onto ``path`` when the block ends well.

    A link stays, and what it leads to is replaced. A device or a pipe, as ``/dev/stdout``, cannot be replaced: it is
    written to itself.

    Args:
        path: the file to write or to overwrite.

    Yields:
        The path to write to. It keeps the suffix of ``path``, by which some writers choose the format.

    Raises:
        OSError: what the machine refused, about ``path`` and not about the temporary name.
    """
    replaceable = path.is_file() or path.is_dir() or not path.exists()
    target = Path(os.path.realpath(path)) if replaceable else path
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}") if replaceable else target
    try:
        yield temporary
        if replaceable:
            os.replace(temporary, target)
    except OSError as error:
        # A full disk names no file at all.
        if error.errno is None or error.filename not in (None, str(temporary), temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if replaceable:
            temporary.unlink(missing_ok=True)


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
