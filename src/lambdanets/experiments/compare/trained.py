"""A study whose rows are models that are trained and tested: one backbone and schedule, only the rows' arguments vary.

The learning rate of each row is chosen by the validation images in trainings of its own; then each seed is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lambdanets.experiments.bench.measure import TRAINING
from lambdanets.experiments.compare.cell import Cell, Config, Done, best_rate
from lambdanets.experiments.compare.measured import (
    build,
    images,
    measure_memory,
    measure_speed,
    step_bytes,
    turns_bytes,
    weights_bytes,
)
from lambdanets.experiments.compare.outcome import Claim, Outcome, machine_line
from lambdanets.experiments.compare.rows import Row, compared_with
from lambdanets.experiments.compare.study import DataFacts, Needs, Options, Place, Study, choose_rows
from lambdanets.experiments.compare.summary import Summary, notes_of, plots_of, summaries, tables_of, warnings_of
from lambdanets.experiments.compare.train_cell import run_bytes, train_cell
from lambdanets.layers import LambdaLayer
from lambdanets.layers.registry import LAYERS
from lambdanets.training import Augmentation, Recipe

__all__ = ["HEADS", "Scale", "TrainedStudy"]

MODEL = "lambda_resnet_tiny"
# Of attention, as many as lambda layers have: the backbone is too narrow for the eight heads of the paper's attention.
HEADS = 4
# Seeds of the search for the learning rate, by which no row is judged, and how many of the comparison's need one more.
SEARCH_SEED, SEEDS_OF_A_SEARCH = 1000, 4
# Of a training: its numbers do not depend on how many run at once.
THREADS = 1


@dataclass(frozen=True)
class Scale:
    """Size of a study.

    Args:
        blocks: of each stage.
        images: training images that a training sees, in whole epochs.
        rates: learning rates to choose from.
        batch: images of a step.
        seconds: least time of the turns of each pass.
        most: most time of them.
    """

    blocks: tuple[int, int, int, int]
    images: int
    rates: tuple[float, ...]
    batch: int
    seconds: float
    most: float

    def epochs(self, data: DataFacts) -> int:
        """Epochs of a training."""
        return max(1, round(self.images / data.images[0]))


# Trainings of the search are as long as the others: shorter ones prefer rates that are too high for the others.
SCALES = {
    "full": Scale((1, 1, 1, 1), 100_000, (1e-3, 3e-3, 1e-2, 3e-2), 64, 20.0, 60.0),
    "quick": Scale((1, 1, 1, 1), 5_000, (3e-3, 1e-2, 3e-2), 32, 4.0, 8.0),
}


@dataclass(frozen=True)
class TrainedStudy(Study):
    """A study of models that are trained.

    Args:
        name: on the command line.
        title: of its report.
        question: that it asks.
        rows: by name; the first is the baseline that the others are compared with.
        judge: what was expected and what was found, from the rows' summaries.
        version: raised when what a cell computes changes.
    """

    name: str
    title: str
    question: str
    rows: Mapping[str, Row]
    judge: Callable[[Mapping[str, Summary]], Sequence[Claim]]
    version: int = 1

    @property
    def baseline(self) -> str:
        """The row that the others are compared with."""
        return next(iter(self.rows))

    def row_names(self, options: Options) -> list[str]:
        """See the interface."""
        return list(self.rows)

    def cells(self, options: Options) -> list[Cell]:
        """See the interface."""
        names, data = choose_rows(self, options), options.data
        if data is None:
            raise ValueError(f"the study {self.name} trains on images; give --data")
        scale = SCALES[options.scale]
        shape = {"image_size": data.image_size, "channels": data.channels, "classes": data.classes}
        epochs = options.epochs or scale.epochs(data)
        models = {
            name: {"model": MODEL, "model_kwargs": _arguments(self.rows[name], scale, data.image_size)}
            for name in self.rows
            if name in {self.baseline, *names, *(compared_with(self.rows, name) for name in names)}
        }
        common = {"study": self.name, "scale": options.scale, **shape}
        speed = {"kind": "speed", "row": "all rows", "models": models, "batch": scale.batch, "seconds": scale.seconds}
        found = [Cell({**common, **speed, "most": scale.most}, weight=epochs, alone=True)]
        for name, model in models.items():
            own = {**common, "row": name, **model, "batch": scale.batch}
            found.append(Cell({**own, "kind": "memory"}, weight=epochs / 20, alone=True))
            if not self.rows[name].trains:
                continue
            search = {**own, "kind": "search", "epochs": epochs}
            searches = tuple(
                Cell({**search, "seed": SEARCH_SEED + number, "lr": rate}, weight=epochs)
                for number in range(math.ceil(options.seeds / SEEDS_OF_A_SEARCH))
                for rate in scale.rates
            )
            found += [
                Cell({**own, "kind": "train", "epochs": epochs, "seed": seed}, searches, _with_best_rate, epochs)
                for seed in range(options.seeds)
            ]
        return found

    def run(self, config: Config, place: Place) -> dict[str, Any]:
        """See the interface."""
        shape = {name: config[name] for name in ("image_size", "channels", "classes")}
        if config["kind"] == "speed":
            x = images(shape, config["batch"])
            models = {
                name: (build(row["model"], row["model_kwargs"], shape), x) for name, row in config["models"].items()
            }
            return measure_speed(models, config["seconds"], config["most"])
        if config["kind"] == "memory":
            return measure_memory(config["model"], config["model_kwargs"], shape, config["batch"])
        return train_cell(recipe_of(config, place.data), place)

    def needs(self, config: Config) -> Needs:
        """See the interface."""
        shape = {name: config[name] for name in ("image_size", "channels", "classes")}
        if config["kind"] in ("speed", "memory"):
            models = config["models"] if config["kind"] == "speed" else {config["row"]: config}
            return Needs(memory=turns_bytes(models, shape, config["batch"]))
        model = (config["model"], config["model_kwargs"], shape, config["batch"])
        return Needs(memory=step_bytes(*model), disk=run_bytes(weights_bytes(*model)))

    def threads(self, config: Config) -> int | None:
        """See the interface."""
        return THREADS if config["kind"] in ("search", "train") else None

    def expected_seconds(self, config: Config, cells: Sequence[Done]) -> float | None:
        """See the interface. A training takes as long as its row's speed says."""
        for done in cells:
            if (
                config["kind"] in ("search", "train")
                and done.kind == "speed"
                and config["row"] in done.result[TRAINING]
            ):
                rate = done.result[TRAINING][config["row"]]["images_per_second"][0]
                return config["epochs"] * done.data["images"][0] / rate
        return None

    def line(self, result: Mapping[str, Any]) -> str:
        """See the interface."""
        if result.get("diverged"):
            return "diverged"
        if "test_top1" in result:
            validation, test = result["validation_top1"], result["test_top1"]
            return f"{validation:.2%} of the validation images, {test:.2%} of the test images"
        return f"{result['parameters']:,} parameters" if "parameters" in result else ""

    def outcome(self, cells: Sequence[Done]) -> Outcome:
        """See the interface."""
        rows = summaries(self.rows, cells)
        return Outcome(
            self.name,
            self.title,
            self.question,
            self.judge(rows),
            tables_of(self.rows, rows),
            plots_of(rows),
            notes_of(rows, cells),
            machine_line(cells),
            warnings_of(rows, cells),
        )


def _arguments(row: Row, scale: Scale, image_size: int) -> dict[str, Any]:
    """Arguments of the model of a row, as values of JSON."""
    layer_args = {letter: dict(args) for letter, args in row.layer_args.items()}
    for letter in filter(_needs_heads, sorted({*row.stages})):
        layer_args[letter] = {"num_heads": HEADS, **layer_args.get(letter, {})}
    arguments: dict[str, Any] = {
        "layers": list(scale.blocks),
        "stages": row.stages,
        "stem_stride": 1 if image_size <= 16 else 2,
        "img_size": image_size,
    }
    if "L" in row.stages:
        arguments["lambda_args"] = {"num_heads": HEADS, **row.lambda_args}
    return arguments | ({"layer_args": layer_args} if layer_args else {}) | dict(row.model_args)


def _needs_heads(letter: str) -> bool:
    """True for layers with heads whose own number is another one than that of lambda layers."""
    layer = LAYERS[letter].layer
    return layer is not None and "num_heads" in LAYERS[letter].options and not issubclass(layer, LambdaLayer)


def _with_best_rate(config: Config, searches: Sequence[Done]) -> Config:
    """The configuration of a training with the learning rate of the best search."""
    return {**config, "lr": best_rate(searches)}


def recipe_of(config: Config, data: str | None) -> Recipe:
    """Return the recipe of a training."""
    flips = config["channels"] == 3  # digits do not stay what they are in a mirror
    return Recipe(
        name=f"compare-{config['study']}",
        model=config["model"],
        data=data,
        model_kwargs=config["model_kwargs"],
        image_size=config["image_size"],
        epochs=config["epochs"],
        batch_size=config["batch"],
        optimizer="adamw",
        lr=config["lr"],
        weight_decay=0.05,
        warmup_epochs=1 if config["epochs"] > 1 else 0,
        label_smoothing=0.1,
        clip_grad=1.0,
        augmentation=Augmentation(
            crop="padded", padding=max(1, config["image_size"] // 8), horizontal_flip=0.5 if flips else 0.0
        ),
        seed=config["seed"],
        cpu_threads=THREADS,
    )
