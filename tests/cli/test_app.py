"""The command ``lambdanets`` as a user types it."""

import inspect
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from typing import get_args

import pytest
from safetensors.torch import load_file
from typer.main import get_command

from lambdanets.positions import pairs_in_reach
from lambdanets_cli import app as cli

COMMAND = [sys.executable, "-m", "lambdanets"]


@pytest.fixture
def run_folder(run, colours, tmp_path):
    """A run of one epoch."""
    folder = tmp_path / "run"
    options = ("--image-size", 8, "--workers", 0, "--epochs", 1, "--output", folder)
    code, _, error = run("train", "--data", colours, *options)
    assert code == 0, error
    return folder


def test_default_training_then_what_it_says_to_type_next(tmp_path):
    """The main job, as a newcomer does it, with a quarter of the epochs: train, then the printed commands."""
    words = [*COMMAND, "train", "--epochs", "8"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    scores = json.loads((folder / "result.json").read_text())["test"]
    assert scores["top1"] >= 0.95
    assert f"Test accuracy {scores['top1']:.2%}" in done.stdout
    assert f"Run folder: runs/{folder.name}" in done.stdout
    lines = done.stdout.splitlines()
    assert (
        sum(line.startswith("epoch ") for line in lines) == json.loads((folder / "result.json").read_text())["epochs"]
    )
    commands = [shlex.split(line) for line in lines if line.startswith("  lambdanets ")]
    assert [command[1] for command in commands] == ["evaluate", "predict"]
    for command in commands:
        next_ = subprocess.run(
            [*COMMAND, *command[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False
        )
        assert next_.returncode == 0, next_.stderr
        assert (f"{scores['top1']:.2%}" if command[1] == "evaluate" else command[-1]) in next_.stdout


def test_interrupt_ends_cleanly(colours, tmp_path):
    words = ["train", "--data", str(colours), "--image-size", "8", "--epochs", "1000", "--output", "run"]
    process = subprocess.Popen(
        [*COMMAND, *words, "--workers", "1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("epoch    2/1000"):
            break
    # As a terminal does it: to the whole group, the process that reads images included.
    os.killpg(process.pid, signal.SIGINT)
    output, error = process.communicate(timeout=1800)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "lambdanets train --resume run" in output
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) >= 3
    assert load_file(tmp_path / "run" / "best.safetensors")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"


@pytest.mark.smoke
def test_interrupt_while_modules_are_imported(tmp_path):
    """Not under ``python -m``, where Python imports the package before any line of it can catch an interrupt."""
    (tmp_path / "typer.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    # A process of pytest-xdist ignores interrupts, and what it starts would do so too.
    done = subprocess.run(
        [sys.executable, "-c", "from lambdanets_cli import main; main()", "--version"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=1800,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_full_disk_is_told_and_nothing_is_half_written(colours, tmp_path):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    words = ["train", "--data", str(colours), "--image-size", "8", "--workers", "0", "--output", "run"]
    done = subprocess.run(
        [*COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, timeout=1800, preexec_fn=limit, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot write run/last.safetensors" in done.stderr
    assert not list((tmp_path / "run").glob("**/*.safetensors"))


def test_evaluate(run, run_folder, colours):
    code, output, _ = run("evaluate", run_folder)
    assert code == 0
    for word in (f"4 test images of imagefolder:{colours}\n", "top-1", "top-5", "loss", f"{run_folder}/confusion.png"):
        assert word in output
    assert (run_folder / "confusion.png").exists()
    code, output, _ = run("evaluate", run_folder, "--json")
    assert json.loads(output)["top1"] == json.loads((run_folder / "result.json").read_text())["test"]["top1"]


def test_evaluate_other_data_whole(run, run_folder, colours, tmp_path):
    for name in ("red", "blue"):
        (tmp_path / "exam" / name).mkdir(parents=True)
        for index, image in enumerate(sorted((colours / name).iterdir())):
            (tmp_path / "exam" / name / f"{index}.PNG").write_bytes(image.read_bytes())
    (tmp_path / "exam" / "red" / "notes.txt").touch()
    code, output, _ = run("evaluate", run_folder, "--data", tmp_path / "exam", "--output", tmp_path / "out")
    assert code == 0
    assert output.startswith(f"40 images of imagefolder:{tmp_path / 'exam'}\nLeft out of {tmp_path / 'exam'}: 1 file")
    assert "32 of these 40 images are images that the run was trained on" in output
    code, output, _ = run("evaluate", run_folder, "--data", tmp_path / "exam", "--output", tmp_path / "out", "--json")
    told = json.loads(output)
    assert (told["part"], told["images"], len(told["notes"])) == ("all", 40, 3)


def test_predict(run, run_folder, colours):
    images = [colours / "red" / "0.png", colours / "blue" / "1.png"]
    code, output, _ = run("predict", run_folder, *images)
    assert code == 0
    first, *classes = output.splitlines()[:3]
    assert first == str(images[0])
    assert {line.split()[1] for line in classes} == {"red", "blue"}
    assert output.count("%") == 4
    code, output, _ = run("predict", run_folder, *images, "--json", "--top", 1)
    predictions = json.loads(output)
    assert [prediction["image"] for prediction in predictions] == list(map(str, images))
    assert all(len(prediction["classes"]) == 1 for prediction in predictions)
    assert set(predictions[0]["classes"][0]) == {"class", "probability"}


def test_runs_and_their_curves(run, run_folder, colours, tmp_path):
    code, output, _ = run("runs", tmp_path)
    heading, line = output.splitlines()
    assert (code, heading.split()[0], line.split()[:3]) == (0, "data", [colours.name, "lambda_resnet_tiny", "1/1"])
    assert line.endswith(str(run_folder))
    scores = json.loads((run_folder / "result.json").read_text())
    assert f"{scores['test']['top1']:.2%}" in line
    code, output, _ = run("runs", run_folder, "--json")
    (told,) = json.loads(output)
    assert (code, told["validation_top1"], told["status"]) == (0, scores["validation"]["top1"], "finished")
    code, output, _ = run("plot", run_folder, "--output", tmp_path / "runs.png")
    assert (code, output) == (0, f"{tmp_path / 'runs.png'}\n")
    assert (tmp_path / "runs.png").stat().st_size > 10_000


def test_training_tells_its_choices(run, colours, tmp_path):
    options = ("--image-size", 8, "--workers", 0, "--epochs", 1, "--seed", 7, "--lr", 0.25, "--batch-size", 10)
    code, output, _ = run("train", "--data", colours, *options, "--output", tmp_path / "run")
    assert code == 0
    assert "1 epoch, batches of 10, adamw, learning rate 0.25, seed 7" in output
    recipe = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]
    assert (recipe["seed"], recipe["lr"], recipe["batch_size"]) == (7, 0.25, 10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --data digts", "unknown data 'digts'. Did you mean 'digits'?"),
        ("train --recipe digit", "unknown recipe 'digit'. Did you mean 'digits'?"),
        ("train --model lambda_resnet_tny", "Did you mean 'lambda_resnet_tiny'"),
        ("train --model typo", "unknown model 'typo'. Known: lambda_resnet50, "),
        ("train --model a:boom:b", "unknown model 'a:boom:b'. Known"),
        ("train --model vit_tiny_patch16_224", "the model 'vit_tiny_patch16_224' does not take images of 8x8 pixels"),
        ("train --data no/where", "the data folder no/where does not exist"),
        ("train --recipe imagenet-90", "give --data"),
        ("train --precision fp8", "precision is 'fp8'; use one of fp32, bf16, fp16"),
        ("train --workers -1", "workers is -1; use an integer from 0"),
        ("train --workers 10000", "workers is 10000; use an integer from 0 to 256"),
        ("train --seed 4294967296", "seed is 4294967296; use an integer from 0 to 2147483647"),
        ("train --seed -1", "seed is -1; use an integer from 0"),
        ("train --lr -1", "lr is -1.0; use a finite number"),
        ("train --batch-size 1", "batch_size is 1 for 1,259 training images on 1 process"),
        ("train --data wds/:pipe:ls", "the root of data 'wds/' is 'pipe:ls'; commands and addresses are not opened"),
        ("train --model local-dir:no/where", "the model 'local-dir:no/where' and its weights cannot be loaded"),
        ("train --lr nan", "lr is nan; use a finite number"),
        ("train --resume no/where", "the run folder no/where does not exist"),
        ("train --checkpoint-every 10h", "checkpoint_every is '10h'; use a number of steps (500) or of minutes (10m)"),
        ("train --timeout 0", "timeout is 0.0; use a number of seconds"),
        ("train --resume no/where --epochs 3", "--epochs is '3' together with --resume"),
        ("evaluate no/where", "the run folder no/where does not exist"),
        ("predict no/where image.png", "the run folder no/where does not exist"),
        ("train --skip-bad-images 3000000", "skip_bad_images is 3000000; use an integer from 0 to 1000000"),
        ("runs no/where", "the folder no/where does not exist"),
        ("plot no/where", "the run folder no/where does not exist"),
        ("plot no/where --output runs.xyz", "the picture runs.xyz ends in none of .png, .svg, .pdf"),
    ],
)
def test_wrong_words_are_one_message(run, words, message):
    check_one_message(run, words.split(), message)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["compare", "layers", "--output", ""], "--output"),
        (["compare", "layers", "--cluster="], "--cluster"),
        (["evaluate", "", "--data", "x"], "evaluate"),
    ],
)
def test_empty_words_are_refused(run, words, option):
    """Of a variable that is not set: as a path they would be the current folder."""
    check_one_message(run, words, f"the word behind {option} is empty ('')")


def check_one_message(run, words, message):
    code, output, error = run(*words)
    assert code == 2
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert message in error
    # Nothing is announced that does not take place.
    assert output == ""


def numeric_options():
    """Every option that is a number and is read by typer, with the words that its command requires."""
    for command in cli.app.registered_commands:
        parameters = inspect.signature(command.callback).parameters.values()
        required = ["x" for each in parameters if each.default is each.empty]
        for each in parameters:
            annotation = each.annotation.__origin__
            if {int, float} & set(get_args(annotation) or [annotation]):
                yield command.callback.__name__, [*required, f"--{each.name.replace('_', '-')}"]


@pytest.mark.parametrize(("command", "words"), list(numeric_options()))
def test_refused_numbers_are_named(run, command, words):
    for value in ("x7", "1e"):
        code, _, error = run(command, *words, value)
        assert code == 2
        assert f"Invalid value for '{words[-1]}': '{value}'; use a" in error


def test_numbers_below_the_least_are_named(run):
    for command, word, value, least in (("compare layers", "--seeds", 0, 1), ("evaluate x", "--workers", -1, 0)):
        code, _, error = run(*command.split(), word, value)
        assert code == 2
        assert f"Invalid value for '{word}': '{value}'; use an integer of at least {least}" in error


def test_unreadable_images_are_one_message(run, run_folder, colours, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"?")
    code, _, error = run("predict", run_folder, tmp_path / "broken.png")
    assert (code, error.count("\n")) == (2, 1)
    assert f"the image {tmp_path}/broken.png cannot be read" in error


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_training_image_is_one_message(run, tmp_path, workers):
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(5):
            (tmp_path / name / f"{index}.png").write_bytes(b"?")
    options = ("--image-size", 8, "--workers", workers, "--output", tmp_path / "run")
    code, _, error = run("train", "--data", tmp_path, *options)
    assert code == 2
    assert error.startswith(f"Error: the image {tmp_path}/")
    assert "Traceback" not in error


def test_divergence_is_one_message_and_exit_code_1(run, colours, tmp_path):
    options = ("--image-size", 8, "--workers", 0, "--lr", 1e30, "--epochs", 4, "--output", tmp_path / "run")
    code, _, error = run("train", "--data", colours, *options)
    assert code == 1
    assert re.match("Error: the (training|validation) loss ", error)
    assert "Traceback" not in error


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_shows_the_traceback(monkeypatch, how):
    monkeypatch.setenv("LAMBDANETS_DEBUG", "1" if how == "environment" else "0")
    words = ["train", "--data", "digts"] + (["--debug"] if how == "option" else [])
    monkeypatch.setattr(sys, "argv", ["lambdanets", *words])
    with pytest.raises(ValueError, match="unknown data"):
        cli.main()


# Words with which each command ends in an error that it tells.
ERRORS = {
    "adopt": "",
    "bench": "--cases typo",
    "compare": "typo",
    "env": "",
    "evaluate": "no/where",
    "explain": "no/where image.png",
    "export": "no/where --output a.onnx",
    "kernels": "--device tpu",
    "models": "typo",
    "plot": "no/where",
    "predict": "no/where image.png",
    "publish": "no/where --to local-dir:folder",
    "runs": "no/where",
    "train": "--data digts",
}


@pytest.mark.parametrize("command", ["env", "runs"])
def test_an_interrupted_command_says_so(run, monkeypatch, command):
    """Of any command: typer would end it in silence."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lambdanets_cli.environment.describe_environment", interrupt)
    monkeypatch.setattr("lambdanets.training.runs.overview.list_runs", interrupt)
    monkeypatch.setattr("lambdanets.training.list_runs", interrupt, raising=False)
    code, _, error = run(command)
    assert (code, error) == (130, "Interrupted.\n")


def test_the_list_of_errors_has_every_command():
    assert set(ERRORS) == set(get_command(cli.app).commands)


@pytest.mark.parametrize("command", ERRORS)
def test_debug_shows_the_traceback_of_every_command(run, monkeypatch, tmp_path, command):
    def refuse():
        raise OSError("no environment")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lambdanets_cli.environment.describe_environment", refuse)
    words = [command, *ERRORS[command].split()]
    code, _, error = run(*words)
    assert (code, error.count("Error: ")) == (2, 1), error
    monkeypatch.setattr(sys, "argv", ["lambdanets", *words, "--debug"])
    with pytest.raises((ValueError, OSError)):
        cli.main()
    # The next run is as if there had been none before.
    assert run(*words)[0] == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: int("x"), "invalid literal"),  # from below
        (lambda: pairs_in_reach([1], [2, 3], [0]), "longer"),  # from a line of this package, which checks nothing
    ],
)
def test_faults_keep_their_traceback(monkeypatch, fault, message):
    """A ValueError that no check has raised is a fault of the program, not of the user."""
    monkeypatch.setattr("lambdanets.training.predict_images", lambda *_, **__: fault())
    monkeypatch.setattr(sys, "argv", ["lambdanets", "predict", "run", "image"])
    with pytest.raises(ValueError, match=message):
        cli.main()


def test_interrupt_that_is_swallowed_comes_again(run, monkeypatch):
    """Python drops an exception that is raised in a callback of a library."""
    came = []

    def export(*_, **__):
        for _ in range(3):
            try:
                if not came:
                    signal.raise_signal(signal.SIGINT)
                time.sleep(10)
            except KeyboardInterrupt:
                came.append(None)
                if len(came) == 3:
                    raise

    monkeypatch.setattr(cli, "_SECONDS_TO_END", 0.05)
    monkeypatch.setattr("lambdanets.training.predict_images", export)
    # The workers of pytest-xdist ignore interrupts.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)]
    try:
        code, _, error = run("predict", "run", "image.png")
        assert (code, len(came)) == (130, 3), error
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)] == before
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_version(run):
    code, output, _ = run("--version")
    assert code == 0
    assert output.startswith("lambdanets ")


@pytest.mark.parametrize("command", sorted(get_command(cli.app).commands))
def test_help_has_indented_examples(run, command):
    code, output, _ = run(command, "--help")
    assert code == 0
    assert "For example" in output
    assert f"\n   lambdanets {command} " in output


def test_help_flows_with_the_width_of_the_terminal(run):
    _, output, _ = run("predict", "--help")
    # In the source this sentence is on two lines.
    assert "a model of the digits expects bright strokes" in " ".join(output.split())
    assert "a model of the \n" not in re.sub(" +", " ", output)


def test_help_of_the_whole_names_the_commands(run):
    code, output, _ = run("--help")
    assert code == 0
    for word in ("train", "evaluate", "predict", "Start with: lambdanets train"):
        assert word in output


def test_help_imports_nothing_slow():
    """In a new process, as the command starts; torch and timm alone take seconds."""
    code = """
import sys
from lambdanets_cli import app as cli

for words in ([], ["--version"], *([name] for name in {commands})):
    sys.argv = ["lambdanets", *words, *(["--help"] if words != ["--version"] else [])]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, (words, end.code)
    slow = {{"torch", "timm", "torchvision", "sklearn", "matplotlib", "accelerate", "numpy"}} & set(sys.modules)
    assert not slow, (words, slow)
"""
    code = code.format(commands=sorted(get_command(cli.app).commands))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: lambdanets train" in done.stdout
