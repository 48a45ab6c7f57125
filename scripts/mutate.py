"""Break the code on purpose, one place at a time, and list the changes that no test notices.

    python scripts/mutate.py                             # 300 places of kernels/ and layers/, chosen by a seed
    python scripts/mutate.py --all src/lambdanets/kernels/grid/banded.py
    python scripts/mutate.py --sample 12 src/lambdanets/kernels/grid/compiled/cpp

A mutant is the package with one change: another operator or comparison, a number off by one, a sign, a mask, a
transposition or a flip dropped; in C++, which is changed token by token, another stride or a condition dropped. Each
runs the tests that mirror its file until the first failure; what none of them notices *survives*: a gap in the tests,
or a change without effect. Mutants are written to a temporary copy, so the checkout is not touched. A child process is
forked for each behind the slow imports, some seconds a mutant, half a minute with the library of a C++ one, which is
built for it (CMake and Ninja); what does not compile is "not built". Triton's kernels run in its interpreter, as in
the tests: minutes for one that survives.
"""

from __future__ import annotations

import argparse
import ast
import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "lambdanets"
# Functions that no result depends on: estimates of cost, configurations to try, texts.
NOT_COMPUTED = {"work", "seconds", "candidates", "explain", "extra_repr", "__repr__"}
# Method calls whose removal leaves their object, with a tensor of the same kind.
DROPPED = {"masked_fill", "masked_fill_", "transpose", "flip", "clamp", "clamp_min", "clamp_"}
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}

# C++: tokens that are changed, with the spaces that clang-format sets around binary operators alone; strides and sizes
# that stand for each other; what is left as it is.
TOKENS = {
    " + ": " - ",
    " - ": " + ",
    " * ": " + ",
    " / ": " * ",
    " % ": " / ",
    " += ": " -= ",
    " -= ": " += ",
    " < ": " <= ",
    " <= ": " < ",
    " > ": " >= ",
    " >= ": " > ",
    " == ": " != ",
    " != ": " == ",
    " && ": " || ",
    " || ": " && ",
}
SWAPPED = [("key_pitch", "value_pitch"), ("rows", "columns"), ("width", "height"), ("most", "least")]
NAMES = {name: other for pair in SWAPPED for name, other in (pair, pair[::-1])}
CPP = re.compile(
    r"(?P<operator> (?:[-+*/%]|[-+<>=!]=|[<>]|&&|\|\|) )"
    r"|(?P<condition>\bif \()"
    r"|(?P<sign>(?:(?<=[(,=\[?:])|(?<=return)) ?-(?=[\w(]))"
    r"|(?P<number>(?<![\w.])\d+(?![\w.]))"
    rf"|(?P<name>\b(?:{'|'.join(NAMES)})\b)"
)
LEFT_AS_IT_IS = re.compile(
    r"//[^\n]*|/\*.*?\*/|\"[^\"\n]*\"|^\s*(?:#|template|using|constexpr|static_assert)[^\n]*|integral_constant<[^>]*>",
    re.DOTALL | re.MULTILINE,
)

# Kernels of more than one file.
PART_OF = {"row_spectral_plan": "row_spectral", "strips": "banded"}


@dataclass(frozen=True)
class Mutant:
    """One change to one file.

    Args:
        file: the file.
        line: its line, from 1.
        change: ``old → new``, for people.
        source: the whole file with the change.
    """

    file: Path
    line: int
    change: str
    source: str


def mutants_of(file: Path) -> Iterator[Mutant]:
    """Yield every mutant of a file, in the order of its lines."""
    if file.suffix != ".py":
        yield from cpp_mutants_of(file)
        return
    source = file.read_text(encoding="utf-8")
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def place(row: int, column: int) -> int:
        return starts[row - 1] + column

    for node, replacement in sorted(_changes(ast.parse(source)), key=lambda change: change[0].lineno):
        begin, end = place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        old, new = source.encode()[begin:end].decode(), ast.unparse(replacement)
        is_statement = isinstance(node, ast.stmt)
        changed = source.encode()[:begin] + (new if is_statement else f"({new})").encode() + source.encode()[end:]
        shown = " ".join(f"{old} → {new}".split())
        yield Mutant(file, node.lineno, shown, changed.decode())


def cpp_mutants_of(file: Path) -> Iterator[Mutant]:
    """Yield every mutant of a C++ file, in the order of its tokens."""
    source = file.read_text(encoding="utf-8")
    code = LEFT_AS_IT_IS.sub(lambda left: re.sub(r"[^\n]", "\0", left[0]), source)
    for token in CPP.finditer(code):
        begin, end, text = token.start(), token.end(), token[0]
        if token["operator"]:
            new = TOKENS[text]
        elif token["condition"]:
            end, new = _closing(code, end), "if (true)"
        elif token["sign"]:
            new = text.replace("-", "")
        else:
            new = NAMES[text] if token["name"] else str(int(text) + 1)
        line = source.count("\n", 0, begin) + 1
        shown = source.splitlines()[line - 1].strip()
        change = f"{source[begin:end].strip()} → {new.strip()} in {shown}"
        yield Mutant(file, line, change, source[:begin] + new + source[end:])


def _closing(code: str, begin: int) -> int:
    """Return the place behind the bracket that closes what was opened in front of ``begin``."""
    depth = 1
    for place in range(begin, len(code)):
        depth += {"(": 1, ")": -1}.get(code[place], 0)
        if not depth:
            return place + 1
    raise ValueError("a bracket is not closed")


def _changes(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield (node, its replacement)."""
    for node in _computing(tree):
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            yield node, ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
        elif isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
            yield node, ast.Assign([node.target], node.value, lineno=node.lineno)
        elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in OPERATORS:
            yield node, ast.Compare(node.left, [OPERATORS[type(node.ops[0])]()], node.comparators)
        elif isinstance(node, ast.BoolOp):
            yield node, ast.BoolOp(OPERATORS[type(node.op)](), node.values)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
            yield node, node.operand
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield node, ast.Constant(node.value + 1)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED:
            yield node, node.func.value


def _computing(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the expressions in functions: no annotations, defaults, decorators, messages or costs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            if node.name not in NOT_COMPUTED:
                for statement in node.body:
                    yield from _inside(statement)
        elif isinstance(node, ast.ClassDef):
            yield from _computing(node)


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Raise | ast.JoinedStr) or (isinstance(node, ast.FunctionDef) and node.name in NOT_COMPUTED):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(node, ast.AnnAssign) and child is node.annotation) and not isinstance(child, ast.arguments):
            yield from _inside(child)


def tests_of(file: Path) -> list[str]:
    """Return pytest's arguments for the tests that mirror a file of the package."""
    inner = file.relative_to(PACKAGE)
    if "triton" in inner.parts:
        found = sorted((ROOT / "tests/kernels/grid/triton").glob("test_*.py"))
        # Last what takes longest: the compiler for GPUs.
        return [str(each) for each in sorted(found, key=lambda each: each.stem == "test_ahead")]
    if "compiled" in inner.parts:
        return [str(ROOT / "tests/kernels/grid/compiled")]
    own = ROOT / "tests" / inner.parent / f"test_{inner.name}"
    kernel = PART_OF.get(inner.stem, inner.stem)
    if inner.parent == Path("kernels/grid") and (kernel != inner.stem or "\nKERNEL = " in file.read_text("utf-8")):
        own = own.with_name(f"test_{kernel}.py")
        shared = [str(ROOT / "tests/kernels/grid/test_grid_kernels.py"), "-k", kernel]
        return [str(own), *shared] if own.exists() else shared
    rooms = [ROOT / "tests" / inner.parent]
    if inner.parts[0] == "kernels":
        rooms = [ROOT / "tests/test_functional.py", *sorted((ROOT / "tests/kernels").rglob("test_*.py"))]
        rooms = [room for room in rooms if "triton" not in room.parts]
    return [str(own)] * own.exists() + [str(room) for room in rooms if room != own and room.exists()]


def is_noticed(mutant: Mutant, copy: Path) -> bool:
    """Run the mutant's tests in this process, which is a forked child; True if one of them fails."""
    target = copy / mutant.file.relative_to(SOURCE)
    target.write_text(mutant.source, encoding="utf-8")
    if mutant.file.suffix != ".py" and not build(copy):
        raise SystemExit(4)
    return fails(tests_of(mutant.file), copy)


def build(copy: Path) -> bool:
    """Build the compiled kernels of a copy of the package, for the tests of this process; False if that fails."""
    folder = copy / "build"
    source = copy / (PACKAGE / "kernels/grid/compiled/cpp").relative_to(SOURCE)
    for words in (["-G", "Ninja", "-S", str(source), "-B", str(folder)], ["--build", str(folder), "-j", "1"]):
        if subprocess.run(
            ["cmake", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        ).returncode:
            return False
    os.environ["LAMBDANETS_LIBRARY"] = str(folder / "lambdanets_compiled.so")
    return True


def fails(tests: list[str], copy: Path) -> bool:
    """Run tests on a copy of the package in this process, which is a forked child."""
    import pytest

    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(ROOT), "-c", "pyproject.toml"]
    code = pytest.main([*options, *tests])
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise SystemExit(3)
    return code != pytest.ExitCode.OK


def seconds_unbroken(files: set[Path]) -> float:
    """Run all tests of some files once on the unbroken code; exits with a message if one fails."""
    tests = sorted({test for file in files for test in tests_of(file) if test.startswith(str(ROOT))})
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        copy = copied()
        built = all(file.suffix == ".py" for file in files) or build(copy)
        code = fails(tests, copy) if built else True
        shutil.rmtree(copy, ignore_errors=True)
        os._exit(code)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"the tests do not pass on the unbroken code: pytest {' '.join(tests)}")
    return time.monotonic() - begin


def copied() -> Path:
    """Return a temporary copy of the package."""
    copy = Path(tempfile.mkdtemp(prefix="mutant-"))
    return shutil.copytree(SOURCE, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def judge(mutants: list[Mutant], jobs: int, seconds: float) -> Iterator[tuple[Mutant, str, float]]:
    """Yield (mutant, "killed", "survived", "timeout", "no tests" or "not built", seconds) as they are done."""
    running: dict[int, tuple[Mutant, Path, float]] = {}
    waiting = list(reversed(mutants))
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            copy = copied()
            child = os.fork()
            if child == 0:
                os.setsid()
                code = 2
                try:
                    code = 1 if is_noticed(mutant, copy) else 0
                except SystemExit as exit_:
                    code = int(exit_.code or 0)
                finally:
                    os._exit(code)
            running[child] = (mutant, copy, time.monotonic())
        for child, (mutant, copy, begin) in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            took = time.monotonic() - begin
            if not done and took < seconds:
                continue
            if not done:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                outcome = "timeout"
            else:
                code = os.waitstatus_to_exitcode(status)
                outcome = {0: "survived", 3: "no tests", 4: "not built"}.get(code, "killed")
            del running[child]
            shutil.rmtree(copy, ignore_errors=True)
            yield mutant, outcome, took
        time.sleep(0.05)


def can_be_tested(file: Path) -> bool:
    """Return True if this machine has what the tests of a file need; else say that it is left out."""
    if file.suffix != ".py":
        missing = [name for name in ("cmake", "ninja") if shutil.which(name) is None]
    else:
        missing = [] if "triton" not in file.parts or find_spec("triton") else ["triton"]
    if missing:
        print(f"left out: {file.relative_to(ROOT)}, for which {' and '.join(missing)} would be needed")
    return not missing


def main() -> None:
    """Judge the mutants, print the survivors, write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="source files or folders; default kernels/ and layers/")
    parser.add_argument("--sample", type=int, default=300, help="how many mutants, spread over all files")
    parser.add_argument("--all", action="store_true", help="every mutant")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="a CSV file of all outcomes")
    given = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folders = given.files or [PACKAGE / "kernels", PACKAGE / "layers"]
    paths = (path.resolve() for path in folders)
    files = sorted({file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))})
    files = [file for file in files if file.suffix in (".py", ".cpp", ".h") and can_be_tested(file)]
    mutants = [mutant for file in files for mutant in mutants_of(file)]
    if not given.all and given.sample < len(mutants):
        mutants = random.Random(given.seed).sample(mutants, given.sample)
    import hypothesis  # noqa: F401 - imported before the fork, as the rest that takes long
    import timm  # noqa: F401
    import torchvision  # noqa: F401

    print(f"{len(mutants)} mutants of {len(files)} files", flush=True)
    unbroken = seconds_unbroken({mutant.file for mutant in mutants})
    print(f"the unbroken code passes all tests in {unbroken:.0f} s", flush=True)
    rows = []
    # What runs for several times as long as all tests does not end: it is noticed.
    for mutant, outcome, took in judge(mutants, given.jobs, 60 + 3 * unbroken):
        name = str(mutant.file.relative_to(ROOT))
        rows.append({"file": name, "line": mutant.line, "change": mutant.change, "outcome": outcome})
        if outcome != "killed":
            print(f"{outcome:9} {name}:{mutant.line}  {mutant.change}  ({took:.0f} s)", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in Counter(row["outcome"] for row in rows).most_common()))
    if given.output:
        with open(given.output, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=["file", "line", "change", "outcome"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: (row["file"], row["line"])))


if __name__ == "__main__":
    main()
