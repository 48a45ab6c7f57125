"""The study of memory: formulas agree with what is measured, rows end, cells are merged, claims follow intervals."""

from dataclasses import replace

import pytest
import torch

from lambdanets.experiments.bench.measure import PASSES, passes, peak_bytes, saved_bytes
from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.study import Options, Place
from lambdanets.experiments.studies.memory import study as memory

INFERENCE, TRAINING = PASSES


@pytest.mark.smoke
@pytest.mark.parametrize("name", memory.ROWS)
@pytest.mark.parametrize("side", [14, 20])
def test_formulas_predict_what_is_kept(name, side):
    layers = memory.build(name, side)
    measured = saved_bytes(layers, torch.randn(1, memory.DIM, side, side))
    assert memory.predicted_bytes(name, side) == pytest.approx(measured, rel=0.1)


def test_one_table():
    one, two = (sum(p.numel() for p in memory.build(name, 14).parameters()) for name in ("lambda, one table", "lambda"))
    assert two - one == 27 * 27 * 16


def test_a_step_takes_no_more_than_said():
    for name in memory.ROWS:
        layers, x = memory.build(name, 32), torch.randn(1, memory.DIM, 32, 32)
        step = passes(layers, x)[TRAINING]
        step()
        assert peak_bytes(step) == pytest.approx(memory.needed_bytes(name, 32), rel=0.25)


def run(folder, options, **changes):
    """The cells of the study, one after the other, as its grid runs them; changes of their configuration."""
    cells, done = [*memory.STUDY.cells(options)], []
    while cells[0].after:
        cells = [*cells[0].after, *cells]
    for cell in cells:
        config = {**cell.config, "seconds": 0.0, **changes}
        if cell.after:
            config = cell.complete(config, done[-1:])
        done.append(Done(config, {}, {}, memory.STUDY.run(config, Place(folder, None, None)), {"date": "1"}, 1.0))
    return done


def test_each_row_goes_on_to_where_it_ends(tmp_path, monkeypatch):
    """Global attention has no room at 10x10, axial attention is too slow there, in its second call too; lambda is by
    far at 14x14.
    """
    monkeypatch.setitem(memory.SIZES, "quick", (6, 10, 14))
    needed = {("global attention", 10): 3 * 10**9}
    monkeypatch.setattr(memory, "needed_bytes", lambda name, side: needed.get((name, side), 1))
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * 10**9)
    seconds = iter([0.1, 0.1, 0.1, 0.1, 2.0, 1.5, 9.0])
    monkeypatch.setattr(memory, "wall_clock", lambda call: next(seconds))
    cells = run(tmp_path, Options(quick=True, only=("axial attention", "global attention")), limit=1.0)
    assert [cell.config["rows"] for cell in cells] == [
        ["lambda", "global attention", "axial attention"],
        ["lambda", "global attention", "axial attention"],
        ["lambda"],
    ]
    assert memory.STUDY.line(cells[1].result) == (
        "1 rows measured, global attention ended by memory, axial attention ended by time"
    )
    outcome = memory.STUDY.outcome(cells)
    ends, kept, formula = outcome.tables[:3]
    assert ends.rows == [
        ["global attention", "6x6", "memory: 10x10 takes 3.0 GB at once, and 2.0 GB are free"],
        ["axial attention", "6x6", "time: a pass of 10x10 takes 1.5 s"],
        ["lambda", "10x10", "time: a pass of 14x14 takes 9.0 s"],
    ]
    assert kept.rows[0][2].startswith("not reached (")
    assert kept.rows[1][2:4] == [kept.rows[1][2], ""]
    # Of an image: 5 x 64 n + 8 n² numbers of each of two layers, and the input of the second one.
    gigabytes = [4 * (2 * (5 * 64 * n + 8 * n * n) + 64 * n) / 1e9 for n in (36, 100, 196)]
    assert [float(cell) for cell in formula.rows[0][1:]] == pytest.approx(gigabytes, rel=1e-3)
    assert [(series.name, len(series.points)) for series in outcome.plots[0].series] == [
        ("global attention (to 6, memory)", 1),
        ("axial attention (to 6, time)", 1),
        ("lambda (to 10, time)", 2),
    ]


def test_a_slow_row_is_timed_once(tmp_path, monkeypatch):
    monkeypatch.setitem(memory.SIZES, "quick", (6,))
    seconds = iter([0.1, 3.0, 1.0])
    monkeypatch.setattr(memory, "wall_clock", lambda call: next(seconds))
    (cell,) = cells = run(tmp_path, Options(quick=True, only=("axial attention",)), limit=10.0)
    row, ours = cell.result["rows"]["axial attention"], cell.result["rows"]["lambda"]
    assert row["milliseconds"] == {INFERENCE: [1000.0], TRAINING: [3000.0]}
    assert (row["ratio"], ours["ratio"][TRAINING]) == ({}, [1.0, 1.0, 1.0])
    outcome = memory.STUDY.outcome(cells)
    assert not any(claim.text.startswith("Time of") for claim in outcome.claims)
    assert outcome.tables[0].rows[1] == ["lambda", "6x6", "not ended"]


def done(side, rows, date="2026-11-29"):
    """A cell with milliseconds of a training pass, bytes kept, and the ratio of milliseconds with its interval."""
    found = {
        name: {
            "predicted_bytes": kept,
            "saved_bytes": kept,
            "parameter_bytes": 8,
            "peak_bytes": 2 * kept,
            "milliseconds": {way: [ms] * 3 for way in PASSES},
            "ratio": dict.fromkeys(PASSES, ratio),
        }
        for name, (kept, ms, ratio) in rows.items()
    }
    config = {"study": "memory", "kind": "sizes", "row": f"{side}x{side}", "scale": "full", "side": side, "limit": 1.0}
    return Done({**config, "rows": list(rows)}, {}, {}, {"rows": found}, {"date": date}, 1.0)


OWN = [1.0, 1.0, 1.0]


def test_rows_of_several_cells_stand_in_one_table():
    """--only one row after --only others: none is lost, the newest of doubles counts, and the note says which."""
    first = done(14, {"lambda": (100, 2.0, OWN), "axial attention": (300, 6.0, [3.0, 2.9, 3.1])}, "2026-11-28")
    second = done(14, {"lambda": (100, 4.0, OWN), "lambda, k 8": (50, 3.0, [0.75, 0.7, 0.8])}, "2026-11-29")
    other = done(20, {"lambda": (200, 5.0, OWN), "axial attention": (700, 6.0, [1.2, 1.1, 1.3])}, "2026-11-28")
    for cells in ([first, second, other], [other, second, first]):
        outcome = memory.STUDY.outcome(cells)
        training = next(table for table in outcome.tables if table.name == "training")
        assert [row[:3] for row in training.rows] == [
            ["axial attention", "6.0", "6.0"],
            ["lambda", "4.0", "5.0"],
            ["lambda, k 8", "3.0", ""],
        ]
        assert training.notes[-1].endswith("between them are not of one run: axial attention at 14x14.")
        # The ratio is that of the turns of its own cell.
        assert any("3.00 (2.90 to 3.10) at 14x14" in claim.text for claim in outcome.claims)
    alone = done(14, {"lambda": (100, 9.0, OWN)})
    for same_day in ([alone, second], [second, alone]):
        tables = memory.STUDY.outcome(same_day).tables
        assert next(table for table in tables if table.name == "training").rows[0][1] == "4.0"
        assert not any("not of one run" in note for table in tables for note in table.notes)


@pytest.mark.parametrize(
    ("ratios", "held"),
    [
        ([(1.5, 1.1, 2.0), (3.0, 2.0, 4.0)], True),
        ([(1.5, 0.9, 2.0), (3.0, 2.0, 4.0)], None),
        ([(0.5, 0.4, 0.9), (1.2, 0.9, 1.5)], False),
    ],
)
def test_claims_of_time_are_judged_by_the_intervals(ratios, held):
    """The medians of milliseconds say otherwise and do not count."""
    name = "axial attention"
    cells = [
        done(side, {"lambda": (100, 2.0, OWN), name: (300, 2.0 if held else 20.0, list(ratio))})
        for side, ratio in zip((14, 20), ratios, strict=True)
    ]
    claim = next(claim for claim in memory.STUDY.outcome(cells).claims if claim.text.startswith("Time of"))
    assert claim.held is held
    assert f"{ratios[0][0]:.2f} ({ratios[0][1]:.2f} to {ratios[0][2]:.2f}) at 14x14" in claim.text


def test_one_row_alone_has_no_ratios():
    tables = memory.STUDY.outcome([done(14, {"lambda": (200, 1.0, OWN)})]).tables
    assert "ratios" not in {table.name for table in tables}
    assert all(table.rows and len(table.columns) > 1 for table in tables)


def test_losses_at_sizes_in_a_row_are_told_by_the_ends():
    rows = {"lambda": (200, 1.0, OWN), "axial attention": (100, 3.0, [3.0, 2.0, 4.0])}
    tables = memory.STUDY.outcome([done(side, rows) for side in (14, 20, 28)]).tables
    (note,) = next(table for table in tables if table.name == "peak").notes
    assert note.endswith("an attention: axial attention needs less than lambda from 14x14 to 28x28.")


def test_a_claim_on_many_sizes_has_the_least_and_the_most_and_a_table_has_all():
    times = {14: (2.0, 1.9, 2.1), 20: (1.5, 1.4, 1.6), 28: (9.0, 8.0, 9.5)}
    cells = [
        done(side, {"lambda": (100, 1.0, OWN), "axial attention": (100 * side, 3.0, list(times[side]))})
        for side in times
    ]
    outcome = memory.STUDY.outcome(cells)
    kept, took = (claim.text for claim in outcome.claims if "axial" in claim.text)
    assert "14.00 at 14x14 to 28.00 at 28x28, the smallest and largest of 3 sizes;" in kept
    assert "1.50 (1.40 to 1.60) at 20x20 to 9.00 (8.00 to 9.50) at 28x28, the smallest and largest of 3 sizes;" in took
    ratios = next(table for table in outcome.tables if table.name == "ratios")
    assert ratios.rows == [["axial attention", "2.00 (1.90 to 2.10)", "1.50 (1.40 to 1.60)", "9.00 (8.00 to 9.50)"]]


def test_fused_attention_is_asked_from_28_on():
    name = "axial attention, fused"
    cells = [
        done(side, {"lambda": (100, 2.0, OWN), name: (300, 2.0, [ratio] * 3)}) for side, ratio in ((14, 0.5), (28, 2.0))
    ]
    (claim,) = (claim for claim in memory.STUDY.outcome(cells).claims if claim.text.startswith("Time of"))
    assert claim.held
    assert "0.50 (0.50 to 0.50) at 14x14" in claim.text


def test_what_lambda_rows_lose_is_marked():
    cells = [
        done(14, {
            "lambda": (100, 2.0, OWN), "axial attention": (90, 1.0, [0.6, 0.5, 0.7]),
            "local attention": (80, 1.5, [0.9, 0.8, 1.1]), "lambda convolution": (70, 1.0, [0.5, 0.4, 0.55]),
        }),
        done(28, {"lambda": (100, 2.0, OWN), "axial attention": (900, 4.0, [2.0, 1.9, 2.1])}),
    ]  # fmt: skip
    tables = {table.name: table for table in memory.STUDY.outcome(cells).tables}
    assert [row[0] for row in tables["kept"].rows].index("lambda") == 2
    assert tables["kept"].marked == {(2, 1)}
    assert tables["kept"].notes[-1].endswith("an attention: local attention needs less than lambda at 14x14.")
    # The interval against local attention contains 1, and the convolution is level with axial attention.
    assert tables["training"].marked == {(2, 1)}
    assert (
        tables["training"]
        .notes[-1]
        .endswith("by its whole interval or as timed once: axial attention needs less than lambda at 14x14.")
    )
    assert tables["parameters"].marked == frozenset()


def once(cell, name, seconds, ended=False):
    """The cell with a row that was timed once, or ended by that time."""
    row = {"predicted_bytes": 1, "ended": "time", "seconds": seconds}
    if not ended:
        row = {**cell.result["rows"][name], "milliseconds": {way: [1e3 * seconds] for way in PASSES}, "ratio": {}}
    return replace(cell, result={"rows": {**cell.result["rows"], name: row}})


@pytest.mark.parametrize("ended", [False, True])
def test_what_was_timed_once_is_marked_and_makes_a_claim_doubtful(ended):
    name = "local attention"
    cells = [done(side, {"lambda": (100, 2.0, OWN), name: (900, 4.0, [2.0, 1.9, 2.1])}) for side in (14, 28)]
    (claim,) = (claim for claim in memory.STUDY.outcome(cells).claims if claim.text.startswith("Time of"))
    assert claim.held
    cells[1] = once(cells[1], "lambda", 3.0, ended)
    cells[1].result["rows"][name]["ratio"] = {}
    outcome = memory.STUDY.outcome(cells)
    (claim,) = (claim for claim in outcome.claims if claim.text.startswith("Time of"))
    assert claim.held is None
    assert "about 0.00133 (timed once) at 28x28" in claim.text
    training = next(table for table in outcome.tables if table.name == "training")
    assert training.rows[1][:3] == ["lambda", "2.0", "3,000.0"]
    assert training.marked == {(1, 2)}
    # Not of another cell.
    cells[1] = once(done(28, {"lambda": (100, 2.0, OWN), "global attention": (900, 4.0, OWN)}), "lambda", 3.0, ended)
    cells.append(done(28, {name: (900, 1.0, [0.5, 0.4, 0.6])}))
    outcome = memory.STUDY.outcome(cells)
    assert (
        "global attention needs less than lambda at 28x28"
        in next(table for table in outcome.tables if table.name == "training").notes[-2]
    )


def test_the_papers_figures_stand_beside():
    rows = dict.fromkeys(memory.ROWS, (100, 2.0, OWN))
    tables = {table.name: table for table in memory.STUDY.outcome([done(14, rows)]).tables}
    assert {row[0]: row[-1] for row in tables["kept"].rows if row[-1]} == {
        "global attention": "120 (63.16x)",
        "axial attention": "4.8 (2.53x)",
        "lambda": "1.9 (1.00x)",
        "lambda, k 8": "0.95 (0.50x)",
        "lambda, one table": "0.63 (0.33x)",
    }
    assert tables["kept"].columns[-1] == "paper: GB (of lambda)"
    rates = {row[0]: row[-1] for row in tables["training"].rows}
    assert rates["global attention"] == "out of memory"
    assert rates["lambda convolution"] == "1100 (0.95x)"
    assert rates["axial attention, fused"] == ""
