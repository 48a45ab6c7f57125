"""Every number with a unit in README, docs, docstrings and comments: made from a result file, or listed here.

The tables and figures between markers are compared with the result files by ``tests/test_docs.py``.
"""

import inspect
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

import make_tables
from lambdanets import LambdaLayer, files
from lambdanets.experiments.report.results import read_rows
from lambdanets.files import write_csv
from result_tables import bench, training

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted((ROOT / "src").rglob("*.py"))

# What has a unit and is no measurement, by file: (the text, why it may stand there).
ALLOWED = {
    "README.md": [
        ("1x", "the value at which both take the same time"),
    ],
    "docs/benchmarks.md": [("10 %", "timing.TOLERANCE"), ("95 %", "timing.CONFIDENCE"), ("1x", "as in the README")],
    "docs/compare.md": [
        ("95 %", "statistics.CONFIDENCE"),
        ("80 %", "memory's share of what is free"),
        ("10 s", "memory's limit of a pass"),
        ("0.5 s", "the same with --quick"),
    ],
    "src/lambdanets/experiments/compare/measured.py": [
        ("898 MiB", "what PROCESS_BYTES was taken from"),
        ("12 MiB", "the same"),
        ("1.5 times", "the same"),
        ("4 %", "the same"),
    ],
    "docs/training.md": [
        ("256 MiB", "inspection.py's limit"),
        ("64 KiB", "inspection.py's length of an end"),
        ("80 %", "the shares of a split"),
        ("10 %", "the shares of a split"),
        ("2 %", "the share in the command"),
    ],
    "src/lambdanets/training/data/inspection.py": [
        ("256 MiB", "the constant below it"),
        ("64 KiB", "the constant below it"),
        ("128 KiB", "both ends"),
    ],
    "docs/compiled.md": [
        ("16 KiB", "kChunkFloats and kBlockFloats of query_first.h, of 4 bytes each"),
        ("32 KiB", "the first-level cache of data that the sizes are chosen for"),
    ],
    "src/lambdanets/kernels/grid/compiled/spectral.py": [
        ("512 KiB", "two buffers of LONG points, two numbers of 8 vectors of 4 bytes each"),
    ],
    "docs/explain.md": [("3 MB", "page.MAX_BYTES"), ("100 %", "both shares together")],
    "docs/gpu.md": [
        ("2.5 times", "5v over 2v multiply-adds, by the counts of the section"),
        ("16 bytes", "the widest load of an instruction"),
        ("12 bytes", "counted in the sentence before it"),
        ("0 bytes", "the inputs alone are kept: tests/kernels"),
    ],
    "docs/kernels.md": [
        ("64 MiB", "the limit of the buffer, kernels/autograd/memory.py"),
        ("2.5 times", "a factor of fft_length"),
    ],
    "docs/models.md": [
        ("6.576 G", "published by d-li14; tests/models/test_cost.py counts it"),
        ("14.995 M", "published by d-li14; tests/models/test_cost.py counts it"),
        ("0.6 M", "the difference of two figures of the paper, in the table below it"),
        ("15.6 M", "the sum of two figures of the paper"),
    ],
    "src/lambdanets/experiments/bench/timing.py": [
        ("95 %", "CONFIDENCE"),
        ("10 %", "TOLERANCE"),
    ],
    "src/lambdanets/experiments/bench/bench.py": [("95 %", "timing.CONFIDENCE")],
    "src/lambdanets/experiments/report/bench_report.py": [("1.73x", "an example of a format")],
    "src/lambdanets/explanation/explanation.py": [("3 MB", "page.MAX_BYTES")],
    "src/lambdanets/experiments/compare/statistics.py": [("95 %", "CONFIDENCE")],
    "src/lambdanets/kernels/grid/toeplitz.py": [("8 MiB", "of KEPT_VECTORS, two numbers of 4 bytes each")],
    "src/lambdanets/kernels/grid/row_spectral.py": [("4 times", "W / 4, a formula")],
    "docs/long-trainings.md": [
        ("120 seconds", "peers.TIMEOUT"),
        ("5 seconds", "the longest wait between two looks of a watch"),
        ("2 seconds", "what the command waits before it raises an interrupt again, lambdanets_cli/app.py"),
        ("30 seconds", "torchrun's own, its monitor's default"),
        ("10 minutes", "the default of NCCL's timeout in PyTorch"),
        ("16 times", "update.py's factor"),
    ],
    "src/lambdanets/kernels/grid/triton/query_first.py": [
        ("640 bytes", "counted by collect_ahead.py, which compiles it"),
        ("227 KiB", "published by NVIDIA: the most that a block of threads has on compute capability 9.0"),
    ],
    "src/lambdanets/training/recipes/recipe.py": [
        ("16 times", "update.py's factor"),
        ("30 %", "optimisation.py's rise"),
    ],
    "src/lambdanets/models/resnet.py": [("4 times", "the stride of timm's stem")],
    "src/lambdanets/training/data/digits.py": [("70 %", "the split"), ("10 %", "the split"), ("20 %", "the split")],
    "src/lambdanets/training/data/folders.py": [("80 %", "the split"), ("10 %", "the split")],
    "src/lambdanets/training/display/progress.py": [
        (time, "an example of a format") for time in ("42 s", "3 min", "05 s", "07 min")
    ],
    "src/lambdanets/training/recipes/imagenet_90.py": [
        ("78.4 %", "published in the paper, table 3"),
        ("2 %", "the share below"),
    ],
    "src/lambdanets/training/recipes/imagenet_350.py": [("84.0 %", "published in the paper")],
    "src/lambdanets_cli/bench.py": [("95 %", "timing.CONFIDENCE"), ("10 %", "timing.TOLERANCE")],
}

UNIT = (
    r"(?:[nµm]?s|min|minutes?|seconds?|hours?|%|per cent|x(?! \d)|×|times|[kKMGT]i?B|(?:kilo|mega|giga)?bytes?|M|G|GHz"
    r"|clocks?|images/s|passed)"
)
NUMBER = re.compile(rf"(?<![\w.^/·*-])\d[\d,.]*\s?{UNIT}(?!\w)")
MADE = re.compile(r"<!-- (?:table|figure): [\w.-]+ -->.*?<!-- end -->", re.DOTALL)
CODE = re.compile(r"```(?:python|bash)\n.*?```", re.DOTALL)
MEASURED = re.compile(r"^Measured \(results/training\.json.*?\n(?=\n|$)", re.DOTALL | re.MULTILINE)


def prose(module: Path) -> str:
    """The docstrings and comments of a module."""
    parts, starts = [], True  # True where a statement starts
    for token in tokenize.generate_tokens(io.StringIO(module.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and starts):
            parts.append(token.string.strip('"'))
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            starts = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return MEASURED.sub("", "\n".join(parts))


def found(path: Path) -> list[str]:
    text = prose(path) if path.suffix == ".py" else CODE.sub("", MADE.sub("", path.read_text(encoding="utf-8")))
    return [re.sub(r"\s", " ", number) for number in NUMBER.findall(text)]


@pytest.mark.parametrize("path", [*PAGES, *MODULES], ids=lambda path: str(path.relative_to(ROOT)))
def test_numbers_with_units_are_made_or_explained(path):
    allowed = {text for text, _ in ALLOWED.get(str(path.relative_to(ROOT)), [])}
    numbers = set(found(path))
    assert not numbers - allowed, "make them from a result file (scripts/make_tables.py), or remove them"
    assert not allowed - numbers, "no longer there: remove them from the list"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_of_measurements_are_made(path):
    """Outside of markers no cell is a decimal number."""
    text = MADE.sub("", path.read_text(encoding="utf-8"))
    assert not re.findall(r"\| *~?-?[\d,]*\.\d+ *(?=\|)", text)


def test_the_docstring_of_the_start_has_what_was_measured():
    """Variances have no unit: "17 at 1x1", up to "for u = 1"."""
    rows = files.read_rows(ROOT / "results" / "start.csv")
    outputs = {(row["u"], row["size"]): float(row["output"]) for row in rows if row["context"] == "global"}
    words = " ".join(inspect.getdoc(LambdaLayer.reset_parameters).split("With k 16", 1)[1].split())
    claims = [
        (u, size, number)
        for part, u in re.findall(r"(.+?) for u = (\d)", words)
        for number, size in re.findall(r"([\d.]+) at (\d+x\d+)", part)
    ]
    assert {u for u, _, _ in claims} == {"1", "4"}
    for u, size, number in claims:
        digits = len(number.partition(".")[2])
        assert number == f"{outputs[u, size]:.{digits}f}", f"{number} at {size} for u = {u}"


def test_the_list_names_files_that_are_there():
    assert all((ROOT / name).is_file() for name in ALLOWED)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "12 ms",
            "5 s",
            "1 min 46 s",
            "98.33 %",
            "98.33%",
            "1.73x",
            "45x",
            "3.2 times",
            "64 MiB",
            "64 KiB",
            "4 kB",
            "25.56 M",
        ),
        *("6.5 G", "592 images/s", "3632 passed", "0.125 clocks", "12 bytes", "14 minutes"),
    ],
)
def test_a_number_with_a_unit_is_found(text):
    assert NUMBER.search(f"about {text}, measured")


@pytest.mark.parametrize("text", ["23x23", "3x3 convolution", "n^2 s", "2B - 1", "a 7 x 7 map", "k 16, v 64"])
def test_shapes_are_no_numbers_with_units(text):
    assert not NUMBER.search(text)


def test_no_two_subjects_have_a_table_or_a_figure_of_one_name():
    for names, kind in ((make_tables.TABLES, "TABLES"), (make_tables.FIGURES, "FIGURES")):
        assert len(names) == sum(len(getattr(subject, kind)) for subject in make_tables.SUBJECTS)


def test_the_transcript_is_of_a_measured_run():
    """Its test accuracy is that of seed 0 in the result file."""
    runs = json.loads((ROOT / "results" / "training.json").read_text(encoding="utf-8"))
    run = next(run for run in runs if run["command"] == "lambdanets train" and run["seed"] == 0)
    wrong = round(run["test_images"] * (1 - run["test_top1"]))
    line = f"Test accuracy {run['test_top1']:.2%} ({wrong} of {run['test_images']} images wrong)"
    assert line in training.transcript()


def test_a_transcript_keeps_the_first_and_the_last_epoch(monkeypatch, tmp_path):
    epochs = [f"epoch {number}/4  loss 1.0" for number in range(1, 5)]
    lines = ["Training", *epochs, "", "Test accuracy 1%", "Run folder: runs/a", "Files: b", "", "Next:", "  lambdanets"]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(training, "RESULTS", tmp_path)
    kept = ["Training", epochs[0], "...", epochs[3], "", "Test accuracy 1%", "Run folder: runs/a", "..."]
    assert training.transcript().split("\n") == ["```text", *kept, "Next:", "  lambdanets", "```"]


def test_no_table_is_made_of_noisy_rows(monkeypatch, tmp_path):
    rows = read_rows(ROOT / "results" / "bench.csv")
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    write_csv(tmp_path / "bench.csv", rows)
    assert bench.bench()
    noisy = next(row for row in rows if row["contender"] == "timm")
    noisy["noisy"] = "yes"
    write_csv(tmp_path / "bench.csv", rows)
    for table in (bench.bench, bench.bench_all):
        with pytest.raises(ValueError, match=rf"rows that are marked as noisy: {noisy['case']} timm forw"):
            table()


def test_a_recipe_tells_what_was_measured():
    text = '"""Digits.\n\n    lambdanets train\n\nMeasured long ago: 12 %,\nin 3 s.\n"""\n\nRECIPE = 1\n'
    new = make_tables.filled_recipe(text)
    assert "long ago" not in new
    assert new.startswith('"""Digits.\n\n    lambdanets train\n\nMeasured (results/training.json; ')
    assert new.endswith('s.\n"""\n\nRECIPE = 1\n')
    assert make_tables.filled_recipe(new) == new
