"""Docstrings for the documentation site: the roles and formulas of reStructuredText as Markdown."""

import re
from typing import Any

from griffe import Extension, Object

__all__ = ["RolesExtension"]


def _role(match: re.Match[str]) -> str:
    """``:func:`~lambdanets.explain``` as a link, where the site has the page."""
    target = match[1].removeprefix("~")
    shown = target.rsplit(".", 1)[-1] if match[1].startswith("~") else target
    return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'


class RolesExtension(Extension):
    """Rewrite each docstring before it is parsed."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is None:
            return
        text = re.sub(r"(?<!`):(?:py:)?(?:func|class|meth|attr|data|mod|exc):`([^`]+)`", _role, obj.docstring.value)
        text = re.sub(r"^( *)\.\. math:: (.*)$", r"\1$$ \2 $$", text, flags=re.MULTILINE)
        obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
