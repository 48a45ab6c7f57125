"""The network of the study of sequences and graphs, whose layers are compared, and how it is trained and tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from lambdanets.experiments.studies.structure.data import Graphs, Sequences
from lambdanets.layers import GraphLambdaLayer

__all__ = ["Attention", "GraphLambda", "GraphNetwork", "Network", "RelationalConvolution", "fit", "score", "step"]


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
# By name and structure, from channels. A layer-norm of sequences takes in all positions of an example.
NORMS: dict[tuple[str, str], Callable[[int], nn.Module]] = {
    ("batch", "sequence"): nn.BatchNorm1d,
    ("batch", "graph"): nn.BatchNorm1d,
    ("layer", "sequence"): partial(nn.GroupNorm, 1),
    ("layer", "graph"): nn.LayerNorm,
}


class Network(nn.Module):
    """Residual blocks of a layer that mixes positions and of two linear ones at each position, and a mean over all.

    Of sequences the first layer takes every fourth position.

    Args:
        data: that it is for.
        mix: makes the layer that mixes positions: of sequences from channels and positions, of graphs from channels
            and kinds of edges.
        norm: of ``NORMS``, in front of the layers; what is inside of a lambda layer is its own.
    """

    def __init__(self, data: Sequences | Graphs, mix: Callable[[int, int], nn.Module], norm: str) -> None:
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
        make = NORMS[norm, "graph" if self.on_graphs else "sequence"]
        self.norms = nn.ModuleList(make(DIM) for _ in range(DEPTH))
        self.mixes = nn.ModuleList(mix(DIM, second) for _ in range(DEPTH))
        self.each = nn.ModuleList(
            nn.Sequential(make(DIM), linear(DIM, 2 * DIM), nn.GELU(), linear(2 * DIM, DIM)) for _ in range(DEPTH)
        )
        self.norm = make(DIM)
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


def step(network: Network, inputs: Sequence[Any], labels: Tensor) -> Tensor:
    """Do a forward and a backward pass, and return the loss."""
    network.zero_grad()
    loss = F.cross_entropy(network(inputs), labels, label_smoothing=0.1)
    loss.backward()
    return loss.detach()


def fit(
    network: Network, data: Sequences | Graphs, train: Tensor, *, rate: float, steps: int, batch: int, seed: int
) -> list[float]:
    """Train a network, and return the mean losses of tenths of the training.

    Args:
        network: is changed.
        data: that it is for.
        train: numbers of the examples to train on.
        rate: the highest learning rate of its cycle.
        steps: of the training.
        batch: examples of a step.
        seed: of the order of the examples.
    """
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    order = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        examples = train[torch.randperm(len(train), generator=order)[:batch]]
        losses.append(step(network, data.inputs(examples), data.labels[examples]).item())
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    # In a short training running statistics of batch-norms are still near their start.
    update_bn([[data.inputs(train)]], network)
    network.eval()
    return [float(part.mean()) for part in torch.tensor(losses).chunk(10)]


@torch.no_grad()
def score(network: Network, data: Sequences | Graphs, examples: Tensor) -> tuple[float, float]:
    """Share of the examples that are right, and the loss."""
    scores, labels = network(data.inputs(examples)), data.labels[examples]
    return (scores.argmax(1) == labels).double().mean().item(), F.cross_entropy(scores, labels).item()
