"""The changes that mutate.py makes to the code, one at a time."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The file, from the root of the repository, the line and the change.
Key = tuple[str, int, str]

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

    @property
    def key(self) -> Key:
        """The file, the line and the change: its name in a file of outcomes."""
        return str(self.file.relative_to(ROOT)), self.line, self.change


def unchanged(file: Path) -> Mutant:
    """Return the file as it is, as a mutant in line 0."""
    return Mutant(file, 0, "nothing", file.read_text(encoding="utf-8"))


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
