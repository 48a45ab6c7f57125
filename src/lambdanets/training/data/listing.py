"""The image files below a folder, or those of other endings, and what else lies there.

A file is an image if its name ends as one of a format that Pillow decodes, in any case. Links are followed. Left out
are

- hidden files and folders, whose names begin with a dot, and
- all files of other kinds;

both are counted and named in one line (:func:`describe_skipped`). Files and folders that systems and editors leave
behind (``LITTER``) are passed over without a word.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from lambdanets.files import check_name
from lambdanets.names import count, first_of

LITTER = frozenset(
    {
        ".ds_store",
        ".localized",
        ".directory",
        ".fseventsd",
        ".git",
        ".gitignore",
        ".gitkeep",
        ".ipynb_checkpoints",
        ".spotlight-v100",
        ".trashes",
        "$recycle.bin",
        "@eadir",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",
        "thumbs.db",
    }
)
# Pillow tells these formats by their first bytes but does not decode them.
_NOT_DECODED = ("BUFR", "GRIB", "HDF5", "MPEG")


def image_extensions() -> frozenset[str]:
    """The endings of the files that Pillow decodes, in lower case."""
    Image.init()
    formats = Image.registered_extensions().items()
    return frozenset(ending.lower() for ending, name in formats if name in Image.OPEN and name not in _NOT_DECODED)


def is_litter(name: str) -> bool:
    """True for a name that a system or an editor leaves behind; ``._name`` is macOS's second half of a file."""
    return name.lower() in LITTER or name.startswith("._")


@dataclass
class Listing:
    """Files below a folder.

    Attributes:
        files: the files that were looked for, in natural order of their paths (2 before 10).
        skipped: other files, and hidden files and folders, in the order of their paths.
    """

    files: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)


def list_images(folder: Path) -> Listing:
    """The images in a folder and its subfolders; errors as of ``list_files``."""
    return list_files(folder, image_extensions())


def list_files(folder: Path, endings: Collection[str]) -> Listing:
    """The files in a folder and its subfolders whose names end as one of ``endings``, in any case.

    Raises:
        ValueError: a link leads nowhere or to a folder that holds it, or a file's name is not valid Unicode.
    """
    found = Listing()
    _walk(folder, (os.path.realpath(folder),), endings, found)
    found.files.sort(key=lambda path: (_natural(str(path)), str(path)))
    found.skipped.sort()
    return found


def _natural(name: str) -> list[int | str]:
    """The words and the numbers of a name, in turns, so that 2 is before 10."""
    return [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", name.lower())]


def _walk(folder: Path, above: tuple[str, ...], endings: Collection[str], found: Listing) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            check_name(path)
            if is_litter(entry.name):
                continue
            if entry.name.startswith("."):
                found.skipped.append(path)
            elif entry.is_dir():
                real = os.path.realpath(path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                if real in above:
                    raise ValueError(f"the link {path} leads to {real}, the folder that it lies in; remove it")
                _walk(path, (*above, real), endings, found)
            elif path.suffix.lower() not in endings:
                found.skipped.append(path)
            elif entry.is_file():
                found.files.append(path)
            elif entry.is_symlink() and not path.exists():
                raise ValueError(f"the file {path} is a link that leads nowhere; remove it, or bring its file back")
            else:
                found.skipped.append(path)  # a pipe, a device


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in ``folder``, sorted, without hidden ones and litter."""
    names = []
    for entry in os.scandir(folder):
        if entry.is_dir() and not is_litter(entry.name) and not entry.name.startswith("."):
            check_name(folder / entry.name)
            names.append(entry.name)
    return sorted(names)


def beside(folder: Path, read: Sequence[str]) -> list[Path]:
    """Return what lies directly in a folder and is neither one of the folders ``read`` nor litter."""
    names = sorted(os.listdir(folder))
    return [folder / name for name in names if name not in read and not is_litter(name)]


def describe_skipped(skipped: Sequence[Path], root: Path) -> tuple[str, ...]:
    """The line that counts and names what is left out; none if there is nothing."""
    if not skipped:
        return ()
    names = [path.relative_to(root).as_posix() + ("/" if path.is_dir() else "") for path in sorted(skipped)]
    return (f"Left out of {root}: {count(len(names), 'file or folder', 'files and folders')}, {first_of(names)}.",)
