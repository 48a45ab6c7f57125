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
# # Other people's weights, and out of Python
#
# A checkpoint of timm's own LambdaResNet goes into this library's layers, whose outputs are the same up to rounding;
# then into an ONNX file, which runs in ONNX Runtime without PyTorch. `adopt` and `load_weights` know the layers of
# timm, lucidrains (`lambda-networks`), d-li14 and leaderj1001.
#
#     pip install '.[export]'    # in a clone of the repository

# %% tags=["parameters"]
steps = 120  # of training, which stands for the download of weights
image_size = 64
tested = 256  # images to compare on
repeats = 5  # of each time

# %%
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import timm
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import lambdanets

torch.manual_seed(0)
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A checkpoint of another implementation
#
# With the internet at hand: `timm.create_model("lambda_resnet26t", pretrained=True)`, or a `.pth` file from a
# repository. Here a narrow `lambda_resnet26t`, timm's layers only, learns handwritten digits and is saved.

# %%
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
images = F.interpolate(images, size=image_size, mode="bilinear").expand(-1, 3, -1, -1)
labels = torch.tensor(digits.target)
train_images, test_images, test_labels = images[:-tested], images[-tested:], labels[-tested:]

options = {"num_classes": 10, "width_factor": 0.25}
theirs = timm.create_model("lambda_resnet26t", **options)
optimizer = torch.optim.AdamW(theirs.parameters(), weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
for _ in range(steps):
    chosen = torch.randint(len(train_images), (32,))
    loss = F.cross_entropy(theirs.train()(train_images[chosen]), labels[chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
theirs.eval()
torch.save(theirs.state_dict(), folder / "theirs.pth")

with torch.no_grad():
    expected = theirs(test_images)
print(f"timm's layers: {(expected.argmax(1) == test_labels).float().mean():.1%} of {tested} images right")

# %% [markdown]
# ## Load it
#
# `adopt` replaces the layers of a model in memory, `load_weights` reads a file into a model whose layers are this
# library's. Both say what they did. Files are read with `weights_only=True`: a pickle that would run code is refused.

# %%
adoption = lambdanets.adopt(timm.create_model("lambda_resnet26t", **options))
ours = adoption.model.eval()
print(adoption)
loaded = lambdanets.load_weights(ours, folder / "theirs.pth")
print(f"{loaded.loaded} tensors of {loaded.source}, {len(loaded.layers)} lambda layers")

# %% [markdown]
# ## Compare

# %%
with torch.no_grad():
    outputs = ours(test_images)
difference, largest = (outputs - expected).abs().max().item(), expected.abs().max().item()
print(f"largest difference of a logit: {difference:.1e}, of logits up to {largest:.1f}")

# %% [markdown]
# The weights go on training, compile and export as any others. To change a file instead:
#
#     lambdanets adopt theirs.pth --from timm:lambda_resnet26t --output adopted.safetensors
#
# ## Out of Python
#
# `export_model` writes ONNX (or `torch.export`'s form, for `.pt2`), runs the file at several batch and image sizes
# beside the model, and keeps it only where they agree. Class names and preprocessing are in the file. timm's lambda
# models halve sides that have to be even, so that this one is exported for one size; models of this library, and what
# `replace_convs` made, take any (leave `fixed_size` out).

# %%
export = lambdanets.export_model(
    ours,
    folder / "digits.onnx",
    example=test_images[:2],
    fixed_size=True,
    class_names=[str(digit) for digit in range(10)],
)
print(f"largest difference in its checks: {max(check.difference for check in export.checks):.1e}")

one_thread = onnxruntime.SessionOptions()
one_thread.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(folder / "digits.onnx", one_thread, providers=["CPUExecutionProvider"])
probabilities = np.concatenate([session.run(None, {"image": part.numpy()})[0] for part in test_images.split(32)])
right = (probabilities.argmax(1) == test_labels.numpy()).mean()
print(f"ONNX Runtime: {right:.1%} right; in the file: {sorted(session.get_modelmeta().custom_metadata_map)}")


# %%
def milliseconds(function):
    """Return the median time of one call on 32 images, without gradients."""
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - start))
    return sorted(times[1:])[repeats // 2]


batch = test_images[:32].contiguous()
array = batch.numpy()
times = {
    "timm": milliseconds(lambda: theirs(batch)),
    "lambdanets": milliseconds(lambda: ours(batch)),
    "ONNX Runtime": milliseconds(lambda: session.run(None, {"image": array})),
}

figure, (same, speed, pictures) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
expected_probabilities = expected.softmax(1).flatten()
same.plot([0, 1], [0, 1], color="lightgrey")
same.plot(expected_probabilities, outputs.softmax(1).flatten(), "o", markersize=7, fillstyle="none", label="lambdanets")
same.plot(expected_probabilities, probabilities.flatten(), ".", markersize=3, label="ONNX Runtime")
same.set(xlabel="probability by timm's layers", ylabel="probability", title="The same numbers")
same.legend()
speed.bar(list(times), list(times.values()))
speed.set(ylabel="milliseconds", title=f"{len(batch)} images of {image_size} x {image_size}, one core")
pictures.imshow(torch.cat(list(test_images[:8, 0]), 1), cmap="gray")
guesses = " ".join(str(guess) for guess in probabilities[:8].argmax(1))
pictures.set_title(f"ONNX Runtime: {guesses}")
pictures.axis("off")
plt.show()

# %% [markdown]
# More: [Bring your own model](../docs/bring-your-own-model.md). The first example:
# [the lambda layer in five minutes](lambda_layer.ipynb).
