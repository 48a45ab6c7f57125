import base64

import numpy as np

from lambdanets.explanation.packing import pack, round_trip


def test_numbers_are_those_of_float16_at_every_scale():
    rng = np.random.default_rng(0)
    array = rng.normal(size=(3, 200)).astype(np.float32) * np.array([[1e-9], [1.0], [1e7]], np.float32)
    error = np.abs(round_trip(array) - array).max(axis=1) / np.abs(array).max(axis=1)
    assert (error > 0).all()
    assert (error < 2**-11).all()


def test_nothing_but_zeros():
    assert not round_trip(np.zeros((2, 3), np.float32)).any()
    assert round_trip(np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_exponents_are_kept():
    array = np.array([[-151.03, 0.1234567]], np.float32)
    np.testing.assert_array_equal(round_trip(array, exact=True), array)


def test_plain_values_are_little_endian():
    packed = pack(np.array([[1.0, -0.5]], np.float32)).to_dict()
    assert base64.b64decode(packed["data"]) == b"\x00\x3c\x00\xb8"
    assert packed == {"data": packed["data"], "type": "float16", "shape": [1, 2], "scale": [1.0]}
