"""The four Triton kernels of the position term, lambda first: output, and gradients of query, value and table.

A tile of queries is NB positions, with K numbers of each: rows (n, k). Columns (b, d) are the value depth of BB
examples. λp of such a tile is a product with the context in depth,

    λ[(n, k), (b, d)] = Σ_m E[(n, k), m] · V[m, (b, d)],

whose left operand is loaded from the table at computed addresses: the table stays in the cache, E is never written
out. Queries are applied to λ in registers, so that λ never leaves a program either. Gradients turn the product round:
with dλ[(n, k), (b, d)] = Σ_h q[b, h, n, k] · g[b, h, n, d], made where it is needed, dV = Eᵀ · dλ and dE = dλ · Vᵀ.

Positions are counted through the rows of the grid, so that no tile ends with a row. Every sum has one program and one
order: no atomics, the same bits in every run.

Letters: H, W the grid and N = H·W; EY, EX extents of the table and OY, OX its offset 0; U intra-depth, K and D the
depths of query and value, KP and DP padded to powers of 2; BM context positions of a step. The table is
(u, EY, EX, K), contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lambdanets.kernels.grid.triton.tiles import SIZES, dot

__all__ = [
    "lambda_output_kernel",
    "lambda_query_gradient_kernel",
    "lambda_table_gradient_kernel",
    "lambda_value_gradient_kernel",
]


@triton.jit
def _sum(a, axis: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sum along an axis, with the function that ``tl.sum`` passes to ``tl.reduce``.

    ``tl.sum`` itself is made for the GPU or for the interpreter when Triton is imported; what it calls serves both. A
    private name, as seen in Triton 3.8; where it is gone, the kernels do not compile.
    """
    return tl.reduce(a, axis, tl.standard._sum_combine)


@triton.jit
def _load_embedding(  # type: ignore[no-untyped-def]
    table, y, x, k, seen, yc, xc, seen_context, K, EY, EX, OY, OX
):  # fmt: skip
    """E of rows (n, k) at y, x and columns m at yc, xc; zero outside of the table and where not ``seen``."""
    dy = yc[None, :] - y[:, None] + OY
    dx = xc[None, :] - x[:, None] + OX
    inside = (dy >= 0) & (dy < EY) & (dx >= 0) & (dx < EX)
    inside = inside & (seen & (k < K))[:, None] & seen_context[None, :]
    return tl.load(table + (dy * EX + dx) * K + k[:, None], mask=inside, other=0.0)


@triton.jit
def _load_columns(  # type: ignore[no-untyped-def]
    pointer, stride_b, stride_n, stride_d, position, inside, examples, depth, BB: tl.constexpr, DP: tl.constexpr
):  # fmt: skip
    """Positions and the depth of BB examples, (positions, BB·DP)."""
    column = tl.arange(0, BB * DP)
    b = column // DP
    d = column % DP
    return tl.load(
        pointer + position[:, None] * stride_n + (b * stride_b + d * stride_d)[None, :],
        mask=inside[:, None] & ((b < examples) & (d < depth))[None, :],
        other=0.0,
    )


@triton.jit
def _load_queries(  # type: ignore[no-untyped-def]
    pointer, stride_b, stride_n, stride_k, position, inside, examples, depth, KP: tl.constexpr, BB: tl.constexpr
):  # fmt: skip
    """Queries of one head, (NB, KP, BB), in float32."""
    k = tl.arange(0, KP)
    b = tl.arange(0, BB)
    address = position[:, None, None] * stride_n + k[None, :, None] * stride_k + b[None, None, :] * stride_b
    mask = inside[:, None, None] & (k < depth)[None, :, None] & (b < examples)[None, None, :]
    return tl.load(pointer + address, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_gradient(  # type: ignore[no-untyped-def]
    pointer, stride_b, stride_n, stride_d, position, inside, examples, depth, BB: tl.constexpr, DP: tl.constexpr
):  # fmt: skip
    """The output's gradient of one head, (NB, BB, DP), in float32."""
    b = tl.arange(0, BB)
    d = tl.arange(0, DP)
    address = position[:, None, None] * stride_n + b[None, :, None] * stride_b + d[None, None, :] * stride_d
    mask = inside[:, None, None] & (b < examples)[None, :, None] & (d < depth)[None, None, :]
    return tl.load(pointer + address, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _lambdas(  # type: ignore[no-untyped-def]
    V, T, svb, svu, svn, svd, n0, examples, U, K, D, H, W, EY, EX, OY, OX,
    NB: tl.constexpr, KP: tl.constexpr, BB: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """λ of NB positions from ``n0`` on, (NB, KP, BB, DP), in float32."""
    row = tl.arange(0, NB * KP)
    n = n0 + row // KP
    k = row % KP
    y = n // W
    x = n % W
    first, last = n0 // W, min(n0 + NB, H * W) - 1
    yc_low, yc_high = max(0, first - OY), min(H, last // W + EY - OY)
    # Of a tile within one row, only the places that it sees; else all.
    x0 = n0 % W
    x_low = tl.where(last // W == first, max(0, x0 - OX), 0)
    x_high = tl.where(last // W == first, min(W, x0 + NB - 1 + EX - OX), W)
    across = x_high - x_low
    count = (yc_high - yc_low) * across
    acc = tl.full((NB * KP, BB * DP), 0.0, tl.float32)
    for u in range(U):
        for m0 in range(0, count, BM):
            m = m0 + tl.arange(0, BM)
            yc = yc_low + m // across
            xc = x_low + m % across
            e = _load_embedding(T + u * EY * EX * K, y, x, k, n < H * W, yc, xc, m < count, K, EY, EX, OY, OX)
            v = _load_columns(V + u * svu, svb, svn, svd, yc * W + xc, m < count, examples, D, BB, DP)
            acc += dot(e, v, UPCAST, PRECISION)
    return acc.reshape(NB, KP, BB, DP)


@triton.jit(do_not_specialize=SIZES)
def lambda_output_kernel(  # type: ignore[no-untyped-def]
    Q, V, T, Y,
    sqb, sqh, sqn, sqk, svb, svu, svn, svd, sob, soh, son, sod,
    batch, heads, U, K, D, H, W, EY, EX, OY, OX, tiles,
    NB: tl.constexpr, KP: tl.constexpr, BB: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output y = qᵀ λ of NB positions, BB examples and all heads; one program for each."""
    pid = tl.program_id(0)
    n0 = (pid % tiles) * NB
    b0 = ((pid // tiles) * BB).to(tl.int64)
    examples = batch - (pid // tiles) * BB
    lambdas = _lambdas(
        V + b0 * svb, T, svb, svu, svn, svd, n0, examples, U, K, D, H, W, EY, EX, OY, OX,
        NB, KP, BB, DP, BM, UPCAST, PRECISION,
    )  # fmt: skip
    n = n0 + tl.arange(0, NB)
    inside = n < H * W
    b = tl.arange(0, BB)
    d = tl.arange(0, DP)
    address = n[:, None, None] * son + b[None, :, None] * sob + d[None, None, :] * sod
    mask = inside[:, None, None] & (b < examples)[None, :, None] & (d < D)[None, None, :]
    for head in range(heads):
        q = _load_queries(Q + b0 * sqb + head * sqh, sqb, sqn, sqk, n, inside, examples, K, KP, BB)
        out = _sum(lambdas * q[:, :, :, None], 1)
        tl.store(Y + b0 * sob + head * soh + address, out.to(Y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def lambda_query_gradient_kernel(  # type: ignore[no-untyped-def]
    G, V, T, Y,
    sgb, sgh, sgn, sgd, svb, svu, svn, svd, sob, soh, son, sok,
    batch, heads, U, K, D, H, W, EY, EX, OY, OX, tiles,
    NB: tl.constexpr, KP: tl.constexpr, BB: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Query gradient dq = λ g of NB positions, BB examples and all heads, λ made again; one program for each."""
    pid = tl.program_id(0)
    n0 = (pid % tiles) * NB
    b0 = ((pid // tiles) * BB).to(tl.int64)
    examples = batch - (pid // tiles) * BB
    lambdas = _lambdas(
        V + b0 * svb, T, svb, svu, svn, svd, n0, examples, U, K, D, H, W, EY, EX, OY, OX,
        NB, KP, BB, DP, BM, UPCAST, PRECISION,
    )  # fmt: skip
    n = n0 + tl.arange(0, NB)
    inside = n < H * W
    k = tl.arange(0, KP)
    b = tl.arange(0, BB)
    address = n[:, None, None] * son + k[None, :, None] * sok + b[None, None, :] * sob
    mask = inside[:, None, None] & (k < K)[None, :, None] & (b < examples)[None, None, :]
    for head in range(heads):
        g = _load_gradient(G + b0 * sgb + head * sgh, sgb, sgn, sgd, n, inside, examples, D, BB, DP)
        out = _sum(lambdas * g[:, None, :, :], 3)
        tl.store(Y + b0 * sob + head * soh + address, out.to(Y.dtype.element_ty), mask=mask)


@triton.jit
def _lambda_gradient(  # type: ignore[no-untyped-def]
    G, Q, sgb, sgh, sgn, sgd, sqb, sqh, sqn, sqk, position, inside, examples, heads, K, D, dtype: tl.constexpr,
    NB: tl.constexpr, KP: tl.constexpr, BB: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """dλ of NB positions, (NB·KP, BB·DP), summed over the heads in float32, as ``dtype``."""
    acc = tl.full((NB, KP, BB, DP), 0.0, tl.float32)
    for head in range(heads):
        q = _load_queries(Q + head * sqh, sqb, sqn, sqk, position, inside, examples, K, KP, BB)
        g = _load_gradient(G + head * sgh, sgb, sgn, sgd, position, inside, examples, D, BB, DP)
        acc += q[:, :, :, None] * g[:, None, :, :]
    return acc.reshape(NB * KP, BB * DP).to(dtype)


@triton.jit(do_not_specialize=SIZES)
def lambda_value_gradient_kernel(  # type: ignore[no-untyped-def]
    G, Q, T, Y,
    sgb, sgh, sgn, sgd, sqb, sqh, sqn, sqk, sob, sou, son, sod,
    batch, heads, U, K, D, H, W, EY, EX, OY, OX, tiles,
    NB: tl.constexpr, KP: tl.constexpr, BB: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Value gradient dV = Eᵀ dλ of BM context positions and BB examples; one program for each of them and u."""
    pid = tl.program_id(0)
    m0 = (pid % tiles) * BM
    u = (pid // tiles) % U
    group = pid // tiles // U
    b0 = (group * BB).to(tl.int64)
    examples = batch - group * BB
    m = m0 + tl.arange(0, BM)
    inside = m < H * W
    yc = m // W
    xc = m % W
    first, last = m0 // W, min(m0 + BM, H * W) - 1
    y_low, y_high = max(0, first + OY - EY + 1), min(H, last // W + OY + 1)
    # Of a tile within one row, only the places that see it; else all.
    x0 = m0 % W
    x_low = tl.where(last // W == first, max(0, x0 + OX - EX + 1), 0)
    x_high = tl.where(last // W == first, min(W, x0 + BM + OX), W)
    across = x_high - x_low
    count = (y_high - y_low) * across
    i = tl.arange(0, NB)
    row = tl.arange(0, NB * KP)
    acc = tl.full((BM, BB * DP), 0.0, tl.float32)
    for j0 in range(0, count, NB):
        j = j0 + i
        position = (y_low + j // across) * W + x_low + j % across
        gradient = _lambda_gradient(
            G + b0 * sgb, Q + b0 * sqb, sgb, sgh, sgn, sgd, sqb, sqh, sqn, sqk,
            position, j < count, examples, heads, K, D, G.dtype.element_ty, NB, KP, BB, DP,
        )  # fmt: skip
        j = j0 + row // KP
        y = y_low + j // across
        x = x_low + j % across
        e = _load_embedding(T + u * EY * EX * K, y, x, row % KP, j < count, yc, xc, inside, K, EY, EX, OY, OX)
        acc += dot(e.T, gradient, UPCAST, PRECISION)
    column = tl.arange(0, BB * DP)
    b = column // DP
    d = column % DP
    tl.store(
        Y + b0 * sob + u * sou + m[:, None] * son + (b * sob + d * sod)[None, :],
        acc.to(Y.dtype.element_ty),
        mask=inside[:, None] & ((b < examples) & (d < D))[None, :],
    )


@triton.jit(do_not_specialize=SIZES)
def lambda_table_gradient_kernel(  # type: ignore[no-untyped-def]
    G, Q, V, Y,
    sgb, sgh, sgn, sgd, sqb, sqh, sqn, sqk, svb, svu, svn, svd,
    batch, heads, U, K, D, H, W, EY, EX, OY, OX, bands, windows, splits,
    NB: tl.constexpr, KP: tl.constexpr, BB: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BX: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Table gradient, dE = dλ Vᵀ of NB neighbouring queries and BM context places at one distance, summed over all
    such tiles of the grid and every ``splits``-th group of examples.

    The places are BX of each row of a band of BM / BX rows: gradients of λ are made once for all of them.

    Y is (splits, u, bands, windows, NB·KP, rows, BX) in float32; entry (i, k, row, c) belongs to the column
    c - i + window·BX of the table, so that the diagonals are added up outside.
    """
    RY: tl.constexpr = BM // BX
    pid = tl.program_id(0)
    place = pid
    window, pid = pid % windows, pid // windows
    band, pid = pid % bands, pid // bands
    u, split = pid % U, pid // U
    dy, step = band * RY - OY, window * BX - OX
    y_low, y_high = max(0, 1 - RY - dy), min(H, H - dy)
    # Tiles of queries whose context, from x0 + step on, is on the grid somewhere.
    i_low = max(0, -step - BX + 1) // NB
    i_high = (min(W, W - step) + NB - 1) // NB
    across = max(0, i_high - i_low)
    tiles = max(0, y_high - y_low) * across
    groups = (batch + BB - 1) // BB
    i = tl.arange(0, NB)
    j = tl.arange(0, BM)
    acc = tl.full((NB * KP, BM), 0.0, tl.float32)
    for part in range(tiles * ((groups - split + splits - 1) // splits)):
        group = split + part // tiles * splits
        b0 = (group * BB).to(tl.int64)
        examples = batch - group * BB
        y = y_low + part % tiles // across
        x0 = (i_low + part % tiles % across) * NB
        gradient = _lambda_gradient(
            G + b0 * sgb, Q + b0 * sqb, sgb, sgh, sgn, sgd, sqb, sqh, sqn, sqk,
            y * W + x0 + i, x0 + i < W, examples, heads, K, D, V.dtype.element_ty, NB, KP, BB, DP,
        )  # fmt: skip
        yc = y + dy + j // BX
        xc = x0 + step + j % BX
        inside = (yc >= 0) & (yc < H) & (xc >= 0) & (xc < W)
        v = _load_columns(V + b0 * svb + u * svu, svb, svn, svd, yc * W + xc, inside, examples, D, BB, DP)
        acc += dot(gradient, v.T, UPCAST, PRECISION)
    r = tl.arange(0, NB * KP)
    tl.store(Y + place.to(tl.int64) * (NB * KP * BM) + r[:, None] * BM + j[None, :], acc)
