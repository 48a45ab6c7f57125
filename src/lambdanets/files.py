"""Writing files: refused early where they cannot be, and never left half-written by a full disk, a crash or a kill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_file", "check_folder", "replacing"]


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
