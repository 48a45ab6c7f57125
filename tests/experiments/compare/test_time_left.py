"""How long the cells that are left will take, from cells whose times are known."""

import pytest

from compare_toy import Toy
from lambdanets.experiments.compare.cell import Cell, Done
from lambdanets.experiments.compare.time_left import seconds_left


def cell(kind, row, weight=1.0, **options):
    return Cell({"kind": kind, "row": row}, weight=weight, **options)


def done(**cells):
    """Cells "kind row" with their seconds."""
    found = {}
    for name, seconds in cells.items():
        kind, row, *_ = name.split("_")
        one = cell(kind, row)
        found[one] = Done(one.config, {}, {}, {}, {}, seconds)
    return found


class Expecting(Toy):
    """Expects ten seconds of row a and eighty of row b."""

    def expected_seconds(self, config, cells):
        return {"a": 10.0, "b": 80.0}.get(config["row"])


@pytest.mark.parametrize(
    ("study", "before", "left", "seconds"),
    [
        # As long as its own kind and row, whatever others take.
        (Toy, {"train_a": 5, "train_b": 40, "memory_a": 0.1}, ("train", "b"), 40),
        # Of a resumed cell an earlier version counted the last part alone.
        (Toy, {"train_a_0": 0, "train_a_1": 500}, ("train", "a"), 500),
        # Else as long as its kind, else as any.
        (Toy, {"train_a": 5, "memory_a": 0.1}, ("train", "b"), 5),
        (Toy, {"memory_a": 0.1}, ("train", "b"), 0.1),
        # By what the study expects, in proportion to what it expected of those that are done.
        (Expecting, {"memory_c": 0.1}, ("train", "b"), 80),
        (Expecting, {"train_a": 15, "memory_c": 0.1}, ("train", "b"), 120),
        (Expecting, {"train_a": 15, "train_b": 70}, ("train", "b"), 70),
        (Expecting, {"train_a": 15, "memory_c": 0.1}, ("memory", "c"), 0.1),
    ],
)
def test_a_cell_takes_what_is_known_of_it(study, before, left, seconds):
    found = seconds_left(study(""), done(**before), {cell(*left): 0.0}, jobs=1)
    assert found == pytest.approx(seconds)


def test_weights_scale_within_a_kind():
    assert seconds_left(Toy(""), done(sizes_a=2), {cell("sizes", "b", weight=8): 0.0}, jobs=1) == 16


def test_cells_beside_each_other_share_the_time():
    before = done(train_a=10, train_b=40, speed_all=7)
    left = {cell("train", "a"): 0.0, cell("train", "b"): 0.0, cell("train", "a", alone=False): 4.0}
    assert seconds_left(Toy(""), before, left, jobs=1) == 56
    assert seconds_left(Toy(""), before, left, jobs=2) == 40  # the longest of them
    assert seconds_left(Toy(""), before, {**left, cell("speed", "all", alone=True): 0.0}, jobs=2) == 47
    assert seconds_left(Toy(""), before, {cell("train", "a"): 12.0}, jobs=2) == 0
    assert seconds_left(Toy(""), before, {}, jobs=2) == 0
