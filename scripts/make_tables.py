"""Fills tables and figures from the files in results/: ``python scripts/make_tables.py [--check]``.

In README.md and docs/ a table stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` on lines of their own, a
figure in a sentence between ``<!-- figure: NAME -->`` and ``<!-- end -->``. In the docstring of a recipe it is the
paragraph that begins with "Measured". A table with a row that is marked as noisy is refused.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean

from lambdanets import files
from lambdanets.experiments.bench.contenders import LARGEST_TABLE_BYTES
from lambdanets.experiments.bench.measure import PASSES, TRAINING
from lambdanets.experiments.compare.accuracy import SMALL_SAMPLES, told_accuracy
from lambdanets.experiments.compare.cell import read_cells
from lambdanets.experiments.compare.outcome import Outcome, machine_line
from lambdanets.experiments.compare.rows import forms_of
from lambdanets.experiments.compare.summary import summaries
from lambdanets.experiments.report import bench_report, goals
from lambdanets.experiments.report.results import noisy_rows, read_rows
from lambdanets.experiments.report.study_report import table_text
from lambdanets.experiments.studies import read_outcome
from lambdanets.experiments.studies.layers import STUDY as LAYERS_STUDY
from lambdanets.markdown_text import markdown_table
from lambdanets.models.shipped import shipped_folder, shipped_names
from lambdanets.training.display.progress import format_seconds

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
COMPARE = RESULTS / "compare"
RECIPES = ROOT / "src" / "lambdanets" / "training" / "recipes"
TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
FIGURE = re.compile(r"(<!-- figure: ([\w.-]+) -->)[^<\n]*(<!-- end -->)")
MEASURED = re.compile(r"^Measured\b.*?\n(?=\n|\"\"\")", re.DOTALL | re.MULTILINE)

# The benchmark's cases in the README; docs/benchmarks.md has all of them.
README_CASES = (
    "global-7x7-d512-b8",
    "global-14x14-d256-b8",
    "global-28x28-d128-b4",
    "global-56x56-d64-b2",
    "scope7-28x28-d128-b4",
    "scope23-28x28-d128-b4",
    "global-14x14-d256-b8-u4",
)


def _published(name: str) -> list[dict]:
    """The rows of a result file, none of them noisy.

    Raises:
        ValueError: naming those that are.
    """
    rows = read_rows(RESULTS / f"{name}.csv")
    noisy = [f"{row.get('case', row.get('positions'))} {row['contender']} {row['pass']}" for row in noisy_rows(rows)]
    if noisy:
        growth = " --growth" if name == "growth" else ""
        raise ValueError(
            f"results/{name}.csv has rows that are marked as noisy: {'; '.join(noisy)}. No table is made of them: "
            f"lambdanets bench{growth} --noisy --max-seconds 60 --output results"
        )
    return rows


def bench() -> str:
    """Our layer beside the others, the README's cases."""
    rows = _published("bench")
    return f"{bench_report.compact_table(rows, README_CASES)}\n\n{bench_report.environment_line(rows)}."


def bench_all() -> str:
    """Our layer beside the others, every case and pass, with intervals."""
    rows = _published("bench")
    return f"{bench_report.pass_table(rows)}\n\n{bench_report.environment_line(rows)}."


def bench_goals() -> str:
    """Table of the goals and how far the results reach them."""
    return goals.goals_table(_published("bench"))


def bench_memory() -> str:
    """Memory kept for the backward pass and peaks, every case."""
    found = {(row["case"], row["contender"], row["pass"]): row for row in read_rows(RESULTS / "bench.csv")}
    names = ("lambdanets", *bench_report.PEERS, "attention", "convolution")
    lines = []
    for case in dict.fromkeys(case for case, _, _ in found):
        cells = []
        for name in names:
            row = found.get((case, name, "forward+backward"))
            cells.append(f"{int(row['saved_bytes']) / 1e6:.1f} / {int(row['peak_bytes']) / 1e6:.1f}" if row else "")
        lines.append([f"`{case}`", *cells])
    return markdown_table(["case", *(bench_report.LABELS.get(name, name) for name in names)], lines)


def rates() -> str:
    """Images a second of whole networks beside ResNet-50's."""
    rows = files.read_rows(RESULTS / "rates.csv")
    lines: dict[str, list[str]] = {}
    for row in rows:
        line = lines.setdefault(row["network"], [f"`{row['network']}`", row["image_size"]])
        ratio, low, high = (float(row[name]) for name in ("ratio", "low", "high"))
        line += [f"{float(row['images_per_second']):.1f}", f"{ratio:.2f}x ({low:.2f} to {high:.2f})"]
    columns = ["network", "image size"]
    columns += [f"{way}, {what}" for way in PASSES for what in ("images/s", "of ResNet-50's")]
    return f"{markdown_table(columns, list(lines.values()))}\n\n{bench_report.environment_line(rows)}."


def planner() -> str:
    """Distance of the planner's choices from the fastest kernel, by instruction set."""
    rows = files.read_rows(RESULTS / "planner.csv")
    lines = []
    for level in dict.fromkeys(row["instruction_set"] for row in rows):
        own = [row for row in rows if row["instruction_set"] == level]
        ratios = [float(row["ratio"]) for row in own]
        worst = max(own, key=lambda row: float(row["ratio"]))
        counts = [f"{sum(ratio <= most for ratio in ratios)} of {len(ratios)}" for most in (1.1, 1.25)]
        lost = f"{mean(ratios) - 1:.1%}"
        where = f"{float(worst['ratio']):.2f}x, `{worst['case']}` {worst['direction']}"
        lines.append([level, *counts, lost, where])
    columns = [
        "instruction set",
        "within 1.1x of the fastest",
        "within 1.25x",
        "slower than the fastest, mean",
        "furthest",
    ]
    return f"{markdown_table(columns, lines)}\n\n{bench_report.environment_line(rows)}."


def growth() -> str:
    """Time against n."""
    rows = _published("growth")
    return f"{bench_report.growth_table(rows)}\n\n{bench_report.environment_line(rows)}."


def transcript() -> str:
    """The output of ``lambdanets train``, without most of its epochs."""
    lines = (RESULTS / "train.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    epochs = [line for line in lines if line.startswith("epoch ")]
    last = lines.index(next(line for line in lines if line.startswith("Run folder:")))
    begun = lines[lines.index(epochs[0]) - 1]
    parts = [begun, epochs[0], "...", epochs[-1], "", *lines[lines.index(epochs[-1]) + 1 : last + 1], "..."]
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
    return f"{run['machine']}, {run['threads']} thread{'s' if run['threads'] > 1 else ''}"


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


def _models(kind: str) -> list[dict[str, str]]:
    return [row for row in files.read_rows(RESULTS / "models.csv") if row["table"] == kind]


def _millions(row: dict[str, str]) -> tuple[str, str]:
    """Our parameters and the paper's in millions; in bold where they differ by more than rounding to a tenth."""
    ours, paper = int(row["parameters"]) / 1e6, row["paper_parameters_m"]
    # The paper gives whole millions for the family, tenths for the comparison.
    digits = 0 if row["table"] == "family" and not row["model"].startswith("lambda_resnet50") else 1
    differs = paper and abs(ours - float(paper)) > 0.501 * 10**-digits
    return f"{ours:.2f}", f"**{paper}**" if differs else paper


def models() -> str:
    """The registered models with their costs and the paper's parameters."""
    lines = []
    for row in _models("family"):
        ours, paper = _millions(row)
        gigas, activations = int(row["multiply_adds"]) / 1e9, int(row["activations"]) / 1e6
        lines.append(
            [f"`{row['model']}`", row["stages"], row["image_size"], ours, paper, f"{gigas:.2f}", f"{activations:.1f}"]
        )
    header = ["model", "stages", "image", "parameters, M", "paper, M", "multiply-adds, G", "activations, M"]
    return markdown_table(header, lines)


def ablation() -> str:
    """The paper's ablation of k, h and u in an all-lambda ResNet-50."""
    lines = []
    for row in _models("ablation"):
        sizes = [part.split("=")[1] for part in row["model"].split()]
        lines.append([*sizes, *_millions(row), f"{int(row['multiply_adds']) / 1e9:.2f}"])
    return markdown_table(["k", "h", "u", "parameters, M", "paper, M", "multiply-adds, G"], lines)


def placement() -> str:
    """Cost of the places of lambda layers in a ResNet-50."""
    lines = [[row["stages"], *_millions(row), f"{int(row['multiply_adds']) / 1e9:.2f}"] for row in _models("placement")]
    return markdown_table(["stages", "parameters, M", "paper, M", "multiply-adds, G"], lines)


def kept() -> str:
    """Bytes that a training step's forward pass keeps, of models side by side."""
    lines = [
        [f"`{row['model']}`", row["image_size"], f"{int(row['kept_bytes']) / 2**20:.1f}"] for row in _models("kept")
    ]
    return markdown_table(["model", "image", "kept, MiB"], lines)


def _ahead() -> list[dict[str, str]]:
    return files.read_rows(RESULTS / "ahead.csv")


def _compiled(depth: int, lambda_first: bool) -> str:
    rows = [
        row for row in _ahead() if int(row["depth"]) == depth and row["kernel"].startswith("lambda_") == lambda_first
    ]
    header = [name for name in rows[0] if name not in ("depth", "triton", "torch", "commit")]
    table = markdown_table(header, [[row[name] for name in header] for row in rows])
    return f"{table}\n\nTriton {rows[0]['triton']}, lambdanets {rows[0]['commit']}."


def clocks() -> str:
    """Lower bounds of clocks for a score on an H100, by published rates and the counts of docs/gpu.md."""
    # Of one processor and clock (H100 SXM, published): multiply-adds in bfloat16, bytes of shared memory, shuffled
    # numbers, exponentials.
    products, shared, shuffles, exponentials = 2048, 128, 32, 16
    k, h, depths = 16, 4, (16, 32, 64, 128)
    addresses = next(row for row in _ahead() if row["kernel"] == "lambda_output" and row["depth"] == "16")
    lines: list[tuple[str, Callable[[int], float]]] = [
        ("query first: products, 2k + v", lambda v: (2 * k + v) / products),
        ("query first: skew, 12 bytes of shared memory and one shuffle", lambda v: 12 / shared + 1 / shuffles),
        ("flash attention: products, 2v", lambda v: 2 * v / products),
        ("flash attention: one exponential", lambda v: 1 / exponentials),
        ("lambda first: products, k v / h", lambda v: k * v / h / products),
        ("lambda first: instructions, by the table below", lambda v: float(addresses["clocks"]) * v / 16),
    ]
    cells = [[name, *(f"{clocks_of(v):.3f}" for v in depths)] for name, clocks_of in lines]
    return markdown_table(["clocks for a score", *(f"v = {v}" for v in depths)], cells)


def start() -> str:
    """The variance that a layer's output starts with, by size."""
    rows = files.read_rows(RESULTS / "start.csv")
    sizes = ("1x1", "3x3", "4x4", "7x7", "14x14", "28x28")
    found = {(row["context"], row["u"], row["size"]): row["output"] for row in rows}
    layers = dict.fromkeys((row["context"], row["u"]) for row in rows)
    lines = [[f"{context}, u = {u}", *(found[context, u, size] for size in sizes)] for context, u in layers]
    return markdown_table(["output's variance", *sizes], lines)


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


@cache
def _outcome(study: str) -> Outcome:
    return read_outcome(study, COMPARE / study)


def study(name: str) -> str:
    """A table of a study whose cells are in results/compare/.

    Args:
        name: compare-STUDY for what was expected and found, compare-STUDY-TABLE for one of its tables.
    """
    _, which, *table = name.split("-", 2)
    outcome = _outcome(which)
    if table:
        found = next(each for each in outcome.tables if each.name == table[0])
        # The page has this note once, for all tables.
        text = table_text(replace(found, notes=[note for note in found.notes if note != SMALL_SAMPLES]))
        return f"{text}\n\n{outcome.environment}."
    words = {True: "yes", False: "**no**", None: "no answer"}
    rows = [f"| {claim.text} | {words[claim.held]} |" for claim in outcome.claims]
    return "\n".join(["| found | as expected |", "| --- | --- |", *rows])


def layers() -> str:
    """The study of layers in short: every layer that was trained, of attention's two forms the better one."""
    cells, _ = read_cells(COMPARE / "layers")
    rows = summaries(LAYERS_STUDY.rows, cells)
    lines = []
    for name, row in rows.items():
        if not row.trains:
            continue
        forms = [rows[form] for form in forms_of(LAYERS_STUDY.rows, name) if form in rows]
        rate = max(forms, key=lambda form: form.ratio[TRAINING][0]).ratio[TRAINING]
        kept = min(form.saved_bytes for form in forms)
        lines.append(
            [
                name,
                f"{row.parameters / 1e6:.3f}",
                told_accuracy(row),
                f"{rate[0]:.2f}x",
                f"{kept / 1e6:.2f}",
            ]
        )
    header = ["layer", "parameters, M", "test accuracy, % (95 %)", "training speed", "kept for backward, MB an image"]
    return f"{markdown_table(header, lines)}\n\n{machine_line(cells)}."


TABLES: dict[str, Callable[[], str]] = {
    "ablation": ablation,
    "ahead-lambda-first": lambda: _compiled(16, lambda_first=True),
    "ahead-query-first": lambda: _compiled(64, lambda_first=False),
    "bench": bench,
    "bench-all": bench_all,
    "bench-goals": bench_goals,
    "bench-memory": bench_memory,
    "clocks": clocks,
    "growth": growth,
    "layers": layers,
    "models": models,
    "placement": placement,
    "planner": planner,
    "rates": rates,
    "kept": kept,
    "start": start,
    "training": training,
    "transcript": transcript,
    "weights": weights,
}


def _count(table: str, model: str, column: str, unit: float, digits: int) -> str:
    row = next(row for row in _models(table) if row["model"] == model)
    return f"{int(row[column]) / unit:.{digits}f}"


def _trees() -> str:
    """Findings of the comparison of two trees, in words."""
    rows = files.read_rows(RESULTS / "trees.csv")
    counts = ", ".join(
        f"{sum(row['verdict'] == word for row in rows)} {word}" for word in ("not slower", "slower", "undecided")
    )
    ratios = [float(row["ratio"]) for row in rows]
    return f"{counts}; the median ratios are from {min(ratios):.2f} to {max(ratios):.2f}"


def _projected_again() -> str:
    """Factor by which a training step of a layer takes longer where it projects again, from the least to the most."""
    rows = [row for row in files.read_rows(RESULTS / "projection.csv") if row["pass"] == "forward+backward"]
    forms = [[float(row["ratio"]) for row in rows if row["form"] == form] for form in ("recompute", "channels_inner")]
    ratios = [again / once for again, once in zip(*forms, strict=True)]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def _start_of_maps() -> str:
    """The variance that outputs of global layers start with on maps of 7x7 to 28x28, from the least to the most."""
    rows = [row for row in files.read_rows(RESULTS / "start.csv") if (row["context"], row["u"]) == ("global", "1")]
    outputs = [float(row["output"]) for row in rows if 7 <= int(row["size"].partition("x")[0]) <= 28]
    return f"{min(outputs):.1f} to {max(outputs):.1f}"


FIGURES: dict[str, Callable[[], str]] = {
    "trees": _trees,
    "projected-again": _projected_again,
    "start-of-maps": _start_of_maps,
    # The multiply-adds of lambda first over those of query first at h 4, k 16, v 64.
    "orders": lambda: f"{16 * 64 / (4 * (16 + 64)):.1f}",
    "peers-limit": lambda: f"{LARGEST_TABLE_BYTES / 2**30:g} GiB",
    "llll-multiply-adds": lambda: _count("placement", "LLLL", "multiply_adds", 1e9, 2) + " G",
    "resnet50-activations": lambda: _count("placement", "CCCC", "activations", 1e6, 1) + " M",
    "structure-loss-lambda": lambda: _last_loss("sequence: lambda"),
    "structure-loss-convolution": lambda: _last_loss("sequence: convolution"),
}


def _last_loss(row: str) -> str:
    """The training loss in the last tenth of the trainings of a row of the study of structure, mean over seeds."""
    cells, _ = read_cells(COMPARE / "structure")
    return f"{mean(done.result['train_loss'][-1] for done in cells if done.kind == 'train' and done.row == row):.2f}"


def _table(name: str) -> str:
    return study(name) if name.startswith("compare-") else TABLES[name]()


def filled(text: str) -> str:
    """The text of a page with every table and figure made anew."""
    text = TABLE.sub(lambda match: f"{match[1]}{_table(match[2])}\n{match[3]}", text)
    return FIGURE.sub(lambda match: f"{match[1]}{FIGURES[match[2]]()}{match[3]}", text)


def filled_recipe(text: str) -> str:
    """The text of a recipe with its measurement made anew; its command is the last indented line of the docstring."""
    lines = [line for line in text.split('"""')[1].split("\n") if line.startswith("    ")]
    paragraph = measured(lines[-1].partition(" #")[0].strip())
    return text if paragraph is None else MEASURED.sub(lambda _: paragraph, text, count=1)


def main(check: bool) -> int:
    """Fill the tables, or say which files are not up to date."""
    pages = [(path, filled) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    recipes = [(path, filled_recipe) for path in sorted(RECIPES.glob("*.py")) if "RECIPE = " in path.read_text("utf-8")]
    stale = []
    for path, fill in (*pages, *recipes):
        text = path.read_text(encoding="utf-8")
        try:
            new = fill(text)
        except ValueError as error:
            print(error)
            return 1
        if new != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{path}: {'not up to date, run python scripts/make_tables.py' if check else 'filled'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
