"""Rows of a study of trained models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lambdanets.experiments.paper import Figures

__all__ = ["Row", "compared_with", "forms_of"]


@dataclass(frozen=True)
class Row:
    """A row of a study.

    Args:
        stages: letters of the model's stages.
        lambda_args: arguments of its lambda layers.
        layer_args: arguments of its other layers, by letter.
        model_args: other arguments of its model.
        paper: the paper's figures for it, of which "params", "top1" and "rate" (0 where memory did not suffice) are
            shown.
        against: another row that its parameters and accuracy are compared with. Default: the first one.
        about: what it is, where its name does not say it.
        form_of: another row that computes the same numbers: that one is trained, and of this one the costs alone are
            measured. Default: none.
    """

    stages: str
    lambda_args: Mapping[str, Any] = field(default_factory=dict)
    layer_args: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    model_args: Mapping[str, Any] = field(default_factory=dict)
    paper: Figures = field(default_factory=dict)
    against: str | None = None
    about: str = ""
    form_of: str | None = None

    @property
    def trains(self) -> bool:
        """True if the row is trained, not another form of one that is."""
        return self.form_of is None


def compared_with(rows: Mapping[str, Row], name: str) -> str:
    """Return the name of the row that a row is compared with; the first one's is its own."""
    return rows[name].against or next(iter(rows))


def forms_of(rows: Mapping[str, Row], name: str) -> list[str]:
    """Return the names of a row and of its other forms."""
    return [name, *(other for other, row in rows.items() if row.form_of == name)]
