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
# # Lambda layers in a model of yours, fine-tuned on a folder of images
#
# `replace_convs` puts lambda layers in place of the 3x3 convolutions of the stages that you name, in torchvision's and
# timm's models and in any other, and keeps all other weights. Here with one model of each library, on a folder with one
# subfolder for each class.
#
#     pip install .    # in a clone of the repository

# %% tags=["parameters"]
folder = None  # yours: a folder with train/CLASS/*.png and test/CLASS/*.png; None writes the digits of scikit-learn
image_size = 64
steps = 40  # of training before the swap, and as many after it
batch_size = 32

# %%
import itertools
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import timm
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

import lambdanets

# %% [markdown]
# ## The folder
#
# Without a folder of your own: handwritten digits as PNG files, the first 1,500 to train on.

# %%
torch.manual_seed(0)
if folder is None:
    folder = Path(tempfile.mkdtemp())
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = folder / ("train" if number < 1500 else "test") / str(label)
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype("uint8")).save(part / f"{number:04}.png")

pixels = v2.Compose(
    [
        v2.RGB(),
        v2.Resize((image_size, image_size)),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ]
)
train_images = torchvision.datasets.ImageFolder(Path(folder) / "train", pixels)
test_images = torchvision.datasets.ImageFolder(Path(folder) / "test", pixels)
some = torch.randperm(len(test_images))[: 6 * batch_size].tolist()  # enough for a curve
print(f"{len(train_images)} images to train on, {len(some)} to test on, classes {train_images.classes}")


# %% [markdown]
# ## The training
#
# An ordinary loop; nothing in it knows of lambda layers.


# %%
@torch.no_grad()
def accuracy(model):
    """Return the share of test images that the model has right."""
    model.eval()
    right = [
        (model(images).argmax(1) == labels).float() for images, labels in DataLoader(Subset(test_images, some), 64)
    ]
    return torch.cat(right).mean().item()


def train(model, steps, peak=2e-3):
    """Train for some steps; return the loss of each."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    loader = DataLoader(train_images, min(batch_size, len(train_images)), shuffle=True, drop_last=True)
    losses = []
    for images, labels in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


# %% [markdown]
# ## torchvision
#
# With the internet at hand, begin with weights: `resnet18(weights="DEFAULT")`, and give the model a head for your
# classes. Here some steps on the folder stand for what such weights know.

# %%
classes = len(train_images.classes)
from_torchvision = torchvision.models.resnet18(num_classes=classes)
curves = {"torchvision resnet18": [train(from_torchvision, steps)]}
results = {"torchvision resnet18": [accuracy(from_torchvision)]}

# %% [markdown]
# The swap: convolutions in the first two stages, lambda layers in the last two, as in the paper. Its report shows each
# layer before and after. The new layers have learnt nothing yet, so that accuracy falls, and training goes on. It is
# fastest where each changed block begins as its shortcut, that is with its last norm at zero (`bn3` in models with
# bottlenecks): what the first stages know then reaches the head from the first step on. timm's models begin so anyway.

# %%
lambdanets.replace_convs(from_torchvision, stages="CCLL", lambda_args={"scope": 7})
for block in [*from_torchvision.layer3, *from_torchvision.layer4]:
    torch.nn.init.zeros_(block.bn2.weight)
results["torchvision resnet18"].append(accuracy(from_torchvision))
curves["torchvision resnet18"].append(train(from_torchvision, steps))
results["torchvision resnet18"].append(accuracy(from_torchvision))

# %% [markdown]
# ## timm
#
# The same calls. `pretrained=True` loads weights; `num_classes` makes the head. `stages` may also name blocks within a
# stage: `"C-C-CL-L"`, and `plan_convs` shows what would change without changing it.

# %%
from_timm = timm.create_model("resnet10t", num_classes=classes)
curves["timm resnet10t"] = [train(from_timm, steps)]
results["timm resnet10t"] = [accuracy(from_timm)]

plan = lambdanets.plan_convs(from_timm, stages="CCLL", lambda_args={"scope": 7})
print(plan)
plan.apply()
results["timm resnet10t"].append(accuracy(from_timm))
curves["timm resnet10t"].append(train(from_timm, steps))
results["timm resnet10t"].append(accuracy(from_timm))

# %%
for name, (before, swapped, after) in results.items():
    print(f"{name}: {before:.1%} with convolutions, {swapped:.1%} right after the swap, {after:.1%} trained on")

figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained", width_ratios=(2, 2, 1.6))
for panel, (name, parts) in zip(panels, curves.items(), strict=False):
    for part, label in enumerate(("convolutions", "lambda layers")):
        panel.plot(range(part * steps, (part + 1) * steps), parts[part], label=label)
    panel.axvline(steps, color="grey", linestyle=":")
    panel.set(xlabel="step", ylabel="training loss", title=name, ylim=(0, None))
panels[0].legend()
for name, values in results.items():
    panels[2].plot(["before", "swapped", "trained on"], values, "o-", label=name)
panels[2].set(ylabel="test accuracy", ylim=(0, 1))
panels[2].legend(fontsize="small")
plt.show()

# %% [markdown]
# The command does all of this with augmentation, validation, checkpoints and a run folder, from the weights of another
# run or of timm:
#
#     lambdanets train --recipe finetune --init-from RUN --data FOLDER/
#
# Next: [segmentation](segmentation.ipynb). More on the swap, transformers included:
# [Bring your own model](../docs/bring-your-own-model.md).
