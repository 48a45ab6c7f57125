"""The question of the study of whole networks (paper, figure of speed and accuracy), its cells and how one is run."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lambdanets.experiments.bench.measure import PASSES, TRAINING, passes, peak_bytes
from lambdanets.experiments.compare.accuracy import unfinished_warning
from lambdanets.experiments.compare.cell import Cell, Config, Done
from lambdanets.experiments.compare.measured import PROCESS_BYTES, build, images, measure_speed
from lambdanets.experiments.compare.outcome import Outcome, code_warning, machine_line, size_warning
from lambdanets.experiments.compare.study import Needs, Options, Place, Study, choose_rows
from lambdanets.experiments.compare.train_cell import run_bytes, train_cell
from lambdanets.experiments.studies.family.findings import claims_of, is_measured, plots_of, summaries, tables_of
from lambdanets.experiments.studies.family.rows import REFERENCE, ROWS
from lambdanets.models import model_cost
from lambdanets.names import count
from lambdanets.training import Recipe
from lambdanets.training.recipes import get_recipe

__all__ = ["QUICK", "STUDY", "recipe_of"]

RECIPE = "imagenet-350"
QUICK = (
    "LambdaResNet-50 LLLL",
    "LambdaResNet-50",
    "lambda_resnet26t",
    "ResNet-50",
    "SE-ResNet-50",
    "ResNet-RS-50",
    "EfficientNet-B0",
    "EfficientNet-B1",
)
# Images of a part of a batch in a process: as many as an accelerator holds of the largest network, EfficientNet-B7.
PART = 32
# Of the images that are timed.
SHAPE = {"channels": 3, "classes": 1000}


@dataclass(frozen=True)
class Scale:
    """Size of the study: images of a call, least and most seconds of the turns of each pass."""

    batch: int
    seconds: float
    most: float


SCALES = {"full": Scale(4, 15.0, 45.0), "quick": Scale(2, 3.0, 6.0)}


class FamilyStudy(Study):
    """Networks that are timed, beside accuracies that were published, or measured here on the data that are given."""

    name = "family"
    title = "LambdaResNets, ResNets and EfficientNets"
    question = "Which family of networks has the highest accuracy at a given speed?"
    default_data = None

    def row_names(self, options: Options) -> list[str]:
        """See the interface."""
        return list(ROWS)

    def cells(self, options: Options) -> list[Cell]:
        """See the interface."""
        names = choose_rows(self, options)
        if options.quick and not options.only:
            names = list(QUICK)
        scale, data = SCALES[options.scale], options.data
        common = {"study": self.name, "scale": options.scale}
        found = []
        for name in names:
            row = ROWS[name]
            own = {**common, "row": name, "model": row.model, "image_size": row.image_size}
            times = {"batch": scale.batch, "seconds": scale.seconds, "most": scale.most}
            found.append(Cell({**own, "kind": "speed", **times}, weight=row.image_size**2, alone=True))
            if data is not None:
                training = {"kind": "train", "classes": data.classes, "channels": data.channels}
                epochs = options.epochs or (1 if options.quick else get_recipe(RECIPE).epochs)
                training |= {"epochs": epochs, "batch": _batch(data.images[0])}
                weight = epochs * data.images[0] * row.image_size**2 / 20
                found += [Cell({**own, **training, "seed": seed}, weight=weight) for seed in range(options.seeds)]
        return found

    def needs(self, config: Config) -> Needs:
        """See the interface. Batch-norms and activations keep about as much as the layers that are counted, each."""
        cost = model_cost(config["model"], config["image_size"])
        trains = config["kind"] == "train"
        images = min(config["batch"], PART) if trains else config["batch"]
        if trains and torch.accelerator.is_available():
            images = 0  # that memory is the accelerator's
        step = 4 * (4 * cost.parameters + 3 * images * cost.activations)
        return Needs(memory=PROCESS_BYTES + step, disk=run_bytes(4 * cost.parameters) if trains else 0)

    def run(self, config: Config, place: Place) -> dict[str, Any]:
        """See the interface."""
        if config["kind"] == "train":
            return train_cell(recipe_of(config, place.data), place)
        networks = {REFERENCE: ROWS[REFERENCE], config["row"]: ROWS[config["row"]]}
        models = {}
        for name, row in networks.items():
            shape = {**SHAPE, "image_size": row.image_size}
            models[name] = (build(row.model, {}, shape), images(shape, config["batch"]))
        module, x = models[config["row"]]
        cost = model_cost(config["model"], config["image_size"])
        peak = peak_bytes(passes(module, x, input_gradient=False)[TRAINING])
        speed = measure_speed(models, config["seconds"], config["most"])
        return {
            "parameters": cost.parameters,
            "multiply_adds": cost.multiply_adds,
            "peak_bytes": peak // config["batch"],
            "speed": {
                way: {"reference": speed[way][REFERENCE]["images_per_second"][0], **speed[way][config["row"]]}
                for way in PASSES
            },
        }

    def line(self, result: Mapping[str, Any]) -> str:
        """See the interface."""
        if "speed" not in result:
            return f"{result['test_top1']:.2%} of the test images" if "test_top1" in result else "diverged"
        rates = (f"{way} {result['speed'][way]['images_per_second'][0]:.3g} images/s" for way in PASSES)
        return ", ".join(rates)

    def outcome(self, cells: Sequence[Done]) -> Outcome:
        """See the interface."""
        rows = summaries(cells)
        measured = is_measured(cells)
        missing = unfinished_warning({name: row.scores for name, row in rows.items()}) if measured else []
        return Outcome(
            self.name,
            self.title,
            self.question,
            claims_of(rows),
            tables_of(rows, measured),
            plots_of(rows, measured),
            _notes(cells, measured),
            machine_line(cells),
            [*missing, *size_warning(cells), *code_warning(cells)],
        )


def _notes(cells: Sequence[Done], measured: bool) -> list[str]:
    """Return where times and accuracies are from, in sentences."""
    speed = [done for done in cells if done.kind == "speed"]
    notes = []
    if speed:
        notes.append(
            f"Times: batches of {speed[0].config['batch']} random images, float32. Every network takes turns with "
            f"{REFERENCE} at {ROWS[REFERENCE].image_size} pixels; its images a second are the median ratio of the "
            f"turns times the median rate of {REFERENCE} in all of them; in brackets that ratio. Training is a "
            "forward and a backward pass. The interval of how many times as fast one network is as another "
            f"reaches from the lower end of its ratio to {REFERENCE} over the upper end of the other's to the "
            "upper over the lower, which covers more than 95 %."
        )
    if measured:
        done = next(done for done in cells if done.kind == "train")
        epochs = count(done.config["epochs"], "epoch", "epochs")
        notes.append(
            f"Accuracies are of trainings on {done.data['spec']} by the recipe {RECIPE} "
            f"({get_recipe(RECIPE).precision}) with {epochs}, the same for every network: its learning rate is not "
            "searched, and dropout and stochastic depth do not grow with the depth. Means over seeds with BCa "
            "bootstrap intervals."
        )
    else:
        notes.append(
            "Accuracies are published ones of single trainings that differ: 350 epochs with strong augmentation "
            "(LambdaResNet-152 to -420, ResNet-RS, EfficientNet with AutoAugment), 300 (ResNet and SE-ResNet-50, "
            "timm's recipe A2; timm's lambda networks, by timm's recipes for them), 90 with flips and crops alone (the "
            "rows LLLL). With --data FOLDER they are trained "
            "and measured alike."
        )
    notes.append(
        "Image sizes are those of the trainings; of LambdaResNets that of 420 is published, the others are those "
        "of ResNet-RS, which has the same blocks a stage."
    )
    return notes


def _batch(training_images: int) -> int:
    """The batch of the recipe, or about a fiftieth of fewer images; a power of 2, which processes and parts divide."""
    return 2 ** int(math.log2(max(2, min(get_recipe(RECIPE).batch_size, training_images // 50))))


def recipe_of(config: Config, data: str | None) -> Recipe:
    """Return the recipe of a training, which is the same for every network, whatever its depth, but for its images."""
    recipe = get_recipe(RECIPE)
    warmup = min(recipe.warmup_epochs, config["epochs"] // 2)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return recipe.override(
        name=f"compare-{config['study']}",
        model=config["model"],
        data=data,
        image_size=config["image_size"],
        epochs=config["epochs"],
        batch_size=config["batch"],
        accumulate=max(1, config["batch"] // (PART * processes)),
        warmup_epochs=warmup,
        seed=config["seed"],
    )


STUDY = FamilyStudy()
