import io

import pytest
from rich.console import Console

from lambdanets.training.display.progress import TrainingProgress, advise_on_waiting, format_seconds

ROW = {
    "epoch": 2,
    "train_loss": 0.5,
    "train_top1": 0.75,
    "validation_loss": 0.25,
    "validation_top1": 0.875,
    "images_per_second": 1234.5,
    "waiting_share": 0.04,
    "memory_gib": 2.34,
}


def show(row=ROW, width=120, workers=0, **options):
    file = io.StringIO()
    console = Console(file=file, width=width, **options)
    with TrainingProgress(console, epochs=10, steps=5, done=5, workers=workers) as progress:
        progress.step(7, 2, 0.5, 0.75, 1234.0, 0.04, 2.34)
        progress._bar.refresh()
        progress.epoch(row, best=True)
        progress.epoch({**row, "epoch": 3}, best=False)
    return file.getvalue()


@pytest.mark.smoke
def test_without_terminal_an_epoch_is_one_plain_line():
    text = show(force_terminal=False)
    assert text.count("\n") == 2
    assert "\x1b" not in text
    for part in (
        "epoch  2/10",
        "loss 0.500",
        "accuracy 75.00%",
        "accuracy 87.50%",
        "images/s",
        "left",
        "*",
        "waiting 4%",
        "2.3 GiB",
    ):
        assert part in text


def test_terminal_shows_a_moving_bar():
    text = show(force_terminal=True)
    assert "\x1b" in text
    for part in (
        "epoch 2/10",
        "14 %",
        "loss 0.500",
        "accuracy 75.00%",
        "1,234 images/s",
        "left",
        "waiting 4%",
        "2.3 GiB",
    ):
        assert part in text
    narrow = show(force_terminal=True, width=80).partition("validation")[0]
    assert "1,234 images/s" in narrow
    assert "waiting" not in narrow


def test_time_left_counts_only_the_steps_of_this_process(monkeypatch):
    now = iter([0.0, 3.0])
    monkeypatch.setattr("lambdanets.training.display.progress.time.monotonic", lambda: next(now))
    file = io.StringIO()
    progress = TrainingProgress(Console(file=file, width=120), epochs=10, steps=5, done=7)
    progress.epoch(ROW, best=False)  # three steps, a second each; eight epochs of five are left
    assert "40 s left" in file.getvalue()


@pytest.mark.parametrize(
    ("workers", "remedy"), [(0, "more --workers may help (now 0;"), (200, "images stored smaller")]
)
def test_advice_is_given_once_where_the_device_waits_much(workers, remedy):
    text = show({**ROW, "waiting_share": 0.25}, workers=workers, force_terminal=False)
    assert text.count("The device waited 25% of the epoch for images; ") == 1
    assert remedy in text
    assert "The device waited" not in show({**ROW, "waiting_share": 0.1}, force_terminal=False)


def test_a_training_without_further_epochs_shows_the_last():
    with TrainingProgress(Console(file=io.StringIO(), width=120), epochs=10, steps=5, done=50) as progress:
        assert progress._bar.tasks[0].fields["epoch"] == 10


def test_the_workers_of_all_processes_of_a_machine_count(monkeypatch):
    monkeypatch.setattr("lambdanets.training.display.progress.usable_cores", lambda: 64)
    assert "(now 8; the machine has 64 cores)" in advise_on_waiting(0.5, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert "images stored smaller" in advise_on_waiting(0.5, 8)


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
