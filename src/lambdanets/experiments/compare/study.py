"""The interface of a study: its question, its cells, how one is run, and what the results say."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lambdanets.experiments.compare.cell import Cell, Config, Done
from lambdanets.experiments.compare.outcome import Outcome
from lambdanets.names import unknown_name
from lambdanets.training.data import DataSpec, FileImages, Part, load_data
from lambdanets.training.data.inspection import fingerprint_files, inspect_images
from lambdanets.training.engine.start import check_data

__all__ = [
    "LARGEST_IMAGE",
    "CellsFailedError",
    "DataFacts",
    "Needs",
    "Options",
    "Place",
    "StoppedError",
    "Study",
    "check_images",
    "choose_rows",
    "inspect",
]

# Larger images are scaled down to this side: the studies' backbone is made for small ones.
LARGEST_IMAGE = 64


@dataclass(frozen=True)
class DataFacts:
    """The data of a study.

    Args:
        spec: the specification, as of ``lambdanets train --data``.
        fingerprint: a digest of all images, labels and parts.
        image_size: side of the images in pixels.
        channels: of the images.
        classes: how many.
        images: numbers of training, validation and test images.
    """

    spec: str
    fingerprint: str
    image_size: int
    channels: int
    classes: int
    images: tuple[int, int, int]

    def to_dict(self) -> dict[str, Any]:
        """The facts for the file of a cell: without the place of the data, on which nothing depends."""
        name = DataSpec.parse(self.spec).label.rpartition("/")[2] or Path(self.spec).name
        return {**vars(self), "spec": name, "images": list(self.images)}


def inspect(spec: str) -> DataFacts:
    """Open data and return their facts.

    Args:
        spec: a specification, as of ``lambdanets train --data``.

    Raises:
        FileNotFoundError: if the data are missing.
        ValueError: if the specification is unknown, the data are damaged, a stream, without test images, or such that
            no training starts: of one class, or with an empty part.
    """
    data = load_data(spec)
    if any(part.streams for part in data.parts.values()):
        raise ValueError(
            f"the data {spec!r} are a stream, of which nothing tells whether its images are still the same, so that a "
            "study cannot keep results of it; export the images into folders and give --data imagefolder:DIR"
        )
    if data.test is None:
        raise ValueError(f"the data {spec!r} have no test images, by which a study compares; add a folder test/")
    check_data(data)
    digest = hashlib.blake2b(digest_size=12)
    for name, part in data.parts.items():
        digest.update("\n".join([name, *_marks(part), ""]).encode("utf-8", "surrogateescape"))
    size = data.image_size or min(data.train.read(0)[0].size)
    return DataFacts(
        spec=data.spec,
        fingerprint=digest.hexdigest(),
        image_size=min(size, LARGEST_IMAGE),
        channels=data.channels,
        classes=len(data.class_names),
        images=(len(data.train), len(data.validation), len(data.test)),
    )


def check_images(spec: str | None) -> None:
    """Read all image files of data once, which else every training of a study would find damaged.

    Args:
        spec: of the data; nothing is read of None and of data that are not files.

    Raises:
        ValueError: if images cannot be read; the message names some.
    """
    parts = [] if spec is None else load_data(spec).parts.values()
    try:
        inspect_images([part for part in parts if isinstance(part, FileImages)])
    except ValueError as error:
        raise ValueError(f"{error}. Mend or remove what cannot be read") from error


def _marks(part: Part) -> list[str]:
    """Texts of which one changes when an image or a label of the part changes."""
    if isinstance(part, FileImages):
        files = zip(part.names, part.labels, fingerprint_files(part.paths), strict=True)
        return [f"{file}\0{label}\0{mark}" for file, label, mark in files]
    mark = part.fingerprint()
    return [] if mark is None else [mark]


@dataclass(frozen=True)
class Options:
    """The user's choices.

    Args:
        quick: minutes on two cores instead of hours.
        seeds: seeds of each row, 0 to ``seeds - 1``.
        only: names of the rows to run; () for all.
        data: the data; None for studies without.
        epochs: passes over the training images; None for the study's own number.
    """

    quick: bool = False
    seeds: int = 3
    only: tuple[str, ...] = ()
    data: DataFacts | None = None
    epochs: int | None = None

    @property
    def scale(self) -> str:
        """Name of the study's size: "quick" or "full"."""
        return "quick" if self.quick else "full"


@dataclass(frozen=True)
class Needs:
    """Bytes of memory and of disk that a cell takes at most."""

    memory: int = 0
    disk: int = 0


@dataclass(frozen=True)
class Place:
    """Place where a cell runs.

    Args:
        folder: for files that the cell needs until it is done; kept when it is stopped.
        data: specification of the data; None without.
        console: for the progress of the cell; a file.
    """

    folder: Path
    data: str | None
    console: Console


class StoppedError(Exception):
    """The cell was stopped by a signal and can go on from where it was.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class CellsFailedError(ValueError):
    """Some cells failed, each of which was told; all others that could run are done."""


class Study(ABC):
    """One study; a file in ``experiments/studies/`` makes one as ``STUDY``.

    Attributes:
        name: on the command line.
        title: of its report.
        question: that it asks.
        version: raised when what a cell computes changes, so that old cells are not taken.
        takes_data: True if cells train on images.
        default_data: the images that they train on where no data are given; None if then none of them trains on images.
        trains_without_data: True if cells train on what the study brings itself.
    """

    name: str
    title: str
    question: str
    version: int = 1
    takes_data: bool = True
    default_data: str | None = "digits"
    trains_without_data: bool = False

    @abstractmethod
    def row_names(self, options: Options) -> list[str]:
        """Return the names of all rows, whatever ``options.only`` says."""

    @abstractmethod
    def cells(self, options: Options) -> list[Cell]:
        """Return the cells of the chosen rows, those that others come after not included."""

    @abstractmethod
    def run(self, config: Config, place: Place) -> dict[str, Any]:
        """Run a cell and return values of JSON.

        Raises:
            StoppedError: if it was stopped by a signal.
        """

    def needs(self, config: Config) -> Needs:
        """Return what a cell needs; the default says nothing."""
        return Needs()

    def threads(self, config: Config) -> int | None:
        """Return the number of CPU threads that a cell computes with, whatever runs beside it; None for its share."""
        return None

    def expected_seconds(self, config: Config, cells: Sequence[Done]) -> float | None:
        """Return the seconds that a cell takes by what others measured; the default knows nothing.

        What counts are the proportions between cells: a cell of the same row and kind that is done tells more, and the
        others that are done set the scale.

        Args:
            config: of the cell, perhaps without what is completed from others.
            cells: those that are done.
        """
        return None

    @abstractmethod
    def outcome(self, cells: Sequence[Done]) -> Outcome:
        """Return what the cells say; some may be missing."""

    def line(self, result: Mapping[str, Any]) -> str:
        """Return a finished cell's result in a few words, for the terminal."""
        return ""


def choose_rows(study: Study, options: Options) -> list[str]:
    """Return the rows that ``options.only`` names, in the study's order; all without.

    Raises:
        ValueError: for a name that no row has, with the nearest.
    """
    known = study.row_names(options)
    for name in options.only:
        if name not in known:
            raise unknown_name(f"row of the study {study.name}", name, known)
    return [name for name in known if not options.only or name in options.only]
