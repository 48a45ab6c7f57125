"""What users named is printed as it is called, on every stream."""

import io
import json
import subprocess
import sys

import pytest
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from lambdanets.console import make_console, one_line, print_json, print_whole, printable

pytestmark = pytest.mark.smoke

NAMES = ["[bold]x[/bold]", "y[/b]", "run[lr=1e-3]", ":smile:", "$x$", "犬", "é", "\udcff", "😀"]


def stream(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    return written


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
@pytest.mark.parametrize("name", NAMES)
def test_names_are_text(monkeypatch, name, encoding):
    written = stream(monkeypatch, encoding)
    console = make_console()
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    print_whole(console, name)
    console.print(table)
    console.print(Text(one_line(name)))
    shown = written.getvalue().decode(encoding)
    assert shown.count(name.encode(encoding, "backslashreplace").decode(encoding)) == 5


def test_control_characters_are_shown():
    assert printable("a\x1b[31mb\x07\u202ec\nd\te é犬") == "a\\x1b[31mb\\x07\\u202ec\nd\te é犬"


def test_a_name_is_one_line():
    assert one_line("a\nb\tc\x1b\u2028\ud800 犬") == "a\\nb\\tc\\x1b\\u2028\\ud800 犬"


def test_console_passes_no_control_characters_on(monkeypatch):
    written = stream(monkeypatch, "utf-8")
    make_console().print("a\x1b[31mb")
    assert written.getvalue() == b"a\\x1b[31mb\n"


def test_progress_works_on_it(monkeypatch):
    written = stream(monkeypatch, "ascii")
    with Progress(console=make_console()) as progress:
        progress.add_task("work")
    assert b"work" in written.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_json_is_valid_and_exact(monkeypatch, encoding):
    written = stream(monkeypatch, encoding)
    print_json(NAMES)
    text = written.getvalue().decode(encoding)
    assert json.loads(text) == NAMES
    assert ("犬" in text) == (encoding == "utf-8")


def test_work_goes_on_where_its_reader_has_gone(tmp_path):
    """As with ``lambdanets train | head -1``; what is printed past the console must not end it either."""
    program = (
        "import sys\n"
        "from lambdanets.console import make_console\n"
        "console = make_console()\n"
        "for line in range(20_000):\n"
        "    console.print(f'line {line}')\n"
        "print('a line of another kind', flush=True)\n"
        f"open({str(tmp_path / 'done')!r}, 'w').close()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"line 0\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
    assert (tmp_path / "done").exists()
