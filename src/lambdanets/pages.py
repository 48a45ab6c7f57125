"""Pages that are one HTML file: a template with its styles and scripts inlined."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lambdanets.console import printable

__all__ = ["render_page"]


def render_page(package: str, parts: Sequence[str], **values: Any) -> str:
    """Render ``page/page.html.j2`` of a package; text is escaped, and a name without a value is an error.

    Control characters in text, as those that turn the direction of what follows, are shown as escapes.

    Args:
        package: the package whose folder ``page`` holds the template.
        parts: further files of the folder, which the template names with "_" for each ".".
        values: of the template's other names.
    """
    environment = Environment(
        loader=PackageLoader(package, "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_seen,
    )
    texts = {name.replace(".", "_"): (files(package) / "page" / name).read_text("utf-8") for name in parts}
    return environment.get_template("page.html.j2").render(**values, **texts)


def _seen(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
