"""Sentences on how the cells of a study were run."""

import pytest

from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.outcome import code_warning, effort_line, four_digits, machine_line


def test_the_line_of_the_machine_tells_threads_by_what_was_done():
    names = ("machine", "cores", "precision", "torch", "timm", "lambdanets", "date")
    machine = dict(zip(names, ("m", 2, "float32", "2", "1", "0", "d"), strict=True))
    made = [
        Done({"seed": 0} if trains else {}, {}, {}, {}, {**machine, "threads": threads, "commit": commit}, 1.0)
        for trains, threads, commit in ((True, 1, "a"), (False, 2, "b"), (True, 1, "b"))
    ]
    threads = "trainings with 1 thread, measurements with 2 threads"
    assert machine_line(made) == f"m, 2 cores, float32; {threads}; PyTorch 2, timm 1, lambdanets 0 (a, b); d"
    assert "; measurements with 2 threads; " in machine_line(made[1:2])
    assert machine_line([]) == ""


def test_several_versions_of_the_code_are_told_by_what_was_measured():
    made = [Done({"kind": kind}, {}, {}, {}, {"commit": commit}, 1.0) for kind, commit in (
        ("search", "a"), ("search", "b"), ("train", "a"), ("train", "a"))]  # fmt: skip
    (warning,) = code_warning(made)
    assert warning.startswith("Learning rates were measured with several versions of the code (a, b)")


def test_the_line_of_the_effort_counts_cells_and_hours():
    made = [Done({"scale": "full"}, {}, {}, {}, {}, seconds) for seconds in (1800.0, 900.0)]
    assert effort_line(made) == "2 cells, 0.75 hours of computing in all (full size)."


@pytest.mark.parametrize(("value", "text"), [(35078.4, "35,078"), (0.34823, "0.3482"), (12.3456, "12.35"), (0, "0")])
def test_numbers_to_read(value, text):
    assert four_digits(value) == text
