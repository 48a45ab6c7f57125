import io

import pytest
from rich.console import Console

from lambdanets.training.display.progress import TrainingProgress, format_seconds

ROW = {
    "epoch": 2,
    "train_loss": 0.5,
    "train_top1": 0.75,
    "validation_loss": 0.25,
    "validation_top1": 0.875,
    "images_per_second": 1234.5,
}


def show(**options):
    file = io.StringIO()
    console = Console(file=file, width=120, **options)
    with TrainingProgress(console, epochs=10, steps=5, done=1) as progress:
        progress.step(7, 2, 0.5, 0.75, 1234.0)
        progress._bar.refresh()
        progress.epoch(ROW, best=True)
    return file.getvalue()


def test_without_terminal_an_epoch_is_one_plain_line():
    text = show(force_terminal=False)
    assert text.count("\n") == 1
    assert "\x1b" not in text
    for part in ("epoch  2/10", "loss 0.500", "accuracy 75.00%", "accuracy 87.50%", "images/s", "left", "*"):
        assert part in text


def test_terminal_shows_a_moving_bar():
    text = show(force_terminal=True)
    assert "\x1b" in text
    for part in ("epoch 2/10", "14 %", "loss 0.500", "accuracy 75.00%", "1,234 images/s", "left"):
        assert part in text


def test_other_processes_show_nothing():
    file = io.StringIO()
    with TrainingProgress(Console(file=file, force_terminal=True), 10, 5, enabled=False) as progress:
        progress.step(7, 2, 0.5, 0.75, 1234.0)
        progress.epoch(ROW, best=True)
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_times_are_readable(seconds, text):
    assert format_seconds(seconds) == text
