"""The studies of ``lambdanets compare``, one file each: its question, its cells, how a cell is run, tables and plots.

Every file makes its study as ``STUDY``.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from lambdanets.experiments.compare.study import Study
from lambdanets.names import unknown_name

__all__ = ["get_study", "list_studies"]


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
