"""Facts that a report of a fault has to name: versions, devices, kernels present and absent, folders, variables."""

from __future__ import annotations

import os
import platform
from getpass import getuser
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE

import lambdanets
from lambdanets.kernels.grid import costs
from lambdanets.kernels.grid.compiled import binding
from lambdanets.kernels.grid.contract import GridKernel, GridProblem
from lambdanets.kernels.grid.planner import GRID_KERNELS
from lambdanets.provenance import environment, package_version, processor, source_commit

__all__ = ["describe_environment"]

_PACKAGES = (
    *("torch", "torchvision", "timm", "accelerate", "safetensors", "huggingface_hub", "torchmetrics", "numpy", "scipy"),
    *("scikit-learn", "pillow", "matplotlib", "typer", "rich", "triton", "onnx", "onnxscript", "onnxruntime"),
)
# What changes speed, numbers or folders.
_PREFIXES = ("LAMBDANETS_", "OMP_", "MKL_", "ONEDNN_", "ATEN_", "CUDA_", "TORCH", "PYTORCH_", "TRITON_", "HF_", "XDG_")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def describe_environment() -> dict[str, dict[str, str]]:
    """Texts by section and name: package, versions, devices, kernels, folders, environment variables.

    Of variables whose name says that they hold a secret the value is left out.
    """
    commit = source_commit()
    return {
        "lambdanets": {
            "version": package_version("lambdanets") + (f" ({commit})" if commit else ""),
            "folder": str(Path(lambdanets.__file__).parent),
        },
        "versions": {
            **environment("python"),
            "platform": platform.platform(),
            **environment(*_PACKAGES),
            "torch": torch.__version__,  # with the build's name
        },
        "devices": _devices(),
        "kernels": {name: _state(kernel) for name, kernel in GRID_KERNELS.items()},
        "folders": {
            "constants of this machine": _there(costs.cache_file()),
            "weights of the Hugging Face hub": _there(Path(HF_HUB_CACHE)),
            "weights of torch.hub": _there(Path(torch.hub.get_dir())),
            "code of torch.compile": _there(_compiled()),
            "code of Triton": _there(Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")),
        },
        "variables": {
            name: "(set)" if any(word in name for word in _SECRET) else value
            for name, value in sorted(os.environ.items())
            if name.startswith(_PREFIXES)
        },
    }


def _devices() -> dict[str, str]:
    found = {
        "cpu": f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of PyTorch, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    }
    for index in range(torch.cuda.device_count()):
        card: Any = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{card.name}, sm_{card.major}{card.minor}, {card.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        built = (
            f"PyTorch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch is built without it"
        )
        found["cuda"] = f"no device; {built}"
    return found


def _state(kernel: GridKernel) -> str:
    """Present, or why not."""
    device = kernel.device or "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        return "absent: there is no CUDA device"
    reason = kernel.check(GridProblem(1, 4, 16, 16, 1, (14, 14), (7, 7), (3, 3), torch.float32, device))
    if reason is not None:
        return f"absent: {reason}"
    found = binding.library() if kernel.compiled else None
    return "present" if found is None else f"present, {found.name}"


def _compiled() -> Path:
    """The folder of TorchInductor."""
    try:
        user = getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        user = f"uid_{os.getuid()}"
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or Path(gettempdir()) / f"torchinductor_{user}")


def _there(path: Path) -> str:
    return str(path) if path.exists() else f"{path} (not there)"
