"""Changes of a replacement, planned first and carried out then; printed as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn

from lambdanets.console import one_line
from lambdanets.interop.dry_run import Trial
from lambdanets.interop.tree import parameters_of, swap
from lambdanets.names import count, first_of

__all__ = ["Change", "Kept", "Plan", "make_plan", "none_replaceable"]


@dataclass(frozen=True)
class Change:
    """One module that is replaced.

    Args:
        name: where it is in the model; "" is the model itself. The first name of a shared module.
        old: what stood there, in words.
        new: what stands there now, in words.
        parameters_before: of the module that was there.
        parameters_after: of the one that is there now.
        notes: what the new layer has no counterpart for, or does otherwise.
    """

    name: str
    old: str
    new: str
    parameters_before: int
    parameters_after: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """One module that was asked for and stays as it is, with the reason."""

    name: str
    old: str
    reason: str


@dataclass(frozen=True, eq=False)
class Plan:
    """Planned replacements; nothing is changed until :meth:`apply`. Prints as a table.

    Args:
        model: the model.
        changes: what is replaced, in the model's order.
        kept: what was asked for and cannot be replaced.
        parameters_before: of the whole model.
        parameters_after: of the whole model with the changes.
        not_run: why :meth:`apply` does not run the model to check the changes, where it could not be run
            before; None where it is run.
    """

    model: nn.Module = field(repr=False)
    changes: tuple[Change, ...]
    kept: tuple[Kept, ...]
    parameters_before: int
    parameters_after: int
    not_run: str | None = field(default=None, kw_only=True)
    _builders: Mapping[nn.Module, Callable[[], nn.Module]] = field(repr=False)
    _check: Callable[[nn.Module], None] | None = field(repr=False, default=None)
    _settings: Sequence[tuple[nn.Module, str, Any]] = field(repr=False, default=())

    def apply(self) -> nn.Module:
        """Carry the plan out, in place.

        Returns:
            The model; another object only where the model itself was the one module to replace.

        Raises:
            ValueError: if the model does not run with the new layers; it is then as it was before. Also if it is not
                the model any more that was planned for.
        """
        if not set(self._builders) <= set(self.model.modules()):
            raise ValueError("the model has changed since this plan was made (was it applied before?); make a new plan")
        new = {old: build() for old, build in self._builders.items()}
        changed = swap(self.model, new)
        settings_before = [(module, name, getattr(module, name)) for module, name, _ in self._settings]
        _set(self._settings)
        if self._check is not None:
            try:
                self._check(changed)
            except BaseException:  # Ctrl-C too
                swap(changed, {layer: old for old, layer in new.items()})
                _set(settings_before)
                raise
        return changed

    def __rich__(self) -> RenderableType:
        table = Table(caption=self._summary(), caption_justify="left", caption_style="bold")
        longest = max(len(change.name) for change in self.changes)
        table.add_column("module", overflow="fold", min_width=min(longest, 26))
        for column in ("was", "is now"):
            table.add_column(column, overflow="fold")
        table.add_column("parameters", justify="right", no_wrap=True)
        for change in self.changes:
            numbers = f"{change.parameters_before:,} -> {change.parameters_after:,}"
            row = [change.name or "(model)", change.old, change.new, numbers]
            # Text, since this may be printed on a console that takes strings for markup.
            table.add_row(*(Text(one_line(cell)) for cell in row))
        # Lines below it: a narrow terminal would cut a column of them off.
        noted: dict[tuple[str, ...], list[str]] = {}
        for change in self.changes:
            noted.setdefault(change.notes, []).append(change.name or "(model)")
        lines = [f"{first_of(names, 6)}: {'; '.join(notes)}" for notes, names in noted.items() if notes]
        lines += [f"kept {kept.name} ({kept.old}): {kept.reason}" for kept in self.kept]
        if self.not_run is not None:
            lines.append(f"not run: {self.not_run}; give example=... to check it, or run the model yourself")
        return Group(table, *(Text(one_line(line)) for line in lines))

    def __str__(self) -> str:
        console = Console(width=160, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def _summary(self) -> str:
        return (
            f"{count(len(self.changes), 'module', 'modules')} replaced, "
            f"{self.parameters_before:,} -> {self.parameters_after:,} parameters "
            f"({self.parameters_before / 1e6:.2f} M -> {self.parameters_after / 1e6:.2f} M)"
        )


def _set(settings: Sequence[tuple[nn.Module, str, Any]]) -> None:
    for module, name, value in settings:
        setattr(module, name, value)


def make_plan(
    model: nn.Module,
    changes: Mapping[nn.Module, Change],
    kept: tuple[Kept, ...],
    builders: Mapping[nn.Module, Callable[[], nn.Module]],
    trial: Trial,
    settings: Sequence[tuple[nn.Module, str, Any]] = (),
) -> Plan:
    """A plan with the whole model's parameters counted."""
    before = parameters_of(model)
    # A parameter that a replaced module shares with another one stays.
    after = parameters_of(model, without=changes) + sum(change.parameters_after for change in changes.values())
    return Plan(
        model, tuple(changes.values()), kept, before, after, builders, trial.check, settings, not_run=trial.not_run
    )


def none_replaceable(kept: Sequence[Kept], what: str) -> ValueError:
    """The error for a choice of which nothing can be replaced, with the first reasons."""
    reasons = first_of([f"{k.name} ({k.old}): {k.reason}" for k in kept], 4, "; ")
    return ValueError(f"none of the chosen {what} can be replaced: {reasons}")
