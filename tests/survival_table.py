"""The table of what survived which faults: as text, and as a file that the documentation shows."""

import csv
import datetime
import platform
import subprocess
from collections import Counter
from pathlib import Path


def counted(found: list[dict]) -> dict[tuple[str, str], Counter]:
    """How often each result came of each subject and fault; in the order of `faults` and `subjects`."""
    from faults import FAULTS
    from subjects import ALL

    cells = {(s.name, f.name): Counter() for s in ALL for f in FAULTS}  # type: dict[tuple[str, str], Counter]
    for v in found:
        cells.setdefault((v["subject"], v["fault"]), Counter())[v["result"]] += 1
    return cells


BESIDE = "beside a run"  # the fault of a verb


def command(verdict: dict) -> str:
    """What does it again."""
    if verdict["fault"] == BESIDE:
        return f".venv/bin/python -m pytest tests/test_survival.py -k 'beside and {verdict['subject']}'"
    return f".venv/bin/python tests/test_survival.py {verdict['subject']!r} {verdict['fault']!r} {verdict['seed']}"


def as_text(found: list[dict]) -> str:
    """One row a subject, one column a fault: identical + refused, and failures with a mark."""
    beside = [v for v in found if v["fault"] == BESIDE]
    found = [v for v in found if v["fault"] != BESIDE]
    cells = counted(found)
    subjects, faults = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    width = max(map(len, subjects)) + 2

    def cell(counts: Counter) -> str:
        if not counts.total():
            return "."
        bad = f" {counts['failed']}!" if counts["failed"] else ""
        return f"{counts['identical']}+{counts['refused']}{bad}"

    lines = [" " * width + "".join(f"{fault:>13}" for fault in faults)]
    lines += [f"{s:<{width}}" + "".join(f"{cell(cells[s, f]):>13}" for f in faults) for s in subjects if s]
    total = sum((cells[key] for key in cells), Counter())
    failures = [
        f"\n{v['subject']}: {v['what']}: {v['why']:.240}\n    {command(v)}"
        for v in found + beside
        if v["result"] == "failed"
    ]
    names = {r: ", ".join(v["subject"] for v in beside if v["result"] == r) for r in ("identical", "refused", "failed")}
    verbs = [f"beside a run, {r}: {text}" for r, text in names.items() if text]
    end = f"{total.total()} faults: {total['identical']} bit-identical, {total['refused']} refused with an FTNBError, "
    lines += ["each cell: bit-identical + refused with an FTNBError; ! did harm; . cannot happen, or is not tried"]
    return "\n".join([*lines, f"{end}{total['failed']} did harm", *verbs, *failures, ""])


def write_table(file: Path, found: list[dict], seed: int) -> None:
    """The counts, one line a cell, after a line that says how they came about."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    import torch

    about = {"seed": seed, "date": datetime.date.today().isoformat(), "commit": commit}
    about |= {"machine": f"{platform.system()}, {platform.machine()}", "python": platform.python_version()}
    about |= {"torch": torch.__version__}
    with file.open("w", newline="") as f:
        print("# " + ", ".join(f"{k} {v}" for k, v in about.items()), file=f)
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["subject", "fault", "identical", "refused", "failed"])
        for (subject, fault), n in counted(found).items():
            out.writerow([subject, fault, n["identical"], n["refused"], n["failed"]])
