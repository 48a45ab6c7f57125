"""A run's model as timm's ``hf-hub:`` and ``local-dir:`` names load it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf

from lambdanets.files import (
    check_folder,
    check_name,
    make_folder,
    naming_failed_writes,
    replacing_folder,
    write_text,
)
from lambdanets.layers.arguments import check_bool
from lambdanets.names import unknown_name
from lambdanets.training.inference.card import published_card
from lambdanets.training.runs.folder import CHECKPOINTS, Run

_FORMS = "hf-hub:USER/NAME or local-dir:FOLDER"


def publish_run(path: str | Path, to: str, *, checkpoint: str = "best", private: bool = False) -> str:
    """Write a run's model, its input transform, its classes and a model card where timm finds them.

    What is written is read back by ``timm.create_model`` and compared with the run's model before it goes anywhere.

    Args:
        path: the run folder, or the name of weights that come with the package.
        to: ``"hf-hub:USER/NAME"``, a repository of the Hugging Face hub, made if it is not there; or
            ``"local-dir:FOLDER"``, a new or empty folder.
        checkpoint: ``"best"`` or ``"last"`` weights.
        private: a new repository is private; for the hub alone.

    Returns:
        The name under which ``timm.create_model(name, pretrained=True)`` loads it, which is ``to``.

    Raises:
        OSError: the machine refused; nothing is left of a new folder.
        ValueError: ``to`` is neither, a folder is to be private, the folder is not empty, or the hub refuses.
        FileNotFoundError: the run or its weights are missing.
    """
    check_bool("private", private)
    kind, _, place = to.partition(":")
    user, slash, name = place.partition("/")
    is_repository = bool(user and slash and name and "/" not in name)
    if kind not in ("hf-hub", "local-dir") or not place or (kind == "hf-hub" and not is_repository):
        raise ValueError(f"to is {to!r}; use {_FORMS}")
    if private and kind != "hf-hub":
        raise ValueError(f"private is True, for a repository of the hub, and to is {to!r}; leave it out")
    if checkpoint not in CHECKPOINTS:
        raise unknown_name("checkpoint", checkpoint, CHECKPOINTS)
    target = Path(place)
    if kind == "local-dir":
        if place.startswith("~"):  # which timm does not look up either
            raise ValueError(f"to is {to!r}; give the folder's whole path, local-dir:{target.expanduser()}")
        name = target.resolve().name
        check_name(target)  # safetensors takes no other
        check_folder(target)
        if target.is_dir() and any(target.iterdir()):
            raise ValueError(f"to is {to!r}, and the folder {target} is not empty; give a new one")
    run = Run.open_trained(path)
    card = published_card(run, name, to)
    if kind == "local-dir":
        make_folder(target.parent)
        # An empty folder stays the one that it is: the current one, perhaps, or a link.
        whole = target / ".publish" if target.exists() else target
        with replacing_folder(whole) as folder:
            _write(run, checkpoint, card, folder, target)
        if whole != target:
            for file in whole.iterdir():
                file.rename(target / file.name)
            whole.rmdir()
        return to
    with tempfile.TemporaryDirectory() as folder:
        _write(run, checkpoint, card, Path(folder), Path(folder))
        _upload(Path(folder), place, private)
    return to


def _write(run: Run, checkpoint: str, card: str, folder: Path, target: Path) -> None:
    """Fill ``folder``, which becomes ``target``, and read it back."""
    model, given = run.load_model(checkpoint), run.transform
    size = (given.channels, given.image_size, given.image_size)
    config: dict[str, Any] = {
        "input_size": size,
        "mean": given.mean,
        "std": given.std,
        "interpolation": given.interpolation,
        "crop_pct": given.crop_pct,
    }
    with naming_failed_writes(target):
        save_for_hf(
            model,
            str(folder),
            model_config={"label_names": list(run.class_names)},
            model_args=dict(run.config["model"]["kwargs"]),
            data_config=config,
            safe_serialization=True,
        )
    write_text(folder / "README.md", f"---\nlibrary_name: timm\npipeline_tag: image-classification\n---\n\n{card}")
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(2, *size)
    with torch.inference_mode():
        if not torch.equal(again(images), model(images)):
            raise RuntimeError(f"what was written to {target} gives other outputs; this is a fault of lambdanets")


def _upload(folder: Path, repository: str, private: bool) -> None:
    from huggingface_hub import HfApi

    api = HfApi(library_name="lambdanets")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Add model")
    # No network, no token, no such user: the hub's client and its transport fail in many ways.
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"hf-hub:{repository} cannot be written: {first}. Log in with `hf auth login`, or write to "
            "local-dir:FOLDER and upload that"
        ) from error
