"""The folder of one training: its choices, its split, its results and its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from lambdanets.console import shell_word
from lambdanets.files import check_entry, check_folder, check_name, make_folder, write_json
from lambdanets.models.shipped import shipped_folder, shipped_names
from lambdanets.names import nearest_names, unknown_name
from lambdanets.provenance import environment
from lambdanets.training.data import ImageData, skipping
from lambdanets.training.data.spec import DataSpec
from lambdanets.training.data.transforms import InputTransform
from lambdanets.training.recipes.recipe import Recipe
from lambdanets.training.runs.lock import NAME as LOCK
from lambdanets.training.runs.model import build_model, read_weights
from lambdanets.training.runs.schema import CHECKPOINT, FORMAT, is_config, read_config
from lambdanets.training.runs.split import FILE as SPLIT
from lambdanets.training.runs.split import fingerprints, write_split

_PACKAGES = ("lambdanets", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow")
# The weights of a run, by name.
CHECKPOINTS = ("best", "last")
# What a training and an evaluation write into a run folder, by name, and the folders that they make there.
FOLDERS = (CHECKPOINT, "profile", "samples", "tensorboard")
FILES = (
    *(LOCK, skipping.LOCK, skipping.FILE, SPLIT, *(f"{name}.safetensors" for name in CHECKPOINTS)),
    *("config.json", "result.json", "metrics.csv", "curves.png", f"{CHECKPOINT}/latest.json", "profile/trace.json"),
)
_ADVICE = "Give a folder that `lambdanets train` wrote"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, and the commit of this one's clone, or ""."""
    return environment("python", "commit", *_PACKAGES)


def new_run_folder(model: str, data: str, parent: Path = Path("runs")) -> Path:
    """An empty folder ``parent/<model>-<data>-<date>-<time>``, which another training of this second does not get."""
    label = DataSpec.parse(data).label.replace("/", "-")
    base = f"{model.replace('/', '-').replace(':', '-')}-{label}-{datetime.now():%Y%m%d-%H%M%S}"
    make_folder(parent)
    path, count = parent / base, 1
    while True:
        try:
            path.mkdir()
        except FileExistsError:
            count += 1
            path = parent / f"{base}-{count}"
        else:
            return path


class Run:
    """One run folder.

    The files in it: ``config.json`` (recipe, data, input transform, class names, versions), ``split.csv`` (the images
    of each part, for data in files), ``metrics.csv`` (a line an epoch), ``tensorboard/``, ``curves.png``,
    ``best.safetensors`` (highest validation accuracy), ``last.safetensors``, ``result.json``, ``samples/`` (some test
    images), and, while a training is not finished, ``checkpoint/`` and ``.lock``.

    Attributes:
        path: the folder.
        config: the content of ``config.json``.
        name: what the user calls it: the folder, or the name of weights that come with the package.
        output: where files about the run are written by default: the folder, or ``runs/NAME`` for such weights.
    """

    def __init__(self, path: Path, config: dict[str, Any], name: str | None = None) -> None:
        self.path = path
        self.config = config
        self.name = str(path) if name is None else name
        self.output = path if name is None else Path("runs") / name

    @classmethod
    def create(
        cls, path: Path, recipe: Recipe, data: ImageData, transform: InputTransform, weights: str | None = None
    ) -> Run:
        """Create a run folder.

        Args:
            path: must not exist, or be an empty folder.
            recipe: the training's choices.
            data: the data's specification, class names and sizes are stored.
            transform: the steps from images to inputs.
            weights: the name of the weights that the training starts from; None for random ones.

        Raises:
            ValueError: ``path`` has content already, or is a file.
        """
        check_new(path)
        make_folder(path)
        split = write_split(path, data)
        config: dict[str, Any] = {
            "format": FORMAT,
            "model": {"name": recipe.model, "kwargs": dict(recipe.model_kwargs)},
            "data": {
                "spec": data.spec,
                "images": {name: len(part) for name, part in data.parts.items()},
                "fingerprints": fingerprints(data),
            },
            "input": transform.to_dict(),
            "class_names": list(data.class_names),
            "recipe": recipe.to_dict(),
            "seed": recipe.seed,
            "versions": versions(),
        }
        if split is not None:
            config["data"]["split"] = split
        if weights is not None:
            config["model"]["weights"] = weights
        write_json(path / "config.json", config)
        return cls(path, config)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run folder and check that it is one.

        Raises:
            FileNotFoundError: there is no such folder, or it lacks ``config.json``.
            ValueError: it is no folder, or ``config.json`` is damaged or not what a training writes.
        """
        path = Path(path)
        if not path.exists():
            named = shipped_folder(str(path)) is not None
            weights = "; weights of this name come with the package, but not the rest of their run" if named else ""
            raise FileNotFoundError(f"the run folder {path} does not exist{weights}. {_ADVICE}{_others(path)}.")
        if not path.is_dir():
            raise ValueError(f"the run folder {path} is a file. {_ADVICE}{_others(path)}.")
        check_name(path)  # safetensors takes no other
        file = path / "config.json"
        if not file.exists():
            raise FileNotFoundError(f"{path} is not a run folder: config.json is missing. {_ADVICE}{_others(path)}.")
        return cls(path, read_config(file))

    @classmethod
    def open_trained(cls, path: str | Path) -> Run:
        """Open a run folder, or weights that come with the package by their name.

        Raises:
            FileNotFoundError: there is neither such a folder nor such a name.
            ValueError: as :meth:`open` says.
        """
        shipped = None if Path(path).exists() else shipped_folder(str(path))
        if shipped is not None:
            return cls(shipped, read_config(shipped / "config.json"), str(path))
        try:
            return cls.open(path)
        except FileNotFoundError as error:
            near = nearest_names(str(path), shipped_names())
            hint = f" Did you mean the weights {' or '.join(map(repr, near))} of this package?" if near else ""
            raise FileNotFoundError(f"{error}{hint}") from None

    @cached_property
    def recipe(self) -> Recipe:
        """The training's choices."""
        return Recipe.from_dict(self.config["recipe"])

    @cached_property
    def transform(self) -> InputTransform:
        """The steps from images to inputs."""
        return InputTransform.from_dict(self.config["input"])

    @property
    def data_spec(self) -> str:
        """The data that the run was trained on."""
        return self.config["data"]["spec"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class, in the order of the model's outputs."""
        return tuple(self.config["class_names"])

    @property
    def samples(self) -> list[Path]:
        """Test images that were stored with the run."""
        return sorted((self.path / "samples").glob("*.png"))

    def new_model(self) -> nn.Module:
        """The run's model with random weights."""
        recipe = self.recipe
        try:
            return build_model(
                self.config["model"]["name"],
                num_classes=len(self.class_names),
                in_chans=self.transform.channels,
                drop_rate=recipe.drop_rate,
                drop_path_rate=recipe.drop_path_rate,
                **self.config["model"]["kwargs"],
            )
        # Models refuse arguments that they do not take in their own ways.
        except Exception as error:
            raise ValueError(f"{self.path / 'config.json'}: the model cannot be made: {error}") from error

    def load_model(self, weights: str = "best") -> nn.Module:
        """The run's model with trained weights, ready for inference.

        Args:
            weights: ``"best"`` or ``"last"``.

        Raises:
            FileNotFoundError: the run has no such weights.
            ValueError: there are no weights of such a name, they are damaged, or they do not fit.
        """
        if weights not in CHECKPOINTS:
            raise unknown_name("checkpoint", weights, CHECKPOINTS)
        file = self.path / f"{weights}.safetensors"
        if not file.is_file() and self.output != self.path:
            raise FileNotFoundError(f"{self.name} comes with its best weights alone, not with {weights!r}; use 'best'")
        if not file.is_file():
            command = f"lambdanets train --resume {shell_word(self.path)}"
            raise FileNotFoundError(
                f"the run {self.path} has no {file.name}: no epoch of its training was finished, or the file was "
                f"removed. A training that is not finished goes on with `{command}`."
            )
        model = self.new_model()
        model.load_state_dict(read_weights(model, file, self.class_names))
        return model.eval()

    def check_classes(self, class_names: Sequence[str], spec: str) -> None:
        """Raise a ValueError if the classes of the data ``spec`` are not those of the run."""
        ours, theirs = self.class_names, tuple(class_names)
        if len(ours) != len(theirs):
            raise ValueError(
                f"the weights in {self.path} have {len(ours)} classes, but the data {spec!r} have "
                f"{len(theirs)}. Give data with the classes of {self.data_spec!r}."
            )
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            if mine != other:
                raise ValueError(
                    f"class {index} is {mine!r} in {self.path}, but {other!r} in the data {spec!r}. "
                    f"Give data with the classes of {self.data_spec!r}."
                )


def check_entries(folder: Path, files: Iterable[str] = FILES, folders: Iterable[str] = FOLDERS) -> None:
    """Raise a ValueError if what would be written into a folder, which may be a stranger's, could end up elsewhere.

    Args:
        folder: the folder; it may be a link itself, or lie below one.
        files: the names of what will be written. Default: all that a training writes.
        folders: the names of the folders in it. Default: those of a training.
    """
    for name in folders:
        check_entry(folder / name, folder=True)
    for name in files:
        check_entry(folder / name)


def check_new(path: Path) -> None:
    """Raise a ValueError if ``path`` cannot become a new run folder."""
    check_folder(path)
    check_entry(path / LOCK)
    check_name(path)  # TensorBoard takes no other
    if path.is_dir() and any(file.name != LOCK for file in path.iterdir()):
        remedy = "give a new folder"
        # A finished run has no checkpoint to continue from.
        if (path / CHECKPOINT).is_dir():
            remedy += f", or continue that run with `lambdanets train --resume {shell_word(path)}`"
        raise ValueError(f"the output folder {path} is not empty; {remedy}")


def _others(path: Path) -> str:
    """The newest run folders beside or below ``path``, to put into a message."""
    for parent in (path, path.parent, Path("runs")):
        if parent.is_dir():
            runs = [file.parent for file in parent.glob("*/config.json") if is_config(file)]
            if runs:
                newest = sorted(runs, key=lambda run: run.stat().st_mtime, reverse=True)[:3]
                return f", for example {', '.join(map(str, newest))}"
    return ""
