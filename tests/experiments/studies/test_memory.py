"""The study of memory: formulas agree with what is measured, rows without room end, sizes become plots."""

import pytest
import torch

from lambdanets.experiments.bench.measure import saved_bytes
from lambdanets.experiments.compare.cell import Done
from lambdanets.experiments.compare.study import Place
from lambdanets.experiments.studies import memory


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


def test_rows_without_room_end(tmp_path, monkeypatch):
    rows = ["lambda", "axial attention", "global attention"]
    free = memory.predicted_bytes("global attention", 10) / memory.SHARE - 1
    monkeypatch.setattr(memory, "available_memory", lambda: free)
    cells = []
    for side in (6, 10):
        config = {"study": "memory", "kind": "sizes", "row": f"{side}x{side}", "scale": "full", "side": side}
        config |= {"rows": rows, "seconds": 0.0}
        cells.append(Done(config, {}, {}, memory.STUDY.run(config, Place(tmp_path, None, None)), {}, 1.0))
    assert memory.STUDY.line(cells[0].result) == "3 rows measured"
    assert memory.STUDY.line(cells[1].result) == "2 rows measured, no room for global attention"
    outcome = memory.STUDY.outcome(cells)
    assert [len(series.points) for series in outcome.plots[0].series] == [1, 2, 2]
    kept = outcome.tables[0]
    assert kept.rows[0][2].startswith("no room (")
    assert any(
        claim.text.startswith("axial attention keeps so many times the memory of lambda: ") for claim in outcome.claims
    )
