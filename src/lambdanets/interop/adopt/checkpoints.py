"""Reading a file of weights written by other software: safetensors or a pickle, nested or flat, prefixed or not."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lambdanets.names import count

__all__ = ["Checkpoint", "check_plain", "named_as", "read_checkpoint"]

# Where training scripts put the weights beside their optimizer; moving averages first, as timm does.
_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")
# What wrappers (data parallel, torch.compile, Lightning) put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Weights by name.

    Args:
        tensors: the weights, on the CPU where they come from a file.
        origin: the file, or "the state dict", for messages.
        entry: the entries of a nested file that led to them, as "state_dict", and the prefixes that were removed.
    """

    tensors: dict[str, Tensor]
    origin: str
    entry: tuple[str, ...] = ()


def read_checkpoint(weights: str | Path | Mapping[str, object] | Checkpoint) -> Checkpoint:
    """Read weights and take away what is wrapped around them.

    Args:
        weights: a file (safetensors, or what ``torch.save`` wrote) or a mapping, either of which may hold the
            weights under "state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model" or "module" (the
            first of these that is there) and with "module.", "_orig_mod." or "model." before all names. What this
            function returned goes through as it is.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``weights`` is neither a path nor a mapping.
        ValueError: the file is damaged, a pickle that would run code, or holds no weights.
    """
    if isinstance(weights, Checkpoint):
        return weights
    if isinstance(weights, Mapping):
        return _unwrap(weights, "the state dict")
    if not isinstance(weights, str | Path):
        raise TypeError(f"weights must be a path or a state dict, got {type(weights).__name__}")
    path = Path(weights)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        if path.exists() and not path.is_dir():
            raise ValueError(f"the checkpoint {path} is a pipe or a device; give a file")
        raise FileNotFoundError(f"the checkpoint {path} {what}")
    return _unwrap(_read(path), f"the checkpoint {path}")


def _read(path: Path) -> Mapping[str, object]:
    with open(path, "rb") as file:
        start = file.read(9)
    if start == b"version h":
        raise ValueError(f"the checkpoint {path} is a pointer of Git LFS, not the file; get that by 'git lfs pull'")
    try:
        # A safetensors file opens with the length of a JSON header; what torch.save wrote never has { there.
        if start[8:] == b"{":
            return load_file(path)
        if start.startswith(b"PK"):
            _refuse_compressed(path)
        read = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"the checkpoint {path} is damaged: {error}") from error
    except pickle.UnpicklingError as error:
        # A zip file or a pickle; text and the like stop the unpickler too, but hold no code.
        is_pickle = start.startswith((b"PK", b"\x80"))
        if is_pickle and ("weights_only" in str(error).lower() or "Unsupported" in str(error)):
            raise _untrusted(path, error) from error
        what = f": {error}" if is_pickle else ""
        raise ValueError(f"the checkpoint {path} is damaged or no file of weights{what}") from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # what a damaged file makes of the unpickler may be any
        raise ValueError(f"the checkpoint {path} is damaged or no file of weights ({_say(error)})") from error
    if not isinstance(read, Mapping):
        raise ValueError(f"the checkpoint {path} holds a {type(read).__name__}, not weights by name")
    return read


def _refuse_compressed(path: Path) -> None:
    """Raise a ValueError for a zip file with packed entries: a small one can unpack to more than the memory holds."""
    try:
        with zipfile.ZipFile(path) as opened:
            packed = [entry for entry in opened.infolist() if entry.file_size > entry.compress_size]
    except (zipfile.BadZipFile, NotImplementedError):
        return  # what is wrong with it torch.load says
    if packed:
        size = sum(entry.file_size for entry in packed)
        raise ValueError(
            f"the checkpoint {path} has packed entries, of {size:,} bytes unpacked; torch.save packs nothing, so it is "
            "refused. Unpack it and write it with torch.save or safetensors"
        )


def _say(error: BaseException) -> str:
    """Text of an error with its kind: a pickle's errors alone may be a number."""
    return ": ".join(filter(None, [type(error).__name__, str(error).strip().partition("\n")[0]]))


def _untrusted(path: Path, error: BaseException) -> ValueError:
    words = str(error)
    start = words.find("GLOBAL ")
    what = f" (it needs {words[start + 7 :].split()[0]})" if start >= 0 else ""
    return ValueError(
        f"the checkpoint {path} is a pickle that holds more than weights{what}; loading it could run any code, so it "
        "is refused. Where you trust it and its place: read it there with torch.load(..., weights_only=False), keep "
        "the state_dict and write it with safetensors.torch.save_file; or allow the classes that it needs by "
        "torch.serialization.add_safe_globals([...]) before loading"
    )


def _unwrap(read: Mapping[str, object], origin: str) -> Checkpoint:
    entry: list[str] = []
    seen = [read]
    while inner := next((name for name in _ENTRIES if _may_hold_tensors(read.get(name))), None):
        entry.append(inner)
        read = read[inner]  # type: ignore[assignment]
        if any(read is outer for outer in seen):
            raise ValueError(f"{origin} holds itself under {inner!r}; pass the state_dict itself")
        seen.append(read)
    tensors = {name: tensor for name, tensor in read.items() if isinstance(tensor, Tensor)}
    nameless = [name for name in tensors if not isinstance(name, str)]
    if nameless:
        raise ValueError(f"{origin} holds a tensor under {nameless[0]!r}, which is no name; write it with names")
    if not tensors:
        names = ", ".join(map(repr, list(read)[:5])) or "nothing"
        raise ValueError(f"{origin} holds no weights by name; it holds {names}. Pass the state_dict itself")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        entry.append(prefix)
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return Checkpoint(tensors, origin, tuple(entry))


def _may_hold_tensors(entry: object) -> bool:
    """True for a mapping with tensors, or with mappings, in which there may be some; False for numbers alone."""
    return isinstance(entry, Mapping) and any(isinstance(value, Tensor | Mapping) for value in entry.values())


def check_plain(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Raise a ValueError for tensors whose numbers cannot be copied one by one: sparse, nested, quantised or meta ones.

    Args:
        tensors: by name.
        origin: of the tensors, for the message.
    """
    odd = [
        name
        for name, tensor in tensors.items()
        if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta
    ]
    if odd:
        raise ValueError(
            f"{origin} has {count(len(odd), 'tensor that is', 'tensors that are')} quantised, sparse, nested or "
            f"without memory, {odd[0]} the first. Nothing was loaded; write them as plain tensors: dequantize(), "
            "to_dense()"
        )


def named_as(checkpoint: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """The checkpoint with the prefix in front that training scripts leave and all of ``names`` have, a model's own."""
    names, prefix = list(names), ""
    while names and (more := next((p for p in _PREFIXES if all(n.startswith(prefix + p) for n in names)), None)):
        prefix += more
    return replace(checkpoint, tensors={prefix + name: tensor for name, tensor in checkpoint.tensors.items()})
