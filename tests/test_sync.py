"""Modules, README and stored outputs are what the notebooks say."""

import ast
import configparser
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nb
import nbformat
import pytest

each_notebook = pytest.mark.parametrize("path", nb.notebooks(), ids=nb.name)


def modules(lib: Path) -> dict[str, str]:
    found = (path for path in lib.rglob("*.py") if path.name != "__init__.py")  # these are written by hand
    return {path.relative_to(lib).as_posix(): path.read_text(encoding="utf-8") for path in found}


def test_modules_are_exported(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("_*", ".ipynb_checkpoints")
    for part in ("nbs", ".ci"):
        shutil.copytree(nb.ROOT / part, tmp_path / part, symlinks=True, ignore=ignore)
    shutil.copy(nb.ROOT / "settings.ini", tmp_path)
    subprocess.run([sys.executable, tmp_path / ".ci/nb.py", "export"], check=True, capture_output=True)
    fresh, kept = modules(tmp_path / "ftnb"), modules(nb.ROOT / "ftnb")
    stale = sorted(file for file in {*fresh, *kept} if fresh.get(file) != kept.get(file))
    assert not stale, f"not what the notebooks export: {stale}; make export"


def test_sidebar() -> None:
    """nbs/sidebar.yml gives every notebook its place."""
    paths = nb.notebooks()
    assert not [nb.name(path) for path in paths if not path.exists()], "named in nbs/sidebar.yml, but missing"
    assert not [nb.name(path) for path in nb.unlisted()], "not named in nbs/sidebar.yml"
    assert len({*paths}) == len(paths), "a notebook is named twice"


def test_version() -> None:
    text = (nb.ROOT / "ftnb/__init__.py").read_text(encoding="utf-8")
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(nb.ROOT / "settings.ini", encoding="utf-8")
    assert f'__version__ = "{settings["DEFAULT"]["version"]}"' in text, (
        "ftnb/__init__.py and settings.ini disagree: make export"
    )


def test_readme() -> None:
    assert nb.readme(check=True) == 0, "make nbs"


@each_notebook
def test_clean(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert nb.tidy(json.loads(text)) == text, "not tidy (metadata, counts, progress bars or widget views): make export"
    assert not list(nb.machine_paths(json.loads(text)))
    assert "skip_exec" not in text, "a notebook that is not executed proves nothing"


def needs_output(source: str) -> bool:
    """Does this cell certainly show something? A call may return None, unless it is one that shows; any other last
    expression is a value."""
    last = ast.parse(source).body[-1:]
    if not last or not isinstance(last[0], ast.Expr) or source.rstrip().endswith(";"):
        return False
    value = last[0].value
    if isinstance(value, ast.Call):
        return ast.unparse(value.func) in ("print", "display")
    return not isinstance(value, ast.Await | ast.Yield)


@each_notebook
def test_outputs_are_stored(path: Path) -> None:
    for n, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type != "code" or nb.directives(cell) & {"eval: false", "cuda", "hide"}:
            continue
        if cell.source.lstrip().startswith(("%", "!")):
            continue
        assert not any(o.output_type == "error" for o in cell.outputs), f"cell {n} (id {cell.id}) stored an error"
        assert cell.outputs or not needs_output(cell.source), f"cell {n} (id {cell.id}) has no stored output: make nbs"


@each_notebook
def test_first_cell(path: Path) -> None:
    """The website makes the page's head of the first cell: what else stands in it would be lost there."""
    lines = nbformat.read(path, as_version=4).cells[0].source.split("\n")
    title, description = lines[0], [line for line in lines[1:] if line]
    assert title.startswith("# ") and description and all(line.startswith("> ") for line in description), lines[0]
