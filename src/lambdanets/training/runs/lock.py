"""One training at a time in a run folder."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from lambdanets.files import open_lock

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two trainings apart there
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
# What file systems without locks answer; nothing keeps two trainings apart there either.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: set[int] = set()


def _forget_in_child() -> None:
    """Close the parent's locks in a process that it forks: a data worker must not keep a lock that its owner left."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder ``run`` for this process; the system frees it when the process ends, however it ends.

    Raises:
        ValueError: another process holds it; the message says which. Or its lock is no regular file.
    """
    if fcntl is None:
        yield
        return
    path = run / NAME
    descriptor = _take(run, path)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # not in a child that was forked inside
            _held.remove(descriptor)
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _take(run: Path, path: Path) -> int:
    while True:
        descriptor = open_lock(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _WITHOUT_LOCKS:
                return descriptor
            owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise ValueError(
                f"the folder {run} is in use by {owner}; wait for its end or stop it, or give another folder"
            ) from None
        # Between the two calls the owner before may have removed the file that is now locked.
        if _is_at(descriptor, path):
            os.ftruncate(descriptor, 0)
            text = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n"
            os.write(descriptor, text.encode())
            return descriptor
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def is_locked(run: Path) -> bool:
    """True if a process holds the run folder ``run``; False where there are no locks."""
    if fcntl is None or (run / NAME).is_symlink() or not (run / NAME).is_file():
        return False
    try:
        with open(run / NAME, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
