import pytest

from lambdanets.training import train
from lambdanets.training.engine.intervals import DEFAULT, Interval


@pytest.mark.parametrize(
    ("text", "steps", "seconds"),
    [
        ("500", 500, None),
        (" 1 step", 1, None),
        ("20 steps", 20, None),
        ("10m", None, 600),
        ("0.5 min", None, 30),
        ("2 minutes", None, 120),
        (DEFAULT, None, 600),
    ],
)
def test_parse(text, steps, seconds):
    interval = Interval.parse(text)
    assert (interval.steps, interval.seconds) == (steps, seconds)


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "0m", "10h", "ten", "nan", "1e9", "m", 5, None, "9" * 99, "9" * 400]
)
def test_parse_refuses(text):
    with pytest.raises(ValueError, match=r"checkpoint_every is .*; use a number of steps \(500\) or of minutes"):
        Interval.parse(text)


def test_due(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("lambdanets.training.engine.intervals.time.monotonic", lambda: now[0])
    steps, minutes = Interval.parse("3"), Interval.parse("1m")
    assert [step for step in range(1, 10) if steps.due_at(step)] == [3, 6, 9]
    assert not steps.due_now()
    assert not minutes.due_at(60)
    now[0] += 60
    assert minutes.due_now()
    minutes.restart()
    assert (minutes.due_now(), minutes.elapsed) == (False, 0)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "5"])
def test_timeout_out_of_range(recipe, tmp_path, timeout):
    with pytest.raises(ValueError, match=r"timeout is .*; use a number of seconds"):
        train(recipe, output=tmp_path / "run", timeout=timeout)
