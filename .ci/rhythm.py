#!/usr/bin/env python
"""The rhythm of the notebooks: how much code comes at once, and what comes between.

cells    exported cells; those that only import do not count
median   lines of an exported cell, directives left out; p90: of nine in ten cells at most; max: of the longest
run      the longest row of exported cells without prose or a stored output between them
words    words of prose for each exported line
output   cells that show something, for each exported cell
other    further code cells that a reader sees, for each exported cell
wide     share of the lines of code over 100 characters
"""

from __future__ import annotations

import argparse
import ast
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nb import NBS, directives, rooms

AIMS = {"median": 9, "p90": 18, "max": 45, "run": 3}  # at most
FORMATS = {"cells": "g"} | dict.fromkeys(AIMS, "g") | {"words": ".1f", "output": ".1f", "other": ".1f", "wide": ".0%"}
EXPORTS = {"export", "exports", "exporti"}
WIDE = 100


@dataclass
class Rhythm:
    """What is counted in a notebook, or in several."""

    exported: list[int] = field(default_factory=list)  # lines of each exported cell
    run: int = 0
    words: int = 0
    outputs: int = 0
    other: int = 0
    lines: int = 0  # of all code
    wide: int = 0

    def __add__(self, more: Rhythm) -> Rhythm:
        sums = {key: getattr(self, key) + value for key, value in vars(more).items() if key != "run"}
        return Rhythm(run=max(self.run, more.run), **sums)

    def values(self) -> dict[str, float]:
        """By column."""
        cells, lines = sorted(self.exported), sum(self.exported)
        return {
            "cells": len(cells),
            "median": statistics.median(cells or [0]),
            "p90": cells[math.ceil(0.9 * len(cells)) - 1] if cells else 0,
            "max": max(cells, default=0),
            "run": self.run,
            "words": self.words / max(1, lines),
            "output": self.outputs / max(1, len(cells)),
            "other": self.other / max(1, len(cells)),
            "wide": self.wide / max(1, self.lines),
        }


def only_imports(code: str) -> bool:
    try:
        return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(code).body)
    except SyntaxError:  # a magic
        return False


def rhythm(path: Path) -> Rhythm:
    found, run = Rhythm(), 0
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            found.words += sum(any(map(str.isalnum, word)) for word in cell.source.split())
            run = 0
        if cell.cell_type != "code":
            continue
        flags = {flag.split()[0] for flag in directives(cell)}
        lines = [line for line in cell.source.strip().splitlines() if not line.startswith("#|")]
        found.lines += len(lines)
        found.wide += sum(len(line) > WIDE for line in lines)
        found.outputs += bool(cell.outputs)
        if not flags & EXPORTS:
            found.other += not flags & {"hide", "default_exp"}
        elif not only_imports("\n".join(lines)):
            found.exported.append(len(lines))
            run += 1
            found.run = max(found.run, run)
        if cell.outputs:
            run = 0
    return found


def name(path: Path) -> str:
    return path.relative_to(NBS).with_suffix("").as_posix() if path.is_relative_to(NBS) else path.stem


def table(counted: dict[str, Rhythm], total: Rhythm) -> Iterator[str]:
    """Lines of aligned columns; a `!` stands behind what is beyond its aim."""
    width = max(map(len, [*counted, "at most"]))
    yield " " * width + "".join(f"{column:>7} " for column in FORMATS).rstrip()
    for title, one in {**counted, "all": total}.items():
        if one is total:
            yield "-" * (width + 8 * len(FORMATS) - 1)
        marked = {key: "!" if value > AIMS.get(key, math.inf) else " " for key, value in one.values().items()}
        cells = [f"{value:>7{FORMATS[key]}}{marked[key]}" for key, value in one.values().items()]
        yield (title.ljust(width) + "".join(cells)).rstrip()
    yield "at most".ljust(width) + "".join(f"{AIMS.get(column, ''):>7} " for column in FORMATS).rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="NOTEBOOK", help="all rooms, where none is named")
    parser.add_argument("--check", action="store_true", help="fail where the aims are missed")
    args = parser.parse_args()
    paths = [path.resolve() for path in args.paths] or rooms()
    counted = {name(path): rhythm(path) for path in paths}
    total = sum(counted.values(), Rhythm())
    print("\n".join(table(counted, total)))
    values = total.values()
    missed = [column for column, aim in AIMS.items() if values[column] > aim]  # max and run are those of the worst
    if args.check and missed:
        print(f"beyond the aim: {', '.join(missed)}")
    return int(args.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
