"""In an exported module the comments on parameters stand in docstrings, too, where help(), `?` and editors look.

In a notebook a parameter is described where it stands:

    def fit(
        self,
        epochs: int = 1,  # how often every row is used
    ) -> Run:  # the same one
        "Train."

The exported module keeps these comments, and has sections `Args:` and `Returns:` (Google's style) in the docstrings of
public functions, methods and classes: a dataclass describes its fields, another class what its `__init__` takes.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

WIDTH = 110  # characters of a line
SECTIONS = re.compile(r"(?:^|\n\n) *(?:Args|Attributes|Returns|Yields):\n.*", re.DOTALL)
NO_COMMENT = re.compile(r"type:|noqa|pragma:|fmt:|ruff:|mypy:")  # what tools read
Function = ast.FunctionDef | ast.AsyncFunctionDef
Owner = Function | ast.ClassDef
Described = list[tuple[str, str]]  # a name, and what is said of it


@dataclass
class Source:
    """The text of a module, and its comments by line."""

    lines: list[str]  # the first is line 1 for ast
    comments: dict[int, str]
    alone: set[int]  # lines that are nothing but a comment
    ends: dict[int, int]  # line where a signature begins: line of its colon, where nothing but a comment follows


def read(text: str) -> Source:
    source = Source(text.split("\n"), {}, set(), {})
    opened, begun, colon = 0, 0, False  # brackets; line of `def`; the last token ended a signature
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind, word, line = tokenize.tok_name[token.type], token.string, token.start[0]
        if kind == "COMMENT":
            said = word.lstrip("# ").rstrip()
            if not NO_COMMENT.match(said):
                source.comments[line] = said
            if not token.line[: token.start[1]].strip():
                source.alone.add(line)
        if colon and kind in ("COMMENT", "NEWLINE"):
            source.ends[begun] = line
        colon = False
        if kind == "NAME" and word == "def":
            opened, begun = 0, line
        elif kind == "OP":
            opened += (word in "([{") - (word in ")]}")
            if word == ":" and not opened and begun:
                colon = True
                continue
        if kind == "NEWLINE":
            begun = 0
    return source


def beside(source: Source, line: int) -> str:
    """The comment at the end of a line."""
    return "" if line in source.alone else source.comments.get(line, "")


def above(source: Source, line: int, after: int) -> str:
    """The comments that stand alone above a line, and below line `after`."""
    first = line
    while first - 1 > after and first - 1 in source.alone:
        first -= 1
    return " ".join(source.comments[n] for n in range(first, line) if n in source.comments)


def arguments(node: Function) -> Iterator[tuple[str, ast.arg, int]]:
    """The parameters of a function, each with its name as it is shown and the line where it ends."""
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    defaults: list[ast.expr | None] = [*[None] * (len(plain) - len(a.defaults)), *a.defaults]
    pairs = [("", arg, default) for arg, default in zip(plain, defaults)]
    pairs += [("*", a.vararg, None)] if a.vararg else []
    pairs += [("", arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults)]
    pairs += [("**", a.kwarg, None)] if a.kwarg else []
    for stars, arg, default in pairs:
        yield stars + arg.arg, arg, (default or arg).end_lineno or arg.lineno


def names(node: Owner) -> set[str]:
    """The last names of its decorators, or of a class's bases."""
    found = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    found += node.bases if isinstance(node, ast.ClassDef) else []
    return {ast.unparse(one).rpartition(".")[2] for one in found}


def described_arguments(source: Source, node: Function, method: bool) -> Described:
    """The parameters of a function; one without a comment has its type."""
    found, last = list(arguments(node)), node.lineno
    ends = [end for *_, end in found]
    described = []
    for i, (name, arg, end) in enumerate(found):
        said = "" if end in ends[i + 1 :] else beside(source, end)
        if node.returns and end == source.ends.get(node.lineno):
            said = ""  # what is said on the line of the colon is said of the result
        said, last = said or above(source, arg.lineno, last), end
        if i or not method or "staticmethod" in names(node):
            described.append((name, said or (ast.unparse(arg.annotation) if arg.annotation else "")))
    return described


def returned(source: Source, node: Function) -> str:
    """What is said of the result."""
    end = source.ends.get(node.lineno)
    if end is None or (not node.returns and any(last == end for *_, last in arguments(node))):
        return ""
    return source.comments.get(end, "")


def fields(source: Source, node: ast.ClassDef) -> tuple[Described, Described]:
    """The fields of a dataclass or a named tuple: those that its caller gives, and the others."""
    given: Described = []
    others: Described = []
    for part in node.body:
        if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name):
            continue
        kind, end = ast.unparse(part.annotation), part.end_lineno or part.lineno
        said = beside(source, end) or kind
        if "ClassVar" not in kind and not part.target.id.startswith("_"):
            value = ast.unparse(part.value) if part.value else ""
            (others if "init=False" in value else given).append((part.target.id, said))
    return given, others


def entry(text: str) -> list[str]:
    """A line of a section, or several."""
    return textwrap.wrap(text, WIDTH - 12, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def section(title: str, described: Described) -> list[str]:
    lines = [line for name, said in described for line in entry(f"{name}: {said}" if said else f"{name}:")]
    return ["", f"{title}:", *(f"    {line}" for line in lines)] if described else []


def sections(source: Source, node: Owner, method: bool) -> list[str]:
    """What a docstring gets."""
    if isinstance(node, ast.ClassDef):
        init = [part for part in node.body if isinstance(part, Function) and part.name == "__init__"]
        if names(node) & {"dataclass", "NamedTuple", "TypedDict"}:
            given, others = fields(source, node)
            return section("Args", given) + section("Attributes", others)
        return section("Args", described_arguments(source, init[0], method=True)) if init else []
    lines = section("Args", described_arguments(source, node, method))
    if said := returned(source, node):
        yields = any(isinstance(part, ast.Yield | ast.YieldFrom) for part in ast.walk(node))
        lines += ["", "Yields:" if yields else "Returns:", *(f"    {line}" for line in entry(said))]
    return lines


def plain(docstring: str) -> str:
    """A docstring without these sections."""
    return SECTIONS.sub("", docstring)


def quoted(docstring: str, indent: str) -> list[str]:
    """The lines of a docstring in a module."""
    text = docstring.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return [(indent + line).rstrip() for line in [*f'"""{text}'.split("\n"), '"""']]


def owners(body: list[ast.stmt], method: bool = False) -> Iterator[tuple[Owner, bool]]:
    """Public functions, classes and methods, and whether each is a method."""
    for node in body:
        if not isinstance(node, Owner):
            continue
        private = node.name.startswith("_") and node.name != "__call__"
        if not private and not names(node) & {"overload", "setter", "deleter"}:
            yield node, method
            if isinstance(node, ast.ClassDef):
                yield from owners(node.body, method=True)


def replaced(source: Source, node: Owner, added: list[str]) -> tuple[int, int, list[str]] | None:
    """The lines that a docstring with sections replaces, and what stands there then."""
    first, old = node.body[0], ast.get_docstring(node, clean=False)
    if old is None and not any(n in source.comments for n in range(node.lineno, first.lineno)):
        return None
    new = "\n".join([plain(inspect.cleandoc(old or "")), *added]).strip("\n")
    if old is not None and inspect.cleandoc(old) == new:
        return None
    indent = " " * (node.col_offset + 4)
    start = min(n.lineno for n in [first, *getattr(first, "decorator_list", [])]) - 1
    end = (first.end_lineno or start) if old is not None else start
    line = source.lines[start].encode()
    at = first.col_offset if first.lineno == start + 1 else len(line) - len(line.lstrip())
    left = line[:at].decode().rstrip()  # `class A:`
    right = ""
    if old is not None:
        right = source.lines[end - 1].encode()[first.end_col_offset :].decode().strip()
    elif left:
        right, end = line[at:].decode(), start + 1
    lines = [*([left] if left else []), *quoted(new, indent)]
    if right.startswith("#"):
        lines[-1] += f"  {right}"
    elif rest := right.removeprefix(";").strip():
        lines.append(indent + rest)
    return start, end, lines


def document(text: str) -> str:
    """The text of a module with sections in its docstrings."""
    source = read(text)
    edits = []
    for node, method in owners(ast.parse(text).body):
        if edit := replaced(source, node, sections(source, node, method)):
            edits.append(edit)
    for start, end, lines in sorted(edits, reverse=True):
        source.lines[start:end] = lines
    return "\n".join(source.lines)


def added_lines(text: str) -> int:
    """How many lines of a module's text are such sections."""
    count = 0
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Owner) and (docstring := ast.get_docstring(node)) and plain(docstring) != docstring:
            first = node.body[0]
            count += (first.end_lineno or 0) - first.lineno - plain(docstring).count("\n")
    return count
