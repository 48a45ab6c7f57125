import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lambdanets.training.display.plots import frequent_mistakes, plot_confusion, plot_curves, scale_by_factors


def row(epoch, top1):
    return {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "train_top1": top1,
        "validation_loss": 2 / epoch,
        "validation_top1": top1,
        "learning_rate": 0.1,
    }


@pytest.mark.parametrize("rows", [[row(1, 0.5)], [row(1, 0.5), row(2, 1.0)], [row(i, 0.9) for i in range(1, 40)]])
def test_curves(tmp_path, rows):
    plot_curves(tmp_path / "curves.png", rows, "title")
    assert np.asarray(Image.open(tmp_path / "curves.png").convert("L")).std() > 5


@pytest.mark.parametrize(
    ("errors", "scale", "labels"),
    [
        ([80, 9, 0.4], "log", ["0.5", "1", "2", "5", "10", "20", "50"]),
        ([80, 9, 0], "symlog", ["0", "10", "20", "50"]),
        ([12, 10], "linear", None),
        ([0, 0], "linear", None),
    ],
)
def test_errors_have_a_scale_of_factors_where_they_shrink(errors, scale, labels):
    axes = Figure().subplots()
    axes.plot(errors)
    scale_by_factors(axes, errors)
    FigureCanvasAgg(axes.figure).draw()
    assert axes.get_yscale() == scale
    if labels is not None:
        assert [label.get_text() for label in axes.get_yticklabels()] == labels


@pytest.mark.parametrize("classes", [2, 10, 30, 1000])
def test_confusion_of_few_and_of_many_classes(tmp_path, classes):
    confusion = np.random.default_rng(0).integers(0, 5, (classes, classes)) + 40 * np.eye(classes, dtype=int)
    plot_confusion(tmp_path / "confusion.png", confusion, [f"class {i}" for i in range(classes)], "title")
    width, height = Image.open(tmp_path / "confusion.png").size
    assert 600 <= height <= 2000
    assert 600 <= width <= 2500
    # With a thousand classes every cell needs a pixel of its own.
    assert classes < 1000 or height > classes


def test_class_without_images(tmp_path):
    plot_confusion(tmp_path / "confusion.png", np.array([[3, 0], [0, 0]]), ["a", "b"], "title")
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_mistakes_are_counted_without_the_right_answers():
    confusion = np.array([[9, 2, 0], [0, 9, 0], [5, 1, 0]])
    expected = [("c", "a", 5), ("a", "b", 2), ("c", "b", 1)]
    assert frequent_mistakes(confusion, ["a", "b", "c"], 9) == expected
    assert frequent_mistakes(confusion, ["a", "b", "c"], 1) == expected[:1]
