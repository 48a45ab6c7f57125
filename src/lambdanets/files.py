"""Writing files so that a full disk, a crash or a kill never leaves a half-written one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


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
