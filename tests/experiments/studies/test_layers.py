"""The study of layers: other forms of a row compute the same numbers."""

import pytest
import torch

from lambdanets.experiments.compare.measured import build
from lambdanets.experiments.compare.study import DataFacts, Options
from lambdanets.experiments.studies.layers import ROWS, STUDY

DATA = DataFacts("images/", "", image_size=16, channels=3, classes=4, images=(100, 10, 10))
SHAPE = {"image_size": 16, "channels": 3, "classes": 4}


@pytest.fixture(scope="module")
def models():
    [speed] = [cell for cell in STUDY.cells(Options(quick=True, data=DATA)) if cell.config["kind"] == "speed"]
    return speed.config["models"]


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if not row.trains])
def test_another_form_computes_the_same_numbers(name, models):
    rows = (models[each] for each in (name, ROWS[name].form_of))
    form, row = (build(row["model"], row["model_kwargs"], SHAPE).double() for row in rows)
    form.load_state_dict(row.state_dict())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for training in (False, True):
        torch.testing.assert_close(form.train(training)(x), row.train(training)(x))
