"""A data specification in its parts: ``KIND`` or ``KIND:PLACE``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataSpec:
    """A data specification; ``str`` gives the text that ``parse`` takes.

    Attributes:
        kind: ``"digits"``, ``"fashion-mnist"``, ``"imagefolder"`` or ``"READER/NAME"``.
        place: the folder, or the root of a reader; None where there is no colon.
    """

    kind: str
    place: str | None = None

    @classmethod
    def parse(cls, text: str) -> DataSpec:
        """Divide a text at its first colon; nothing is looked up."""
        kind, colon, place = text.partition(":")
        return cls(kind, place if colon else None)

    def __str__(self) -> str:
        return self.kind if self.place is None else f"{self.kind}:{self.place}"

    @property
    def folder(self) -> str:
        """Last part of the place, "" without one."""
        return Path(self.place or "").name

    @property
    def label(self) -> str:
        """Name of the data for people: without the folders above them."""
        if self.kind == "imagefolder":
            return self.folder or self.kind
        return self.kind + self.folder if self.kind.endswith("/") else self.kind
