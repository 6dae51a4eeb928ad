"""Classes that grow over several cells of a notebook stand in one piece in the exported module.

In a notebook a method may come cells after its class, with fastcore's decorator:

    @patch
    def fit(self: Learner, epochs: int = 1) -> Learner: ...

also `@patch(as_prop=True)` for a property, and `@patch(cls_method=True)` with `cls: Learner` for a class method. The
exported module has plain methods instead: it must not need fastcore, and its readers want to see the whole class.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field

MARKER = re.compile(r"# %% (\S+) #(\S+)$")  # nbdev's line above each cell
KINDS = {"": "", "as_prop=True": "@property", "cls_method=True": "@classmethod"}  # what a patch's arguments stand for
INDENT = " " * 4
Function = ast.FunctionDef | ast.AsyncFunctionDef


class CannotGrow(ValueError):
    """A patch that cannot become a method. The message names its notebook and cell."""


@dataclass(eq=False)
class Part:
    """The line above a cell, or a statement with the comments around it."""

    start: int  # of its first line, from 0
    lines: list[str]
    cell: str = ""  # where it comes from, in words
    node: ast.stmt | None = None  # None: the line above a cell


@dataclass(eq=False)
class Body:
    """A class at the top of a module, and what it gets."""

    part: Part
    node: ast.ClassDef
    methods: list[tuple[Part, list[str]]] = field(default_factory=list)

    def names(self) -> set[str]:
        own = {node.name for node in self.node.body if isinstance(node, Function)}
        return own | {part.node.name for part, _ in self.methods if isinstance(part.node, Function)}


def first_line(node: ast.stmt) -> int:
    """Its line in the text, from 0, with decorators."""
    return min(n.lineno for n in [node, *getattr(node, "decorator_list", [])]) - 1


def parts(text: str) -> list[Part]:
    """All lines of a module, in order."""
    lines, cell = text.split("\n"), ""
    found = [Part(0, [])]
    at = 0  # everything above this line has its place
    for node in [*ast.parse(text).body, None]:
        start = first_line(node) if node else len(lines)
        above: list[str] = []  # comments, empty lines
        for n in range(at, start):
            if marker := MARKER.match(lines[n]):
                found[-1].lines += above
                cell, above = f"{marker[1].lstrip('./')} (cell {marker[2]})", []
                found.append(Part(n, [lines[n]], cell))
            elif lines[n][:1] == " " and found[-1].node:  # a comment inside the statement before
                found[-1].lines += [*above, lines[n]]
                above = []
            else:
                above.append(lines[n])
        at = max(at, start)
        end = node.end_lineno or at if node else at
        if node and start == at:
            found.append(Part(start - len(above), [*above, *lines[start:end]], cell, node))
        else:  # the end of the module, or a statement after a semicolon
            found[-1].lines += [*above, *lines[at:end]]
        at = max(at, end)
    return found


def cut(lines: list[str], node: ast.expr | ast.stmt, start: int, column: int | None = None, put: str = "") -> None:
    """Replace a node (from `column` on) in lines of which the first is line `start`; ast counts columns in UTF-8."""
    first, last = node.lineno - 1 - start, (node.end_lineno or node.lineno) - 1 - start
    left = lines[first].encode()[: node.col_offset if column is None else column].decode()
    right = lines[last].encode()[node.end_col_offset :].decode()
    line = left + put + (right if (left + put).strip() else right.lstrip())  # there may be a comment on the right
    lines[first : last + 1] = [line if right.strip() else line.rstrip()] if line.strip() else []


def patch_of(node: ast.stmt | None) -> ast.expr | None:
    """The decorator `patch`, or `patch(...)`, of a function."""
    for decorator in node.decorator_list if isinstance(node, Function) else []:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(called, ast.Name) and called.id == "patch":
            return decorator
    return None


def indented(lines: list[str]) -> list[str]:
    """Four columns to the right, except lines that start inside a string: these are data."""
    data: set[int] = set()
    opened: list[int] = []  # Python 3.12 and later make several tokens of an f-string
    for token in tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline):
        kind = tokenize.tok_name[token.type]
        if kind.endswith("STRING_START"):
            opened.append(token.start[0])
        elif kind.endswith("STRING_END"):
            data.update(range(opened.pop(), token.end[0]))
        elif kind == "STRING":
            data.update(range(token.start[0], token.end[0]))
    return [line if n in data or not line.strip() else INDENT + line for n, line in enumerate(lines)]


def stripped(lines: list[str]) -> list[str]:
    """Without the empty lines at both ends."""
    full = [n for n, line in enumerate(lines) if line.strip()]
    return lines[full[0] : full[-1] + 1] if full else []


def as_method(part: Part, patch: ast.expr, classes: dict[str, Body]) -> tuple[Body, list[str]]:
    """The class that a patched function belongs to, and its lines there."""
    node = part.node
    assert isinstance(node, Function)
    where = f"{part.cell}: `{node.name}`"
    kind = ", ".join(map(ast.unparse, [*patch.args, *patch.keywords])) if isinstance(patch, ast.Call) else ""
    if kind not in KINDS:
        raise CannotGrow(f"{where} is decorated with {ast.unparse(patch)}; known are {', '.join(filter(None, KINDS))}")
    if patch is not node.decorator_list[0]:
        raise CannotGrow(f"{where}: `patch` must be the first of its decorators")
    first = next(iter([*node.args.posonlyargs, *node.args.args]), None)
    if not first or not first.annotation:
        raise CannotGrow(f"{where}: the first parameter must say which class it belongs to, as in `self: Learner`")
    if (owner := ast.unparse(first.annotation).strip("'\"")) not in classes:
        raise CannotGrow(f"{where} patches {owner}, but no cell above it in this notebook exports a class {owner}")
    if node.name in classes[owner].names():
        raise CannotGrow(f"{where}: the class {owner} has a method of this name already")
    lines = list(part.lines)
    cut(lines, first.annotation, part.start, column=first.col_offset + len(first.arg.encode()))
    cut(lines, patch, part.start, column=0, put=KINDS[kind])
    return classes[owner], stripped(lines)


def short(lines: list[str]) -> bool:
    """One line, but for decorators."""
    return all(line.lstrip().startswith("@") for line in lines[:-1])


def whole(body: Body) -> list[str]:
    """The lines of a class with all its methods."""
    start, first, last = body.part.start, body.node.body[0], body.node.body[-1]
    lines = list(body.part.lines)
    while not lines[-1].strip():
        lines.pop()
    empty = body.part.lines[len(lines) :]
    value = last.value.value if isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant) else None
    nothing = first is last and (isinstance(last, ast.Pass) or value is ...)
    at_top = nothing or (first is last and isinstance(value, str))
    tight = isinstance(last, Function) and short(lines[first_line(last) - start :])
    at = first_line(first) - start
    left = lines[at].encode()[: first.col_offset].decode()
    if nothing:
        cut(lines, first, start, column=len(left.rstrip().encode()) or None)
    elif left.strip():  # `class A: "What it is."`
        lines[at : at + 1] = [left.rstrip(), INDENT + lines[at].removeprefix(left)]
    for _, method in body.methods:
        if not at_top and not (tight and short(method)):
            lines.append("")
        lines += indented(method)
        at_top, tight = False, short(method)
    return lines + empty


def grow(text: str) -> str:
    """The text of a module, in which classes have the methods that cells below patch into them."""
    cells: list[list[Part]] = []
    classes: dict[str, Body] = {}
    moved: list[Part] = []
    for part in parts(text):
        if part.node is None:
            cells.append([])
        cells[-1].append(part)
        if isinstance(part.node, ast.ClassDef):
            classes[part.node.name] = Body(part, part.node)
        elif patch := patch_of(part.node):
            body, lines = as_method(part, patch, classes)
            body.methods.append((part, lines))
            moved.append(part)
    if not moved:
        return text
    grown = {body.part.start: whole(body) for body in classes.values() if body.methods}
    written: list[str] = []
    for top, *cell in cells:
        kept = [line for part in cell if part not in moved for line in grown.get(part.start, part.lines)]
        if all(part not in moved for part in cell):
            written += [*top.lines, *kept]
        elif kept:
            written += [*top.lines, *stripped(kept), ""]
    return "\n".join(written)
