"""Reading IDX files, the format of MNIST and its relatives, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes.

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
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, f"its gzip data do not unpack ({error})") from error
    header = 4 + 4 * ndim
    if len(content) < header:
        raise _damaged(path, f"it has {len(content)} bytes, fewer than the {header} of its header")
    if content[:4] != bytes([0, 0, _UNSIGNED_BYTE, ndim]):
        raise _damaged(path, f"it begins with {content[:4].hex(' ')}, but must begin with 00 00 08 {ndim:02x}")
    shape = tuple(np.frombuffer(content, ">u4", count=ndim, offset=4).tolist())
    size = math.prod(shape)
    if len(content) - header != size:
        raise _damaged(
            path,
            f"its header promises {' x '.join(map(str, shape))} = {size} bytes, but {len(content) - header} follow",
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"the IDX file {path} is damaged: {what}. Get the file again.")
