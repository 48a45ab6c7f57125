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
# # The lambda layer in five minutes
#
# A lambda layer takes the place of attention or of a 3x3 convolution. It sums a context up into a small matrix, a
# *lambda*, and applies that matrix to each query:
#
# $$ y_n^h = \Big(\sum_{m} \bar K_m V_m^\top + \sum_{m} E_{nm} V_m^\top\Big)^\top q_n^h \qquad
#    \bar K = \mathrm{softmax}_m(K) $$
#
# The first sum is the *content* lambda, one for all queries. The second is the *position* lambda: one for each query n,
# from what is learnt about the offset between n and the context position m.
#
#     pip install .    # in a clone of the repository

# %% tags=["parameters"]
largest_side = 64  # of the maps that are timed below
repeats = 5  # of each measurement

# %%
import time

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

import lambdanets

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## The equations
#
# Seven by seven positions, four heads (h), queries and keys of depth 16 (k), values of depth 8 (v). What is learnt
# about positions is one table of offsets: row and column 6 of `table` are the offset 0.

# %%
side, heads, depth, width = 7, 4, 16, 8
n = side * side
query = torch.randn(1, heads, n, depth, dtype=torch.float64)
key = torch.randn(1, 1, n, depth, dtype=torch.float64)
value = torch.randn(1, 1, n, width, dtype=torch.float64)
table = torch.randn(1, depth, 2 * side - 1, 2 * side - 1, dtype=torch.float64)

place = torch.cartesian_prod(torch.arange(side), torch.arange(side))
offset = place[None, :] - place[:, None] + side - 1  # (n, m, 2)
embedding = table[0][:, offset[..., 0], offset[..., 1]]  # E, (k, n, m)

content = torch.einsum("mk,mv->kv", key[0, 0].softmax(0), value[0, 0])
position = torch.einsum("knm,mv->nkv", embedding, value[0, 0])
by_hand = torch.einsum("hnk,nkv->hnv", query[0], content + position)

# %% [markdown]
# `lambda_apply` computes the same without ever holding E or the lambdas of all queries:

# %%
output = lambdanets.lambda_apply(query, key, value, lambdanets.GridPositions(table, grid=(side, side)))
difference = (output[0] - by_hand).abs().max().item()
print(f"largest difference: {difference:.1e}")

# %% [markdown]
# ## The layer
#
# `LambdaLayer` adds the projections and their norms. Its context is local (`scope`), for images of any size, or global
# (`size`), for images up to that size.

# %%
local = lambdanets.LambdaLayer(64, scope=7)
print(local)
print(local(torch.randn(2, 64, 14, 10)).shape, "positions", tuple(local.positions.shape))

global_ = lambdanets.LambdaLayer(64, 128, size=(14, 14), stride=2)
print(global_(torch.randn(2, 64, 14, 14)).shape, "positions", tuple(global_.positions.shape))

# %% [markdown]
# ## How it starts
#
# The position table starts with a variance of 1 / (k · positions in the context), so that outputs are of the same order
# at every size of the map.

# %%
sides = [7, 14, 28, 56]
deviations = []
for at in sides:
    layer = lambdanets.LambdaLayer(64, size=at)
    with torch.no_grad():
        deviations.append(layer(torch.randn(4, 64, at, at)).std().item())
    print(f"{at:2} x {at:2}: outputs have a standard deviation of {deviations[-1]:.2f}")


# %% [markdown]
# ## How fast it is
#
# One global layer against the number of positions, on one core, forward and backward. Attention forms n x n weights;
# the lambda layer's kernels never do, and the planner takes another kernel as the map grows.


# %%
def milliseconds(function, *inputs):
    """Return the median time of forward and backward passes."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function(*inputs).sum().backward()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times[1:])[repeats // 2]  # the first call allocates


counts, lambda_times, attention_times = [], [], []
at = 8
while at <= largest_side:
    layer = lambdanets.LambdaLayer(64, size=at)
    image = torch.randn(1, 64, at, at, requires_grad=True)
    tokens = torch.randn(1, 4, at * at, 16, requires_grad=True)
    counts.append(at * at)
    lambda_times.append(milliseconds(layer, image))
    attention_times.append(milliseconds(F.scaled_dot_product_attention, tokens, tokens, tokens))
    print(f"{counts[-1]:5} positions: lambda layer {lambda_times[-1]:7.1f} ms, attention {attention_times[-1]:7.1f} ms")
    at *= 2

# %%
figure, (start, speed) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
start.plot(sides, deviations, "o-")
start.set(xlabel="side of the map", ylabel="standard deviation of outputs", title="A new layer", ylim=(0, None))
speed.loglog(counts, lambda_times, "o-", label="lambda layer, whole")
speed.loglog(counts, attention_times, "s--", label="attention (SDPA), without projections")
speed.set(xlabel="positions", ylabel="milliseconds, forward + backward", title="One layer, 64 channels, one core")
speed.legend()
plt.show()

# %% [markdown]
# Next: [swap it into a model of yours](fine_tune.ipynb). Which kernel is taken for a shape, and why, is printed by
# `lambdanets kernels --shape 1,56,56,64`.
