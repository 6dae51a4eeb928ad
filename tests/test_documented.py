"""What a notebook says of a parameter is found where people look: in help(), `?`, editors, and once on the website."""

import ast
import importlib
import inspect
import pydoc
import re
from textwrap import dedent
from typing import Any

import documented
import nb
import pytest
from fastcore.docments import docments

import ftnb

ROOMS = [".".join(["ftnb", *path.relative_to(nb.NBS).with_suffix("").parts]) for path in nb.rooms()]


def written(code: str) -> str:
    return documented.document(dedent(code).strip() + "\n").strip()


CASES = {
    "a function": (
        """
        def fit(
            lm: LM,  # it is trained in place
            epochs: int = 1,  # how often; "each" row \\n
            *args: int, rate=f(1, 2),  # of both, the last
            # above the line
            # that it describes
            seed: int = (  # a bracket
                0),  # of the order
            n: int = 1, **options: Any  # for others
        ) -> Run:  # the same one
            "Train."
            return fit
        """,
        '''"""Train.

    Args:
        lm: it is trained in place
        epochs: how often; "each" row \\\\n
        *args: int
        rate: of both, the last
        seed: of the order
        n: int
        **options: for others

    Returns:
        the same one
    """
    return fit''',
    ),
    "above": (
        'def f(\n    # what is\n    # above\n    a, b=1):\n    "F."',
        '"""F.\n\n    Args:\n        a: what is above\n        b:\n    """',
    ),
    "one line": (
        'def f(a: int, b=2) -> int:  # it\n    "Sum."; return a + b',
        '"""Sum.\n\n    Args:\n        a: int\n        b:\n\n    Returns:\n        it\n    """\n    return a + b',
    ),
    "all in one line": (
        "def f(a: int) -> int: 'Same.'; return a",
        '"""Same.\n\n    Args:\n        a: int\n    """\n    return a',
    ),
    "a tool's comment": ('def f(  # noqa\n    a,  # type: ignore\n):  # fmt: skip\n    "F."  # é', 'a:\n    """  # é'),
    "a default with a colon": ('def f(a=lambda x: {1: 2}, b: "C" = d[1:2]):\n    "F."', "a:\n        b: 'C'"),
    "no docstring": (
        "def f(\n    a,  # said\n):\n    # why\n    return a",
        '# why\n    """Args:\n        a: said\n    """\n    return',
    ),
    "a generator": ('def f() -> Iterator[int]:  # each\n    "F."\n    yield 1', "Yields:\n        each"),
    "a class": (
        'class A:\n    "Ü."\n    def __init__(self, /, a: int,  # é\n    ): self.a = a\n    def f(self): return 1',
        '"""Ü.\n\n    Args:\n        a: é\n    """',
    ),
    "a dataclass": (
        '@dataclass\nclass A:\n    "A."\n    a: int  # one\n    b: ClassVar[int] = 2  # shared\n    _c: int = 3\n'
        "    d: list = field(init=False)  # later\n    e: str = ''\n",
        '"""A.\n\n    Args:\n        a: one\n        e: str\n\n    Attributes:\n        d: later\n    """',
    ),
    "methods": (
        'class A:\n    @property\n    def p(self) -> int:  # one\n        "P."\n'
        '    @staticmethod\n    def s(a): "S."\n',
        '"""P.\n\n        Returns:\n            one\n        """\n    @staticmethod\n    def s(a):\n        """S.\n\n'
        '        Args:\n            a:\n        """',
    ),
    "several paragraphs": (
        "def f(a):\n    '''F.\n\n    More.\n    '''\n    x = 1",
        '"""F.\n\n    More.\n\n    Args:\n        a:\n    """\n    x = 1',
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_document(case: str) -> None:
    code, expected = CASES[case]
    text = written(code)
    assert expected in text, text
    assert written(text) == text, "again changes nothing"
    assert stripped(text) == stripped(dedent(code))
    assert len(text.splitlines()) - documented.added_lines(text) <= len(dedent(code).strip().splitlines()) + 3


@pytest.mark.parametrize(
    "code",
    [
        'def _own(a: int):  # private\n    "F."',
        '@overload\ndef f(a: int) -> int: ...\n@x.setter\ndef g(self, b): "G."',
        "class _A:\n    def f(self, a: int):  # one\n        'F.'",
        "def f() -> int:\n    'F.'  # a comment\n    return 1  # another",
        "x = 1  # a number\n\n\nclass A: pass",
        "def f(a): return a",
    ],
)
def test_left_alone(code: str) -> None:
    assert written(code) == code


def stripped(text: str) -> str:
    """What a module does: its code without docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def members(owner: Any) -> list[tuple[str, Any]]:
    """Public functions and classes of a room, or of a class, that are written there."""
    home = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    found = []
    for name, value in vars(owner).items():
        value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        plain = inspect.isfunction(inspect.unwrap(value)) if callable(value) else False
        if name.startswith("_") or not (plain or inspect.isclass(value)) or value.__module__ != home:
            continue
        found += [(f"{owner.__name__}.{name}", value), *(members(value) if inspect.isclass(value) else [])]
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_every_parameter_is_in_the_docstring(room: str) -> None:
    for name, found in members(importlib.import_module(room)):
        if inspect.isclass(found) and not {"__init__", "_fields"} & set(vars(found)):
            continue  # its constructor is described by another class
        if getattr(found, "_is_protocol", False):
            continue  # it has no constructor
        if found.__doc__ is None and not inspect.isclass(found):
            continue  # a hook of a callback, say, which its class explains
        said = docments(found)
        for parameter in inspect.signature(found).parameters:
            if parameter in ("self", "cls"):
                continue
            line = re.search(rf"(?m)^ +\**{parameter}:.*(?:\n      +[^\n]*)*", inspect.getdoc(found) or "")
            assert line, f"{name} does not say what {parameter} is"
            words = re.sub(r"\s+", " ", str(said.get(parameter) or ""))
            assert words in re.sub(r"\s+", " ", line[0]) or words == "None", f"{name}, {parameter}: {words!r}"


def test_help() -> None:
    """What people see: of functions with one and several signatures, of a class, of a method."""
    text = pydoc.plain(pydoc.render_doc(ftnb.finetune))
    assert "lora: train an adapter of this rank (8, say)" in text and "Returns:" in text
    text = pydoc.plain(pydoc.render_doc(ftnb.generate))
    assert "temperature: 0: greedy; about 0.7 to 1.2 to sample" in text
    for known in (ftnb.Chat, ftnb.Task, ftnb.Decoding, ftnb.Ratings.from_csv, ftnb.Scores.save):
        assert "Args:" in (known.__doc__ or ""), known
    assert "Returns:" in (ftnb.Scores.save.__doc__ or "") and "``" not in (ftnb.finetune.__doc__ or "")
    assert ftnb.Callback.__doc__ and inspect.getsource(ftnb.finetune).count("how often every row is used") == 2


def test_a_page_says_it_once() -> None:
    for known, words in (
        (ftnb.finetune, "how often every row is used"),
        (ftnb.generate, "0: greedy"),
        (ftnb.Chat, "a system turn to"),
    ):
        page = nb.ParameterTable(known)._repr_markdown_()
        assert page.count(words) == 1 and "Args:" not in page, page


def test_code_is_what_the_notebooks_say() -> None:
    """Sections change nothing but docstrings."""
    for path in sorted((nb.ROOT / "ftnb").rglob("[!_]*.py")):
        text = path.read_text(encoding="utf-8")
        assert documented.document(text) == text, path
