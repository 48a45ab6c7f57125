"""Sequences and graphs: data that come with packages, their splits, and the network whose layers are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lambdanets.layers import GraphLambdaLayer

__all__ = [
    "Attention",
    "GraphLambda",
    "GraphNetwork",
    "Graphs",
    "Network",
    "RelationalConvolution",
    "Sequences",
    "folds",
    "load_leaves",
    "load_molecules",
]


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
        """What a network takes for some of the examples."""
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
        """What a network takes for some of the graphs: nodes, edges, their kinds, the graph of each node, graphs."""
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


class Attention(nn.Module):
    """Self-attention of sequences with a learnt bias for each head and offset.

    Args:
        dim: channels.
        size: positions.
        num_heads: of attention.
    """

    def __init__(self, dim: int, size: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Conv1d(dim, 3 * dim, 1, bias=False)
        self.out = nn.Conv1d(dim, dim, 1)
        self.positions = nn.Parameter(torch.zeros(num_heads, 2 * size - 1))
        place = torch.arange(size)
        self.offsets: Tensor
        self.register_buffer("offsets", place - place[:, None] + size - 1, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, n) to (b, dim, n)."""
        q, k, v = self.qkv(x).unflatten(1, (3, self.num_heads, -1)).transpose(3, 4).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.positions[:, self.offsets])
        return self.out(y.transpose(2, 3).flatten(1, 2))


class GraphNetwork(nn.Module):
    """Graph isomorphism network with labels of edges (GINE, Hu et al. 2020): a sum over edges, and two layers.

    Args:
        dim: channels.
        dim_edge: kinds of edges.
    """

    def __init__(self, dim: int, dim_edge: int) -> None:
        super().__init__()
        self.edge = nn.Linear(dim_edge, dim)
        self.own = nn.Parameter(torch.zeros(()))
        self.each = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor, edge_index: Tensor, edges: Tensor, batch: Tensor, graphs: int) -> Tensor:
        """(nodes, dim) to (nodes, dim)."""
        source, target = edge_index
        messages = F.relu(x[source] + self.edge(edges))
        return self.each(((1 + self.own) * x).index_add(0, target, messages))


class RelationalConvolution(nn.Module):
    """Relational graph convolution (Schlichtkrull et al. 2018): one matrix for each kind of edge, means of neighbours.

    Args:
        dim: channels.
        dim_edge: kinds of edges.
    """

    def __init__(self, dim: int, dim_edge: int) -> None:
        super().__init__()
        self.own = nn.Linear(dim, dim)
        self.kinds = nn.Linear(dim, dim_edge * dim, bias=False)

    def forward(self, x: Tensor, edge_index: Tensor, edges: Tensor, batch: Tensor, graphs: int) -> Tensor:
        """(nodes, dim) to (nodes, dim)."""
        source, target = edge_index
        count = x.new_zeros(len(x), edges.shape[1]).index_add(0, target, edges)
        weights = edges / count[target].clamp_min(1)
        messages = self.kinds(x).unflatten(1, (edges.shape[1], -1))[source]
        return self.own(x).index_add(0, target, (weights[..., None] * messages).sum(1))


class GraphLambda(nn.Module):
    """Graph lambda layer, with the labels of edges or without.

    Args:
        dim: channels.
        dim_edge: kinds of edges; None leaves them out.
    """

    def __init__(self, dim: int, dim_edge: int | None) -> None:
        super().__init__()
        self.layer = GraphLambdaLayer(dim, dim_edge=dim_edge, dim_key=8)

    def forward(self, x: Tensor, edge_index: Tensor, edges: Tensor, batch: Tensor, graphs: int) -> Tensor:
        """(nodes, dim) to (nodes, dim)."""
        return self.layer(x, edge_index, None if self.layer.dim_edge is None else edges, batch, graphs)


DIM, DEPTH, STRIDE, DROPOUT = 32, 3, 4, 0.2


class Network(nn.Module):
    """Residual blocks of a layer that mixes positions and of two linear ones at each position, and a mean over all.

    Norms are batch-norms. Of sequences the first layer takes every fourth position.

    Args:
        data: that it is for.
        mix: makes the layer that mixes positions: of sequences from channels and positions, of graphs from channels
            and kinds of edges.
    """

    def __init__(self, data: Sequences | Graphs, mix: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.on_graphs = isinstance(data, Graphs)
        linear: Callable[[int, int], nn.Module]
        if isinstance(data, Graphs):
            self.stem: nn.Module = nn.Linear(data.nodes.shape[1], DIM)
            linear, second = nn.Linear, data.edges.shape[1]
        else:
            channels, length = data.x.shape[1:]
            self.stem = nn.Conv1d(channels, DIM, 7, stride=STRIDE, padding=3)
            linear, second = partial(nn.Conv1d, kernel_size=1), (length - 1) // STRIDE + 1
        self.norms = nn.ModuleList(nn.BatchNorm1d(DIM) for _ in range(DEPTH))
        self.mixes = nn.ModuleList(mix(DIM, second) for _ in range(DEPTH))
        self.each = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(DIM), linear(DIM, 2 * DIM), nn.GELU(), linear(2 * DIM, DIM))
            for _ in range(DEPTH)
        )
        self.norm = nn.BatchNorm1d(DIM)
        self.head = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(DIM, data.classes))

    def forward(self, inputs: Sequence[Any]) -> Tensor:
        """Scores of the classes (examples, classes), from what ``inputs`` of the data returns."""
        x, *structure = inputs
        x = self.stem(x)
        for norm, mix, each in zip(self.norms, self.mixes, self.each, strict=True):
            x = x + mix(norm(x), *structure)
            x = x + each(x)
        x = self.norm(x)
        if self.on_graphs:
            *_, batch, graphs = structure
            sums = x.new_zeros(graphs, x.shape[1]).index_add(0, batch, x)
            return self.head(sums / batch.bincount(minlength=graphs)[:, None])
        return self.head(x.mean(2))
