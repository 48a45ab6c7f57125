import csv
import io
import json
import shutil
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lambdanets.training import evaluate_run, predict_images, train
from lambdanets.training.data import load_data
from lambdanets.training.data.exam import Exam
from lambdanets.training.runs.split import read_split
from lambdanets.training.runs.stored import seen_in_training
from training.pictures import write_colours


def test_files(trained, tmp_path):
    evaluation = evaluate_run(trained.run.path, output=tmp_path / "new")
    assert {path.name for path in evaluation.files} == {"evaluation.json", "confusion.csv", "confusion.png"}
    stored = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert (stored["part"], stored["images"], stored["top1"]) == ("test", 6, evaluation.scores.top1)
    assert Image.open(tmp_path / "new" / "confusion.png").size[0] > 300
    with open(tmp_path / "new" / "confusion.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["true class"] for row in rows] == ["blue", "green", "red"]
    counts = np.array([[int(row[name]) for name in ("blue", "green", "red")] for row in rows])
    np.testing.assert_array_equal(counts, evaluation.scores.confusion)
    assert counts.sum(axis=1).tolist() == [2, 2, 2]


def test_scores_are_those_of_the_model_on_the_test_images(trained, tmp_path):
    data, transform = load_data(trained.run.data_spec), trained.run.transform.build()
    model = trained.run.load_model()
    inputs = torch.stack([transform(data.test.image(index)) for index in range(len(data.test))])
    with torch.no_grad():
        guesses = model(inputs).argmax(1).tolist()
    right = sum(guess == label for guess, label in zip(guesses, data.test.labels, strict=True))
    assert evaluate_run(trained.run.path, output=tmp_path).scores.top1 == pytest.approx(right / 6)


def test_data_that_are_elsewhere_now_can_be_named(trained, tmp_path):
    run = shutil.copytree(trained.run.path, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["spec"] = "imagefolder:/nowhere"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match=r"folder /nowhere does not exist.* name where they are with --data"):
        evaluate_run(run)
    assert evaluate_run(run, data=trained.run.data_spec).scores.images > 0


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_does_not_matter(trained, tmp_path, batch_size):
    scores = evaluate_run(trained.run.path, output=tmp_path, batch_size=batch_size).scores
    assert scores.images == 6
    assert scores.top1 == trained.test.top1
    assert scores.loss == pytest.approx(trained.test.loss, rel=1e-4)


def test_other_data_of_the_same_classes(trained, colours, tmp_path):
    for part in ("train", "val", "test"):
        shutil.copytree(colours, tmp_path / part)
    evaluation = evaluate_run(trained.run.path, data=str(tmp_path), output=tmp_path / "out")
    assert evaluation.scores.images == 60


def test_data_of_fewer_and_of_other_classes(trained, colours, tmp_path):
    shutil.copytree(colours, tmp_path / "few")
    shutil.rmtree(tmp_path / "few" / "green")
    evaluation = evaluate_run(trained.run.path, data=str(tmp_path / "few"), output=tmp_path / "out")
    assert evaluation.scores.confusion.sum(dim=1).tolist() == [20, 0, 20]
    assert any("No images of 1 class of the model: green" in note for note in evaluation.notes)
    (tmp_path / "few" / "red").rename(tmp_path / "few" / "rot")
    with pytest.raises(ValueError, match="have 1 class that the model does not have: rot"):
        evaluate_run(trained.run.path, data=str(tmp_path / "few"), output=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_exam_is_scored_whole_and_says_what_was_scored(trained, tmp_path):
    write_colours(tmp_path / "exam", 7, seed=1)
    evaluation = evaluate_run(trained.run.path, data=str(tmp_path / "exam"), output=tmp_path / "out")
    assert (evaluation.part, evaluation.scores.images, evaluation.notes) == ("all", 21, ())
    assert evaluation.source == f"21 images of imagefolder:{tmp_path / 'exam'}"
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()).items() >= evaluation.to_dict().items()
    files = sorted((tmp_path / "exam").glob("*/*.png"))
    guesses = [prediction.classes[0][0] for prediction in predict_images(trained.run.path, files, top=1)]
    right = sum(guess == file.parent.name for guess, file in zip(guesses, files, strict=True))
    assert evaluation.scores.top1 == pytest.approx(right / 21)


def test_images_that_the_run_has_seen_are_told(trained, colours, tmp_path):
    split = read_split(trained.run.path, trained.run.config)
    for part, files in split.items():
        (tmp_path / "exam" / "red").mkdir(parents=True, exist_ok=True)
        chosen = next(path for path, name in zip(files.paths, files.names, strict=True) if name.startswith("red"))
        shutil.copy(chosen, tmp_path / "exam" / "red" / f"{part}.png")
    notes = evaluate_run(trained.run.path, data=str(tmp_path / "exam"), output=tmp_path / "out").notes
    assert "1 of these 3 images is an image that the run was trained on: red/train.png." in notes
    assert "1 of these 3 images is an image that the run was chosen by: red/validation.png." in notes


def test_the_runs_own_data_by_name_are_its_own_test_images(trained, colours, tmp_path):
    evaluation = evaluate_run(trained.run.path, data=str(colours), output=tmp_path)
    assert (evaluation.part, evaluation.scores.images) == ("test", 6)
    assert "what the run was trained on: its own test images are scored, not all" in evaluation.notes[0]
    assert evaluation.scores.to_dict() == trained.test.to_dict()


def test_unreadable_image_of_the_exam_is_told_before_work(trained, tmp_path):
    write_colours(tmp_path / "exam", 2, seed=5)
    (tmp_path / "exam" / "red" / "000.png").write_bytes(b"?")
    with pytest.raises(ValueError, match=r"red/000\.png cannot be read"):
        evaluate_run(trained.run.path, data=str(tmp_path / "exam"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("batch_size", 2.5), ("workers", -1), ("workers", 10000)]
)
def test_choices_out_of_range(trained, tmp_path, name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value}; use an integer"):
        evaluate_run(trained.run.path, output=tmp_path, **{name: value})


def test_what_is_wrong_is_told(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        evaluate_run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"the output .*file is a file"):
        evaluate_run(trained.run.path, output=tmp_path / "file")


def write_shards(folder, colours):
    """The pictures of a folder as WebDataset shards, two in each part."""
    folder.mkdir()
    (folder / "classes.txt").write_text("blue\ngreen\nred\n")
    for part in ("train", "val", "test"):
        with tarfile.open(folder / f"{part}.tar", "w") as archive:
            for label, name in enumerate(("blue", "green", "red")):
                for index in range(2):
                    file = sorted((colours / name).iterdir())[index + len(part)]
                    archive.add(file, f"{label}{index}.png")
                    member = tarfile.TarInfo(f"{label}{index}.cls")
                    member.size = 1
                    archive.addfile(member, io.BytesIO(str(label).encode()))


def test_images_of_readers_that_the_run_has_seen_are_told(trained, recipe, colours, tmp_path):
    """By their part as a whole, or it is said that it is not known."""
    write_shards(tmp_path / "shards", colours)
    run = tmp_path / "run"
    train(recipe.override(data=f"wds/:{tmp_path / 'shards'}", epochs=1, batch_size=6), output=run)

    def notes(run, data):
        return [note for note in evaluate_run(run, data=str(data), output=tmp_path / "out").notes if "the run" in note]

    unknown = "Whether the run was trained on some of these images is not known: "
    assert notes(trained.run.path, f"wds/:{tmp_path / 'shards'}") == [
        f"{unknown}the data wds/:{tmp_path / 'shards'} are no image files to compare."
    ]
    assert notes(run, colours) == [
        f"{unknown}the run's own data wds/:{tmp_path / 'shards'} are no image files to compare."
    ]
    other = shutil.copytree(tmp_path / "shards", tmp_path / "other")
    assert notes(run, f"wds/:{other}") == []  # its own test images
    (other / "test.tar").unlink()
    assert notes(run, f"wds/:{other}") == ["These are the validation images that the run was chosen by."]
    (other / "val.tar").unlink()
    assert notes(run, f"wds/:{other}") == ["These are the train images that the run was trained on."]


def test_the_train_part_of_the_runs_data_elsewhere_is_told():
    run = SimpleNamespace(data_spec="torch/cifar10:/a", config={"data": {"fingerprints": {}}})
    images = SimpleNamespace(fingerprint=lambda: "x")
    exam = Exam("torch/cifar10:/b", "train", images)
    assert seen_in_training(run, exam) == (
        "The train images of torch/cifar10 are scored, and the run was trained on these or some of them.",
    )
    (note,) = seen_in_training(run, Exam("torch/cifar10:/b", "test", images))
    assert "not known: the data torch/cifar10:/b are no image files" in note
