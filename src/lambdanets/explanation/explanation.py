"""``lambdanets.explain``: with which weights a model's lambda layers take what from where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from lambdanets.explanation.arguments import Query, check_input, checked_index, checked_names, chosen, query_index
from lambdanets.explanation.capture import capture
from lambdanets.explanation.checks import Check, check, require
from lambdanets.explanation.decision import Ablation, ablate, class_scores, grad_cam, occlude, one_example
from lambdanets.explanation.distances import Learnt, learnt
from lambdanets.explanation.pictures import Pixels, model_inputs, pixels_of
from lambdanets.explanation.terms import PARTS, Array, LayerTerms, Weights
from lambdanets.layers import LambdaLayer
from lambdanets.layers.arguments import check_bool
from lambdanets.names import check_class_names, unknown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PARTS", "Explanation", "explain"]


def explain(
    model: nn.Module,
    image: Tensor | Image.Image | tuple[Any, ...],
    *,
    layers: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    transform: Callable[[Image.Image], Tensor] | None = None,
    picture: Image.Image | None = None,
) -> Explanation:
    """Show with which weight each query of a model's lambda layers takes each context position.

    A lambda layer has no attention map, but its output is y_n^h = Σ_mu S_nm V_m with
    S_nm = q_n^h · (K̄_m + E_nm) (LambdaNetworks, section 3): weights of either sign, which are the sum of a part that
    depends on the content and one that depends on the position. The model runs once, in evaluation mode; S is computed
    query by query when it is asked for. A layer that the model uses several times is explained where it is used first.

    Args:
        model: any model that contains LambdaLayer, TokenLambda or GraphLambdaLayer: a LambdaResNet, a model that
            ``replace_convs`` or ``replace_attention`` changed, an adopted one, or such a layer alone.
        image: one example: the model's input with a batch axis of 1, which an image may leave out; a PIL.Image, which
            passes ``transform``; or a tuple of the model's positional arguments, as a graph's are.
        layers: names of the layers to explain; default None, all.
        class_names: one name for each output of the model; default None, their numbers.
        transform: makes the model's input, (channels, height, width), of a PIL.Image; default None, what timm says
            about the model.
        picture: what to show behind the maps; default None, the input as it is, stretched to its range.

    Returns:
        An :class:`Explanation`.

    Raises:
        ValueError: if there is no lambda layer, none of a name, or not one example.
        TypeError: if ``image`` or another argument is of another kind.
        ExplanationDifferenceError: if S V is not the layer's output; a ValueError.

    Example:
        >>> layer = LambdaLayer(8, scope=3).eval()
        >>> explanation = lambdanets.explain(layer, torch.randn(1, 8, 5, 6))
        >>> explanation.layers
        ('(model)',)
        >>> explanation.maps("(model)", query=(2, 3)).shape  # four heads on a grid of 5 x 6
        (4, 5, 6)
    """
    check_input(model, image, transform, picture)
    layers = None if layers is None else checked_names("layers", layers)
    class_names = None if class_names is None else checked_names("class_names", class_names)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps, whose names are the user's
    inputs, shown = model_inputs(model, image, transform)
    found, left_out, output = capture(model, inputs, layers)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"none of the lambda layers can be explained: {reasons}")
    if picture is not None:
        shown = np.asarray(picture.convert("RGB"), dtype=np.uint8)[None]
    elif shown is None:
        is_sequence = any(isinstance(part, LambdaLayer) and part.ndim == 1 for part in model.modules())
        shown = pixels_of(inputs[0] if inputs else None, is_sequence)
    checks = {name: check(terms) for name, terms in found.items()}
    require(checks)
    explained = Explanation(model, inputs, found, left_out, checks, output, shown, class_names)
    if class_names is not None and explained.has_scores:
        check_class_names(class_names, output.shape[1])
    return explained


class Explanation:
    """Result of :func:`lambdanets.explain`; its maps are computed when they are asked for.

    Attributes:
        model: the model.
        inputs: the arguments that it was called with.
        terms: queries, keys, values and positions by layer.
        left_out: layers that cannot be explained, with the reason.
        checks: by layer, how well the weights account for the output; ``.error`` is the relative difference.
        picture: pixels behind the maps, (frames, height, width, 3), or None.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Any, ...],
        terms: dict[str, LayerTerms],
        left_out: dict[str, str],
        checks: dict[str, Check],
        output: Any,
        picture: Pixels | None,
        class_names: Sequence[str] | None,
    ) -> None:
        self.model, self.inputs, self.terms = model, inputs, terms
        self.left_out, self.checks, self.picture = left_out, checks, picture
        self._output, self._class_names = output, class_names
        self._ablations: dict[int, tuple[Ablation, ...]] = {}
        self._maps: dict[tuple[str, int], Array] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the explained layers, in the order in which they ran."""
        return tuple(self.terms)

    def maps(
        self,
        layer: str,
        query: Query,
        head: int | None = None,
        part: str = "sum",
        *,
        depth: int | None = None,
        weighted: bool = False,
        prefix: bool = False,
    ) -> Array:
        """Weights with which a query takes the positions of its context.

        Args:
            layer: one of :attr:`layers`.
            query: where it stands on the grid, one int for each axis; or its number in row-major order, which counts
                prefix tokens first; a node of a graph.
            head: one of the h heads; None (default) for all.
            part: ``"content"`` q · K̄_m, ``"position"`` q · E_nm or ``"sum"``.
            depth: one of the u values of each position; None (default) for all. Weights of different u belong to
                different values, so they are not summed.
            weighted: times ‖V_m‖, the length of the value that is taken. Default False.
            prefix: the weights of the prefix tokens, which have no place on the grid. Default False.

        Returns:
            float32, or float64 for a layer in float64: (\\*grid) for one head at u = 1; with a leading axis of heads
            where ``head`` is None, and one of u behind it where ``depth`` is None and u > 1. The grid of a graph is
            (nodes,); with ``prefix`` it is (prefix tokens,).

        Raises:
            ValueError: if there is no such layer, query, head, part or depth; the message says which there are.
        """
        check_bool("weighted", weighted)
        check_bool("prefix", prefix)
        terms = self._terms(layer)
        weights = terms.weights(query_index(terms, query)).part(part)
        if weighted:
            weights = weights * terms.value_norms
        weights = weights[:, :, : terms.prefix] if prefix else weights[:, :, terms.prefix :]
        if not prefix:
            weights = weights.reshape(*weights.shape[:2], *terms.context_grid)
        return chosen(terms, weights, head, depth)

    def edges(self, layer: str, head: int | None = None, part: str = "sum", *, depth: int | None = None) -> Array:
        """Weight of every edge of a graph: with which its target takes its source along this edge.

        Args:
            layer: the name of a GraphLambdaLayer.
            head: one of the h heads; None (default) for all.
            part: ``"position"`` q · E of the edge, ``"content"`` q · K̄ of its source, or ``"sum"``. Parallel edges have
                one content weight, which counts once in the output.
            depth: one of the u values of each node; None (default) for all.

        Returns:
            As :meth:`maps`, (e,) in the order of ``edge_index``; axes of heads and of u in front as in :meth:`maps`.

        Raises:
            ValueError: if it is no graph layer, or there is no such head, part or depth.
        """
        terms = self._terms(layer)
        if terms.edges is None or terms.embedding is None:
            raise ValueError(f"layer {layer!r} is a {terms.kind}, which has no edges; use maps(layer, query)")
        target, source = terms.edges
        query = terms.query[:, target]
        position = np.einsum("hek,eku->hue", query, terms.embedding)
        content = np.einsum("hek,uek->hue", query, terms.key[:, source])
        return chosen(terms, Weights(content, position).part(part), head, depth)

    @cached_property
    def learnt(self) -> tuple[Learnt, ...]:
        """Tables of positions of the explained layers and how far they look."""
        return tuple(found for found in learnt(self.model) if found.layer in self.terms)

    @property
    def has_scores(self) -> bool:
        """True if the model gives scores of classes."""
        try:
            return len(class_scores(self._output)) == 1
        except ValueError:
            return False

    @property
    def predictions(self) -> tuple[tuple[str, float], ...]:
        """The five most probable classes with their probabilities; empty if the model gives no scores of classes."""
        if not self.has_scores:
            return ()
        probabilities = class_scores(self._output)[0].exp()
        best = probabilities.argsort(descending=True)[:5].tolist()
        return tuple((self.class_name(index), float(probabilities[index])) for index in best)

    def class_name(self, index: int) -> str:
        """Name of an output of the model."""
        names = self._class_names
        return str(names[index]) if names is not None and index < len(names) else f"class {index}"

    def target(self, target: int | str | None = None) -> int:
        """The number of a class given by number or name; None for the most probable one.

        Raises:
            ValueError: if there is no such class, or the model gives no scores of classes.
        """
        scores = one_example(class_scores(self._output))
        if target is None:
            return int(scores.argmax())
        if isinstance(target, str):
            names = [self.class_name(index) for index in range(len(scores))]
            if target not in names:
                raise unknown_name("class", target, names)
            return names.index(target)
        return checked_index("target", target, len(scores))

    def ablations(self, target: int | str | None = None) -> tuple[Ablation, ...]:
        """Change of a class's score when a layer's content term, position term or the whole layer is taken out.

        Three runs of the model for each layer, kept for later calls.

        Args:
            target: number or name of the class; None (default) for the most probable one.
        """
        index = self.target(target)
        if index not in self._ablations:
            self._ablations[index] = ablate(self.model, self.inputs, self.layers, index)
        return self._ablations[index]

    def occlusion(self, target: int | str | None = None) -> Array:
        """Change of a class's score where the image is covered, (height, width).

        A square of a fifth of the image moves by half of its side, and covered pixels are 0 in the model's input; each
        pixel has the mean over the squares that cover it.

        Args:
            target: number or name of the class; None (default) for the most probable one.

        Raises:
            ValueError: if the input is no image.
        """
        return self._kept("occlusion", self.target(target), lambda index: occlude(self.model, self._image(), index))

    def grad_cam(self, target: int | str | None = None) -> Array:
        """Grad-CAM, (height, width) in 0..1, by PyPI's ``grad-cam``: a second opinion.

        Args:
            target: number or name of the class; None (default) for the most probable one.

        Raises:
            ImportError: if ``grad-cam`` is not installed.
            ValueError: if the input is no image, or no explained layer is on a grid of two axes.
        """
        planes = [terms for terms in self.terms.values() if len(terms.grid) == 2]
        if not planes:
            raise ValueError("Grad-CAM needs a layer on a grid of two axes, and none of the explained ones is")
        last = planes[-1]

        def compute(index: int) -> Array:
            return grad_cam(self.model, self._image(), index, last.name, last.grid, last.prefix)

        return self._kept("grad-cam", self.target(target), compute)

    def figure(
        self,
        layer: str,
        query: Query,
        head: int | None = None,
        *,
        parts: Sequence[str] = PARTS,
        depth: int = 0,
        weighted: bool = False,
    ) -> Figure:
        """Maps of one query as a matplotlib figure: a row for each head, a column for each part, one scale around 0.

        Args:
            layer: one of :attr:`layers`.
            query: as in :meth:`maps`.
            head: one of the h heads; None (default) for all.
            parts: which maps, from left to right.
            depth: one of the u values of each position. Default 0.
            weighted: times ‖V_m‖. Default False.

        Returns:
            The figure; ``figure.savefig("maps.pdf")`` writes it.
        """
        from lambdanets.explanation.figure import draw

        terms = self._terms(layer)
        parts, depth = checked_names("parts", parts), checked_index("depth", depth, terms.intra_depth)
        index = query_index(terms, query)
        maps = {part: self.maps(layer, query, None, part, depth=depth, weighted=weighted) for part in parts}
        heads = range(terms.heads) if head is None else [checked_index("head", head, terms.heads)]
        on_grid = index >= terms.prefix
        where = tuple(int(at) for at in np.unravel_index(index - terms.prefix, terms.grid)) if on_grid else None
        frame = None
        if self.picture is not None and self.pictured(layer):
            frame = self.picture[where[0] * len(self.picture) // terms.grid[0] if where and len(terms.grid) == 3 else 0]
        named = f"query {where}" if where is not None else f"prefix token {index + 1}"
        return draw(
            {part: values[list(heads)] for part, values in maps.items()},
            frame,
            terms.grid,
            # In a context of its own the query has no place.
            None if terms.own_context else where,
            [f"head {number + 1}" for number in heads],
            f"{layer}, {named}" + (", weighted by ‖V‖" if weighted else ""),
            terms.extents if terms.local else None,
        )

    def save_html(
        self,
        path: str | Path,
        *,
        layers: Sequence[str] | None = None,
        decision: bool = True,
        title: str = "",
        notes: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """Write one self-contained HTML page, below 3 MB, in which any query's maps are computed at once.

        Args:
            path: the file.
            layers: whose maps the page has; default None, all for which there is room.
            decision: with what matters for the class: some dozens of runs of the model. Left out anyway where the model
                gives no scores of classes. Default True.
            title: what was explained, shown above.
            notes: remarks shown above.

        Returns:
            Names of the layers that the page has no maps of, for want of room.

        Raises:
            ValueError: if a layer has too many positions for a page, there is no such layer, or the file cannot be
                written; before the model runs.
            TypeError: if ``layers`` or ``notes`` is one text.
        """
        from lambdanets.explanation.page import write_page

        check_bool("decision", decision)
        layers = None if layers is None else checked_names("layers", layers)
        notes = checked_names("notes", notes) if notes else ()
        return write_page(self, Path(path), layers, decision, title, notes)

    def pictured(self, layer: str) -> bool:
        """True if the picture lies behind the maps of a layer: a row of tokens has no place on an image."""
        first = self.inputs[0] if self.inputs else None
        of_an_image = isinstance(first, Tensor) and first.ndim >= 4
        return self.picture is not None and not (of_an_image and len(self._terms(layer).grid) == 1)

    def _terms(self, layer: str) -> LayerTerms:
        if layer in self.left_out:
            raise ValueError(f"layer {layer!r} cannot be explained: {self.left_out[layer]}")
        if layer not in self.terms:
            raise unknown_name("layer", layer, list(self.terms))
        return self.terms[layer]

    @property
    def image(self) -> Tensor | None:
        """The model's input where it is one image (1, channels, height, width), else None."""
        image = self.inputs[0] if len(self.inputs) == 1 else None
        return image if isinstance(image, Tensor) and image.ndim == 4 else None

    def _image(self) -> Tensor:
        if self.image is None:
            raise ValueError(
                "the model's input is no image (1, channels, height, width), of which parts can be covered"
            )
        return self.image

    def _kept(self, what: str, index: int, compute: Callable[[int], Array]) -> Array:
        if (what, index) not in self._maps:
            self._maps[what, index] = compute(index)
        return self._maps[what, index]

    def __repr__(self) -> str:
        lines = [f"Explanation of {type(self.model).__name__}, {len(self.terms)} lambda layers:"]
        for name, terms in self.terms.items():
            made = self.checks[name]
            lines.append(
                f"  {name}: grid {' x '.join(map(str, terms.grid))}, {terms.heads} heads, content "
                f"{round(100 * made.content)}% of the output, error {made.error:.1e}"
            )
        lines += [f"  {name}: left out, {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)
