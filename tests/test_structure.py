"""What may stand on what: the order of nbs/sidebar.yml, read from top to bottom, holds for the code as well."""

import ast
import importlib
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

import documented
import nb
import pytest

LINES, NAMES = 500, 45  # at most: of a module, of `from ftnb import *`
LIB = nb.ROOT / "ftnb"
ORDER = [".".join([LIB.name, *path.relative_to(nb.NBS).with_suffix("").parts]) for path in nb.rooms()]


class Import(NamedTuple):
    line: int
    module: str  # or floor, or the package: ftnb.core.errors
    name: str  # what is taken from it; "" for the module as a whole
    bound: str  # the expression that stands for it in the code; "" for none

    def __str__(self) -> str:
        return f"{self.name} from {self.module}" if self.name else self.module


class Room:
    """A module, as its code tells."""

    def __init__(self, path: Path, lib: Path):
        self.lib, self.path = lib, path
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.name = ".".join([lib.name, *path.relative_to(lib).with_suffix("").parts])
        self.imports = [found for found in self.all_imports() if found.module.partition(".")[0] == lib.name]

    def is_module(self, name: str) -> bool:
        """Or a folder of modules."""
        path = self.lib.parent.joinpath(*name.split("."))
        return path.is_dir() or path.with_suffix(".py").exists()

    def all_imports(self) -> Iterator[Import]:
        package = self.name.rpartition(".")[0]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(node.lineno, alias.name, "", alias.asname or alias.name)
            elif isinstance(node, ast.ImportFrom):
                base = resolve_name("." * node.level + (node.module or ""), package)
                for alias in node.names:
                    if self.is_module(f"{base}.{alias.name}"):
                        yield Import(node.lineno, f"{base}.{alias.name}", "", alias.asname or alias.name)
                    else:
                        yield Import(node.lineno, base, alias.name, "")
            elif module := imported_by_call(node):
                yield Import(node.lineno, resolve_name(module, package), "", ast.unparse(node))
            elif isinstance(node, ast.Assign | ast.NamedExpr) and (module := imported_by_call(node.value)):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    yield Import(node.lineno, resolve_name(module, package), "", ast.unparse(target))

    def misplaced(self, order: list[str]) -> list[str]:
        """Imports of what does not stand above this room."""
        above = order[: order.index(self.name)] if self.name in order else []
        found = []
        for imported in self.imports:
            why = "which does not stand above it in nbs/sidebar.yml"
            if imported.module not in order:
                why = "which is not a room of nbs/sidebar.yml"
                if imported.module == self.lib.name and is_dunder(imported.name):  # __version__
                    continue
            if imported.module not in above:
                found.append(f"line {imported.line}: {self.name} imports {imported}, {why}")
        return sorted({*found})

    def private(self) -> list[str]:
        """Names of other rooms that are theirs alone."""
        found = [(i.line, str(i)) for i in self.imports if any(map(is_private, [*i.module.split("."), i.name]))]
        modules = {i.bound: i.module for i in self.imports if i.bound}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                owner, name = node.value, node.attr
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "getattr"
                and isinstance(node.args[1], ast.Constant)
                and is_private(str(node.args[1].value))
            ):
                owner, name = node.args[0], str(node.args[1].value)
            else:
                continue
            if module := modules.get(ast.unparse(owner)):
                found.append((node.lineno, f"{name} from {module}"))
        return [f"line {line}: {self.name} takes {what}" for line, what in sorted({*found})]


def imported_by_call(node: ast.AST) -> str | None:
    """What `importlib.import_module('...')` imports."""
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            return node.args[0].value
    return None


def is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def is_private(name: str) -> bool:
    return name.startswith("_") and not is_dunder(name)


def rooms(lib: Path) -> dict[str, Room]:
    """The modules of the package; front pages and nbdev's index are none."""
    found = [Room(path, lib) for path in sorted(lib.rglob("*.py")) if path.name not in ("__init__.py", "_modidx.py")]
    return {room.name: room for room in found}


def hidden(names: list[str], lib: Path) -> list[str]:
    """Names that stand for a floor or a module as well."""
    return [name for name in names if (lib / name).is_dir() or (lib / f"{name}.py").exists()]


ROOMS = rooms(LIB)
FLOORS = list(dict.fromkeys(name.split(".")[1] for name in ORDER))
each_room = pytest.mark.parametrize("name", ROOMS)


@each_room
def test_imports_only_from_above(name: str) -> None:
    assert not (found := ROOMS[name].misplaced(ORDER)), "\n".join(found)


@each_room
def test_private_names_stay_at_home(name: str) -> None:
    assert not (found := ROOMS[name].private()), "\n".join(found)


@each_room
def test_length(name: str) -> None:
    text = ROOMS[name].text
    lines = len(text.splitlines()) - documented.added_lines(text)  # what the comments on parameters say, said again
    assert lines <= LINES, f"{name} has {lines} lines; more than {LINES} are two rooms"


def test_front_door() -> None:
    package = importlib.import_module(LIB.name)
    names = getattr(package, "__all__", [name for name in vars(package) if not name.startswith("_")])
    assert len(names) <= NAMES, f"from ftnb import * gives {len(names)} names, {NAMES} at most: {names}"
    assert not hidden(names, LIB), f"from ftnb import * gives names of floors or modules: {hidden(names, LIB)}"


@pytest.mark.parametrize("name", sorted({*ROOMS, *ORDER}))
def test_rooms_are_notebooks(name: str) -> None:
    assert name in ORDER, f"no notebook of nbs/sidebar.yml exports {name}"
    assert name in ROOMS, f"nbs/sidebar.yml names a room {name}, but there is no such module: make export"


@pytest.mark.parametrize("floor", FLOORS)
def test_floors(floor: str) -> None:
    """The rooms of a floor stand together, and its front page is one line."""
    places = [n for n, name in enumerate(ORDER) if name.split(".")[1] == floor]
    assert places == list(range(places[0], places[-1] + 1)), f"other rooms stand between those of {floor}"
    tree = ast.parse((LIB / floor / "__init__.py").read_text(encoding="utf-8"))
    assert len(tree.body) == 1 and ast.get_docstring(tree), f"ftnb/{floor}/__init__.py is not just one docstring"


# The checks themselves, on a house in which everything is wrong

HOUSE = {
    "core/errors.py": "from importlib import import_module\n_own = 1\ndef f(): import_module('ftnb.data.rows')\n",
    "core/files.py": "from .errors import Wrong\nfrom ftnb.core import errors as e\nWrong._x, e.__name__, self._own\n",
    "core/stray.py": "import json\n",
    "data/encoding.py": """
        from ..core.errors import _own
        from ..core import errors, files as f
        import ftnb.core.files
        import importlib
        def g():
            from . import rows
            from .. import data
            late = importlib.import_module('..core.errors', __package__)
            return errors._own, f._cache.x, ftnb.core.files._y, late._z, getattr(errors, '_w'), self._fine, rows.fine
        """,
    "data/rows.py": "from ftnb import load, __version__\nfrom .encoding import encode\nfrom ftnb._modidx import d\n",
    "human.py": "",
}
HOUSE_ORDER = ["ftnb.core.errors", "ftnb.core.files", "ftnb.data.encoding", "ftnb.data.rows"]
BELOW, NO_ROOM = "which does not stand above it in nbs/sidebar.yml", "which is not a room of nbs/sidebar.yml"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    lib = tmp_path / "ftnb"
    for path, text in HOUSE.items():
        (lib / path).parent.mkdir(parents=True, exist_ok=True)
        (lib / path).write_text(text.replace("\n        ", "\n"), encoding="utf-8")
        (lib / path).with_name("__init__.py").touch()
    (lib / "_modidx.py").touch()
    return lib


def test_checks_find_imports(house: Path) -> None:
    found = {name.removeprefix("ftnb."): room.misplaced(HOUSE_ORDER) for name, room in rooms(house).items()}
    assert found == {
        "core.errors": [f"line 3: ftnb.core.errors imports ftnb.data.rows, {BELOW}"],
        "core.files": [],
        "core.stray": [],
        "data.encoding": [
            f"line 7: ftnb.data.encoding imports ftnb.data.rows, {BELOW}",
            f"line 8: ftnb.data.encoding imports ftnb.data, {NO_ROOM}",
        ],
        "data.rows": [
            f"line 1: ftnb.data.rows imports load from ftnb, {NO_ROOM}",
            f"line 3: ftnb.data.rows imports d from ftnb._modidx, {NO_ROOM}",
        ],
        "human": [],
    }


def test_checks_find_private_names(house: Path) -> None:
    found = {name.removeprefix("ftnb."): room.private() for name, room in rooms(house).items() if room.private()}
    assert found == {
        "data.encoding": [
            "line 2: ftnb.data.encoding takes _own from ftnb.core.errors",
            "line 10: ftnb.data.encoding takes _cache from ftnb.core.files",
            "line 10: ftnb.data.encoding takes _own from ftnb.core.errors",
            "line 10: ftnb.data.encoding takes _w from ftnb.core.errors",
            "line 10: ftnb.data.encoding takes _y from ftnb.core.files",
            "line 10: ftnb.data.encoding takes _z from ftnb.core.errors",
        ],
        "data.rows": ["line 3: ftnb.data.rows takes d from ftnb._modidx"],
    }


def test_checks_find_hidden_names(house: Path) -> None:
    assert hidden(["data", "human", "encoding", "rows"], house) == ["data", "human"]
    assert {*HOUSE_ORDER} ^ {*rooms(house)} == {"ftnb.core.stray", "ftnb.human"}
