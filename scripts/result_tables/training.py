"""Measured trainings: the transcript, accuracies by recipe, weights that come with the package."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from statistics import mean

from lambdanets.markdown_text import markdown_table
from lambdanets.models.shipped import shipped_folder, shipped_names
from lambdanets.names import count
from lambdanets.training.display.progress import format_seconds
from result_tables import RESULTS

__all__ = ["FIGURES", "TABLES", "measured"]


def transcript() -> str:
    """The output of ``lambdanets train``, without most of its epochs."""
    lines = (RESULTS / "train.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    epochs = [line for line in lines if line.startswith("epoch ")]
    last = lines.index(next(line for line in lines if line.startswith("Run folder:")))
    first = lines.index(epochs[0]) - 1
    parts = ["..."] if first > 0 else []
    parts += [lines[first], epochs[0], "...", epochs[-1], "", *lines[lines.index(epochs[-1]) + 1 : last + 1], "..."]
    parts += lines[lines.index("Next:") :]
    compact = [line for place, line in enumerate(parts) if line or parts[place - 1]]
    return "```text\n" + "\n".join(compact) + "\n```"


def _runs() -> dict[str, list[dict]]:
    """The measured runs by command."""
    runs: dict[str, list[dict]] = {}
    for run in json.loads((RESULTS / "training.json").read_text(encoding="utf-8")):
        runs.setdefault(run["command"], []).append(run)
    return runs


def _threads(run: dict) -> str:
    return f"{run['machine']}, {count(run['threads'], 'thread', 'threads')}"


def measured(command: str) -> str | None:
    """The paragraph of a recipe's docstring about what it was measured to reach; None if it was not."""
    runs = _runs().get(command)
    if runs is None:
        return None
    scores = ", ".join(f"{100 * run['test_top1']:.2f}" for run in runs)
    seeds = ", ".join(str(run["seed"]) for run in runs)
    seconds = sorted(round(run["seconds"]) for run in runs)
    time = " to ".join(format_seconds(part) for part in dict.fromkeys((seconds[0], seconds[-1])))
    text = (
        f"Measured (results/training.json; {_threads(runs[0])}): {scores} % of the {runs[0]['test_images']:,} test "
        f"images with seed{'s' if len(runs) > 1 else ''} {seeds}, in {time}; {runs[0]['parameters']:,} parameters."
    )
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def training() -> str:
    """Test accuracies by recipe, with seeds and spread."""
    lines = []
    for command, runs in _runs().items():
        scores = [100 * run["test_top1"] for run in runs]
        lines.append(
            [
                f"`{command}`",
                f"{mean(scores):.2f} %" + (f" ({min(scores):.2f} to {max(scores):.2f})" if len(scores) > 1 else ""),
                ", ".join(str(run["seed"]) for run in runs),
                f"{runs[0]['parameters']:,}",
                format_seconds(mean(run["seconds"] for run in runs)),
                _threads(runs[0]),
            ]
        )
    return markdown_table(["command", "test accuracy", "seeds", "parameters", "time", "machine"], lines)


def weights() -> str:
    """Weights that come with the package, from the results of their trainings."""
    lines = []
    for name in shipped_names():
        folder = shipped_folder(name)
        config, result = (json.loads((folder / f"{part}.json").read_text("utf-8")) for part in ("config", "result"))
        test, size, channels = result["test"], config["input"]["image_size"], config["input"]["channels"]
        card = f"[card](../src/lambdanets/models/weights/{name}/README.md)"
        images = f"{size}x{size}, {'grey' if channels == 1 else 'colour'}"
        accuracy = f"{test['top1']:.2%} of {test['images']:,}"
        lines.append([f"`{name}`", images, str(len(config["class_names"])), accuracy, str(config["seed"]), card])
    return markdown_table(["name", "images", "classes", "test accuracy", "seed", ""], lines)


TABLES: dict[str, Callable[[], str]] = {"training": training, "transcript": transcript, "weights": weights}
FIGURES: dict[str, Callable[[], str]] = {}
