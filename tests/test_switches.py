"""Arguments that are True or False are refused as anything else, by name."""

import inspect

import pytest
import torch
from torch import nn

import lambdanets
from lambdanets.interop.adopt.migrate import build_origin
from lambdanets.layers.axial_attention import AxisAttention
from lambdanets.layers.registry import LAYERS
from lambdanets.layers.token_lambda import TokenLambda
from lambdanets.models.cost import model_cost
from lambdanets.training.engine.fit import resume, train
from lambdanets.training.inference.export import export_run
from lambdanets.training.inference.publish import publish_run

CALLS = {
    lambdanets.LambdaLayer: ((8,), {"scope": 3}),
    lambdanets.GraphLambdaLayer: ((8,), {}),
    TokenLambda: ((8,), {"scope": 3}),
    AxisAttention: ((8, 8), {"length": 4, "vertical": True, "num_heads": 2, "dim_head": 4, "fused": False}),
    lambdanets.EdgePositions: ((torch.zeros(2, 1, dtype=torch.long), torch.zeros(1, 4, 1)), {}),
    lambdanets.lambda_apply: ((torch.zeros(1, 1, 4, 4),) * 3, {}),
    lambdanets.adopt: ((nn.Identity(),), {}),
    lambdanets.export_model: ((nn.Identity(), "model.onnx"), {}),
    lambdanets.load_weights: ((nn.Identity(), {}), {}),
    lambdanets.plan_attention: ((nn.Identity(),), {}),
    lambdanets.plan_convs: ((nn.Identity(),), {}),
    lambdanets.replace_attention: ((nn.Identity(),), {}),
    lambdanets.replace_convs: ((nn.Identity(),), {}),
    lambdanets.Explanation.maps: ((None, "layer", 0), {}),
    build_origin: (("timm:resnet10t",), {}),
    model_cost: (("resnet10t",), {}),
    train: ((None,), {}),
    resume: (("run",), {}),
    export_run: (("run",), {}),
    publish_run: (("run", "local-dir:folder"), {}),
    **{
        entry.layer: ((16,), {"size": 4} if "size" in inspect.signature(entry.layer).parameters else {})
        for letter, entry in LAYERS.items()
        if letter in "EAWXG"
    },
}


def switches(function):
    """Names of the arguments of a call that are bools by their annotation."""
    found = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in found if parameter.annotation in ("bool", "bool | None")]


CASES = [(function, name) for function in CALLS for name in switches(function)]


def test_there_are_switches():
    assert len(CASES) > 20


@pytest.mark.parametrize(("function", "name"), CASES, ids=lambda case: getattr(case, "__qualname__", case))
def test_a_switch_that_is_no_bool(function, name):
    args, options = CALLS[function]
    if function is lambdanets.Explanation.maps:
        args = (object.__new__(lambdanets.Explanation), *args[1:])
    for given in ("no", 1, 0):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got {given!r}"):
            function(*args, **{**options, name: given})
