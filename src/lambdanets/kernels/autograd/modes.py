"""Predicates about PyTorch's modes: which program runs, and which values can be read.

=======================  ==============================================================================================
predicate                what is done where it is true, and why
=======================  ==============================================================================================
is_compiling             the library op is called, sizes are not compared: else the graph would have the kernel of one
                         size, and conditions on numbers that are known later
is_jit_tracing           "portable" is taken: a trace records the sizes of one example, which only plain operations
                         survive
is_scripted_onnx_export  what this exporter writes wrongly is refused or left out
is_transformed           ops with rules for vmap, grad and jvp are called, and nothing is written in place: transforms
                         do not see into a kernel
is_observed              the library op is called: a counter of operations, a tensor subclass or a meta tensor has to
                         see it
is_batched               the library op is called for each gradient: a kernel takes one
is_eager                 true where none of the above is: kernels may be called directly
is_watched               gradients are computed by operations that can be differentiated, batched or observed: they
                         are hidden within a kernel
is_readable              values may be checked: they are there; transforms without a batch do not hinder
is_hooked                the layer's modules are called one by one: else a hook would miss the call
is_view                  an output is made a tensor of its own: users may not write into a view
is_autocast              inputs are converted to autocast's dtype, and it is switched off inside
=======================  ==============================================================================================

The private names of ``torch`` that the kernels need stand here alone:

=========================================  ==============  ==========================================================
private name of PyTorch                    seen in         if it is gone
=========================================  ==============  ==========================================================
torch._C._are_functorch_transforms_active  2.11 to 2.14    every call counts as transformed: right, slower in eager
forward_ad._current_level                  2.11 to 2.14    dual levels are not seen: tangents are lost in eager mode,
                                                           which tests/kernels/autograd/test_derivatives.py shows
torch.utils._python_dispatch               2.11 to 2.14    an ImportError at import
Tensor._is_view                            2.11 to 2.14    an AttributeError at the first call
nn.Module._forward_hooks and its like      2.11 to 2.14    an AttributeError at the first training step
torch._C._functorch                        2.11 to 2.14    no tensor counts as wrapped or batched: ``vmap`` and
                                                           ``is_grads_batched`` raise PyTorch's error about values
torch._inductor.lowering                   2.14            with a variable CI in the environment, ``torch.compile``
                                                           refuses the ops that have a decomposition
torch._decomp.register_decomposition       2.14            an ImportError at import
CustomOpDef._opoverload                    2.14            an AttributeError at import
=========================================  ==============  ==========================================================

Elsewhere: ``layers/leaves.py`` and ``interop/tree.py`` read the registries of ``nn.Module``,
``triton/lambda_kernels.py`` a function of Triton's; ``interop/dry_run.py`` runs models on
``torch._subclasses.fake_tensor``, ``interop/replace`` reads ``Tensor._base`` and ``nn.MultiheadAttention``'s
``_qkv_same_embed_dim``, and ``interop/export/tracing.py`` an exported program's guards;
``training/engine/devices.py`` resets Accelerate's ``AcceleratorState``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import register_decomposition
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = [
    "is_autocast",
    "is_batched",
    "is_compiling",
    "is_eager",
    "is_hooked",
    "is_jit_tracing",
    "is_observed",
    "is_readable",
    "is_scripted_onnx_export",
    "is_transformed",
    "is_view",
    "is_watched",
    "keep_in_inductor",
    "register_in_operations",
    "without_autocast",
]

_PLAIN = (Tensor, nn.Parameter)
_functorch = getattr(torch._C, "_functorch", None)


def is_compiling() -> bool:
    """True if ``torch.compile`` or ``torch.export`` traces the call: sizes may be symbols, values are unknown."""
    return torch.compiler.is_compiling()


def is_jit_tracing() -> bool:
    """True if ``torch.jit.trace`` or the ONNX exporter built on it records the call."""
    return torch.jit.is_tracing()


def is_scripted_onnx_export() -> bool:
    """True if ``torch.onnx.export(..., dynamo=False)`` records the call."""
    return torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()


def is_transformed() -> bool:
    """True if a transform of ``torch.func`` or forward-mode differentiation is active."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return active is None or active() or getattr(forward_ad, "_current_level", -1) >= 0


def is_observed(args: Sequence[Any]) -> bool:
    """True if each operation on the tensors among ``args`` is seen by a dispatch mode or a tensor subclass.

    Also true for tensors on the meta device, which have no values.
    """
    if is_in_torch_dispatch_mode():
        return True
    # A loop: any() over a generator takes twice as long, and this runs several times a call.
    for arg in args:  # noqa: SIM110
        if isinstance(arg, Tensor) and (type(arg) not in _PLAIN or arg.is_meta):
            return True
    return False


def is_eager(args: Sequence[Any]) -> bool:
    """True if a call on these arguments runs now, on plain tensors: not traced, transformed or observed."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed() or is_observed(args))


def is_readable(tensor: Tensor) -> bool:
    """True if the values of ``tensor`` can be read: it is not traced, observed, on the meta device or under vmap."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or is_observed((tensor,)):
        return False
    is_wrapped = getattr(_functorch, "is_functorch_wrapped_tensor", None)
    return is_wrapped is None or not is_wrapped(tensor)


def is_batched(arg: Any) -> bool:
    """True if ``arg`` holds many gradients or tangents at once, as ``torch.autograd`` passes them.

    For example with ``torch.autograd.grad(..., is_grads_batched=True)``: a library op is then called for each.
    """
    check = getattr(_functorch, "is_legacy_batchedtensor", None)
    return check is not None and isinstance(arg, Tensor) and check(arg)


def is_watched(grad: Tensor, differentiable: bool) -> bool:
    """True if a backward pass must be made of operations: it is differentiated, transformed, batched or observed.

    Args:
        grad: gradient of the output.
        differentiable: True if the gradients shall have derivatives of their own.
    """
    return differentiable or is_transformed() or is_batched(grad) or is_observed((grad,))


def is_view(tensor: Tensor) -> bool:
    """True if ``tensor`` is a view of another one, which autograd does not let users write into."""
    return tensor._is_view()


def is_hooked(modules: Sequence[nn.Module]) -> bool:
    """True if calling one of the modules runs more than its class's ``forward``: hooks, or a function in its place."""
    if torch.nn.modules.module._has_any_global_hook():
        return True
    for module in modules:
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or "forward" in vars(module)
        ):
            return True
    return False


def keep_in_inductor(op: str) -> None:
    """Let inductor call the op ``"lambdanets::name"`` although it has a decomposition, as it does torchvision's.

    Inductor says "a decomposition exists, we should switch to it" and ends where the environment has a variable CI,
    as every machine of continuous integration has. Its list of exceptions stands in a module that takes seconds to
    import, so this is for the op's shape function, which inductor's tracing calls after that module is imported.
    """
    lowering = sys.modules.get("torch._inductor.lowering")
    exceptions = getattr(lowering, "FALLBACK_ALLOW_LIST", None)
    if exceptions is not None:
        exceptions.add(op)


def register_in_operations(op: Any, function: Callable[..., Tensor]) -> Any:
    """Enter a function of PyTorch's own operations for a library op into PyTorch's table of decompositions.

    Args:
        op: as ``torch.library.custom_op`` returns it.
        function: takes the op's arguments.

    Returns:
        The key of the op in such tables.
    """
    overload = op._opoverload
    register_decomposition(overload)(function)
    # FakeTensorMode takes a decomposition in place of the op's shape function, unless there is an entry here.
    register_decomposition(overload, type="meta")(function)
    return overload


def is_autocast(device: str) -> bool:
    """True if autocast is enabled for a type of device; asking PyTorch about one without autocast is an error."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Context in which operations keep the dtypes of their inputs."""
    return torch.autocast(device, enabled=False) if is_autocast(device) else nullcontext()
