# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Graphs with edge labels
#
# MUTAG: 188 molecules, and whether each one is mutagenic. Nodes are atoms of seven elements, edges are bonds of four
# kinds: aromatic, single, double, triple (Debnath et al., 1991; the files come with the package
# [GraKeL](https://pypi.org/project/grakel/)). `GraphLambdaLayer` takes a node's whole graph as context by content, and
# the atoms that it is bound to by position: E is learnt from the kind of the bond. Its arguments are those of PyTorch
# Geometric.
#
#     pip install '.[examples]'    # in a clone of the repository

# %% tags=["parameters"]
steps = 60  # of training, for each part of the cross-validation
parts = 5  # of the cross-validation

# %%
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import networkx
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import lambdanets

# %% [markdown]
# ## The data
#
# All molecules in one set of arrays: `edge_index` has the two ends of each bond in each direction, `batch` the molecule
# of each atom.

# %%
spec = find_spec("grakel")  # its files alone: the package is not imported
if spec is None:
    raise ModuleNotFoundError("the molecules come with grakel: pip install 'lambdanets[examples]'")
files = Path(spec.submodule_search_locations[0]) / "tests" / "data" / "MUTAG"


def read(name):
    """Read one of the data set's text files as int64."""
    return torch.from_numpy(np.loadtxt(files / f"MUTAG_{name}.txt", delimiter=",", dtype="int64"))


elements, bonds = ["C", "N", "O", "F", "I", "Cl", "Br"], ["aromatic", "single", "double", "triple"]
edge_index = read("A").T - 1
batch = read("graph_indicator") - 1
labels = (read("graph_labels") + 1) // 2
atoms = F.one_hot(read("node_labels"), len(elements)).float()
kinds = F.one_hot(read("edge_labels"), len(bonds)).float()
count = len(labels)
share = labels.float().mean().item()
print(f"{count} molecules, {share:.1%} of them mutagenic; {len(atoms)} atoms, {edge_index.shape[1] // 2} bonds")


def choose(graphs):
    """Return the arguments of the network for some of the molecules, and their labels."""
    number = torch.full((count,), -1)
    number[graphs] = torch.arange(len(graphs))
    nodes = number[batch] >= 0
    edges = nodes[edge_index[0]]
    new = nodes.cumsum(0) - 1
    return (atoms[nodes], new[edge_index[:, edges]], kinds[edges], number[batch[nodes]], len(graphs)), labels[graphs]


# %% [markdown]
# ## The network


# %%
class Network(nn.Module):
    """Scores of the two classes for each graph; with ``bonds=False`` all bonds are alike."""

    def __init__(self, bonds, dim=32, depth=3):
        super().__init__()
        self.bonds = bonds
        self.stem = nn.Linear(len(elements), dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.layers = nn.ModuleList(
            lambdanets.GraphLambdaLayer(dim, dim_edge=4 if bonds else None, dim_key=8) for _ in range(depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Dropout(0.2), nn.Linear(dim, 2))

    def forward(self, x, edge_index, edge_attr, batch, num_graphs):
        """(nodes, elements), edges and the graph of each node to (graphs, 2)."""
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + F.gelu(layer(norm(x), edge_index, edge_attr if self.bonds else None, batch, num_graphs))
        sums = torch.zeros(num_graphs, x.shape[1]).index_add(0, batch, x)
        return self.head(sums / batch.bincount(minlength=num_graphs)[:, None])


def train(network, graphs):
    """Train a network on some of the molecules, 32 of them at a time."""
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        inputs, answers = choose(graphs[torch.randperm(len(graphs))[:32]])
        loss = F.cross_entropy(network.train()(*inputs), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


# %% [markdown]
# ## With the kinds of bonds, and without
#
# Cross-validation: each molecule is tested once, by a network that has not seen it.

# %%
right = {"bonds of four kinds": [], "all bonds alike": []}
for name, scores in right.items():
    torch.manual_seed(0)
    order = torch.randperm(count)
    for part in order.chunk(parts):
        rest = order[~torch.isin(order, part)]
        network = train(Network(name != "all bonds alike"), rest)
        with torch.no_grad():
            inputs, answers = choose(part)
            scores.append((network(*inputs).argmax(1) == answers).float().mean().item())
    print(f"{name}: {np.mean(scores):.1%} right ({', '.join(f'{score:.0%}' for score in scores)})")

# %% [markdown]
# ## What a layer takes along a bond
#
# `explain` gives the weight of each edge: how much of its source the target takes, by the kind of the bond (position).
# One molecule with a nitro group, the weights of the first layer in the mean of its heads, over both directions:

# %%
torch.manual_seed(0)
network = train(Network(True), torch.arange(count))
inputs, answers = choose(torch.tensor([0]))
explanation = lambdanets.explain(network, inputs)
weights = explanation.edges("layers.0", part="position").mean(0)

graph = networkx.Graph()
for (source, target), weight, kind in zip(inputs[1].T.tolist(), weights, inputs[2].argmax(1).tolist(), strict=True):
    old = graph.get_edge_data(source, target, {"weights": []})
    graph.add_edge(source, target, weights=[*old["weights"], float(weight)], kind=kind)
places = networkx.kamada_kawai_layout(graph)

figure, (bars, molecule) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(1, 1.6))
for number, scores in enumerate(right.values()):
    bars.plot([number] * len(scores), scores, "o")
    bars.plot(number, np.mean(scores), "k_", markersize=40)
bars.axhline(max(share, 1 - share), color="grey", linestyle=":", label="always the larger class")
bars.set(xticks=[0, 1], xticklabels=list(right), xlim=(-0.5, 1.5), ylim=(0.5, 1))
bars.set(ylabel="test accuracy", title=f"{parts} parts, and their mean")
bars.legend()
styles = ["--", "-", ":", "-."]
for (source, target), edge in zip(graph.edges, graph.edges.values(), strict=True):
    (x0, y0), (x1, y1) = places[source], places[target]
    weight = np.mean(edge["weights"])
    color, line = "tab:red" if weight < 0 else "tab:blue", styles[edge["kind"]]
    molecule.plot((x0, x1), (y0, y1), linestyle=line, color=color, linewidth=1 + 5 * min(abs(weight), 1))
for node, (x, y) in places.items():
    symbol = elements[inputs[0][node].argmax()]
    molecule.text(x, y, symbol, ha="center", va="center", bbox={"facecolor": "white", "boxstyle": "circle"})
molecule.set_title("Weights of bonds: blue positive, red negative")
for kind, line in zip(bonds, styles, strict=True):
    molecule.plot([], [], linestyle=line, color="black", label=kind)
molecule.legend(fontsize="small")
molecule.axis("off")
plt.show()

# %% [markdown]
# 188 molecules are few: the parts of the two overlap. Next:
# [other people's weights, and out of Python](other_weights.ipynb).
