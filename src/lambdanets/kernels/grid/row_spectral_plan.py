"""Plan of row-spectral: points of the transforms, steps of rows, groups of examples, and the work of all of them.

All of it is for an image: a sequence is folded into one first (``folding.py``).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from lambdanets.kernels.grid.contract import GridProblem, Work
from lambdanets.kernels.grid.folding import fold
from lambdanets.kernels.slices import slices

__all__ = [
    "RowSpectralStep",
    "check",
    "examples_per_group",
    "num_frequencies",
    "reach",
    "row_steps",
    "sides",
    "transform_length",
    "work",
]

# Elements of λ̂ that some rows of some examples may have, unless one row of one example has more.
BLOCK_ELEMENTS = 1 << 20
# Columns from which products are not faster for more: so many examples' values go through at a time.
COLUMNS = 128
# Elements that T̂ of some rows may have, unless that of one row has more.
TOEPLITZ_ELEMENTS = 1 << 22
# Rows that a step may have whatever their scope is.
LEAST_ROWS = 8
# What one small product in a batch of them costs beside its multiply-adds, in moved elements.
SMALL_PRODUCT = 400
# Elements that λ̂ of one row and example, the table in frequencies or the matrix of a transform may have.
MAX_ELEMENTS = 1 << 26


def check(problem: GridProblem) -> str | None:
    """Return the reason why this kernel cannot run on ``problem``, or None."""
    if len(problem.grid) > 2:
        return f"it is for sequences and images, and this grid has rank {len(problem.grid)}"
    image = fold(problem)
    table = sum(reach(image)) + 1
    depth = max(image.dim_key * image.dim_value, image.dim_key * image.intra_depth * table, 2 * image.grid[1])
    count = 2 * num_frequencies(image) * depth
    if count > MAX_ELEMENTS:
        return f"its largest matrix would have {count:,} elements, more than {MAX_ELEMENTS:,}"
    return None


def transform_length(image: GridProblem) -> int:
    """Points of the transform along the second axis: no offset may wrap around into the grid.

    Any number will do, since the transform is a matrix product.
    """
    return image.grid[1] + max(sides(image, 1))


def num_frequencies(image: GridProblem) -> int:
    """Number of frequencies of real numbers: f = 0 .. L // 2 for L points."""
    return transform_length(image) // 2 + 1


def examples_per_group(image: GridProblem) -> int:
    """Number of examples of a group."""
    return max(1, min(image.batch, COLUMNS // max(1, image.dim_value)))


@dataclass(frozen=True)
class RowSpectralStep:
    """Some rows of queries and the rows of the context that they see.

    Args:
        rows: y of the queries.
        seen: z of the rows of the context, which count them in reverse.
    """

    rows: slice
    seen: slice

    @property
    def num_rows(self) -> int:
        """Number of rows of queries."""
        return self.rows.stop - self.rows.start

    @property
    def num_seen(self) -> int:
        """Number of rows of the context."""
        return self.seen.stop - self.seen.start


def rows_per_step(image: GridProblem) -> int:
    """Rows of a step; the last may have fewer.

    Not many more than one of them sees, since the others' columns of T̂ are zeros to it.
    """
    rows, extent = image.grid[0], image.extents[0]
    depth = 2 * num_frequencies(image) * image.dim_key
    by_lambdas = BLOCK_ELEMENTS // max(1, depth * image.dim_value * examples_per_group(image))
    # rows · (rows + extent) places of T̂ for each number of depth, where they do not see all rows.
    places = TOEPLITZ_ELEMENTS // max(1, depth * image.intra_depth)
    by_toeplitz = max(places // max(1, rows), (math.isqrt(extent * extent + 4 * places) - extent) // 2)
    most = max(1, min(rows, by_lambdas, by_toeplitz, max(extent * 5 // 4, LEAST_ROWS)))
    return math.ceil(rows / math.ceil(rows / most))


def sides(image: GridProblem, axis: int) -> tuple[int, int]:
    """The largest offsets back and ahead along an axis."""
    return image.origin[axis], image.extents[axis] - 1 - image.origin[axis]


def reach(image: GridProblem) -> tuple[int, int]:
    """Largest distances back and ahead that the rows of a step see together, counted from any of them."""
    back, ahead = (min(image.grid[0] - 1, side + rows_per_step(image) - 1) for side in sides(image, 0))
    return back, ahead


@functools.lru_cache(maxsize=1024)
def row_steps(image: GridProblem) -> tuple[RowSpectralStep, ...]:
    """The steps that have all rows of queries, in order."""
    rows, size = image.grid[0], rows_per_step(image)
    back, ahead = sides(image, 0)
    steps = []
    for some in slices(rows, size):
        seen = slice(rows - min(rows, some.stop + ahead), rows - max(0, some.start - back))
        steps.append(RowSpectralStep(some, seen))
    return tuple(steps)


def work(problem: GridProblem, backward: bool) -> Work:
    """Multiply-adds, elements of λ̂ and of T̂, and calls."""
    image = fold(problem)
    columns, steps, groups = image.grid[1], row_steps(image), math.ceil(image.batch / examples_per_group(image))
    values, points = image.batch * image.dim_value, 2 * num_frequencies(image)
    seen = sum(step.num_rows * step.num_seen for step in steps)
    toeplitz = num_frequencies(image) * image.dim_key * seen * 2 * image.intra_depth
    # T̂ is multiplied with the real and with the imaginary part of a value.
    # Back from frequencies; those of V and of the table are a small part of it.
    inverse = points * columns * image.dim_key * image.grid[0]
    apply = image.num_positions * image.heads * image.dim_key
    spectra = points * image.dim_key * image.grid[0] * values
    products = SMALL_PRODUCT * image.num_positions * image.batch
    calls = len(steps) * groups
    if backward:
        return Work(
            (6 * toeplitz + 2 * inverse + 2 * apply) * values,
            4 * spectra + 4 * toeplitz + 2 * products,
            60 + calls * 16 + len(steps) * image.batch * 5 + image.grid[0] * 2,
        )
    return Work(
        (2 * toeplitz + inverse + apply) * values,
        2 * spectra + toeplitz + products,
        30 + calls * 8 + len(steps) * image.batch * 3,
    )
