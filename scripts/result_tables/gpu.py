"""Kernels for GPUs, compiled ahead and counted."""

from __future__ import annotations

from collections.abc import Callable

from lambdanets import files
from lambdanets.markdown_text import markdown_table
from result_tables import RESULTS

__all__ = ["FIGURES", "TABLES"]


def _ahead() -> list[dict[str, str]]:
    return files.read_rows(RESULTS / "ahead.csv")


def _compiled(depth: int, lambda_first: bool) -> str:
    rows = [
        row for row in _ahead() if int(row["depth"]) == depth and row["kernel"].startswith("lambda_") == lambda_first
    ]
    header = [name for name in rows[0] if name not in ("depth", "triton", "torch", "commit")]
    table = markdown_table(header, [[row[name] for name in header] for row in rows])
    return f"{table}\n\nTriton {rows[0]['triton']}, lambdanets {rows[0]['commit']}."


def clocks() -> str:
    """Lower bounds of clocks for a score on an H100, by published rates and the counts of docs/gpu.md."""
    # Of one processor and clock (H100 SXM, published): multiply-adds in bfloat16, bytes of shared memory, shuffled
    # numbers, exponentials.
    products, shared, shuffles, exponentials = 2048, 128, 32, 16
    k, h, depths = 16, 4, (16, 32, 64, 128)
    addresses = next(row for row in _ahead() if row["kernel"] == "lambda_output" and row["depth"] == "16")
    lines: list[tuple[str, Callable[[int], float]]] = [
        ("query first: products, 2k + v", lambda v: (2 * k + v) / products),
        ("query first: skew, 12 bytes of shared memory and one shuffle", lambda v: 12 / shared + 1 / shuffles),
        ("flash attention: products, 2v", lambda v: 2 * v / products),
        ("flash attention: one exponential", lambda v: 1 / exponentials),
        ("lambda first: products, k v / h", lambda v: k * v / h / products),
        ("lambda first: instructions, by the table below", lambda v: float(addresses["clocks"]) * v / 16),
    ]
    cells = [[name, *(f"{clocks_of(v):.3f}" for v in depths)] for name, clocks_of in lines]
    return markdown_table(["clocks for a score", *(f"v = {v}" for v in depths)], cells)


TABLES: dict[str, Callable[[], str]] = {
    "ahead-lambda-first": lambda: _compiled(16, lambda_first=True),
    "ahead-query-first": lambda: _compiled(64, lambda_first=False),
    "clocks": clocks,
}
FIGURES: dict[str, Callable[[], str]] = {}
