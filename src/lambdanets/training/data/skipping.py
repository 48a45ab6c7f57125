"""Unreadable images that a training may replace: up to a number, by a fixed rule, listed in the run folder.

In the place of an image that cannot be read stands the next one of its part that can, with its own label; after the
last comes the first. So what a training sees depends on the files alone, not on workers, processes or interruptions.
Each process that meets such an image, data workers too, puts it on the list, which says how many there were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lambdanets.files import open_lock, read_rows, write_csv
from lambdanets.training.data.transforms import UnreadableImageError

try:
    import fcntl
except ImportError:  # Windows: two workers may lose each other's lines there
    fcntl = None  # type: ignore[assignment]

FILE = "skipped.csv"
_COLUMNS = ("image", "replaced_by", "reason")
LOCK = ".skipped.lock"


class SkipList:
    """The unreadable images of a run.

    Args:
        run: the run folder; ``skipped.csv`` in it has a line for each image: its name, the one in its place, and the
            reason.
        most: how many there may be.
        writable: False leaves the file as it is, for an evaluation.
    """

    def __init__(self, run: Path, most: int, *, writable: bool = True) -> None:
        self.folder, self.most, self.writable = run, most, writable
        self._known = {row["image"] for row in self.rows()}

    def rows(self) -> list[dict[str, str]]:
        """The lines of the list; a ValueError if the file is damaged."""
        file = self.folder / FILE
        if not file.exists():
            return []
        rows = read_rows(file)
        if not rows or tuple(rows[0]) != _COLUMNS:
            raise ValueError(f"{file} is damaged: its columns are not {', '.join(_COLUMNS)}, or it has no rows")
        return rows

    def note(self, bad: dict[str, str], replaced_by: str) -> None:
        """Put images on the list.

        Args:
            bad: the reason of each image that could not be read.
            replaced_by: the image in their place.

        Raises:
            UnreadableImageError: these are too many.
        """
        if bad.keys() <= self._known:
            return
        with self._locked():
            rows = self.rows()
            listed = {row["image"] for row in rows} | (set() if self.writable else self._known)
            new = [name for name in bad if name not in listed]
            if len(listed) + len(new) > self.most:
                raise UnreadableImageError(
                    f"{bad[(new or list(bad))[0]]}. It is one more than the {self.most:,} that may be skipped "
                    f"(skip_bad_images); those are listed in {self.folder / FILE}"
                )
            self._known = listed | set(new)
            if new and self.writable:
                rows += [dict(zip(_COLUMNS, (name, replaced_by, bad[name]), strict=True)) for name in new]
                write_csv(self.folder / FILE, rows)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the run folder against the other processes that write the list."""
        if fcntl is None or not self.writable:
            yield
            return
        # A file and not the folder: network file systems lock only what is open for writing.
        with open(open_lock(self.folder / LOCK), "r+b") as file:
            with suppress(OSError):  # file systems without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def read_or_next(
    read: Callable[[int], Any], name: Callable[[int], str], index: int, images: int, skips: SkipList | None
) -> Any:
    """Read an image, or the next one that can be read if ``skips`` has room.

    Args:
        read: gives an image by index, or raises an ``UnreadableImageError``.
        name: gives an image's name for the list.
        index: of the image.
        images: how many there are.
        skips: where to note what cannot be read; None raises the error.

    Raises:
        UnreadableImageError: too many images cannot be read.
    """
    if skips is None:
        return read(index)
    bad: dict[str, str] = {}
    for step in range(images):
        found = (index + step) % images
        try:
            item = read(found)
        except UnreadableImageError as error:
            bad[name(found)] = " ".join(str(error).split())
            if len(bad) > skips.most:
                break
            continue
        if bad:
            skips.note(bad, name(found))
        return item
    raise UnreadableImageError(
        f"{next(iter(bad.values()))}. Nor can the {len(bad) - 1:,} after it, and {skips.most:,} may be skipped "
        "(skip_bad_images)"
    )


def skip_bad_images(data: Any, run: Path, most: int, *, writable: bool = True) -> None:
    """Let the parts of a run's data replace up to ``most`` unreadable images; 0 leaves them errors."""
    if most:
        skips = SkipList(run, most, writable=writable)
        for part in data.parts.values():
            part.skips = skips


def check_skipping(data: Any, most: int) -> None:
    """Raise a ValueError if images of the data cannot be replaced, though ``most`` of them may be."""
    if most and any(part.streams for part in data.parts.values()):
        raise ValueError(
            f"skip_bad_images is {most}, and the data {data.spec!r} are a stream, whose reader decodes the images "
            "itself; use 0"
        )
