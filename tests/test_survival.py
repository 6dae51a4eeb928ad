"""What survives: each kind of thing that the library writes (`tests/subjects.py`), under each fault (`tests/faults.py`).
Afterwards what is read is bit-identical, or refused with an `FTNBError`; between an old and a new state, one of them.

    make survival FAULTS=2000                                       # many faults, drawn from a seed; the table
    .venv/bin/python tests/test_survival.py 'saved model' killed 7  # one fault again
"""

import itertools
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import BY_NAME, FAULTS, Bench, Verdict
from survival_table import command
from subjects import ALL, SKIPPED, SUBJECTS


def cells_of(subject: str, bench: Bench) -> list[str]:
    """The faults that can happen to a subject."""
    return [f.name for f in FAULTS if (subject, f.name) not in SKIPPED and bench.can(f.name)]


def shares(total: int | None, seed: int) -> Callable[[str, list[str]], list[int]]:
    """How many trials each fault gets: one of each, or as many as make up the total."""
    return lambda subject, faults: [1 if total is None else max(1, round(total / len(ALL) / len(faults)))] * len(faults)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_survival(subject: str, tmp_path: Path, request: pytest.FixtureRequest, record_property: Any) -> None:
    total, seed = request.config.getoption("--faults"), request.config.getoption("--faults-seed")
    bench = Bench(SUBJECTS[subject], tmp_path / "bench")
    faults = cells_of(subject, bench)
    verdicts = []
    for fault, n in zip(faults, shares(total, seed)(subject, faults), strict=True):
        for i in range(n):
            verdicts.append(bench.trial(fault, seed * 1_000_000 + i))
            record_property("survival", json.dumps(vars(verdicts[-1])))
    failed = [v for v in verdicts if v.result == "failed"]
    lines = [f"{v.what}: {v.why}\n    {command(vars(v))}" for v in failed]
    if failed:
        pytest.fail(f"{len(failed)} of {len(verdicts)} faults did harm to: {subject}\n" + "\n".join(lines), pytrace=False)


def main(subject: str, fault: str, seed: str) -> None:
    """One trial, as the table names it."""
    with tempfile.TemporaryDirectory() as folder:
        verdict = Bench(SUBJECTS[subject], Path(folder) / "bench").trial(fault, int(seed))
    print(f"{verdict.subject}: {verdict.what}\n{verdict.result} {verdict.why}")
    sys.exit(verdict.result == "failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
