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
# # Segmentation: a U-Net with lambda layers at its two lowest levels
#
# Cell nuclei in a fluorescence microscope, from the 2018 Data Science Bowl: the annotated image that comes with the
# package [StarDist](https://pypi.org/project/stardist/) (Caicedo et al., *Nature Methods* 16, 2019). A network learns
# from three quarters of it and segments the last quarter. At the two lowest levels, where maps are small and the
# context is large, lambda layers stand in place of convolutions.
#
#     pip install '.[examples]'    # in a clone of the repository

# %% tags=["parameters"]
steps = 150  # of training, for each of the two networks
crop = 128  # side of the training images
batch_size = 4

# %%
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

import lambdanets

# %% [markdown]
# ## The data
#
# 512 x 512 pixels and a number for each nucleus. The classes: background, inside of a nucleus, and its outermost
# pixels, which keep nuclei apart that touch.

# %%
spec = find_spec("stardist")  # its files alone: the package is not imported
if spec is None:
    raise ModuleNotFoundError("the image comes with stardist: pip install 'lambdanets[examples]'")
files = Path(spec.submodule_search_locations[0]) / "data" / "images"
pixels = torch.tensor(np.asarray(Image.open(files / "img2d.tif")).astype("float32"))
nuclei = np.asarray(Image.open(files / "mask2d.tif")).astype("int64")

low, high = pixels.quantile(0.01), pixels.quantile(0.99)
pixels = ((pixels - low) / (high - low)).clamp(0, 1.5)
eroded = ndimage.minimum_filter(nuclei, 3) == ndimage.maximum_filter(nuclei, 3)
target = torch.tensor(np.where(nuclei == 0, 0, np.where(eroded, 1, 2)))
names = ["background", "inside", "border"]
train_columns = 3 * pixels.shape[1] // 4
test_pixels, test_target = pixels[:, train_columns:], target[:, train_columns:]
test_nuclei = nuclei[:, train_columns:]
print(f"{len(np.unique(nuclei)) - 1} nuclei, {len(np.unique(test_nuclei)) - 1} of them in the quarter to test on")


def batch():
    """Return random crops of the first three quarters, turned and mirrored."""
    images, targets = [], []
    for _ in range(batch_size):
        top = torch.randint(pixels.shape[0] - crop + 1, ()).item()
        left = torch.randint(train_columns - crop + 1, ()).item()
        both = torch.stack([pixels, target.float()])[:, top : top + crop, left : left + crop]
        both = both.rot90(torch.randint(4, ()).item(), (1, 2))
        if torch.rand(()) < 0.5:
            both = both.flip(2)
        images.append(both[:1])
        targets.append(both[1].long())
    return torch.stack(images), torch.stack(targets)


# %% [markdown]
# ## The network
#
# A U-Net of five levels. A block is two layers with their norms; `deep` makes those of the two lowest levels. A local
# lambda layer (`scope`) takes maps of any size, so that the network, trained on crops, segments the whole image.


# %%
def convolution(dim):
    """A 3x3 convolution."""
    return nn.Conv2d(dim, dim, 3, padding=1, bias=False)


def lambda_layer(dim):
    """A lambda layer that sees 15 x 15 positions of its map."""
    return lambdanets.LambdaLayer(dim, scope=15)


def block(dim_in, dim, layer):
    """A 1x1 convolution to the new width, then two layers."""
    parts = [nn.Conv2d(dim_in, dim, 1, bias=False)]
    for _ in range(2):
        parts += [layer(dim), nn.BatchNorm2d(dim), nn.ReLU()]
    return nn.Sequential(*parts)


class UNet(nn.Module):
    """From (b, 1, h, w) to scores (b, 3, h, w); 16 divides h and w."""

    def __init__(self, deep, widths=(16, 24, 32, 48, 64)):
        super().__init__()
        layers = [convolution] * (len(widths) - 2) + [deep] * 2
        pairs = list(zip((1, *widths), widths, layers, strict=False))
        self.down = nn.ModuleList(block(*pair) for pair in pairs)
        self.up = nn.ModuleList(
            block(below + width, width, layer)
            for width, below, layer in zip(widths[:-1], widths[1:], layers, strict=False)
        )
        self.head = nn.Conv2d(widths[0], 3, 1)

    def forward(self, x):
        """Down to the lowest level, and up again beside what each level had."""
        levels = []
        for number, part in enumerate(self.down):
            x = part(F.max_pool2d(x, 2) if number else x)
            levels.append(x)
        for part, level in zip(reversed(self.up), reversed(levels[:-1]), strict=True):
            x = part(torch.cat([level, F.interpolate(x, scale_factor=2, mode="bilinear")], 1))
        return self.head(x)


# %% [markdown]
# ## Training both
#
# The same network with convolutions at all levels, and with lambda layers at the two lowest.


# %%
def overlap(guess):
    """Return the intersection over union of each class, in the quarter to test on."""
    both = [((guess == c) & (test_target == c)).sum() for c in range(3)]
    either = [((guess == c) | (test_target == c)).sum() for c in range(3)]
    return [(i / u).item() for i, u in zip(both, either, strict=True)]


curves, guesses = {}, {}
for name, deep in {"convolutions": convolution, "lambda layers": lambda_layer}.items():
    torch.manual_seed(0)
    model = UNet(deep)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    curves[name] = []
    for _ in range(steps):
        images, targets = batch()
        loss = F.cross_entropy(model(images), targets, weight=torch.tensor([1.0, 1.0, 2.0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        curves[name].append(loss.item())
    with torch.no_grad():
        guesses[name] = model.eval()(test_pixels[None, None])[0].argmax(0)
    weights = sum(p.numel() for p in model.parameters())
    scores = ", ".join(f"{c} {iou:.2f}" for c, iou in zip(names, overlap(guesses[name]), strict=True))
    counted = ndimage.label(guesses[name] == 1)[1]
    print(f"{name}: {weights:,} parameters; intersection over union: {scores}; {counted} nuclei counted")

# %% [markdown]
# ## The quarter that no network has seen

# %%
figure, panels = plt.subplots(1, 5, figsize=(11, 4.6), layout="constrained", width_ratios=(1, 1, 1, 1, 1.6))
pictures = {"image": test_pixels, "annotated": test_target, **guesses}
for panel, (title, picture) in zip(panels, pictures.items(), strict=False):
    panel.imshow(picture, cmap="gray" if title == "image" else "viridis")
    panel.set_title(title)
    panel.axis("off")
for name, losses in curves.items():
    panels[4].plot(losses, label=name)
panels[4].set(xlabel="step", ylabel="training loss", ylim=(0, None))
panels[4].legend()
plt.show()

# %% [markdown]
# One image decides nothing about which network is better: change the seed and the order may change. For networks that
# exist already, `replace_convs(model, names="encoder.3.*")` puts the layers in ([fine-tuning](fine_tune.ipynb)).
# Next: [sequences](sequences.ipynb).
