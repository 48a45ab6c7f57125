"""The comparison of two source trees: intervals, verdicts, and a run of two workers that goes on where it stopped."""

import csv
import sys
from pathlib import Path

import pytest

from helpers import load_script

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "compare_trees.py"


@pytest.fixture(scope="module")
def trees():
    return load_script("compare_trees")


def turns(rounds):
    """Turns with these ratios, a list for each round."""
    return [
        {"round": number, "old_ms": "2.0", "new_ms": str(2 * ratio)}
        for number, ratios in enumerate(rounds)
        for ratio in ratios
    ]


@pytest.mark.parametrize(
    ("rounds", "verdict"),
    [
        ([[0.98, 1.0, 1.02]] * 5, "not slower"),
        ([[1.0, 1.01, 1.02]] * 4, "undecided"),  # too few rounds
        ([[1.05, 1.06, 1.07]] * 5, "slower"),
        ([[1.0, 1.05]] * 5, "undecided"),
        # Each round is sure of itself, but they differ: as another process has its memory elsewhere.
        ([[1.0] * 20] * 3 + [[1.1] * 20] * 2, "undecided"),
    ],
)
def test_verdicts(trees, rounds, verdict):
    assert trees.verdict(turns(rounds), 1.03) == verdict


def test_the_interval_holds_the_median_of_the_ratios(trees):
    median, low, high = trees.interval(turns([[1.0, 1.1, 1.3], [1.2, 0.9]]))
    assert median == pytest.approx(1.1)
    assert 0.9 <= low < median < high <= 1.3


def test_cases_are_plain_numbers_with_one_example_among_them(trees):
    cases = trees.all_cases()
    assert list(cases)[:3] == [f"global-{size}x{size}-d64-b1" for size in (7, 10, 14)]
    assert len(cases) == 39
    values = [value for case in cases.values() for value in (*case["grid"], *case.values()) if value != case["grid"]]
    assert all(value is None or type(value) is int for value in values)


class Told:
    """A worker without a process."""

    def __init__(self, *_):
        pass

    def ask(self, request):
        return {"seconds": 0.001}

    def close(self):
        pass


def test_a_tree_beside_itself_and_on_where_it_stopped(trees, tmp_path, monkeypatch, capsys):
    output, source = tmp_path / "trees.csv", str(ROOT / "src")
    options = ["--cases", "global-7x7-d64-b1", "--minutes", "0", "--turns", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), source, source, *options, "--threads", "1"])
    for rounds, worker in ((1, Told), (2, trees.Worker)):
        monkeypatch.setattr(trees, "Worker", worker)
        assert trees.main() == 1
        assert "0 not slower, 0 slower, 2 undecided" in capsys.readouterr().out
        with open(output, encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [(row["case"], row["pass"]) for row in rows] == [
            ("global-7x7-d64-b1", "forward"),
            ("global-7x7-d64-b1", "forward+backward"),
        ]
        assert {row["rounds"] for row in rows} == {str(rounds)}
        assert {row["turns"] for row in rows} == {str(2 * rounds)}
        assert rows[0]["machine"]
    sys.argv[-1] = "2"
    with pytest.raises(SystemExit):
        trees.main()
    assert "was measured under other conditions" in capsys.readouterr().err
