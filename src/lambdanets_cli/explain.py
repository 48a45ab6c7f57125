"""The command ``lambdanets explain``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from torch import Tensor, nn

    from lambdanets.explanation import Explanation
    from lambdanets.training.data.transforms import InputTransform

__all__ = ["explain"]


def explain(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_OR_MODEL",
            help="A run folder (written by `lambdanets train`), the name of bundled weights, or a model of timm's "
            "registry.  \\[default: lambda_resnet_tiny.digits]",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGE",
            help="An image file of any size.  \\[default: a test image stored with the run; without one, the page "
            "shows only what the layers have learnt about positions]",
        ),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Explain only this layer; can be given several times.  \\[default: all]")
    ] = None,
    output: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("explain.html"),
    checkpoint: Annotated[str | None, typer.Option(help="Weights of the run: best or last.  \\[default: best]")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Use a model of timm's registry without its published weights.")
    ] = False,
    decision: Annotated[
        bool,
        typer.Option(
            help="Also show what matters for the predicted class; this runs the model several dozen more times."
        ),
    ] = True,
) -> None:
    """Write an HTML page that shows how strongly each query of the lambda layers weights each image position.

    For each layer, prints how well the weights on the page reproduce the output of the layer; a relative difference
    above 0.01 is an error.

    For example:

      lambdanets explain

      lambdanets explain runs/my-run photo.jpg

      lambdanets explain runs/my-run photo.jpg --layer layer3.0.conv2 --output layer3.html

      lambdanets explain lambda_resnet26t photo.jpg

      lambdanets explain lambda_resnet26t
    """
    from lambdanets import explain as explain_model
    from lambdanets.console import make_console, one_line, print_whole
    from lambdanets.files import check_file
    from lambdanets.models.shipped import DEFAULT
    from lambdanets.training.data.transforms import read_image

    console = make_console()
    check_file(output, "--output")
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output must end in .html, as the page is HTML, got {output}")
    if image is not None:
        read_image(image, "RGB")  # what is wrong with it is said before a model is loaded
    model = DEFAULT if model is None else model
    notes: list[str] = []
    module, transform, names, image = _prepare(model, image, checkpoint, random_weights, notes)
    for note in notes:
        print_whole(console, one_line(note), style="bold yellow")
    if image is None:
        if not decision:
            raise ValueError("--no-decision leaves out a part of the page of an image, and there is none; leave it out")
        _explain_alone(console, module, layer, output, model, notes)
        return
    tensor, picture = _read(image, transform)
    explanation = explain_model(module, tensor, layers=layer, class_names=names, picture=picture)
    _print(console, explanation)
    title = f"{Path(model).name} on {image.name}"
    _write_page(console, explanation, output, layers=layer, decision=decision, title=title, notes=notes)


def _write_page(console: Console, explanation: Explanation, output: Path, *, decision: bool, **options: Any) -> None:
    """Write the page; ``options`` are those of ``Explanation.save_html``."""
    from lambdanets.console import print_whole

    if decision and explanation.has_scores:
        print_whole(console, "Taking out layers and covering parts of the image ...")
    missing = explanation.save_html(output, decision=decision, **options)
    if missing:
        listed = ", ".join(missing)
        print_whole(console, f"The page has no maps of {listed}, to stay below 3 MB; --layer NAME shows one of them.")
    _print_written(console, output)


def _print_written(console: Console, output: Path) -> None:
    from lambdanets.console import one_line, print_whole

    print_whole(console, f"Wrote {one_line(output)} ({output.stat().st_size / 1e6:.1f} MB)")


def _explain_alone(
    console: Console, module: nn.Module, names: list[str] | None, output: Path, model: str, notes: list[str]
) -> None:
    """The page of what layers have learnt, without an image."""
    from rich.table import Table

    from lambdanets.console import one_line, print_whole
    from lambdanets.explanation import learnt
    from lambdanets.explanation.capture import choose, lambda_layers
    from lambdanets.explanation.page import write_learnt_page
    from lambdanets.models.shipped import shipped_names
    from lambdanets.training.runs.folder import Run

    chosen = choose(lambda_layers(module), names)
    found = [one for one in learnt(module) if one.layer in chosen]
    if not found:
        raise ValueError(
            "IMAGE is missing: without one there are tables of positions to show, which these layers do not have; "
            "name an image file"
        )
    table = Table()
    for heading in ("layer", "offsets", "looks", "even table"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for one in found:
        extents = "x".join(map(str, one.table.shape[2:]))
        table.add_row(one_line(one.layer), extents, f"{one.distance:.2f}", f"{one.uniform:.2f}")
    console.print(table)
    print_whole(console, "looks: mean distance in positions, weighted by |E|.", style="dim")
    write_learnt_page(found, output, Path(model).name, notes)
    ours = [one for one in shipped_names() if one.startswith(f"{model}.") and Run.open_trained(one).samples]
    remedy = f", or give {' or '.join(map(repr, ours))}, weights that come with images" if ours else ""
    print_whole(
        console,
        "There is no image: the page has what the layers have learnt about positions. For the maps of a query name an "
        f"image file{remedy}",
    )
    _print_written(console, output)


def _prepare(
    name: str, image: Path | None, checkpoint: str | None, random_weights: bool, notes: list[str]
) -> tuple[nn.Module, InputTransform, tuple[str, ...] | None, Path | None]:
    """Model, what makes its input, names of the classes and the image's file, if there is one."""
    from lambdanets.models.shipped import shipped_folder

    if Path(name).is_dir() or shipped_folder(name) is not None:
        return _from_run(name, image, checkpoint or "best", random_weights)
    return *_from_registry(name, checkpoint, random_weights, notes), image


def _from_run(
    path: str, image: Path | None, checkpoint: str, random_weights: bool
) -> tuple[nn.Module, InputTransform, tuple[str, ...] | None, Path | None]:
    from lambdanets.training.runs.folder import Run

    if random_weights:
        raise ValueError(
            "--random-weights is for models of timm's registry; a run has weights of its own, leave it out"
        )
    run = Run.open_trained(path)
    if image is None and run.samples:
        image = run.samples[0]
    return run.load_model(checkpoint), run.transform, run.class_names, image


def _from_registry(
    name: str, checkpoint: str | None, random_weights: bool, notes: list[str]
) -> tuple[nn.Module, InputTransform, tuple[str, ...] | None]:
    import timm
    from timm.data import resolve_model_data_config

    from lambdanets import adopt
    from lambdanets.explanation.capture import LAYERS
    from lambdanets.training.data.transforms import InputTransform
    from lambdanets.training.runs.model import check_model_name

    if Path(name).exists() and not timm.is_model(name):
        raise ValueError(f"{name} is a file; give a run folder, or the name of a model of timm's registry")
    if "/" in name and ":" not in name:
        raise FileNotFoundError(
            f"the run folder {name} does not exist; give one, or the name of a model of timm's registry"
        )
    check_model_name(name)
    if checkpoint is not None:
        raise ValueError(f"--checkpoint is {checkpoint!r}, for the weights of a run, and {name} is none; leave it out")
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    # What is no name of the registry is an address of weights.
    pretrained = not random_weights and (not timm.is_model(name) or (config is not None and config.has_weights))
    module = _create(name, pretrained).eval()
    if not pretrained:
        why = "as asked for" if random_weights else "none are published with its name"
        notes.append(f"RANDOM WEIGHTS ({why}): what is shown is how the layers start, not what they have learnt.")
    if not any(isinstance(part, LAYERS) for part in module.modules()):
        with suppress(ValueError):  # there are none of others either, which explain will say
            module = adopt(module).model.eval()
    wanted: dict[str, Any] = resolve_model_data_config(module)
    channels, *size = wanted["input_size"]
    transform = InputTransform(
        image_size=size[0],
        channels=channels,
        mean=wanted["mean"],
        std=wanted["std"],
        interpolation=wanted["interpolation"],
        crop_pct=wanted["crop_pct"],
    )
    return module, transform, _label_names(module, pretrained)


def _create(name: str, pretrained: bool) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained)
    # Downloads fail in the ways of several libraries.
    except Exception as error:
        if not pretrained:
            raise
        raise ValueError(
            f"the weights of {name} cannot be loaded: {str(error).rstrip('.')}. "
            "--random-weights shows the model without them"
        ) from error


def _label_names(module: Any, pretrained: bool) -> tuple[str, ...] | None:
    """The 1,000 classes of ImageNet, where the weights are for them."""
    from timm.data import ImageNetInfo

    names = (getattr(module, "pretrained_cfg", None) or {}).get("label_names")
    if names:
        return tuple(names)
    if not pretrained or getattr(module, "num_classes", 0) != 1000:
        return None
    info = ImageNetInfo()
    return tuple(info.index_to_description(index) for index in range(1000))


def _read(image: Path, transform: InputTransform) -> tuple[Tensor, Image.Image]:
    """The model's input, and what it shows."""
    import torch
    from torchvision.transforms.functional import to_pil_image

    from lambdanets.training.data.transforms import read_image

    tensor = transform.build()(read_image(image, transform.mode))
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.mean, transform.std))
    return tensor, to_pil_image((tensor * std + mean).clamp(0, 1))


def _print(console: Console, explanation: Explanation) -> None:
    from rich.table import Table

    from lambdanets.console import one_line, print_whole

    if explanation.predictions:
        classes = ", ".join(f"{one_line(name)} {100 * value:.1f}%" for name, value in explanation.predictions[:3])
        print_whole(console, f"Predicted: {classes}")
    table = Table()
    for heading in ("layer", "grid", "heads", "content", "position", "looks", "check"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    looks = {found.layer: f"{found.distance:.2f}" for found in explanation.learnt}
    for name, terms in explanation.terms.items():
        made = explanation.checks[name]
        table.add_row(
            one_line(name),
            "x".join(map(str, terms.grid)) + (f"+{terms.prefix}" if terms.prefix else ""),
            str(terms.heads),
            f"{round(100 * made.content)}%",
            f"{round(100 * made.position)}%",
            looks.get(name, ""),
            f"{made.error:.1e}",
        )
    console.print(table)
    print_whole(
        console,
        "content, position: share in the layer's output on this image. looks: mean distance in positions, weighted by "
        "|E|. check: |sum of S V - output| / |output|, from float16 numbers.",
        style="dim",
    )
    for name, reason in explanation.left_out.items():
        print_whole(console, one_line(f"Not explained: {name}: {reason}."))
