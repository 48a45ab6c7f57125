"""The projection of a lambda layer, and the step from its input to its outputs that saves only the input.

**What is kept.** Operation by operation, a layer keeps queries and values before and after their norms, the softmax of
the keys, and λc for the backward pass, beside the input, which its projection needs: more than twice the numbers of a
convolution at 64 channels. :class:`FromInput` saves only the input, as a convolution does. Its backward pass projects
the input again: one 1x1 convolution, the norms and the softmax. The kernel of the op runs no second time, since its
gradients need its inputs, not its output.

**Its backward pass**, step by step:

1. ``gradients_by_autograd`` records what is done with the saved tensors.
2. :func:`_outs_and_gradients` projects the input again: queries, keys and values.
3. ``grid_gradients`` normalises the keys, recorded as well; then the kernel's backward pass computes the gradients of
   the op's four inputs (queries, normalised keys, values, table), unrecorded.
4. Autograd goes on from these four with these gradients, through softmax, norms and convolution, to the saved tensors.

Where the gradients shall have derivatives of their own, step 3 is the op with its output and the output's gradient
instead, so that everything is recorded.

The statistics of a batch-norm are computed again from the same numbers; running statistics are updated in the forward
pass alone. ``LambdaLayer._saves_only_input`` says where the step is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lambdanets.kernels.autograd.derivatives import gradients_by_autograd
from lambdanets.kernels.autograd.modes import is_watched, without_autocast
from lambdanets.kernels.call import Call
from lambdanets.kernels.dispatch import dispatch
from lambdanets.kernels.portable import CONVOLUTIONS
from lambdanets.kernels.terms.grid import grid_gradients
from lambdanets.positions import GridPositions

if TYPE_CHECKING:
    from lambdanets.layers.lambda_layer import LambdaLayer

__all__ = ["FromInput", "projected", "tensors_of"]


def projected(
    x: Tensor,
    context: Tensor | None,
    project: Callable[[Tensor], Tensor],
    norm_query: Callable[[Tensor], Tensor],
    norm_value: Callable[[Tensor], Tensor],
    layer: LambdaLayer,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (b, h, n, k), keys (b, u, m, k) before their softmax, and values (b, u, m, v).

    Args:
        x: (b, dim, *grid), for the queries.
        context: for keys and values, of the same shape; None for ``x``.
        project: (b, dim, *grid) -> (b, channels of all three, *grid).
        norm_query: of the channels of all queries.
        norm_value: of the channels of all values.
        layer: has their widths and numbers.
    """
    # Copied for their norms: a batch-norm of a slice takes longer than the copy and the batch-norm of it
    # (results/projection.csv).
    query, key, value = project(x).split(layer._widths(), dim=1)
    if context is not None:
        _, key, value = project(context).split(layer._widths(), dim=1)
    query, value = norm_query(query.contiguous()), norm_value(value.contiguous())
    return _heads(query, layer.num_heads), _heads(key, layer.intra_depth), _heads(value, layer.intra_depth)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(b, heads · depth, *grid) -> (b, heads, n, depth).

    Channels are moved innermost before the axes of positions are joined: in the other order the gradient of one example
    reaches the norm with strides that PyTorch's batch-norms misread (docs/pytorch-batchnorm-fault.md).
    """
    rows = x.movedim(1, x.ndim - 1).flatten(1, x.ndim - 2)
    return rows.reshape(*rows.shape[:2], heads, rows.shape[2] // heads).transpose(1, 2)


def tensors_of(layer: LambdaLayer) -> list[Tensor | None]:
    """Tensors of a layer that :class:`FromInput` takes: table, weight and bias of the projection, four of each norm.

    A norm's are its weight, bias, running mean and running variance, the last two None where it takes the statistics of
    the batch.
    """
    tensors: list[Any] = [layer.positions, layer.qkv.weight, layer.qkv.bias]
    for norm in (layer.norm_query, layer.norm_value):
        of_batch = norm.training or norm.running_mean is None
        tensors += [norm.weight, norm.bias]
        tensors += [None, None] if of_batch else [norm.running_mean, norm.running_var]
    return tensors


class FromInput(torch.autograd.Function):
    """(b, h, n, v) of a layer from (layer, x, *tensors of the layer); see :func:`tensors_of`."""

    @staticmethod
    def forward(ctx: Any, layer: LambdaLayer, *tensors: Any) -> Tensor:  # type: ignore[override]
        """Run the layer's own methods without derivatives."""
        ctx.save_for_backward(*tensors)
        ctx.layer = layer
        x, table = tensors[:2]
        return layer.apply_lambdas(*layer.project(x), GridPositions(table, tuple(x.shape[2:])), None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of the tensors."""
        compute = partial(_outs_and_gradients, grad, torch.is_grad_enabled(), ctx.layer)
        with without_autocast(grad.device.type):  # it may be enabled where backward() is called
            return (None, *gradients_by_autograd(compute, ctx.saved_tensors, ctx.needs_input_grad[1:]))


def _outs_and_gradients(
    grad: Tensor,
    further: bool,
    layer: LambdaLayer,
    x: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *norms: Tensor | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the projection leads to, the inputs of the op or its output computed again, with its gradients.

    Args:
        grad: of the output.
        further: True if the gradients shall have derivatives of their own, which needs the output.
        layer: of the call, as are the tensors.
        x: (b, dim, *grid).
        table: of the positions.
        weight: of the projection.
        bias: of the projection.
        *norms: four tensors for each.
    """
    norm_query, norm_value = _as_function(layer.norm_query, *norms[:4]), _as_function(layer.norm_value, *norms[4:])
    project = partial(CONVOLUTIONS[x.ndim - 2], weight=weight, bias=bias)
    query, key, value = projected(x, None, project, norm_query, norm_value, layer)
    call = Call(query, key, value, GridPositions(table, tuple(x.shape[2:])), kernel=layer.kernel)
    if is_watched(grad, differentiable=further):
        return [dispatch(call)], [grad]
    outs, grads = grid_gradients(call, grad)
    pairs = [(out, given) for out, given in zip(outs, grads, strict=True) if out.requires_grad]
    return [out for out, _ in pairs], [given for _, given in pairs]


def _as_function(
    norm: Any, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """A batch-norm as a function of its tensors; without a mean it takes the statistics of the batch."""
    return partial(
        F.batch_norm,
        running_mean=mean,
        running_var=variance,
        weight=weight,
        bias=bias,
        training=mean is None,
        eps=norm.eps,
    )
