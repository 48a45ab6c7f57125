"""A finished run as a file for other runtimes."""

from __future__ import annotations

from pathlib import Path

import torch

from lambdanets.interop.export import Export, export_model
from lambdanets.interop.export.formats import FORMATS
from lambdanets.interop.export.preprocessing import describe_preprocessing
from lambdanets.layers.arguments import check_bool
from lambdanets.names import unknown_name
from lambdanets.training.runs.folder import CHECKPOINTS, Run, check_entries


def export_run(
    path: str | Path,
    *,
    format: str | None = None,
    output: str | Path | None = None,
    checkpoint: str = "best",
    logits: bool = False,
    fixed_size: bool = False,
    opset: int | None = None,
    overwrite: bool = False,
) -> Export:
    """Write the model of a run, with its preprocessing and class names, to a file that runs without this package.

    Args:
        path: the run folder, or the name of weights that come with the package.
        format: ``"onnx"`` or ``"torch-export"``; default: by the suffix of ``output``, or ONNX.
        output: the file. Default: ``best.onnx``, ``best.pt2``, ... in the run folder, by checkpoint and format; for a
            name that file in ``runs/NAME``.
        checkpoint: ``"best"`` or ``"last"`` weights.
        logits: the file gives logits instead of probabilities.
        fixed_size: the file takes images of the run's size only, as some models do.
        opset: of ONNX; default PyTorch's.
        overwrite: whether the file may exist.

    Returns:
        What was written and how far it differs from the model; see :func:`lambdanets.export_model`.

    Raises:
        FileNotFoundError: the run, its weights or the folder of ``output`` do not exist.
        FileExistsError: the file exists.
        ValueError: the run is damaged, or its model cannot be exported.
    """
    for name, given in (("logits", logits), ("fixed_size", fixed_size), ("overwrite", overwrite)):
        check_bool(name, given)
    run = Run.open_trained(path)
    if checkpoint not in CHECKPOINTS:
        raise unknown_name("checkpoint", checkpoint, CHECKPOINTS)
    if format is None and output is None:
        format = "onnx"
    if format is not None and format not in FORMATS:
        raise unknown_name("format", format, list(FORMATS))
    if output is None:
        run.output.mkdir(parents=True, exist_ok=True)
        output = run.output / f"{checkpoint}{FORMATS[format].suffix}"  # type: ignore[index]  # given, or ONNX
        check_entries(run.output, (output.name,), folders=())
    transform = run.transform
    size = (transform.image_size, transform.image_size)
    return export_model(
        run.load_model(checkpoint),
        output,
        format=format,
        output="logits" if logits else "probabilities",
        example=torch.zeros(2, transform.channels, *size),
        fixed_size=fixed_size,
        opset=opset,
        preprocessing=describe_preprocessing(
            size,
            channels=transform.channels,
            mean=transform.mean,
            std=transform.std,
            interpolation=transform.interpolation,
            crop_pct=transform.crop_pct,
        ),
        class_names=run.class_names,
        overwrite=overwrite,
    )
