"""Arguments of an export, checked before any work."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lambdanets.files import check_name, check_writable
from lambdanets.interop.export.formats import FORMATS, Format
from lambdanets.layers.arguments import check_bool
from lambdanets.names import did_you_mean

__all__ = ["OUTPUTS", "check_arguments", "check_facts", "format_of"]

OUTPUTS = ("probabilities", "logits")


def format_of(path: Path, given: str | None) -> Format:
    """Return the format of that name, by default that of the file's suffix.

    Raises:
        ValueError: there is none, or the suffix is another format's.
    """
    suffixes = {each.suffix: each for each in FORMATS.values()}
    if given is None:
        if path.suffix not in suffixes:
            raise ValueError(
                f"path must end in {' or '.join(suffixes)}, or format be one of {', '.join(FORMATS)}, got {str(path)!r}"
            )
        return suffixes[path.suffix]
    if given not in FORMATS:
        near = did_you_mean(given, FORMATS, "by default the suffix of the path decides")
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {given!r}; {near}")
    kind = FORMATS[given]
    if path.suffix != kind.suffix:
        raise ValueError(f"path must end in {kind.suffix} for format {given!r}, got {str(path)!r}")
    return kind


def check_arguments(model: nn.Module, path: Path, output: str, fixed_size: bool, overwrite: bool) -> None:
    """Raise an error for a model that cannot be exported, or an output that cannot be written."""
    check_bool("fixed_size", fixed_size)
    check_bool("overwrite", overwrite)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model must not be TorchScript, which is not exported again; give the model it was made of")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("model must have memory for its weights, got some on the meta device; load its weights first")
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} for the output {path.name} does not exist; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"the output {path} is a folder; give a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"the output {path} exists; give another name, or overwrite it (--overwrite)")
    check_writable(path)
    check_name(path)  # the writers and readers of these files take no other


def check_facts(
    preprocessing: Mapping[str, Any] | None, class_names: Sequence[str], tolerance: float, opset: int | None
) -> None:
    """Raise an error for what would be recorded, or compared, wrongly."""
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise TypeError(f"class_names must be a sequence of texts, one for each output, got {class_names!r}")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be a number above 0, got {tolerance!r}")
    if opset is not None and (isinstance(opset, bool) or not isinstance(opset, int)):
        raise TypeError(f"opset must be a whole number, got {opset!r}")
    try:
        json.dumps(None if preprocessing is None else dict(preprocessing), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"preprocessing must be of plain values, as JSON has them: {error}") from error
