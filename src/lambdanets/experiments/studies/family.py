"""Speed and accuracy of whole networks, each at its own resolution (paper, figure of speed and accuracy).

lambdanets compare family --quick
lambdanets compare family --data imagenet/ --only LambdaResNet-152 --only EfficientNet-B6
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import median
from typing import Any

from lambdanets.experiments import paper
from lambdanets.experiments.bench.measure import INFERENCE, PASSES, TRAINING, passes, peak_bytes
from lambdanets.experiments.compare.cell import Cell, Config, Done
from lambdanets.experiments.compare.claims import verdict
from lambdanets.experiments.compare.measured import PROCESS_BYTES, build, images, measure_speed
from lambdanets.experiments.compare.outcome import Axis, Claim, Outcome, Plot, Point, Series, Table
from lambdanets.experiments.compare.statistics import Mean, mean_of
from lambdanets.experiments.compare.study import Needs, Options, Place, Study, choose_rows
from lambdanets.experiments.compare.summary import accuracies, machine_line, with_interval
from lambdanets.experiments.compare.trained import RUN_BYTES, train_cell
from lambdanets.models import model_cost
from lambdanets.training import Recipe
from lambdanets.training.recipes import get_recipe

# Takes turns with every row: all rates are its rate times a ratio of turns.
REFERENCE = "ResNet-50"
RECIPE = "imagenet-350"
GROUPS = ("LambdaResNet", "timm's lambda networks")
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
# Of a training that this study adds where it is given data.
SHAPE = {"channels": 3, "classes": 1000}


@dataclass(frozen=True)
class Network:
    """A row of the study.

    Args:
        group: the family it belongs to.
        model: its name in timm's registry.
        image_size: side of its images in pixels.
        top1: the published accuracy on ImageNet in percent; None if there is none.
        source: of that figure.
    """

    group: str
    model: str
    image_size: int
    top1: float | None
    source: str


def _read_rows() -> dict[str, Network]:
    text = (files("lambdanets.experiments.studies") / "family.csv").read_text("utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        top1 = float(row["top1"]) if row["top1"] else None
        found[row["row"]] = Network(row["group"], row["model"], int(row["image_size"]), top1, row["source"])
    return found


ROWS = _read_rows()


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
        step = 4 * (4 * cost.parameters + 3 * config["batch"] * cost.activations)
        return Needs(memory=PROCESS_BYTES + step, disk=RUN_BYTES if config["kind"] == "train" else 0)

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
        peak = peak_bytes(passes(module, x)[TRAINING])
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
        points = summaries(cells)
        measured = any(point.measured for point in points.values())
        speed = [done for done in cells if done.kind == "speed"]
        notes = []
        if speed:
            notes.append(
                f"Times: batches of {speed[0].config['batch']} random images, float32. Every network takes turns with "
                f"{REFERENCE} at {ROWS[REFERENCE].image_size} pixels; its images a second are the median ratio of the "
                f"turns times the median rate of {REFERENCE} in all of them; in brackets that ratio. Training is a "
                "forward and a backward pass. The interval of how many times as fast one network is as another "
                f"reaches from the lower end of its ratio to {REFERENCE} over the upper end of the other's to the "
                "upper over the lower: it is wider than 95 %."
            )
        if measured:
            done = next(done for done in cells if done.kind == "train")
            notes.append(
                f"Accuracies are of trainings on {done.data['spec']} by the recipe {RECIPE} with "
                f"{done.config['epochs']} epochs, means over seeds with BCa bootstrap intervals."
            )
        else:
            notes.append(
                "Accuracies are published ones of single trainings that differ: 350 epochs with strong augmentation "
                "(LambdaResNet-152 to -420, ResNet-RS, EfficientNet with AutoAugment), 300 (ResNet and SE-ResNet-50, "
                "timm's recipe A2), 90 with flips and crops alone (the rows LLLL). With --data FOLDER they are trained "
                "and measured alike."
            )
        notes.append(
            "Image sizes are those of the trainings; of LambdaResNets that of 420 is published, the others are those "
            "of ResNet-RS, which has the same blocks a stage."
        )
        return Outcome(
            self.name,
            self.title,
            self.question,
            _claims(points),
            _tables(points, measured),
            _plots(points, measured),
            notes,
            machine_line(cells),
        )


def _batch(training_images: int) -> int:
    """The batch of the recipe, or a fiftieth of fewer images."""
    return max(2, min(get_recipe(RECIPE).batch_size, training_images // 50))


def recipe_of(config: Config, data: str | None) -> Recipe:
    """Return the recipe of a training: that of the paper's family, for every network."""
    recipe = get_recipe(RECIPE, config["model"])
    warmup = min(recipe.warmup_epochs, config["epochs"] // 2)
    return recipe.override(
        name=f"compare-{config['study']}",
        model=config["model"],
        data=data,
        image_size=config["image_size"],
        epochs=config["epochs"],
        batch_size=config["batch"],
        warmup_epochs=warmup,
        seed=config["seed"],
    )


@dataclass(frozen=True)
class Summary:
    """Findings on a row: the result of its speed cell, images a second by pass, how many times as many as the
    reference (median, low, high), and its accuracy in percent.
    """

    network: Network
    result: Mapping[str, Any]
    rate: Mapping[str, float]
    ratio: Mapping[str, Sequence[float]]
    accuracy: Mean | None
    measured: bool


def summaries(cells: Sequence[Done]) -> dict[str, Summary]:
    """Return what the cells say of each row; published accuracies only where none was measured."""
    speed = {done.row: done.result for done in cells if done.kind == "speed"}
    reference = {way: median(result["speed"][way]["reference"] for result in speed.values()) for way in PASSES if speed}
    trained = {name: list(accuracies(cells, name).values()) for name in ROWS}
    measured = any(trained.values())
    found = {}
    for name, network in ROWS.items():
        if name not in speed and not trained[name]:
            continue
        accuracy = mean_of(trained[name]) if trained[name] else None
        if not measured and network.top1 is not None:
            accuracy = Mean(network.top1, None, None, 1)
        result = speed.get(name, {})
        ratio = {way: result["speed"][way]["ratio"] for way in PASSES if result}
        rate = {way: reference[way] * times[0] for way, times in ratio.items()}
        found[name] = Summary(network, result, rate, ratio, accuracy, bool(trained[name]))
    return found


def _claims(rows: Mapping[str, Summary]) -> list[Claim]:
    """Compare each lambda network with the fastest network of another family that is at least as accurate."""
    claims = []
    for name, row in rows.items():
        if row.network.group not in GROUPS or row.accuracy is None or TRAINING not in row.rate:
            continue
        for group in ("EfficientNet", "SE-ResNet", "ResNet"):
            others = {
                other: summary
                for other, summary in rows.items()
                if summary.network.group == group and summary.accuracy and TRAINING in summary.rate
            }
            equal = [other for other in others if others[other].accuracy.mean >= row.accuracy.mean]  # type: ignore[union-attr]
            if not equal:
                continue
            rival = max(equal, key=lambda other: others[other].rate[TRAINING])
            times, low, high = _faster(row, others[rival], TRAINING)
            accuracy = others[rival].accuracy
            published = f"; the paper's figures for it are {paper.TIMES_AS_FAST}" if group == "EfficientNet" else ""
            text = (
                f"{name} ({row.accuracy.mean:.1f} %) trains {times:.2f} ({low:.2f} to {high:.2f}) times as many images "
                f"a second as {rival} ({accuracy.mean if accuracy else 0:.1f} %), the fastest {group} here that is at "
                f"least as accurate; expected are more than 1{published}."
            )
            claims.append(Claim(text, verdict(low - 1, high - 1, "more than 0")))
    return claims


def _faster(row: Summary, other: Summary, way: str) -> tuple[float, float, float]:
    """Return a row's images a second over another's (median, low, high), by the ratios of both to the reference."""
    (own, own_low, own_high), (theirs, low, high) = row.ratio[way], other.ratio[way]
    return own / theirs, own_low / high, own_high / low


def _lost(name: str, rows: Mapping[str, Summary]) -> list[str]:
    """Return where a lambda network needs more than a network of another family that is at least as accurate.

    Returns:
        Names of passes, and "peak_bytes".
    """
    row = rows[name]
    if row.network.group not in GROUPS or row.accuracy is None:
        return []
    rivals = [
        other
        for other in rows.values()
        if other.network.group not in GROUPS and other.accuracy and other.accuracy.mean >= row.accuracy.mean
    ]
    lost = [
        way
        for way in PASSES
        if any(way in row.ratio and way in other.ratio and _faster(row, other, way)[2] < 1 for other in rivals)
    ]
    peak = row.result.get("peak_bytes", 0)
    return lost + ["peak_bytes"] * any(other.result.get("peak_bytes", peak) < peak for other in rivals)


def _three_digits(value: float) -> str:
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _tables(rows: Mapping[str, Summary], measured: bool) -> list[Table]:
    def figure(row: Summary, name: str, unit: float, digits: int) -> str:
        return f"{row.result[name] / unit:,.{digits}f}" if name in row.result else ""

    def rate(row: Summary, way: str) -> str:
        return f"{_three_digits(row.rate[way])} ({row.ratio[way][0]:.2f}x)" if way in row.rate else ""

    def published(row: Summary) -> list[str]:
        found, reference = paper.FAMILY.get(row.network.model, {}), paper.FAMILY[ROWS[REFERENCE].model]
        parameters = f"{found['params']:g}" if found else ""
        times = f"{found['rate']:,} ({found['rate'] / reference['rate']:.2f}x)" if "rate" in found else ""
        return [parameters, times]

    lines = [
        [
            name,
            str(row.network.image_size),
            figure(row, "parameters", 1e6, 1),
            figure(row, "multiply_adds", 1e9, 2),
            figure(row, "peak_bytes", 1e6, 0),
            with_interval(row.accuracy),
            *(rate(row, way) for way in (TRAINING, INFERENCE)),
            *published(row),
        ]
        for name, row in rows.items()
    ]
    columns = ["network", "image size", "parameters, M", "multiply-adds, G", "peak of a training step, MB an image"]
    columns.append(f"{'test' if measured else 'published ImageNet'} top-1, %")
    columns += [f"{way}, images/s (of {REFERENCE})" for way in ("training", "inference")]
    columns += ["paper: parameters, M", f"paper: training, images/s (of {REFERENCE})"]
    places = {"peak_bytes": 4, TRAINING: 6, INFERENCE: 7}
    marked = frozenset((number, places[what]) for number, name in enumerate(rows) for what in _lost(name, rows))
    notes = ["The paper's images a second are at 224x224 pixels on its accelerator."]
    if marked:
        notes.append(
            "Marked where a lambda network needs more memory, or is slower by its whole interval, than a network of "
            "another family here that is at least as accurate."
        )
    tables = [Table("networks", "Networks at their own resolutions", columns, lines, notes, marked=marked)]
    if not measured:
        sources = [
            [name, with_interval(row.accuracy), row.network.source] for name, row in rows.items() if row.accuracy
        ]
        columns = ["network", "top-1, %", "source"]
        tables.append(Table("sources", "Sources of the accuracies", columns, sources, text=frozenset({2})))
    return tables


def _plots(rows: Mapping[str, Summary], measured: bool) -> list[Plot]:
    groups = list(dict.fromkeys(row.network.group for row in rows.values()))

    def plot(name: str, title: str, way: str) -> Plot:
        series = []
        for group in groups:
            points = [
                Point(
                    row.rate[way],
                    row.accuracy.mean,
                    row.accuracy.low,
                    row.accuracy.high,
                    f"{row_name}, {row.rate[way]:.3g} images/s",
                )
                for row_name, row in rows.items()
                if row.network.group == group and row.accuracy and way in row.rate
            ]
            if points:
                series.append(Series(group, sorted(points, key=lambda point: point.x)))
        accuracy = f"{'test' if measured else 'published ImageNet'} top-1, %"
        return Plot(name, title, Axis("images/s", log=True), Axis(accuracy), series, lines=True, front="high")

    return [
        plot("training", "Training speed and accuracy", TRAINING),
        plot("inference", "Inference speed and accuracy", INFERENCE),
    ]


STUDY = FamilyStudy()
