"""A look at every image file before the work: unreadable files are found, and each file gets a fingerprint.

Files of up to 256 MiB together are decoded whole. Of larger collections each file is only opened, which finds empty
files and files that are no images; a file that is damaged further on is an error that names it when it is first
decoded.

A fingerprint is the file's size and a digest of its first and last 64 KiB, so it depends neither on the file's name nor
on its date. Files of up to 128 KiB are digested whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lambdanets.names import count, first_of
from lambdanets.training.data.core import FileImages, ImageData
from lambdanets.training.data.transforms import UnreadableImageError, check_image_file, opened_image, read_image

_END_BYTES = 64 * 1024
_DECODED_BYTES = 256 * 1024**2
# Reading and decoding release Python's lock, so even one core gains while files are waited for.
_THREADS = 8


def fingerprint(path: Path) -> str:
    """Size and digest of a file, as ``SIZE-DIGEST`` in hexadecimal digits."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        digest = hashlib.blake2b(file.read(_END_BYTES), digest_size=12)
        if size > 2 * _END_BYTES:
            file.seek(size - _END_BYTES)
        digest.update(file.read(_END_BYTES))
    return f"{size:x}-{digest.hexdigest()}"


def fingerprint_files(paths: Sequence[Path]) -> list[str]:
    """The fingerprints of files, in their order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(fingerprint, paths))


def inspect_images(parts: Sequence[FileImages], most: int = 0) -> list[str]:
    """Look at all files of some parts, and give the parts their fingerprints.

    Args:
        parts: the images.
        most: how many may be unreadable.

    Returns:
        The unreadable files' names.

    Raises:
        ValueError: more files cannot be read; the message has the reason of the first and the names of others.
    """
    paths = [path for part in parts for path in part.paths]
    whole = sum(path.stat().st_size for path in paths) <= _DECODED_BYTES
    with ThreadPoolExecutor(_THREADS) as pool:
        errors = [error for error in pool.map(lambda path: _fault(path, whole), paths) if error]
    if len(errors) > most or not all(isinstance(error, UnreadableImageError) for _, error in errors):
        error = errors[0][1]
        others = [str(path) for path, _ in errors[1:]]
        more = f"; nor can {count(len(others), 'other', 'others')}: {first_of(others)}" if others else ""
        limit = f"; skip_bad_images allows {most:,}" if most else ""
        raise ValueError(f"{error}{more}{limit}")
    for part in parts:
        part.fingerprints = fingerprint_files(part.paths)
    return [str(path) for path, _ in errors]


def _fault(path: Path, whole: bool) -> tuple[Path, Exception] | None:
    try:
        if whole:
            read_image(path, "RGB")
        else:
            check_image_file(path)
            with opened_image(path, path.__str__):
                pass
    except (ValueError, FileNotFoundError) as error:
        return path, error
    return None


def describe_copies(data: ImageData) -> tuple[str, ...]:
    """A sentence about held-out images whose content is also among the training images; none if there are none.

    The parts must have been inspected.
    """
    if not isinstance(data.train, FileImages):
        return ()
    trained = dict(zip(data.train.fingerprints or [], data.train.names, strict=True))
    notes = []
    for name, part in data.parts.items():
        if name != "train" and isinstance(part, FileImages):
            copies = [
                f"{file} = {trained[mark]}"
                for file, mark in zip(part.names, part.fingerprints or [], strict=True)
                if mark in trained
            ]
            if copies:
                what = count(len(copies), f"{name} image is a copy", f"{name} images are copies")
                notes.append(f"{what} of training images: {first_of(copies)}.")
    return tuple(notes)
