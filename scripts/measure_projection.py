"""Compare forms of the lambda layer's projection: writes results/projection.csv.

    python scripts/measure_projection.py

Each form computes the same layer. Calls take turns, as in `lambdanets bench`; a row holds the median of the ratios
within the turns, a form's time over that of "plain", with its 95 % bootstrap interval. The layer uses "channels_inner";
docs/pytorch-batchnorm-fault.md says why.

- plain: one convolution, its output split, the slices of queries and values copied and normalised. The gradients
  of one example may be wrong, see docs/pytorch-batchnorm-fault.md: the floor that the others are compared with.
- slices: the same without the copies of the slices.
- channels_inner: plain, with channels moved innermost before heads are taken apart: gradients right.
- hook: plain, with a hook that makes the gradient behind each norm contiguous for one example: gradients right.
- recompute: channels_inner with ``recompute=True``: the input alone is kept for the backward pass and projected again.
- products: a batched matrix product for each of the three parts, with a backward pass of its own, and the hook.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lambdanets import GridPositions, LambdaLayer, lambda_apply
from lambdanets.experiments.bench.timing import Turns
from lambdanets.files import write_csv
from lambdanets.provenance import environment

SECONDS = 4.0
LEAST_ROUNDS = 30
CASES = [  # grid side, channels, batch, context
    *((7, dim, batch, {"size": 7}) for dim in (64, 512) for batch in (1, 8)),
    *((14, dim, batch, {"size": 14}) for dim in (64, 256) for batch in (1, 8)),
    *((28, 128, batch, {"size": 28}) for batch in (1, 8)),
    *((56, 64, batch, {"scope": 7}) for batch in (1, 8)),
]


class _PartedProduct(torch.autograd.Function):
    """(b, d, n) to (b, width, n) for each width."""

    @staticmethod
    def forward(ctx, x, weight, *widths):
        ctx.save_for_backward(x, weight)
        ctx.widths = widths
        return tuple(torch.bmm(part.expand(len(x), -1, -1), x) for part in weight.split(widths))

    @staticmethod
    def backward(ctx, *grads):
        x, weight = ctx.saved_tensors
        parts = [part.expand(len(x), -1, -1) for part in weight.T.split(ctx.widths, dim=1)]
        grad_x = torch.bmm(parts[0], grads[0])
        for part, grad in zip(parts[1:], grads[1:], strict=True):
            grad_x.baddbmm_(part, grad)
        grad_weight = torch.cat([torch.bmm(grad, x.transpose(1, 2)).sum(0) for grad in grads])
        return (grad_x, grad_weight, *[None] * len(ctx.widths))


def _hooked(norm: nn.Module, x: Tensor) -> Tensor:
    out = norm(x)
    if len(out) == 1 and out.requires_grad:
        out.register_hook(lambda grad: grad.contiguous())
    return out


def _apart(layer: LambdaLayer, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    shapes = (
        (layer.num_heads, layer.dim_key),
        (layer.intra_depth, layer.dim_key),
        (layer.intra_depth, layer.dim_value),
    )
    return [t.reshape(len(t), *shape, -1).transpose(2, 3) for t, shape in zip((query, key, value), shapes, strict=True)]


def _plain(layer: LambdaLayer, x: Tensor) -> list[Tensor]:
    query, key, value = layer.qkv(x).split(layer._widths(), dim=1)
    return _apart(layer, layer.norm_query(query.contiguous()), key, layer.norm_value(value.contiguous()))


def _slices(layer: LambdaLayer, x: Tensor) -> list[Tensor]:
    query, key, value = layer.qkv(x).split(layer._widths(), dim=1)
    return _apart(layer, layer.norm_query(query), key, layer.norm_value(value))


def _channels_inner(layer: LambdaLayer, x: Tensor) -> list[Tensor]:
    query, key, value = layer.qkv(x).split(layer._widths(), dim=1)
    query, value = layer.norm_query(query.contiguous()), layer.norm_value(value.contiguous())
    counts = (layer.num_heads, layer.intra_depth, layer.intra_depth)
    return [
        t.movedim(1, -1).flatten(1, -2).unflatten(2, (count, -1)).transpose(1, 2)
        for t, count in zip((query, key, value), counts, strict=True)
    ]


def _hook(layer: LambdaLayer, x: Tensor) -> list[Tensor]:
    query, key, value = layer.qkv(x).split(layer._widths(), dim=1)
    return _apart(
        layer, _hooked(layer.norm_query, query.contiguous()), key, _hooked(layer.norm_value, value.contiguous())
    )


def _products(layer: LambdaLayer, x: Tensor) -> list[Tensor]:
    if x.shape[2:].numel() < 32:
        return _hook(layer, x)
    parts = _PartedProduct.apply(x.flatten(2), layer.qkv.weight.flatten(1), *layer._widths())
    query, key, value = (part.unflatten(2, x.shape[2:]) for part in parts)
    return _apart(layer, _hooked(layer.norm_query, query), key, _hooked(layer.norm_value, value))


FORMS = {
    "plain": _plain,
    "slices": _slices,
    "channels_inner": _channels_inner,
    "hook": _hook,
    "recompute": None,
    "products": _products,
}


def _run(form: str, layer: LambdaLayer, x: Tensor) -> Tensor:
    layer.recompute = form == "recompute"
    if (project := FORMS[form]) is None:
        return layer(x)
    query, key, value = project(layer, x)
    out = lambda_apply(query, key, value, GridPositions(layer.positions, tuple(x.shape[2:])))
    return out.transpose(2, 3).reshape(len(x), layer.dim_out, -1).contiguous().unflatten(2, x.shape[2:])


def _call(form: str, layer: LambdaLayer, x: Tensor, grad: Tensor | None) -> None:
    with torch.set_grad_enabled(grad is not None):
        out = _run(form, layer, x)
        if grad is not None:
            out.backward(grad)


def main() -> None:
    """Measure every case and write the table."""
    rows = []
    about = environment("machine", "threads", "torch", "commit")
    for side, dim, batch, context in CASES:
        for backward in (False, True):
            torch.manual_seed(0)
            layer = LambdaLayer(dim, **context)
            x = torch.randn(batch, dim, side, side, requires_grad=backward)
            grad = torch.randn(batch, layer.dim_out, side, side) if backward else None
            turns = Turns([partial(_call, form, layer, x, grad) for form in FORMS])
            turns.take(SECONDS, least=LEAST_ROUNDS)
            for form, timing in zip(FORMS, turns.timings(), strict=True):
                rows.append(
                    {
                        "grid": f"{side}x{side}",
                        "dim": dim,
                        "batch": batch,
                        "context": " ".join(f"{name}={size}" for name, size in context.items()),
                        "pass": "forward+backward" if backward else "forward",
                        "form": form,
                        "median_ms": f"{1e3 * timing.seconds.median:.4f}",
                        "ratio": f"{timing.ratio.median:.3f}",
                        "low": f"{timing.ratio.low:.3f}",
                        "high": f"{timing.ratio.high:.3f}",
                        "rounds": timing.turns,
                        **about,
                    }
                )
                print({name: rows[-1][name] for name in list(rows[-1])[:11]}, flush=True)
    write_csv(Path(__file__).parents[1] / "results/projection.csv", rows)


if __name__ == "__main__":
    main()
