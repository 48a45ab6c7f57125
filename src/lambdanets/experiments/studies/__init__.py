"""The studies of ``lambdanets compare``, one file each: its question, its cells, how a cell is run, tables and plots.

Every file makes its study as ``STUDY``.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from lambdanets.experiments.compare.cell import coherent, read_cells
from lambdanets.experiments.compare.outcome import Outcome
from lambdanets.experiments.compare.study import Study
from lambdanets.names import unknown_name

__all__ = ["get_study", "list_studies", "read_outcome"]


def list_studies() -> list[str]:
    """Return the names of all studies."""
    return sorted(module.name for module in iter_modules(__path__))


def get_study(name: str) -> Study:
    """Return the study of that name.

    Raises:
        ValueError: if there is none; the message shows the nearest names.
    """
    if name not in list_studies():
        raise unknown_name("study", name, list_studies())
    study: Study = import_module(f"{__name__}.{name}").STUDY
    return study


def read_outcome(name: str, folder: Path) -> Outcome:
    """Return what the cells in a study's folder say.

    Args:
        name: of the study.
        folder: of the study, with ``cells/``.

    Raises:
        ValueError: if there is no such study or no cell, a cell is damaged, or cells are of several runs.
    """
    study = get_study(name)
    cells, damaged = read_cells(folder)
    if damaged:
        raise ValueError(f"{folder} has damaged cells: {'; '.join(damaged)}; run the study again")
    cells, others = coherent(cells)
    if others or not cells:
        raise ValueError(
            f"{folder} must have the cells of one run of the study {name}, got {len(cells)} and {len(others)} others, "
            "of another size, version or learning rate or of other data; delete those"
        )
    return study.outcome(cells)
