import struct

import numpy as np
import pytest


@pytest.fixture
def idx_bytes():
    """Writes an array as the content of an IDX file."""

    def pack(array):
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        return header + array.astype(np.uint8).tobytes()

    return pack
