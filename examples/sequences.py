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
# # Sequences, causal and not
#
# Four students wore a smart watch while standing, walking, running and playing badminton: ten seconds of three
# accelerometers and three gyroscopes, ten values a second (BasicMotions, which comes with the package
# [aeon](https://pypi.org/project/aeon/)). A network with lambda layers over the whole sequence says which it was. One
# with *causal* layers, where each moment sees itself and what came before, says it at every moment of the sequence.
#
#     pip install '.[examples]'    # in a clone of the repository

# %% tags=["parameters"]
steps = 150  # of training, for each of the two networks
every = 4  # moments between two points of the last figure

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from aeon.datasets import load_basic_motions
from torch import nn
from torch.nn import functional as F

import lambdanets
from lambdanets.layers import PositionNorm

# %% [markdown]
# ## The data
#
# Sequences are (batch, channels, length), as for `nn.Conv1d`.

# %%
train_values, train_names = load_basic_motions(split="train")
test_values, test_names = load_basic_motions(split="test")
classes = sorted({str(name) for name in train_names})
train_x, test_x = (torch.tensor(values, dtype=torch.float32) for values in (train_values, test_values))
train_y, test_y = (torch.tensor(np.searchsorted(classes, names)) for names in (train_names, test_names))
mean, std = train_x.mean((0, 2), keepdim=True), train_x.std((0, 2), keepdim=True)
train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
length = train_x.shape[2]
print(f"{tuple(train_x.shape)} to train on, {tuple(test_x.shape)} to test on, {classes}")

# %% [markdown]
# ## The network
#
# Blocks as in a transformer, with a lambda layer in place of attention. `ndim=1` makes layers of sequences; `size` is
# the longest, and shorter ones go through as they are. `PositionNorm` is layer-norm over the channels of each
# position: a batch-norm would let later moments into the statistics of earlier ones, and a causal layer refuses one.


# %%
class Block(nn.Module):
    """A lambda layer and two 1x1 convolutions, each added to its input."""

    def __init__(self, dim, causal):
        super().__init__()
        layer = lambdanets.LambdaLayer(dim, size=length, ndim=1, causal=causal, norm_layer="layer")
        self.mix = nn.Sequential(PositionNorm(dim), layer)
        self.each = nn.Sequential(PositionNorm(dim), nn.Conv1d(dim, 2 * dim, 1), nn.GELU(), nn.Conv1d(2 * dim, dim, 1))

    def forward(self, x):
        """(b, dim, n) to (b, dim, n)."""
        x = x + self.mix(x)
        return x + self.each(x)


class Network(nn.Module):
    """Scores of the classes at every moment, (b, classes, n), from the mean of all moments up to it."""

    def __init__(self, causal, dim=32, depth=2):
        super().__init__()
        self.stem = nn.Conv1d(train_x.shape[1], dim, 1)
        self.blocks = nn.Sequential(*(Block(dim, causal) for _ in range(depth)))
        self.head = nn.Sequential(PositionNorm(dim), nn.Conv1d(dim, len(classes), 1))

    def forward(self, x):
        """(b, channels, n) to (b, classes, n)."""
        x = self.blocks(self.stem(x))
        counts = torch.arange(1, x.shape[2] + 1)
        return self.head(x.cumsum(2) / counts)


# %% [markdown]
# ## Training both
#
# The causal network is trained to be right at every moment, the other one at the end, when it has seen all.


# %%
def train(causal):
    """Return a trained network and its losses."""
    torch.manual_seed(0)
    network, losses = Network(causal), []
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        scores = network(train_x)
        seen = scores if causal else scores[:, :, -1:]
        loss = F.cross_entropy(seen, train_y[:, None].expand(-1, seen.shape[2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return network.eval(), losses


whole, whole_losses = train(causal=False)
causal, causal_losses = train(causal=True)

# %% [markdown]
# ## What causal means
#
# Other values from the sixth second on change nothing before it:

# %%
changed = test_x.clone()
changed[:, :, 50:] = torch.randn_like(changed[:, :, 50:])
with torch.no_grad():
    for name, network in {"whole": whole, "causal": causal}.items():
        before = (network(changed) - network(test_x))[:, :, :50].abs().max().item()
        print(f"{name}: the first five seconds change by {before:.2g}")

# %% [markdown]
# ## How early can one tell?
#
# The causal network answers for all moments in one pass. The other one has to run again for each.

# %%
moments = range(every, length + 1, every)
with torch.no_grad():
    at_once = (causal(test_x).argmax(1) == test_y[:, None]).float().mean(0)
    early = [at_once[moment - 1].item() for moment in moments]
    again = [(whole(test_x[:, :, :moment])[:, :, -1].argmax(1) == test_y).float().mean().item() for moment in moments]
print(f"after ten seconds: causal {early[-1]:.1%}, whole {again[-1]:.1%}")

figure, (series, curve) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
for number, name in enumerate(classes):
    example = test_x[(test_y == number).nonzero()[0, 0], 0]
    series.plot(np.arange(length) / 10, example + 6 * number, label=name)
series.set(xlabel="seconds", yticks=[], title="One accelerometer")
series.legend(loc="upper right", fontsize="small")
seconds = [moment / 10 for moment in moments]
curve.plot(seconds, early, label="causal, one pass")
curve.plot(seconds, again, "--", label="whole, one pass for each point")
curve.set(xlabel="seconds seen", ylabel="test accuracy", ylim=(0, 1.05), title="How early can one tell?")
curve.legend()
plt.show()

# %% [markdown]
# Sequences of different lengths: pad them and pass `mask`, (batch, length), True where there is something:
# `layer(x, mask=mask)`. Next: [graphs](graphs.ipynb).
