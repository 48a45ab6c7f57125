"""Names of users, however odd, through the commands: printed as they are, in every encoding, and never an error."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lambdanets.console import one_line, shell_word

CLASSES = ["[bold]x", "y[b]", "$x$", "_x", "犬", "é", "😀", "a\nb", "\x1b[31mred", "true class", ":dog:"]
# "/" divides folders: the run is "b] ..." in "y[".
ODD = "y[/b] [bold] $x$ ' 犬 é\n\x1b[31m"
NO_TEXT = os.fsdecode(b"[b]\xff")
# Of the images, of a published model, and of what a study found.
DATA, PUBLISHED, FOUND = "[b]犬 é\n\x1b[31m", "run[lr=1e-3] 犬 #1? é\n\x1b[31m", "run[lr=1e-3] [b] 犬 é\n\x1b[31m"
# All commands of all encodings in one process: what takes long is to import PyTorch.
DRIVER = """
import json, os, sys
from lambdanets_cli.app import main
for encoding, commands in json.loads(sys.argv[1]).items():
    os.chdir(encoding)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=encoding, errors="strict")
    for words, expected in commands:
        if words[0] == "adopt" and expected == 0:
            import torch
            from interop.peers import DLi14ResNet
            torch.save(DLi14ResNet((1, 1, 1, 1), 5, dk=4, r=5).state_dict(), words[1])
        if words[:2] == ["compare", "toy"]:
            from compare_toy import Toy
            from lambdanets.experiments import studies
            from lambdanets.experiments.compare.outcome import Outcome
            toy = Toy("log")
            toy.outcome = lambda cells: Outcome("", "", "", [], [], [], warnings=[f"On {cells[0].data['spec']}."])
            studies.get_study = lambda name, real=studies.get_study: toy if name == "toy" else real(name)
        sys.argv = ["lambdanets", *words]
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        if code != expected:
            sys.exit(f"{words!a}: {code}")
        print("=" * 20, flush=True)
        print("=" * 20, flush=True, file=sys.stderr)
    print("#" * 20, flush=True)
    print("#" * 20, flush=True, file=sys.stderr)
    os.chdir("..")
"""
ENCODINGS = ["utf-8", "ascii", "cp1252"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / DATA
    random = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def shown_as(text, encoding):
    """The text in one line, as an output of this encoding has it."""
    return one_line(text).encode(encoding, "backslashreplace").decode(encoding)


@pytest.fixture(scope="module")
def told(images, tmp_path_factory):
    """The folder of the commands, and by encoding the output and the error output of each command."""
    folder = tmp_path_factory.mktemp("told")
    sizes = {"model": "lambda_resnet_tiny", "image-size": 32, "epochs": 1, "batch-size": 8, "workers": 0}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    train = ["train", "--data", f"imagefolder:{images}", *options, "--output"]
    photo = f"{NO_TEXT}\x1b犬.png"
    commands = [
        ([*train, ODD], 0),
        (["evaluate", ODD], 0),
        (["predict", ODD, photo, "--top", str(len(CLASSES))], 0),
        (["predict", ODD, photo, "--top", str(len(CLASSES)), "--json"], 0),
        (["models", "lambda_resnet_tiny", "--csv", f"{NO_TEXT}.csv"], 0),
        (["evaluate", ODD, "--output", NO_TEXT], 0),
        (["runs", "."], 0),
        (["runs", ".", "--json"], 0),
        (["plot", ODD, "--output", f"{NO_TEXT}.png"], 0),
        (["publish", ODD, "--to", f"local-dir:{PUBLISHED}"], 0),
        (["compare", "toy", "--data", f"imagefolder:{images}", "--seeds", "1", "--jobs", "1", "--output", FOUND], 0),
        ([*train, ODD], 2),
        ([*train, NO_TEXT + ODD], 2),
        (["evaluate", f"{ODD}no"], 2),
        (["predict", ODD, f"{ODD}no.png"], 2),
        (["adopt", f"{ODD}no.pth", "--from", "python:their_models:small"], 2),
        (["runs", f"{ODD}no"], 2),
        (["plot", f"{ODD}no"], 2),
        (["publish", ODD, "--to", f"local-dir:{ODD}"], 2),
        (["publish", ODD, "--to", f"local-dir:{NO_TEXT}"], 2),
        (["compare", "layers", "--report", "--output", f"{ODD}no"], 2),
        (["compare", "layers", "--only", ODD], 2),
        (["compare", "layers", "--data", f"imagefolder:{ODD}no"], 2),
    ]
    # What takes long, in the encoding that has some of the characters and lacks others.
    long = [
        (["export", ODD, "--format", "torch-export"], 0),
        (["export", ODD, "--format", "onnx"], 0),
        (["adopt", f"{NO_TEXT}.pth", "--from", "python:their_models:small", "--output", f"{NO_TEXT}.safetensors"], 0),
        (["explain", ODD, photo, "--output", f"{NO_TEXT}.html"], 0),
    ]
    for encoding in ENCODINGS:
        (folder / encoding).mkdir()
        Image.new("RGB", (8, 8)).save(folder / encoding / photo)
        (folder / encoding / "their_models.py").write_text(
            "from interop.peers import DLi14ResNet\n"
            "def small(num_classes=5): return DLi14ResNet((1, 1, 1, 1), num_classes, dk=4, r=5)\n"
        )
    by_encoding = {encoding: commands + (long if encoding == "cp1252" else []) for encoding in ENCODINGS}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(by_encoding)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONUTF8": "0",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parts = zip(ENCODINGS, done.stdout.split(b"#" * 20 + b"\n"), done.stderr.split(b"#" * 20 + b"\n"), strict=False)
    streams = {encoding: (output.decode(encoding), error.decode(encoding)) for encoding, output, error in parts}
    end = f"{'=' * 20}\n"
    return folder, {name: [stream.split(end)[:-1] for stream in both] for name, both in streams.items()}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_name_goes_through_every_command(told, encoding):
    folder, by_encoding = told
    folder = folder / encoding
    output, error = by_encoding[encoding]
    assert not any("\x1b" in text for text in (*output, *error))
    train, evaluate, predict, as_json, _, _, runs, runs_as_json, plot, publish, compare = output[:11]
    refusals = error[11:23]
    assert not any(error[:11] + error[23:]), error

    run, no_text = shown_as(ODD, encoding), shown_as(NO_TEXT, encoding)
    assert f"\nRun folder: {run}\n" in train
    assert f"\n  {run}/confusion.png\n" in evaluate
    data = shown_as(DATA, encoding)
    (of_run,) = runs.splitlines()[1:]
    assert of_run.startswith(f"{data}  ")
    assert of_run.endswith(f"  {run}")
    assert plot == f"{no_text}.png\n"
    assert f"timm.create_model('local-dir:{shown_as(PUBLISHED, encoding)}', pretrained=True)\n" in publish
    found = shown_as(FOUND, encoding)
    assert f" tell their progress in {found}/toy/work/*/log.txt." in compare
    assert f"\nOn {data}.\nReport: {found}/toy/report.html\n" in compare
    if encoding == "cp1252":
        torch_export, onnx, adopt, explain = output[23:]
        assert f"Wrote {run}/best.pt2 (" in torch_export
        assert f"Wrote {run}/best.onnx (" in onnx
        assert f"Wrote {no_text}.safetensors. In Python:\n" in adopt
        assert f"{no_text}.html" in explain
    photo = f"{NO_TEXT}\x1b犬.png"
    first, *lines = predict.splitlines()
    assert first == shown_as(photo, encoding)
    assert {line.split("%  ")[1] for line in lines} == {shown_as(name, encoding) for name in CLASSES}
    for refusal in refusals:
        assert refusal.startswith("Error: ")
        assert refusal.count("\n") == 1
        assert run in refusal or "is not valid UTF-8; rename it" in refusal

    # Files and JSON have the names themselves.
    (summary,), (prediction,) = json.loads(runs_as_json), json.loads(as_json)
    assert (summary["run"], summary["data"]) == (ODD, DATA)
    assert prediction["image"] == photo
    assert {guess["class"] for guess in prediction["classes"]} == set(CLASSES)
    folder = folder / ODD
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["class_names"] == sorted(CLASSES)
    assert json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["run"] == ODD
    with open(folder / "confusion.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["true class", *sorted(CLASSES)]
    assert [row[0] for row in rows] == sorted(CLASSES)

    # What it says to type next is understood by a shell.
    if encoding == "utf-8":
        (command,) = (line for line in train.splitlines() if line.startswith("  lambdanets evaluate "))
        script = command.replace("lambdanets evaluate", "printf %s")
        assert subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout == os.fsencode(ODD)


@pytest.mark.parametrize("path", [ODD, "a b", "it's\ta \\", "\ud800x", "plain"])
def test_words_for_the_shell(path):
    done = subprocess.run(["bash", "-c", f"printf %s {shell_word(path)}"], capture_output=True, check=True)
    assert done.stdout == path.encode("utf-8", "surrogatepass" if "\ud800" in path else "surrogateescape")
