"""The classes of image files by a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lambdanets.training.data.transforms import check_image_file, read_image
from lambdanets.training.rules import refuse, whole
from lambdanets.training.runs.folder import Run


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image.

    Attributes:
        image: the file.
        classes: (class name, probability 0 to 1), most probable first.
    """

    image: Path
    classes: list[tuple[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        classes = [{"class": name, "probability": probability} for name, probability in self.classes]
        return {"image": str(self.image), "classes": classes}


def predict_images(
    path: str | Path, images: Sequence[str | Path], *, top: int = 5, batch_size: int = 64
) -> list[Prediction]:
    """Classify image files with the best weights of a run.

    The images pass the transform that is stored with the run: converted to its colours, resized, cropped at
    the centre and scaled. Nothing else is changed; digits, for instance, must be bright on a dark ground, as
    those that the model has learnt from.

    Args:
        path: the run folder, or the name of weights that come with the package.
        images: image files of any size.
        top: how many classes for each image, at most all.
        batch_size: images at a time.

    Returns:
        A prediction for each image, in the order given.

    Raises:
        FileNotFoundError: the run or an image does not exist.
        ValueError: the run is damaged, an image cannot be read, a probability is not a finite number, or another
            argument is out of its range.
    """
    whole(1)(top, "top")
    whole(1, 10**6)(batch_size, "batch_size")
    if isinstance(images, str | Path):
        raise refuse(str(images), "images", "use a list of files, [...]")
    run = Run.open_trained(path)
    for image in images:  # all of them, before the first is classified
        check_image_file(Path(image))
    transform = run.transform.build()
    mode = run.transform.mode
    model = run.load_model()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    names = run.class_names
    predictions = []
    for start in range(0, len(images), batch_size):
        files = [Path(image) for image in images[start : start + batch_size]]
        inputs = torch.stack([transform(read_image(file, mode)) for file in files])
        with torch.inference_mode():
            probabilities = model(inputs.to(device)).float().softmax(dim=1)
        for file, finite in zip(files, probabilities.isfinite().all(dim=1).tolist(), strict=True):
            if not finite:
                raise ValueError(
                    f"the run {run.path} gives no finite probabilities for the image {file}: its weights are too large "
                    "or damaged; train again, with a lower learning rate or in fp32"
                )
        values, indices = probabilities.topk(min(top, len(names)), dim=1)
        for file, row, columns in zip(files, values.tolist(), indices.tolist(), strict=True):
            classes = [(names[column], value) for value, column in zip(row, columns, strict=True)]
            predictions.append(Prediction(file, classes))
    return predictions
