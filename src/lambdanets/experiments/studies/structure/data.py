"""Sequences and graphs that come with Python packages, and their splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Graphs", "Sequences", "folds", "load_leaves", "load_molecules"]


def _files(package: str, folder: str, names: Sequence[str]) -> list[Path]:
    """Return files that come with a package, which is not imported.

    Raises:
        ModuleNotFoundError: if the package is not installed, with the command that installs it.
        FileNotFoundError: if it is, without these files.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the study structure needs {package}, with which its data come; install with: "
            f"pip install 'lambdanets[examples]' (or pip install {package})",
            name=package,
        )
    found = [Path(spec.submodule_search_locations[0], folder, name) for name in names]
    for file in found:
        if not file.is_file():
            raise FileNotFoundError(f"this version of {package} has no file {file}; install another one")
    return found


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def folds(labels: Tensor, count: int, seed: int) -> Tensor:
    """Number of the fold of each example; every fold has its share of every class.

    Args:
        labels: (examples,) int64.
        count: how many folds.
        seed: of the order of the examples.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    found = torch.empty_like(order)
    found[order] = torch.arange(len(order)) % count
    return found


@dataclass(frozen=True)
class Sequences:
    """Sequences of one length.

    Args:
        x: (examples, channels, length).
        labels: (examples,) int64.
        train: how many of them are the standard split's to train on; the others are those to test on.
        fingerprint: a digest of the files.
    """

    x: Tensor
    labels: Tensor
    train: int
    fingerprint: str

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    def split(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of the examples to train on, to choose by and to test on: a fifth of the first ones to choose by."""
        part = folds(self.labels[: self.train], 5, seed)
        return (part > 0).nonzero()[:, 0], (part == 0).nonzero()[:, 0], torch.arange(self.train, len(self.labels))

    def inputs(self, examples: Tensor) -> tuple[Tensor]:
        """Return what a network takes for some of the examples."""
        return (self.x[examples],)


@dataclass(frozen=True)
class Graphs:
    """Graphs with labels of nodes and of edges, all in one set of arrays.

    Args:
        nodes: (nodes, kinds of nodes), one-hot.
        edge_index: (2, edges) int64, source and target.
        edges: (edges, kinds of edges), one-hot.
        batch: (nodes,) int64, the graph of each node.
        labels: (graphs,) int64.
        fingerprint: a digest of the files.
    """

    nodes: Tensor
    edge_index: Tensor
    edges: Tensor
    batch: Tensor
    labels: Tensor
    fingerprint: str

    FOLDS: ClassVar[int] = 10

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    def split(self, fold: int) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of the graphs to train on, to choose by (the next fold) and to test on (the fold)."""
        part = folds(self.labels, self.FOLDS, seed=0)
        test, choose = part == fold, part == (fold + 1) % self.FOLDS
        return (~(test | choose)).nonzero()[:, 0], choose.nonzero()[:, 0], test.nonzero()[:, 0]

    def inputs(self, examples: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Return what a network takes for some graphs: nodes, edges, their kinds, the graph of each node, graphs."""
        number = torch.full((len(self.labels),), -1)
        number[examples] = torch.arange(len(examples))
        nodes = number[self.batch] >= 0
        edges = nodes[self.edge_index[0]]
        index = (nodes.cumsum(0) - 1)[self.edge_index[:, edges]]
        return self.nodes[nodes], index, self.edges[edges], number[self.batch[nodes]], len(examples)


@cache
def load_leaves() -> Sequences:
    """OSULeaf of the UCR archive, as it comes with aeon: outlines of leaves of six species, 427 distances each."""
    files = _files("aeon", "datasets/data/OSULeaf", ["OSULeaf_TRAIN.ts", "OSULeaf_TEST.ts"])
    values: list[list[float]] = []
    names: list[str] = []
    train = 0
    for file in files:
        train = len(values)
        lines = file.read_text("utf-8").partition("@data")[2].split()
        for line in lines:
            numbers, _, name = line.rpartition(":")
            values.append([float(number) for number in numbers.split(",")])
            names.append(name)
    labels = torch.from_numpy(np.unique(names, return_inverse=True)[1]).long()
    x = torch.tensor(values)[:, None]
    x = (x - x[:train].mean()) / x[:train].std()
    return Sequences(x, labels, train, _digest(files))


@cache
def load_molecules() -> Graphs:
    """MUTAG, as it comes with GraKeL: 188 molecules, atoms of seven elements, bonds of four kinds."""
    names = ("node_labels", "A", "edge_labels", "graph_indicator", "graph_labels")
    files = _files("grakel", "tests/data/MUTAG", [f"MUTAG_{name}.txt" for name in names])
    nodes, index, edges, batch, labels = (
        torch.from_numpy(np.loadtxt(file, delimiter=",", dtype="int64")) for file in files
    )
    return Graphs(
        F.one_hot(nodes).float(), index.T - 1, F.one_hot(edges).float(), batch - 1, (labels + 1) // 2, _digest(files)
    )
