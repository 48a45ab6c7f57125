"""The check: what the page carries gives the layer's output, and a layer that computes something else is refused."""

import numpy as np
import pytest
import torch

import lambdanets
from explanation_layers import layer_and_input
from lambdanets import LambdaLayer
from lambdanets.explanation import ExplanationDifferenceError
from lambdanets.explanation.packing import pack, rounded


class OfAnotherInput(LambdaLayer):
    """Does not compute what its parts say of its input."""

    def forward(self, x, context=None, mask=None):
        return super().forward(self.factor * x, context, mask)


def test_float16_accounts_for_the_output(kind):
    layer, args = layer_and_input(kind)
    made = lambdanets.explain(layer, args).checks["(model)"]
    assert 0 < made.error < 1e-3
    assert made.content + made.position == pytest.approx(1)


def test_a_layer_that_computes_something_else():
    layer = OfAnotherInput(8, scope=3, stride=2).eval()
    x = torch.randn(1, 8, 4, 5)
    layer.factor = 1.0
    assert lambdanets.explain(layer, x).checks["(model)"].error < 1e-3
    layer.factor = 1.02
    with pytest.raises(ExplanationDifferenceError, match=r"1 of 1 layers .* 0\.01 in float16: \(model\) \d") as error:
        lambdanets.explain(layer, x)
    assert error.value.checks["(model)"].error > 1e-2


def test_an_output_that_is_no_number():
    layer = LambdaLayer(8, scope=3).eval()
    x = torch.randn(1, 8, 4, 5)
    x[0, 0, 0, 0] = torch.nan
    with pytest.raises(ExplanationDifferenceError, match="nan"):
        lambdanets.explain(layer, x)


def test_large_layers_are_checked_by_evenly_spaced_queries():
    layer = LambdaLayer(4, scope=3, ndim=1).eval()
    made = lambdanets.explain(layer, torch.randn(1, 4, 3000)).checks["(model)"]
    assert made.queries == 1024
    assert made.error < 1e-3


def test_shares_of_a_layer_with_one_term():
    layer = LambdaLayer(8, scope=3).eval()
    torch.nn.init.zeros_(layer.positions)
    made = lambdanets.explain(layer, torch.randn(1, 8, 4, 5)).checks["(model)"]
    assert (made.content, made.position) == (1, 0)


def test_the_check_is_of_rounded_numbers():
    layer, args = layer_and_input("image, local")
    terms = lambdanets.explain(layer, args).terms["(model)"]
    carried = rounded(terms)
    for name in ("query", "key", "table"):
        array = getattr(terms, name)
        np.testing.assert_array_equal(getattr(carried, name), pack(array).unpack())
        assert (getattr(carried, name) != array).any()
