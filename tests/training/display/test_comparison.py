import shutil

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from lambdanets.training.display import comparison
from lambdanets.training.display.comparison import plot_runs


@pytest.fixture
def runs(trained, tmp_path):
    return [shutil.copytree(trained.run.path, tmp_path / "runs" / name) for name in ("first", "$second$", "third")]


def test_curves_of_several_runs(runs, tmp_path, monkeypatch):
    drawn = []
    original = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self) or original(self, *args)
    )
    plot_runs(tmp_path / "new" / "runs.png", runs)
    assert np.asarray(Image.open(tmp_path / "new" / "runs.png").convert("L")).std() > 5
    (figure,) = drawn
    assert [len(axes.get_lines()) for axes in figure.axes] == [3, 3, 3]
    rows = np.genfromtxt(runs[0] / "metrics.csv", delimiter=",", names=True)
    line = figure.axes[1].get_lines()[0]
    assert list(line.get_xdata()) == [1, 2, 3]
    np.testing.assert_allclose(line.get_ydata(), rows["validation_loss"])
    np.testing.assert_allclose(figure.axes[2].get_lines()[1].get_ydata(), 100 * (1 - rows["validation_top1"]))
    names = [text.get_text().partition(" (least")[0] for text in figure.legends[0].get_texts()]
    assert names == ["first", "$second$", "third"]
    assert len({line.get_color() for line in figure.axes[0].get_lines()}) == 3


def test_runs_on_two_drives_have_their_whole_names(runs, monkeypatch):
    rows = [[{"validation_top1": 0.5}]] * 3
    drives = iter("CDE")
    monkeypatch.setattr("os.path.splitdrive", lambda path: (next(drives), path))
    names = [label.partition(" (least")[0] for label in comparison._labels(runs, rows)]
    assert [name[-12:] for name in names] == [str(run)[-12:] for run in runs]


def test_other_formats(runs, tmp_path):
    plot_runs(tmp_path / "runs.SVG", runs[:1])
    assert "<svg" in (tmp_path / "runs.SVG").read_text()
    with pytest.raises(ValueError, match=r"runs\.xyz ends in none of \.png, \.svg, \.pdf"):
        plot_runs(tmp_path / "runs.xyz", runs)


def test_what_cannot_be_drawn(runs, tmp_path):
    with pytest.raises(ValueError, match="21 runs cannot be told apart"):
        plot_runs(tmp_path / "runs.png", runs * 7)
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        plot_runs(tmp_path / "runs.png", [tmp_path / "none"])
    for name in ("metrics.csv", "result.json"):
        (runs[1] / name).unlink()
    with pytest.raises(ValueError, match=r"second.* has no finished epoch to draw"):
        plot_runs(tmp_path / "runs.png", runs)
    assert not (tmp_path / "runs.png").exists()
