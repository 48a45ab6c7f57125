"""Modules of a model: choosing them by name or by a function, and swapping them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from lambdanets.layers import LambdaLayer
from lambdanets.names import first_of, nearest_names

__all__ = [
    "Candidate",
    "choose",
    "find",
    "hooks_of",
    "is_lambda",
    "is_spatial",
    "matches",
    "own_tensors",
    "parameters_of",
    "submodule",
    "swap",
]

# Class names of other people's lambda layers: what is inside one is not the model's own convolution.
_LAMBDA = re.compile(r"lambda_?(layer|conv|module)", re.IGNORECASE)
_GLOB = re.compile(r"[*?[]")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A module that could be replaced, with every name that it has in the model (more than one if it is shared)."""

    module: nn.Module
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first of the names."""
        return self.names[0]


def is_lambda(module: nn.Module) -> bool:
    """True if a module is a lambda layer, ours or by its class name another implementation's.

    One of that name without parameters wraps a function, as in the shortcuts of ResNets for CIFAR-10.
    """
    if isinstance(module, LambdaLayer):
        return True
    return _LAMBDA.match(type(module).__name__) is not None and next(module.parameters(), None) is not None


def is_spatial(module: nn.Module) -> bool:
    """True if a module is a convolution whose kernel is wider than 1."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and max(module.kernel_size) > 1


def find(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> list[Candidate]:
    """All wanted modules in the order of the tree, each once; those inside lambda layers are left out."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in _outside_of_lambdas(model):
        if wanted(module):
            names.setdefault(module, []).append(name)
    return [Candidate(module, tuple(found)) for module, found in names.items()]


def _outside_of_lambdas(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    if is_lambda(model):
        return
    yield prefix, model
    # Not named_children(), which leaves out the second name of a shared module.
    for name, child in model._modules.items():
        if child is not None:
            yield from _outside_of_lambdas(child, f"{prefix}.{name}" if prefix else name)


def choose(
    model: nn.Module,
    candidates: Sequence[Candidate],
    kind: str,
    names: str | Iterable[str] | None,
    where: Callable[[str, nn.Module], bool] | None,
    others: Mapping[str, str] | None = None,
) -> list[Candidate]:
    """The candidates whose name one of the globs matches, or for which ``where(name, module)`` is true.

    Args:
        model: the model, for the message about names that are something else in it.
        candidates: what there is to choose from; not empty.
        kind: what they are, for messages: "spatial convolution".
        names: glob or globs over module names, as "layer4.*.conv2"; None for ``where``.
        where: called with each name and module.
        others: names of modules that are no candidates though one might think so, with the reasons, for the message.

    Raises:
        ValueError: if a glob matches none of the candidates, or ``where`` is true for none.
        TypeError: if ``names`` holds something else than text, or ``where`` cannot be called.
    """
    if names is None:
        if not callable(where):
            raise TypeError(f"where must be a function of (name, module), got {where!r}")
        chosen = [c for c in candidates if any(where(name, c.module) for name in c.names)]
        if not chosen:
            raise ValueError(f"where(name, module) was false for all {len(candidates)} {kind}s: {_some(candidates)}")
        return chosen
    globs = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]
    if not globs:
        raise ValueError(f"names must be a glob or several of them, got none; those of {kind}s are {_some(candidates)}")
    for glob in globs:
        if not isinstance(glob, str):
            raise TypeError(f"names must be a glob or several of them, got {glob!r}")
        if not any(matches(c, glob) for c in candidates):
            raise ValueError(_no_match(model, candidates, kind, glob, others or {}))
    return [c for c in candidates if any(matches(c, glob) for glob in globs)]


def matches(candidate: Candidate, glob: str) -> bool:
    """True if one of a module's names is of that form."""
    return any(fnmatchcase(name, glob) for name in candidate.names)


def _no_match(
    model: nn.Module, candidates: Sequence[Candidate], kind: str, glob: str, others: Mapping[str, str]
) -> str:
    matching = [(name, module) for name, module in model.named_modules() if fnmatchcase(name, glob)]
    if matching:
        name, module = next((pair for pair in matching if pair[0] in others), matching[0])
        why = f", which cannot be replaced: {others[name]}" if name in others else ""
        found = f"names={glob!r} matches no {kind}: {name} is a {type(module).__name__}{why}"
    else:
        found = f"names={glob!r} matches no module"
    all_names = [name for c in candidates for name in c.names]
    near = nearest_names(_GLOB.sub("", glob), all_names)
    hint = f"; the nearest are {', '.join(near)}" if near else ""
    return f"{found}{hint}; the {kind}s are {_some(candidates)}"


def _some(candidates: Sequence[Candidate]) -> str:
    return first_of([c.name or "the model itself" for c in candidates], 6)


def hooks_of(module: nn.Module) -> int:
    """Number of a user's hooks that would be lost with a module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind, ())) for kind in kinds)


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module by the names of its state dict.

    Raises:
        ValueError: if an entry of the state dict is neither, as of a hook that copies; the message names it.
    """
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    state = module.state_dict(keep_vars=True)
    if strange := [name for name, entry in state.items() if own.get(name) is not entry]:
        raise ValueError(
            f"the state dict of {type(module).__name__} has {strange[0]!r}, which is no parameter or buffer of it: "
            "what is copied there does not reach the model, whose own load_state_dict knows what it means"
        )
    return state


def parameters_of(module: nn.Module, without: Collection[nn.Module] = ()) -> int:
    """Number of parameters, shared ones once; those that a lazy module has yet to make are not counted.

    Args:
        module: the module.
        without: modules in it of which only those parameters are counted that others have, too.
    """
    # PyTorch passes over modules that it takes for visited, and what is reached through them alone.
    own = {p for _, part in module.named_modules(memo=set(without)) for p in part.parameters(recurse=False)}
    return sum(p.numel() for p in own if not isinstance(p, nn.parameter.UninitializedParameter))


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def swap(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put each new module in every place of the old one; returns the model, another object only if it was replaced.

    Places are attributes, and what plain lists and dicts that are attributes hold: a forward may call modules from
    there, though PyTorch does not register them.
    """
    if model in new:
        return new[model]
    for parent in list(model.modules()):
        attributes = vars(parent)  # of which PyTorch's dict of submodules is one
        for places in [attributes, *attributes.values()]:
            if isinstance(places, dict | list):
                for place, value in list(places.items() if isinstance(places, dict) else enumerate(places)):
                    if isinstance(value, nn.Module) and value in new:
                        places[place] = new[value]
    return model
