import io
import json
import time

import torch
from rich.console import Console
from torch import nn

from lambdanets.training import train
from lambdanets.training.engine import profiling
from lambdanets.training.engine.profiling import ProfiledBatches


def test_a_training_with_a_trace(recipe, tmp_path):
    text = io.StringIO()
    train(recipe.override(epochs=1), output=tmp_path / "run", console=Console(file=text, width=200), profile=True)
    shown = text.getvalue()
    for word in ("A step takes", "images", "forward", "backward", "optimizer", "other", "aten::"):
        assert word in shown
    trace = tmp_path / "run" / "profile" / "trace.json"
    assert str(trace) in shown
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"lambdanets: forward", "lambdanets: images"} <= names


class Three:
    waited = 1.0

    def __len__(self):
        return 3

    def of_epoch(self, epoch, first):
        return iter(torch.ones(3 - first, 2, 4))


def test_parts_of_a_step(tmp_path):
    """Two steps of three batches; the parts add up to the step, and the slowest is the one that sleeps."""
    model = nn.Linear(4, 4)
    model.register_forward_hook(lambda *_: time.sleep(0.05))
    found = []
    batches = Three()
    profiled = ProfiledBatches(batches, model, tmp_path, torch.device("cpu"), found.append)
    assert list(profiled.of_epoch(0, first=3)) == []  # of an epoch that is done when it goes on
    for epoch in (0, 1):
        assert sum(1 for batch in profiled.of_epoch(epoch) if model(batch).sum().backward() is None) == 3
    (profile,) = found
    assert profile.steps == 2
    assert 0.049 < profile.parts["forward"] < profile.seconds
    assert sum(profile.parts.values()) > 0.999 * profile.seconds
    assert max(profile.parts, key=profile.parts.get) == "forward"
    assert profile.operators
    assert all(profiling._part(name) is None for name, _, _ in profile.operators)
    profiled.waited = 0.0
    assert batches.waited == 0.0
    assert not model._forward_pre_hooks
