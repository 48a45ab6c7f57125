import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lambdanets.training import Run, evaluate_run, export_run, resume
from lambdanets.training.runs.folder import FILES, FOLDERS, check_new, new_run_folder
from lambdanets.training.runs.overview import list_runs


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of a finished run, to damage."""
    return Run.open(shutil.copytree(trained.run.path, tmp_path / "run"))


def test_opens_what_a_training_wrote(trained, recipe, colours):
    run = Run.open(trained.run.path)
    assert run.recipe == recipe
    assert run.class_names == ("blue", "green", "red")
    assert run.data_spec == f"imagefolder:{colours}"
    assert (run.transform.image_size, run.transform.channels) == (8, 3)
    assert run.config["data"]["images"] == {"train": 48, "validation": 6, "test": 6}
    assert run.config["seed"] == recipe.seed
    assert run.config["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


@pytest.mark.parametrize("weights", ["best", "last"])
def test_model_is_ready_for_inference(trained, weights):
    model = Run.open(trained.run.path).load_model(weights)
    assert not model.training
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def test_missing_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none does not exist\. Give .* `lambdanets train` wrote\.$"):
        Run.open(tmp_path / "none")


def test_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a run folder: config\.json is missing"):
        Run.open(tmp_path)


def test_existing_runs_are_offered(copied):
    with pytest.raises(FileNotFoundError, match=f"wrote, for example {copied.path}\\.$"):
        Run.open(copied.path.parent)


def test_folders_of_other_programs_are_not_offered(copied):
    model = copied.path.parent / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architecture": "resnet18", "num_classes": 3, "model_args": {}}')
    with pytest.raises(FileNotFoundError, match=f"wrote, for example {copied.path}\\.$"):
        Run.open(copied.path.parent)
    assert [run.run for run in list_runs(copied.path.parent)] == [copied.path]
    (copied.path / "config.json").write_text("{")  # a damaged run is one
    assert [run.status for run in list_runs(copied.path.parent)] == ["damaged"]
    shutil.rmtree(copied.path)
    with pytest.raises(FileNotFoundError, match="holds no runs"):
        list_runs(model.parent)


def test_weights_of_other_names(copied):
    with pytest.raises(ValueError, match="unknown checkpoint 'middle'"):
        copied.load_model("middle")


def test_file_that_is_no_run(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(ValueError, match="is a file"):
        Run.open(tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config\.json is damaged"),
        ("[]", "is not a run's configuration: format, model"),
        ('{"format": 1}', "is not a run's configuration: model, data, input, class_names, recipe missing"),
    ],
)
def test_damaged_configuration(copied, text, message):
    (copied.path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Run.open(copied.path)


def test_format_of_another_version(copied):
    (copied.path / "config.json").write_text(json.dumps({**copied.config, "format": 99}))
    with pytest.raises(ValueError, match="has format 99; this version of lambdanets reads format 1"):
        Run.open(copied.path)


def test_missing_weights_say_what_would_do(copied):
    (copied.path / "best.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no best\.safetensors: .* --resume"):
        copied.load_model()


def test_more_classes_in_the_weights_than_in_the_run(copied):
    copied.config["class_names"] = ["blue", "green"]
    with pytest.raises(ValueError, match="have 3 classes, but the data have 2"):
        copied.load_model()


def test_data_with_other_classes(trained):
    run = trained.run
    run.check_classes(["blue", "green", "red"], "data")
    with pytest.raises(ValueError, match="have 3 classes, but the data 'data' have 2"):
        run.check_classes(["blue", "green"], "data")
    with pytest.raises(ValueError, match=r"class 1 is 'green' in .*, but 'grey' in the data 'data'"):
        run.check_classes(["blue", "grey", "red"], "data")


def test_new_folders_do_not_meet(tmp_path):
    first = new_run_folder("m", "fashion-mnist:/some/where", tmp_path)
    assert first.name.startswith("m-fashion-mnist-20")
    with ThreadPoolExecutor() as pool:  # trainings that begin at once
        folders = list(pool.map(lambda _: new_run_folder("m", "digits", tmp_path), range(8)))
    assert len(set(folders)) == 8
    assert all(folder.is_dir() for folder in folders)
    assert new_run_folder("m", "imagefolder:/my/photos", tmp_path).name.startswith("m-photos-")


def test_output_that_has_content(copied, tmp_path):
    with pytest.raises(ValueError, match=r"is not empty; give a new folder$"):
        check_new(copied.path)
    (copied.path / "checkpoint").mkdir()
    with pytest.raises(ValueError, match="is not empty; give a new folder, or continue that run with"):
        check_new(copied.path)
    with pytest.raises(ValueError, match=r"is not empty; give a new folder$"):
        check_new(tmp_path)
    check_new(tmp_path / "new")


def test_the_names_of_a_run_are_all_known(trained):
    """Those that are checked before a training or an evaluation writes them."""
    assert {path.name for path in trained.run.path.iterdir()} <= {*FILES, *FOLDERS}


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_entries_of_a_run_that_would_lead_elsewhere(copied, tmp_path, name):
    (copied.path / "result.json").unlink()
    (copied.path / name).parent.mkdir(exist_ok=True)
    elsewhere, entry = tmp_path / "precious", copied.path / name
    elsewhere.write_text("kept")
    if entry.exists():
        entry.rename(tmp_path / "before")
        elsewhere = tmp_path / "before"
    entry.symlink_to(elsewhere)
    before = elsewhere.is_dir() or elsewhere.read_bytes()
    with pytest.raises(ValueError, match=rf"{name} is a link, where a \w+( file)? belongs; remove it"):
        resume(copied.path)
    assert before == (elsewhere.is_dir() or elsewhere.read_bytes())


@pytest.mark.parametrize("name", ["evaluation.json", "confusion.csv", "confusion.png"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_results_that_would_lead_elsewhere_are_refused_before_work(copied, tmp_path, monkeypatch, name, kind):
    path = copied.path / name
    {"link": lambda path: path.symlink_to(tmp_path / "new"), "pipe": os.mkfifo, "folder": os.mkdir}[kind](path)
    monkeypatch.setattr(Run, "load_model", None)
    with pytest.raises(ValueError, match=rf"{name} is a {kind}.*, where a regular file belongs; remove it"):
        evaluate_run(copied.path)
    assert not (tmp_path / "new").exists()


def test_an_export_into_the_run_that_would_lead_elsewhere(copied, tmp_path):
    (copied.path / "best.onnx").symlink_to(tmp_path / "new")
    with pytest.raises(ValueError, match=r"best\.onnx is a link, where a regular file belongs; remove it"):
        export_run(copied.path)


def test_a_run_behind_a_link(copied, tmp_path):
    (tmp_path / "link").symlink_to(copied.path)
    assert evaluate_run(tmp_path / "link").files[0].read_text()
