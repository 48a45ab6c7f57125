"""A model as one graph of PyTorch's own operations for every batch and image size, or the layer that prevents it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lambdanets.interop.dry_run import without_numbers
from lambdanets.interop.export.quiet import quiet
from lambdanets.kernels.decompositions import decompositions
from lambdanets.kernels.names import PLAIN
from lambdanets.layers.base import LambdaModule

# Seconds to import, so it is imported where it is used.
if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["layer_of_node", "switch_kernels", "trace"]

_OWN_NAMESPACES = {"aten", "prim", "prims"}


@contextmanager
def switch_kernels(model: nn.Module, kernel: str = "portable") -> Iterator[dict[str, str | None]]:
    """Within the block the model's lambda layers run ``kernel``, except those that run a plain one already.

    Yields:
        The kernel that each switched layer had, by the layer's name.
    """
    layers: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LambdaModule) and getattr(module, "kernel", "portable") not in PLAIN
    }
    before = {name: layer.kernel for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.kernel = kernel
        yield before
    finally:
        for name, layer in layers.items():
            layer.kernel = before[name]


def trace(model: nn.Module, images: Tensor, fixed_size: bool) -> ExportedProgram:
    """Trace a model in evaluation.

    Args:
        model: takes one batch of images, sequences or volumes.
        images: (b, channels, *sizes), an example; no size of it may be 1 within the model, or that one is taken for a
            constant.
        fixed_size: the sizes are those of the example; the batch alone is dynamic.

    Raises:
        ValueError: the model cannot be traced, or calls an op of a package; the message names the layer and the reason.
    """
    axes = (0,) if fixed_size else (0, *range(2, images.ndim))
    try:
        program = _without_own_ops(_trace(model, (images,), axes, images.ndim))
    except Exception as error:
        # torch.export raises errors of many kinds, those of the model's own code among them.
        raise ValueError(_cannot_trace(model, images, axes, error)) from error
    _refuse_ops_of_packages(program)
    _forget_strides(program)
    return program


def _without_own_ops(program: ExportedProgram) -> ExportedProgram:
    """The program with this package's ops, which no layer's kernel chose, in PyTorch's own."""
    table = decompositions()
    if not any(node.target in table for node in program.graph.nodes):
        return program
    with quiet():
        return program.run_decompositions(table)


def _trace(model: nn.Module, args: tuple[Any, ...], axes: tuple[int, ...], ndim: int) -> ExportedProgram:
    from torch.export import Dim, export

    # A size of 1 is a constant to torch.export, as that of a pooled map inside of a model.
    shapes = tuple(
        {axis: Dim.DYNAMIC for axis in axes if arg.shape[axis] > 1}
        if isinstance(arg, Tensor) and arg.ndim == ndim
        else None
        for arg in args
    )
    with torch.no_grad(), quiet():
        return export(model, args, dynamic_shapes=shapes)


def _refuse_ops_of_packages(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        namespace = getattr(node.target, "namespace", "aten")
        if node.op == "call_function" and namespace not in _OWN_NAMESPACES:
            raise ValueError(
                f"{layer_of_node(node)} cannot be exported: it calls {node.target}, which has no meaning without the "
                f"package that defines it. Give the model a layer made of PyTorch's own operations, or run it in Python"
            )


def _forget_strides(program: ExportedProgram) -> None:
    """Leave out the guards that tell a size of 1 from all others, or which of two sizes is larger.

    They come from questions about strides; the operations in the graph are the same whatever the answer. With them a
    file would refuse single images, or images so small that a feature map has one pixel. What compares a size with
    another number stays, as the bound of a global layer, and equalities. That the file computes rightly without them
    is checked when it is written.

    PyTorch has no public way to them. Where a release keeps them elsewhere, they stay: what the file then refuses is
    told when it is checked.
    """
    guards = getattr(program, "_guards_code", None)
    if isinstance(guards, list):
        program._guards_code = [guard for guard in guards if not _is_about_strides(guard)]


def _is_about_strides(guard: str) -> bool:
    comparison = ast.parse(guard.strip(), mode="eval").body
    if not isinstance(comparison, ast.Compare) or isinstance(comparison.ops[0], ast.Eq):
        return False
    sides = (comparison.left, *comparison.comparators)
    return all(side.value in (0, 1) for side in sides if isinstance(side, ast.Constant))


def layer_of_node(node: torch.fx.Node) -> str:
    """Return where in the model a node of the graph came from, for messages."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return "the model"
    path, kind = stack[-1]
    return _describe(path, kind if isinstance(kind, str) else kind.__name__)


def _describe(path: str, kind: str) -> str:
    kind = kind.rpartition(".")[2]
    path = path.removeprefix("L['self'].").removeprefix("model.")
    return f"the model ({kind})" if path in ("", "model", "L['self']") else f"the layer {path!r} ({kind})"


def _cannot_trace(model: nn.Module, images: Tensor, axes: tuple[int, ...], error: Exception) -> str:
    path, kind, reason = _innermost_failure(model, images, axes) or ("", type(model).__name__, error)
    text = next((line.strip() for line in str(reason).splitlines() if line.strip()), "no reason given")
    text = text.rstrip(".")
    return f"{_describe(path, kind)} cannot be exported: {type(reason).__name__}: {text}"


def _innermost_failure(model: nn.Module, images: Tensor, axes: tuple[int, ...]) -> tuple[str, str, Exception] | None:
    """Name, class and error of the innermost submodule that does not trace on what the model gives it.

    What it gives is found out without numbers, which for images of this size may not fit into memory.
    """
    calls: dict[str, tuple[Any, ...]] = {}
    found: tuple[str, str, Exception] | None = None
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: calls.setdefault(name, args))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad(), without_numbers() as mode:
            model(mode.from_tensor(images))
    except Exception as error:
        found = "", type(model).__name__, error
    finally:
        for hook in hooks:
            hook.remove()
    inside = ""
    for name, module in model.named_modules():
        # Parents come before their children: go into the first that fails, past those that pass.
        if name in calls and name.startswith(inside):
            args = pytree.tree_map_only(Tensor, _zeros, calls[name])
            try:
                _trace(module, args, axes, images.ndim)
            except Exception as error:
                found, inside = (name, type(module).__name__, error), f"{name}."
    return found


def _zeros(like: Tensor) -> Tensor:
    """Zeros with numbers for a tensor without them, whatever the default device."""
    return torch.zeros(like.shape, dtype=like.dtype, device="cpu")
