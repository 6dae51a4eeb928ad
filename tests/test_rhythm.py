"""The figures of `make rhythm`, of a notebook small enough to count by hand."""

import sys
from pathlib import Path

import pytest
import rhythm
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, writes

SHOWN = [new_output("stream", text="1")]
CELLS = [
    new_markdown_cell("# A title"),
    new_code_cell("#| default_exp a"),
    new_code_cell("#| export\nfrom __future__ import annotations\nimport os"),
    new_code_cell("#| hide\nimport sys"),
    new_code_cell("#| export\na = 1\nb = 2"),
    new_code_cell("a"),  # shows nothing: what comes next continues the run
    new_code_cell("#| exporti\n#| slow\nc = 3"),
    new_code_cell("%time a", outputs=SHOWN),
    new_code_cell("#| export\n" + "\n".join(f"d{n} = {n}" for n in range(8)) + "\ne = " + "9" * 97),
    new_markdown_cell("Four words of prose"),
]


def test_rhythm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(writes(new_notebook(cells=CELLS)), encoding="utf-8")
    assert rhythm.rhythm(path).exported == [2, 1, 9]
    values = rhythm.rhythm(path).values()
    assert values == {
        "cells": 3,
        "median": 2,
        "p90": 9,
        "max": 9,
        "run": 2,
        "words": 6 / 12,
        "output": 1 / 3,
        "other": 2 / 3,
        "wide": 1 / 17,
    }
    twice = sum([rhythm.rhythm(path)] * 2, rhythm.Rhythm()).values()
    assert twice == {**values, "cells": 6}
    for aim, status in {9: 0, 8: 1}.items():
        monkeypatch.setitem(rhythm.AIMS, "max", aim)
        monkeypatch.setattr(sys, "argv", ["rhythm.py", "--check", str(path)])
        assert rhythm.main() == status
        assert ("9!" in capsys.readouterr().out) == bool(status)
