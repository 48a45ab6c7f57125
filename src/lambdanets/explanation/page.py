"""The page: one HTML file that carries the numbers of the layers and computes the maps itself."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from lambdanets.explanation.checks import TOLERANCE, Check
from lambdanets.explanation.decision import has_grad_cam
from lambdanets.explanation.distances import Learnt
from lambdanets.explanation.packing import pack, packed_arrays
from lambdanets.explanation.pictures import Pixels
from lambdanets.explanation.terms import Array, LayerTerms
from lambdanets.files import check_file, write_text
from lambdanets.names import unknown_name

if TYPE_CHECKING:
    from lambdanets.explanation.explanation import Explanation

__all__ = ["MAX_BYTES", "write_learnt_page", "write_page"]

MAX_BYTES = 3_000_000
SIDE = 64


def write_page(
    explanation: Explanation,
    path: Path,
    layers: Sequence[str] | None,
    decision: bool,
    title: str,
    notes: Sequence[str],
) -> tuple[str, ...]:
    """See ``Explanation.save_html``."""
    check_file(path, "path")
    data: dict[str, Any] = {
        "picture": None if explanation.picture is None else _picture(explanation.picture),
        "layers": [],
        "tables": [],
        "decision": [],
    }
    names = list(explanation.terms)
    made = {name: _layer(terms, explanation.pictured(name)) for name, terms in explanation.terms.items()}
    sizes = {name: len(_script_json(layer)) + 1 for name, layer in made.items()}  # with a comma

    def room_for_layers(with_decision: bool) -> int:
        """Bytes beside what the page is without its layers, with the longest lists of those that it lacks."""
        return MAX_BYTES - 1 - len(_checked(_render(explanation, data, with_decision, title, notes, names, names)))

    # What has no room without the decision has none with it, whose maps take dozens of runs of the model.
    choose_layers(explanation.terms, sizes, layers, room_for_layers(with_decision=False))
    if decision and explanation.has_scores:
        data["decision"] = _maps(explanation)
    room = room_for_layers(decision)
    shown = choose_layers(explanation.terms, sizes, layers, room)
    missing = tuple(name for name in names if name not in shown) if layers is None else ()
    data["layers"] = [made[name] for name in shown]
    room -= sum(sizes[name] for name in shown)
    data["tables"], untabled = _tables([found for found in explanation.learnt if found.layer in missing], room)
    write_text(path, _checked(_render(explanation, data, decision, title, notes, missing, untabled)).decode("utf-8"))
    return missing


def write_learnt_page(learnt: Sequence[Learnt], path: Path, title: str, notes: Sequence[str]) -> None:
    """Write a page of what layers have learnt about positions, for which no image is needed.

    Raises:
        ValueError: if the page would be too large.
    """
    rows = [
        {
            "name": found.layer,
            "context": f"offsets of {' x '.join(map(str, found.table.shape[2:]))}",
            "distance": found.distance,
            "uniform": found.uniform,
            "pixels": None,
        }
        for found in learnt
    ]
    data: dict[str, Any] = {"picture": None, "layers": [], "tables": [], "decision": []}
    names = [found.layer for found in learnt]
    room = MAX_BYTES - 1 - len(_checked(_page(data, title, notes, rows, alone=True, untabled=names)))
    data["tables"], untabled = _tables(learnt, room)
    write_text(path, _checked(_page(data, title, notes, rows, alone=True, untabled=untabled)).decode("utf-8"))


def _tables(learnt: Sequence[Learnt], room: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The tables that fit into so many bytes, the small ones first, and the names of the layers whose do not."""
    made = {found.layer: _table(found) for found in learnt}
    kept = set()
    for name in sorted(made, key=lambda name: len(_script_json(made[name]))):
        room -= len(_script_json(made[name])) + 1
        if room < 0:
            break
        kept.add(name)
    return [made[name] for name in made if name in kept], [name for name in made if name not in kept]


def _table(found: Learnt) -> dict[str, Any]:
    depth, key, *extents = found.table.shape
    arrays = {"table": pack(found.table).to_dict()}
    return {"name": found.layer, "extents": extents, "depth": depth, "key": key, "arrays": arrays}


def _checked(page: bytes) -> bytes:
    if len(page) >= MAX_BYTES:
        raise ValueError(
            f"the page takes {len(page) / 1e6:.1f} MB and is to stay below {MAX_BYTES / 1e6:g} MB: give a "
            "smaller picture, shorter names and notes, decision=False (--no-decision), or "
            "take single queries with Explanation.maps"
        )
    return page


def choose_layers(
    terms: dict[str, LayerTerms], sizes: dict[str, int], names: Sequence[str] | None, room: int
) -> list[str]:
    """Layers whose arrays fit into so many bytes: those named, or all but the largest.

    Args:
        terms: of all layers.
        sizes: bytes that each takes.
        names: those asked for; None for all.
        room: bytes for all together.

    Raises:
        ValueError: if a named layer is not there, or what is asked for does not fit.
    """
    for name in names or ():
        if name not in terms:
            raise unknown_name("layer", name, list(terms))
    chosen = [name for name in terms if names is None or name in names]
    together = sum(sizes[name] for name in chosen)
    # Bytes of the text differ between equal layers, by the digits of their scales.
    numbers = {name: sum(array.size for array in terms[name].arrays().values()) for name in chosen}
    while sum(sizes[name] for name in chosen) > room:
        largest = max(numbers[name] for name in chosen)
        last = [name for name in chosen if numbers[name] == largest][-1]
        if names is not None or len(chosen) == 1:
            size = " x ".join(map(str, terms[last].grid))
            raise ValueError(
                f"layer {last!r} has a grid of {size}, whose numbers take {sizes[last] / 1e6:.1f} MB of a page"
                + (f" and the {len(chosen)} layers named {together / 1e6:.1f} MB" if len(chosen) > 1 else "")
                + f"; a page is to stay below {MAX_BYTES / 1e6:g} MB: choose fewer or deeper layers, give a smaller "
                "image, or take single queries with Explanation.maps and .figure"
            )
        chosen.remove(last)
    return chosen


def _render(
    explanation: Explanation,
    data: dict[str, Any],
    decision: bool,
    title: str,
    notes: Sequence[str],
    missing: Sequence[str],
    untabled: Sequence[str],
) -> bytes:
    target = explanation.target() if decision and explanation.has_scores else None
    return _page(
        data,
        title or type(explanation.model).__name__,
        notes,
        _rows(explanation),
        missing=missing,
        untabled=untabled,
        left_out=explanation.left_out,
        predictions=explanation.predictions,
        target=None if target is None else explanation.class_name(target),
        ablations=_ablation_rows(explanation) if target is not None else (),
    )


def _page(
    data: dict[str, Any],
    title: str,
    notes: Sequence[str],
    rows: Sequence[dict[str, Any]],
    *,
    alone: bool = False,
    missing: Sequence[str] = (),
    untabled: Sequence[str] = (),
    left_out: Mapping[str, str] = MappingProxyType({}),
    predictions: Sequence[tuple[str, float]] = (),
    target: str | None = None,
    ablations: Sequence[dict[str, Any]] = (),
) -> bytes:
    """The text of a page; ``alone``: of what layers have learnt, without an input."""
    from lambdanets.pages import render_page  # jinja2 is needed for a page alone

    distances = [distance for row in rows for distance in (row["distance"], row["uniform"]) if distance is not None]
    text = render_page(
        "lambdanets.explanation",
        ("page.css", "weights.js", "tables.js", "view.js"),
        title=title,
        notes=notes,
        alone=alone,
        missing=missing,
        untabled=untabled,
        left_out=left_out,
        predictions=predictions,
        layers=rows,
        farthest=max(distances, default=0.0) or 1.0,
        tolerance=TOLERANCE,
        target=target,
        ablations=ablations,
        maps=[shown["name"] for shown in data["decision"]],
        has_grad_cam=has_grad_cam(),
        data=_script_json(data),
    )
    # A file's name that is not UTF-8 has characters that no encoding can write.
    return text.encode("utf-8", "backslashreplace")


def _script_json(data: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _picture(pixels: Pixels) -> dict[str, Any]:
    """The frames of a picture below each other, as a PNG in a data URI."""
    frames, height, width = pixels.shape[:3]
    file = io.BytesIO()
    Image.fromarray(pixels.reshape(frames * height, width, 3)).save(file, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return {"src": source, "frames": frames, "height": height, "width": width}


def _layer(terms: LayerTerms, pictured: bool) -> dict[str, Any]:
    return {
        "name": terms.name,
        "pictured": pictured,
        "kind": terms.kind,
        "grid": list(terms.grid),
        "contextGrid": list(terms.context_grid),
        "ownContext": terms.own_context,
        "heads": terms.heads,
        "depth": terms.intra_depth,
        "key": terms.query.shape[2],
        "queries": terms.num_queries,
        "context": terms.num_context,
        "prefix": terms.prefix,
        "extents": None if terms.extents is None else list(terms.extents),
        "local": terms.local,
        "graph": None if terms.graph is None else terms.graph.tolist(),
        "edges": None if terms.edges is None else terms.edges.tolist(),
        "visible": None if terms.visible is None else terms.visible.astype(int).tolist(),
        "arrays": {name: packed.to_dict() for name, packed in packed_arrays(terms).items()},
    }


def _rows(explanation: Explanation) -> list[dict[str, Any]]:
    """A row of the table of layers for each explained one."""
    distances = {found.layer: found for found in explanation.learnt}
    rows = []
    for name, terms in explanation.terms.items():
        made, found = explanation.checks[name], distances.get(name)
        if terms.extents is None:
            context = "edges of a graph" if terms.edges is not None else "content only"
        else:
            context = f"{'scope' if terms.local else 'global,'} {' x '.join(map(str, terms.extents))}" + (
                "" if terms.local else " offsets"
            )
        rows.append(
            {
                "name": name,
                "context": f"grid {' x '.join(map(str, terms.grid))}"
                + (f" + {terms.prefix}" if terms.prefix else "")
                + f", {context}",
                "shares": _shares(made),
                "error": made.error,
                "queries": made.queries,
                "bias": terms.bias is not None,
                "of": terms.num_queries,
                "distance": None if found is None else found.distance,
                "uniform": None if found is None else found.uniform,
                "pixels": None if found is None else _pixels(explanation, terms, found.distance),
            }
        )
    return rows


def _shares(made: Check) -> list[dict[str, Any]]:
    """Parts of the output in whole percent, and how much of a bar each takes by its size."""
    shares = {"content": made.content, "position": made.position}
    total = sum(map(abs, shares.values())) or 1.0
    return [
        {"part": part, "percent": round(100 * share), "width": 100 * abs(share) / total}
        for part, share in shares.items()
    ]


def _pixels(explanation: Explanation, terms: LayerTerms, distance: float) -> float | None:
    """A distance on a layer's grid in pixels of the input, where that is an image and both axes are reduced alike."""
    image: Any = explanation.inputs[0] if explanation.inputs else None
    if len(terms.grid) != 2 or getattr(image, "ndim", 0) != 4:
        return None
    rows, columns = (size / cells for size, cells in zip(image.shape[2:], terms.grid, strict=True))
    return distance * rows if rows == columns else None


def _ablation_rows(explanation: Explanation) -> list[dict[str, Any]]:
    ablations = explanation.ablations()
    largest = max((abs(made.change) for made in ablations), default=0.0) or 1.0
    rows: dict[str, dict[str, Any]] = {}
    for made in ablations:
        width = 50 * abs(made.change) / largest
        rows.setdefault(made.layer, {})[made.part] = {
            "change": round(made.change, 3) + 0.0,  # no -0
            "probability": float(np.exp(made.score)),
            "left": 50 - width if made.change < 0 else 50,
            "width": width,
        }
    return [{"name": name, "parts": parts} for name, parts in rows.items()]


def _maps(explanation: Explanation) -> list[dict[str, Any]]:
    """Occlusion and, where it is installed, Grad-CAM of the most probable class."""
    if explanation.image is None:
        return []
    made: list[tuple[str, tuple[str | None, str], Array]] = [("Occlusion", ("falls", "rises"), explanation.occlusion())]
    taken = has_grad_cam() and explanation.image.dtype != torch.bfloat16
    if taken and any(len(terms.grid) == 2 for terms in explanation.terms.values()):
        made.append(("Grad-CAM", (None, "for"), explanation.grad_cam()))
    return [
        {
            "name": name,
            "ends": ends,
            "ratio": values.shape[0] / values.shape[1],
            "map": pack(_thinned(values)[None]).to_dict(),
        }
        for name, ends, values in made
    ]


def _thinned(values: Array) -> Array:
    """At most 64 x 64 of the entries of a map, evenly spaced."""
    rows, columns = (np.linspace(0, size - 1, min(size, SIDE)).round().astype(int) for size in values.shape)
    return values[np.ix_(rows, columns)]
