"""Compiles the Triton kernels for an H100 into results/ahead.csv: ``python scripts/collect_ahead.py``; needs no GPU."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from lambdanets.files import write_csv
from lambdanets.kernels.grid.triton import ahead
from lambdanets.provenance import package_version, source_commit

DEPTHS = (64, 16)


def rows(depth: int) -> list[dict[str, str]]:
    """What ``ahead --every --depth DEPTH`` prints, as rows."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        ahead.main(["--every", "--depth", str(depth)])
    header, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in printed.getvalue().split("\n")
    ]
    return [{"depth": str(depth), **dict(zip(header, line, strict=True))} for line in lines if len(line) > 1]


if __name__ == "__main__":
    versions = {"triton": package_version("triton"), "torch": package_version("torch"), "commit": source_commit()}
    found = [{**row, **versions} for depth in DEPTHS for row in rows(depth)]
    write_csv(Path(__file__).parents[1] / "results" / "ahead.csv", found)
