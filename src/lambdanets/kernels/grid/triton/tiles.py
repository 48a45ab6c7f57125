"""Parts of the Triton kernels: the skew, rows of a tile and of the table for query first, products for both.

Only operations of ``triton.language`` itself are used, none of its library (``tl.zeros``, ``tl.cdiv``): those are made
either for the GPU or for the interpreter when Triton is imported, which another package may have done before.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["SIZES", "dot", "load_rows", "load_table", "place_index", "skew", "store_rows", "unskew", "unskew_index"]

# Arguments that are numbers like any other: a kernel compiled for one shape serves all that have its tiles. Strides and
# depths are not among them, since loads are as wide as they are known to be divisible.
SIZES = (
    "batch", "heads", "U", "H", "W", "EY", "EX", "OY", "OX", "C0", "tiles_x", "tiles", "head_chunks", "depth_chunks",
    "d_first", "windows", "bands", "splits",
)  # fmt: skip


@triton.jit
def dot(a, b, UPCAST: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Product a @ b in float32. UPCAST is for the interpreter, whose bfloat16 products are wrong."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def place_index(B: tl.constexpr, HB: tl.constexpr):  # type: ignore[no-untyped-def]
    """Column of P that has the score of row (x, h) with context place c: c - x + B - 1; (B·HB, B)."""
    x = tl.arange(0, B * HB) // HB
    return tl.arange(0, B)[None, :] - x[:, None] + (B - 1)


@triton.jit
def unskew_index(B: tl.constexpr, HB: tl.constexpr):  # type: ignore[no-untyped-def]
    """The other way: context place of row (x, h) in column j of P, outside [0, B) where there is none; (B·HB, 2B)."""
    x = tl.arange(0, B * HB) // HB
    return tl.arange(0, 2 * B)[None, :] + x[:, None] - (B - 1)


@triton.jit
def _pack(a, b):  # type: ignore[no-untyped-def]
    low = a.to(tl.uint16, bitcast=True).to(tl.uint32)
    high = b.to(tl.uint16, bitcast=True).to(tl.uint32)
    return low | (high << 16)


@triton.jit
def _low(packed, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    return (packed & 0xFFFF).to(tl.uint16).to(dtype, bitcast=True)


@triton.jit
def _high(packed, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    return (packed >> 16).to(tl.uint16).to(dtype, bitcast=True)


@triton.jit
def skew(p0, p1, index, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """S of two groups of rows from their P, as ``dtype``: each row shifted by its place.

    Two numbers of 16 bits are packed into one of 32, since a shuffle moves 32 bits.
    """
    if dtype.primitive_bitwidth == 16:
        packed = tl.gather(_pack(p0.to(dtype), p1.to(dtype)), index, axis=1)
        s0 = _low(packed, dtype)
        s1 = _high(packed, dtype)
    else:
        s0 = tl.gather(p0, index, axis=1)
        s1 = tl.gather(p1, index, axis=1)
    return s0, s1


@triton.jit
def unskew(s0, s1, index, B: tl.constexpr, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """The transpose of :func:`skew`: from (B·HB, B) to (B·HB, 2B), zero where a column has no context place."""
    inside = (index >= 0) & (index < B)
    index = tl.where(inside, index, 0)
    if dtype.primitive_bitwidth == 16:
        packed = tl.gather(_pack(s0.to(dtype), s1.to(dtype)), index, axis=1)
        packed = tl.where(inside, packed, 0)
        p0 = _low(packed, dtype)
        p1 = _high(packed, dtype)
    else:
        p0 = tl.where(inside, tl.gather(s0, index, axis=1), 0.0)
        p1 = tl.where(inside, tl.gather(s1, index, axis=1), 0.0)
    return p0, p1


@triton.jit
def load_rows(  # type: ignore[no-untyped-def]
    pointer, stride_h, stride_n, stride_d, first_head, heads, y, x0, depth0, depth, height, width,
    B: tl.constexpr, HB: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Rows (x, h) of a tile of one row of the grid, (B·HB, DP); zero outside of the grid, the heads and the depth."""
    row = tl.arange(0, B * HB)
    x = x0 + row // HB
    head = first_head + row % HB
    d = depth0 + tl.arange(0, DP)
    inside = (x >= 0) & (x < width) & (head < heads) & (y >= 0) & (y < height)
    address = head * stride_h + (y * width + x) * stride_n
    return tl.load(
        pointer + address[:, None] + d[None, :] * stride_d, mask=inside[:, None] & (d < depth)[None, :], other=0.0
    )


@triton.jit
def load_table(table, dy, first, extent_y, extent_x, dim_key, B: tl.constexpr, KP: tl.constexpr):  # type: ignore[no-untyped-def]
    """R at row ``dy`` of the offsets and 2B columns from ``first`` on, (2B, KP); zero outside of the table."""
    o = first + tl.arange(0, 2 * B)
    k = tl.arange(0, KP)
    inside = (o >= 0) & (o < extent_x) & (dy >= 0) & (dy < extent_y)
    address = (dy * extent_x + o) * dim_key
    return tl.load(table + address[:, None] + k[None, :], mask=inside[:, None] & (k < dim_key)[None, :], other=0.0)


@triton.jit
def store_rows(  # type: ignore[no-untyped-def]
    pointer, tile, stride_h, stride_n, stride_d, first_head, heads, y, x0, depth0, depth, height, width,
    B: tl.constexpr, HB: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Write what :func:`load_rows` would read."""
    row = tl.arange(0, B * HB)
    x = x0 + row // HB
    head = first_head + row % HB
    d = depth0 + tl.arange(0, DP)
    inside = (x < width) & (head < heads) & (y < height)
    address = head * stride_h + (y * width + x) * stride_n
    tl.store(
        pointer + address[:, None] + d[None, :] * stride_d,
        tile.to(pointer.dtype.element_ty),
        mask=inside[:, None] & (d < depth)[None, :],
    )
