import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lambdanets.training import evaluate_run
from lambdanets.training.data import load_data


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


def test_data_of_other_classes(trained, colours, tmp_path):
    shutil.copytree(colours, tmp_path / "few")
    shutil.rmtree(tmp_path / "few" / "red")
    with pytest.raises(ValueError, match=r"have 3 classes, but the data .* have 2"):
        evaluate_run(trained.run.path, data=str(tmp_path / "few"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_is_told(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        evaluate_run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"the output .*file is a file"):
        evaluate_run(trained.run.path, output=tmp_path / "file")
