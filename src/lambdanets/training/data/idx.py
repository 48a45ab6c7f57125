"""Reading IDX files, the format of MNIST and its relatives, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes.

    The format: two zero bytes, the element type, the number of axes, the length of each axis as four bytes
    (big-endian), then the elements.

    Args:
        path: the file; gzip is recognised by its content, not by its name.
        ndim: the number of axes that it must have: 1 for labels, 3 for images.

    Returns:
        A read-only uint8 array.

    Raises:
        ValueError: the file is damaged or something else; the message names it and says what is wrong.
    """
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            return _read(path, file, ndim)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, f"its gzip data do not unpack ({error})") from error


def _read(path: Path, file: BinaryIO | gzip.GzipFile, ndim: int) -> np.ndarray:
    length = 4 + 4 * ndim
    header = file.read(length)
    if len(header) < length:
        raise _damaged(path, f"it has {len(header)} bytes, fewer than the {length} of its header")
    if header[:4] != bytes([0, 0, _UNSIGNED_BYTE, ndim]):
        raise _damaged(path, f"it begins with {header[:4].hex(' ')}, but must begin with 00 00 08 {ndim:02x}")
    shape = tuple(np.frombuffer(header, ">u4", offset=4).tolist())
    size = math.prod(shape)
    # One byte more than there may be: a few packed bytes can unpack to more than the memory holds.
    content = file.read(size + 1)
    if len(content) != size:
        found = f"{len(content)} follow" if len(content) < size else f"{len(content)} follow or more"
        raise _damaged(path, f"its header promises {' x '.join(map(str, shape))} = {size} bytes, but {found}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"the IDX file {path} is damaged: {what}. Get the file again.")
