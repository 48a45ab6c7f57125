"""The four Triton kernels of the position term, query first: output, and gradients of query, value and table.

A tile of queries is B places of one row of the grid times HB heads: rows (x, h). A tile of context is B places of one
row. Their offsets along the row are 2B - 1 numbers, so that

    P = q · R[Δy, 2B offsets]ᵀ,    S[(x, h), x'] = P[(x, h), x' - x + B - 1],    y += S · V[x'].

Each program holds two groups of such rows, which are skewed together (see ``tiles.skew``): two rows of the grid
(GY = 1), or two sets of heads (GH = HB). Context tiles start at x0 + C0 + d·B: aligned with the grid for a context as
wide as the grid (C0 = 0), with the first offset for a narrower one (C0 = -OX).

Every sum has one program and one order: no atomics, the same bits in every run.

**A worked example**, with a tile of 4 places (16 is the least in use): an image of H = 4 rows and W = 12 columns, 2
heads, a table of 3x3 offsets (EY = EX = 3, OY = OX = 1). A row has tiles_x = 3 tiles, rows go in pairs (GY = 1, GH = 0,
HB = 2), so there are tiles = 3 · 2 of queries. A tile's context is 4 + 3 - 1 = 6 columns wide, 2 tiles from its first
offset on instead of the 3 of the whole row: C0 = -1.

*Output*, the program with tile = 4: i = 1 and y = 2, so its two groups are the places 4 to 7 of the rows 2 and 3. They
see the columns 3 to 8 of the rows 1 to 3 = y_low .. y_high - 1, in the context tiles d = 0, from column x0 + C0 = 3 on,
and d = 1, from 7 on: 3 · 2 steps of one loop, d the faster. The step yc = 1, d = 0 has the offsets -4 .. 3 along the
row, the 2B columns of the table from first = -3 on:

    column j of P              0   1   2   3   4   5   6   7
    column of the table       -3  -2  -1   0   1   2   3   4     outside of 0 .. 2: zeros
    offset along the row      -4  -3  -2  -1   0   1   2   3

    row of S, c = 0 .. 3: columns of P      x = 0: 3 4 5 6     x = 1: 2 3 4 5     x = 2: 1 2 3 4     x = 3: 0 1 2 3

Place x = 0 (column 4 of the image) has the context columns 3, 4, 5 in its scope, c = 0, 1, 2: the offsets -1, 0, 1.
The row 2 of the first group takes row yc - y + OY = 0 of the table; for row 3 of the second group that is -1, zeros.

*Query gradient*: the same programs and steps, with dS in place of S shifted the other way, column c of row x to j.

*Value gradient*, the program of the context tile i = 1 of row yc = 1, the places 4 to 7. The rows 0 to 2 = y_low ..
y_high - 1 see it, which make 2 pairs, and the columns 3 to 8: query tiles from xc + C0 + d·B = 3 and 7 on. In the
second pair row 3 is too far away: its offset is outside of the table, so it adds zeros.

*Table gradient*: dR of one row of the table has windows = 2 windows of 2B = 8 columns, from -3 and from 1 on; a program
for each window, row and part of the batch. That of the first window pairs the query tiles i = 0 .. 2 of all rows with
the context tiles one column before them; ``_joined`` in ``query_first.py`` adds the columns that both windows have.

Letters: H, W the grid; EY, EX extents of the table and OY, OX its offset 0; U intra-depth, K and D the depths of query
and value, KP and DP padded to what tensor cores take. The table is (u, EY, EX, K), contiguous. Of a program's number
the tile counts fastest, then parts of the depth, sets of heads or u, and examples.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lambdanets.kernels.grid.triton.tiles import (
    SIZES,
    dot,
    load_rows,
    load_table,
    place_index,
    skew,
    store_rows,
    unskew,
    unskew_index,
)

__all__ = ["output_kernel", "query_gradient_kernel", "table_gradient_kernel", "value_gradient_kernel"]


@triton.jit(do_not_specialize=SIZES)
def output_kernel(  # type: ignore[no-untyped-def]
    Q, V, T, Y,
    sqb, sqh, sqn, sqk, svb, svu, svn, svd, sob, soh, son, sod,
    heads, U, K, D, H, W, EY, EX, OY, OX, C0, tiles_x, tiles, head_chunks, depth_chunks,
    B: tl.constexpr, HB: tl.constexpr, KP: tl.constexpr, DP: tl.constexpr,
    GY: tl.constexpr, GH: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output y of two groups of rows and DP channels; one program for each."""
    dtype: tl.constexpr = V.dtype.element_ty
    pid = tl.program_id(0)
    tile, pid = pid % tiles, pid // tiles
    depth0, pid = (pid % depth_chunks) * DP, pid // depth_chunks
    head0, b = (pid % head_chunks) * (HB + GH), (pid // head_chunks).to(tl.int64)
    i, y = tile % tiles_x, (tile // tiles_x) * (1 + GY)
    x0 = i * B
    q0 = load_rows(Q + b * sqb, sqh, sqn, sqk, head0, heads, y, x0, 0, K, H, W, B, HB, KP)
    q1 = load_rows(Q + b * sqb, sqh, sqn, sqk, head0 + GH, heads, y + GY, x0, 0, K, H, W, B, HB, KP)
    index = place_index(B, HB)
    acc0 = tl.full((B * HB, DP), 0.0, tl.float32)
    acc1 = tl.full((B * HB, DP), 0.0, tl.float32)
    y_low, y_high = max(0, y - OY), min(H, y + GY + EY - OY)
    d_low = (max(0, x0 - OX) - C0) // B - i
    d_high = (min(W, x0 + B + EX - 1 - OX) - C0 + B - 1) // B - i
    for u in range(U):
        yc, d = y_low, d_low
        for _ in range((y_high - y_low) * (d_high - d_low)):
            first = C0 + d * B - (B - 1) + OX
            t0 = load_table(T + u * EY * EX * K, yc - y + OY, first, EY, EX, K, B, KP)
            p0 = dot(q0, t0.T, UPCAST, PRECISION)
            if GY:
                t1 = load_table(T + u * EY * EX * K, yc - y - 1 + OY, first, EY, EX, K, B, KP)
                p1 = dot(q1, t1.T, UPCAST, PRECISION)
            else:
                p1 = dot(q1, t0.T, UPCAST, PRECISION)
            s0, s1 = skew(p0, p1, index, dtype)
            v = load_rows(V + b * svb + u * svu, 0, svn, svd, 0, 1, yc, x0 + C0 + d * B, depth0, D, H, W, B, 1, DP)
            acc0 += dot(s0, v, UPCAST, PRECISION)
            acc1 += dot(s1, v, UPCAST, PRECISION)
            d += 1
            yc = tl.where(d == d_high, yc + 1, yc)
            d = tl.where(d == d_high, d_low, d)
    store_rows(Y + b * sob, acc0, soh, son, sod, head0, heads, y, x0, depth0, D, H, W, B, HB, DP)
    store_rows(Y + b * sob, acc1, soh, son, sod, head0 + GH, heads, y + GY, x0, depth0, D, H, W, B, HB, DP)


@triton.jit(do_not_specialize=SIZES)
def query_gradient_kernel(  # type: ignore[no-untyped-def]
    G, V, T, Y,
    sgb, sgh, sgn, sgd, svb, svu, svn, svd, sob, soh, son, sok,
    heads, U, K, D, H, W, EY, EX, OY, OX, C0, tiles_x, tiles, head_chunks, depth_chunks,
    B: tl.constexpr, HB: tl.constexpr, KP: tl.constexpr, DP: tl.constexpr,
    GY: tl.constexpr, GH: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Query gradient, dq = dP · R with dS = g · Vᵀ shifted back to dP; one program for two groups of rows."""
    dtype: tl.constexpr = V.dtype.element_ty
    pid = tl.program_id(0)
    tile, pid = pid % tiles, pid // tiles
    head0, b = (pid % head_chunks) * (HB + GH), (pid // head_chunks).to(tl.int64)
    i, y = tile % tiles_x, (tile // tiles_x) * (1 + GY)
    x0 = i * B
    index = unskew_index(B, HB)
    acc0 = tl.full((B * HB, KP), 0.0, tl.float32)
    acc1 = tl.full((B * HB, KP), 0.0, tl.float32)
    y_low, y_high = max(0, y - OY), min(H, y + GY + EY - OY)
    d_low = (max(0, x0 - OX) - C0) // B - i
    d_high = (min(W, x0 + B + EX - 1 - OX) - C0 + B - 1) // B - i
    for part in range(U * depth_chunks):
        u, depth0 = part // depth_chunks, (part % depth_chunks) * DP
        g0 = load_rows(G + b * sgb, sgh, sgn, sgd, head0, heads, y, x0, depth0, D, H, W, B, HB, DP)
        g1 = load_rows(G + b * sgb, sgh, sgn, sgd, head0 + GH, heads, y + GY, x0, depth0, D, H, W, B, HB, DP)
        yc, d = y_low, d_low
        for _ in range((y_high - y_low) * (d_high - d_low)):
            v = load_rows(V + b * svb + u * svu, 0, svn, svd, 0, 1, yc, x0 + C0 + d * B, depth0, D, H, W, B, 1, DP)
            s0 = dot(g0, v.T, UPCAST, PRECISION)
            s1 = dot(g1, v.T, UPCAST, PRECISION)
            p0, p1 = unskew(s0, s1, index, B, dtype)
            first = C0 + d * B - (B - 1) + OX
            t0 = load_table(T + u * EY * EX * K, yc - y + OY, first, EY, EX, K, B, KP)
            acc0 += dot(p0, t0, UPCAST, PRECISION)
            if GY:
                t1 = load_table(T + u * EY * EX * K, yc - y - 1 + OY, first, EY, EX, K, B, KP)
                acc1 += dot(p1, t1, UPCAST, PRECISION)
            else:
                acc1 += dot(p1, t0, UPCAST, PRECISION)
            d += 1
            yc = tl.where(d == d_high, yc + 1, yc)
            d = tl.where(d == d_high, d_low, d)
    store_rows(Y + b * sob, acc0, soh, son, sok, head0, heads, y, x0, 0, K, H, W, B, HB, KP)
    store_rows(Y + b * sob, acc1, soh, son, sok, head0 + GH, heads, y + GY, x0, 0, K, H, W, B, HB, KP)


@triton.jit(do_not_specialize=SIZES)
def value_gradient_kernel(  # type: ignore[no-untyped-def]
    G, Q, T, Y,
    sgb, sgh, sgn, sgd, sqb, sqh, sqn, sqk, sob, sou, son, sod,
    heads, U, K, D, H, W, EY, EX, OY, OX, C0, tiles_x, tiles, head_chunks, depth_chunks,
    B: tl.constexpr, HB: tl.constexpr, KP: tl.constexpr, DP: tl.constexpr,
    GY: tl.constexpr, GH: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Value gradient, dV = Sᵀ · g of one tile of context and DP channels: S made again for all queries that see it.

    C0 is that of the queries here: their tiles start at xc + C0 + d·B, with C0 = 0 or the negative reach back.
    """
    dtype: tl.constexpr = G.dtype.element_ty
    pid = tl.program_id(0)
    tile, pid = pid % tiles, pid // tiles
    depth0, pid = (pid % depth_chunks) * DP, pid // depth_chunks
    u, b = pid % U, (pid // U).to(tl.int64)
    i, yc = tile % tiles_x, tile // tiles_x
    xc = i * B
    index = place_index(B, HB)
    acc = tl.full((B, DP), 0.0, tl.float32)
    reach = EX - 1 - OX
    y_low, y_high = max(0, yc + OY - EY + 1), min(H, yc + OY + 1)
    d_low = (max(0, xc - reach) - C0) // B - i
    d_high = (min(W, xc + B + OX) - C0 + B - 1) // B - i
    pairs = (y_high - y_low + GY) // (1 + GY)
    for chunk in range(head_chunks):
        head0 = chunk * (HB + GH)
        y, d = y_low, d_low
        for _ in range(pairs * (d_high - d_low)):
            x0 = xc + C0 + d * B
            first = OX - C0 - d * B - (B - 1)
            q0 = load_rows(Q + b * sqb, sqh, sqn, sqk, head0, heads, y, x0, 0, K, H, W, B, HB, KP)
            q1 = load_rows(Q + b * sqb, sqh, sqn, sqk, head0 + GH, heads, y + GY, x0, 0, K, H, W, B, HB, KP)
            t0 = load_table(T + u * EY * EX * K, yc - y + OY, first, EY, EX, K, B, KP)
            p0 = dot(q0, t0.T, UPCAST, PRECISION)
            if GY:
                # The row after the last that sees this context has an offset outside of the table, so zeros.
                t1 = load_table(T + u * EY * EX * K, yc - y - 1 + OY, first, EY, EX, K, B, KP)
                p1 = dot(q1, t1.T, UPCAST, PRECISION)
            else:
                p1 = dot(q1, t0.T, UPCAST, PRECISION)
            s0, s1 = skew(p0, p1, index, dtype)
            g0 = load_rows(G + b * sgb, sgh, sgn, sgd, head0, heads, y, x0, depth0, D, H, W, B, HB, DP)
            g1 = load_rows(G + b * sgb, sgh, sgn, sgd, head0 + GH, heads, y + GY, x0, depth0, D, H, W, B, HB, DP)
            acc += dot(s0.T, g0, UPCAST, PRECISION)
            acc += dot(s1.T, g1, UPCAST, PRECISION)
            d += 1
            y = tl.where(d == d_high, y + 1 + GY, y)
            d = tl.where(d == d_high, d_low, d)
    store_rows(Y + b * sob + u * sou, acc, 0, son, sod, 0, 1, yc, xc, depth0, D, H, W, B, 1, DP)


@triton.jit(do_not_specialize=SIZES)
def table_gradient_kernel(  # type: ignore[no-untyped-def]
    G, Q, V, Y,
    sgb, sgh, sgn, sgd, sqb, sqh, sqn, sqk, svb, svu, svn, svd,
    batch, heads, U, K, D, H, W, EY, EX, OY, OX, C0, d_first, windows, splits, head_chunks, depth_chunks,
    B: tl.constexpr, HB: tl.constexpr, KP: tl.constexpr, DP: tl.constexpr,
    GY: tl.constexpr, GH: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Table gradient, dR, of 2B neighbouring offsets of one row of the table, summed over every ``splits``-th example.

    Y is (splits, u, EY, windows, KP, 2B) in float32; the windows overlap by half and are added up outside.
    """
    dtype: tl.constexpr = V.dtype.element_ty
    pid = tl.program_id(0)
    place = pid
    window, pid = pid % windows, pid // windows
    row, pid = pid % EY, pid // EY
    u, split = pid % U, pid // U
    dy, step = row - OY, C0 + (window + d_first) * B
    y_low, y_high = max(0, -dy), min(H, H - dy)
    # Query tiles whose context tile, x0 + step, is on the grid somewhere.
    i_low = max(0, -step) // B
    i_high = (min(W, W - step) + B - 1) // B
    index = unskew_index(B, HB)
    acc = tl.full((KP, 2 * B), 0.0, tl.float32)
    pairs = max(0, (y_high - y_low + GY) // (1 + GY))
    count = max(0, i_high - i_low) * pairs * ((batch - split + splits - 1) // splits)
    for part in range(head_chunks * depth_chunks):
        head0, depth0 = (part // depth_chunks) * (HB + GH), (part % depth_chunks) * DP
        b, y, i = split.to(tl.int64), y_low, i_low
        for _ in range(count):
            x0 = i * B
            g0 = load_rows(G + b * sgb, sgh, sgn, sgd, head0, heads, y, x0, depth0, D, H, W, B, HB, DP)
            g1 = load_rows(G + b * sgb, sgh, sgn, sgd, head0 + GH, heads, y + GY, x0, depth0, D, H, W, B, HB, DP)
            v0 = load_rows(V + b * svb + u * svu, 0, svn, svd, 0, 1, y + dy, x0 + step, depth0, D, H, W, B, 1, DP)
            s0 = dot(g0, v0.T, UPCAST, PRECISION)
            if GY:
                v1 = load_rows(
                    V + b * svb + u * svu, 0, svn, svd, 0, 1, y + 1 + dy, x0 + step, depth0, D, H, W, B, 1, DP
                )
                s1 = dot(g1, v1.T, UPCAST, PRECISION)
            else:
                s1 = dot(g1, v0.T, UPCAST, PRECISION)
            p0, p1 = unskew(s0, s1, index, B, dtype)
            q0 = load_rows(Q + b * sqb, sqh, sqn, sqk, head0, heads, y, x0, 0, K, H, W, B, HB, KP)
            q1 = load_rows(Q + b * sqb, sqh, sqn, sqk, head0 + GH, heads, y + GY, x0, 0, K, H, W, B, HB, KP)
            acc += dot(q0.T, p0, UPCAST, PRECISION)
            acc += dot(q1.T, p1, UPCAST, PRECISION)
            i += 1
            y = tl.where(i == i_high, y + 1 + GY, y)
            i = tl.where(i == i_high, i_low, i)
            b = tl.where(y >= y_high, b + splits, b)
            y = tl.where(y >= y_high, y_low, y)
    k = tl.arange(0, KP)
    o = tl.arange(0, 2 * B)
    tl.store(Y + place.to(tl.int64) * (KP * 2 * B) + k[:, None] * (2 * B) + o[None, :], acc)
