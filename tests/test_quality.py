"""Lint and types, as tests, so that one run of pytest counts everything."""

import subprocess
import sys
from pathlib import Path

import nb
import nbformat
import pytest

TOOLS = [nb.name(path) for path in sorted((nb.ROOT / ".ci").glob("*.py"))]
# mypy holds ftnb to its own annotations; to follow torch and transformers as well takes minutes, and reports their
# stubs.
CHECKS = {
    "ruff": ["ruff", "check", "--output-format=concise", "ftnb", "tests", ".ci", "nbs", "setup.py"],
    "mypy": ["mypy", "--ignore-missing-imports", "--check-untyped-defs", "--follow-imports=skip", "ftnb", *TOOLS],
}


@pytest.mark.parametrize("tool", CHECKS)
def test_quality(tool: str) -> None:
    done = subprocess.run([sys.executable, "-m", *CHECKS[tool]], cwd=nb.ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


@pytest.mark.parametrize("path", nb.rooms(), ids=nb.name)
def test_line_length(path: Path) -> None:
    """In notebooks ruff sees neither the examples nor, for its own reasons, the length of exported lines."""
    for n, cell in enumerate(nbformat.read(path, as_version=4).cells):
        long = [line for line in cell.source.splitlines() if cell.cell_type == "code" and len(line) > 120]
        assert not long, f"cell {n} (id {cell.id})"
