"""Hooks of the documentation site: pages made of other files, links, formulas, and no address of elsewhere.

    pip install -e '.[docs]' && mkdocs build --strict

The README, CONTRIBUTING, the changelog and the notebooks in examples/ are pages of the site without being copied. Links
between files of the repository become links between pages; one that leads to no page is a warning, which ``--strict``
makes an error.
"""

import html
import logging
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from typer.main import get_command

from lambdanets_cli.app import app

log = logging.getLogger("mkdocs.plugins.site")
ROOT = Path(__file__).parents[1]
# Pages of the site that are other files of the repository; those of docs/ have their own names.
SOURCES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "examples/index.md": "examples/README.md",
    **{f"examples/{file.stem}.md": f"examples/{file.name}" for file in sorted(ROOT.glob("examples/*.ipynb"))},
}
# One page has the cards of all weights.
CARDS = [file.relative_to(ROOT).as_posix() for file in sorted(ROOT.glob("src/lambdanets/models/weights/*/README.md"))]
SOURCES["weights.md"] = CARDS[0]
PAGES = {source: page for page, source in SOURCES.items()} | dict.fromkeys(CARDS, "weights.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of docs/, and the figures of the notebooks."""
    for page, source in SOURCES.items():
        if source.endswith(".ipynb"):
            text, figures = notebook(ROOT / source)
            for name, figure in figures.items():
                files.append(File.generated(config, f"examples/{name}", content=figure))
        elif page == "weights.md":
            cards = [(ROOT / card).read_text(encoding="utf-8") for card in CARDS]
            text = "\n\n".join(["# The weights of the package", *(f"#{card}" for card in cards)])
        else:
            text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def notebook(file: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook with its outputs as Markdown, and its figures by name."""
    text, resources = MarkdownExporter().from_filename(str(file), {"unique_key": file.stem})
    return text, resources["outputs"]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages; write down the command's help."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def relink(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        to = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if to is None:
            if posixpath.join(posixpath.dirname(here), target) not in files.src_uris:  # but a figure of a notebook
                log.warning("%s links to %s, which is not a page of the site", source, target)
            return match[0]
        return f"]({posixpath.relpath(to, posixpath.dirname(here) or '.')}{anchor})"

    # What stands in blocks of code is left alone: every second piece.
    pieces = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    pieces[::2] = [re.sub(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", relink, piece) for piece in pieces[::2]]
    return "".join(pieces).replace("<!-- commands -->", commands())


def commands() -> str:
    """Return the help of every command as Markdown."""
    parts = []
    for name, command in sorted(get_command(app).commands.items()):
        parts.append(f"## lambdanets {name}")
        for text in (command.help or "").split("\n\n"):
            # An indented paragraph is an example.
            parts.append(f"```bash\n{text.strip()}\n```" if text.startswith(" ") else plain(text))
        rows = []
        for parameter in command.params:
            words = parameter.opts if parameter.param_type_name == "option" else [(parameter.name or "").upper()]
            rows.append(f"| `{', '.join(words)}` | {plain(getattr(parameter, 'help', None) or '')} |")
        parts.append("\n".join(["| argument | |", "| --- | --- |", *rows]))
    return "\n\n".join(parts)


def plain(text: str) -> str:
    """Return help, which is Rich's markup, as one line of Markdown."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"\\?([\[\]*|])", r"\\\1", line)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn formulas into MathML, which browsers draw without a script."""

    def formula(match: re.Match[str]) -> str:
        return convert(html.unescape(match[2]), display="block" if match[1] == "[" else "inline")

    # As arithmatex leaves them: \[...\] or \(...\) in an element of its class.
    return re.sub(r'(?<=class="arithmatex">)\\([\[(])(.*?)\\[\])](?=</)', formula, content, flags=re.DOTALL)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warn of a page that would load something from elsewhere."""
    for address in re.findall(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)", output):
        log.warning("%s loads %s", page.file.src_uri, address)
    return output
