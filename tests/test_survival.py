"""What survives: what the library writes (`tests/subjects.py`), under each fault (`tests/faults.py`).
Afterwards what is read is bit-identical, or refused with an `FTNBError`; between an old and a new state, one of them.

    make survival FAULTS=2000                                       # many faults, drawn from a seed; the table
    .venv/bin/python tests/test_survival.py 'saved model' killed 7  # one fault again
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from beside import NOT_TRIED, VERBS, alone, beside
from faults import BY_NAME, FAULTS, Bench, Verdict, in_process
from subjects import ALL, SKIPPED, SUBJECTS
from survival_table import BESIDE, command

import ftnb


def plan(subject: str, bench: Bench, total: int | None, seed: int) -> list[tuple[str, int]]:
    """The faults that a subject gets, and how many of each: every second one once, or as many as make up the total."""
    can = [f.name for f in FAULTS if (subject, f.name) not in SKIPPED and bench.can(f.name)]
    if total is None:
        first = (list(SUBJECTS).index(subject) + seed) % 2
        return [(name, 1) for name in can if list(BY_NAME).index(name) % 2 == first]
    return [(name, max(1, round(total / len(ALL) / len(can)))) for name in can]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_survival(subject: str, tmp_path: Path, request: pytest.FixtureRequest, record_property: Any) -> None:
    total, seed = request.config.getoption("--faults"), request.config.getoption("--faults-seed")
    bench = Bench(SUBJECTS[subject], tmp_path / "bench")
    verdicts = []
    for fault, n in plan(subject, bench, total, seed):
        for i in range(n):
            verdicts.append(bench.trial(fault, seed * 1_000_000 + i))
            record_property("survival", json.dumps(vars(verdicts[-1])))
    failed = [v for v in verdicts if v.result == "failed"]
    lines = [f"{v.what}: {v.why}\n    {command(vars(v))}" for v in failed]
    if failed:
        pytest.fail(
            f"{len(failed)} of {len(verdicts)} faults did harm to: {subject}\n" + "\n".join(lines), pytrace=False
        )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    return in_process(alone, tmp_path_factory.mktemp("alone"), None)


@pytest.mark.parametrize("verb", VERBS)
def test_beside_a_run(verb: str, tmp_path: Path, expected: str, record_property: Any) -> None:
    killed = {"calls": 1, "refused": 0, "wrong": "the process died"}
    said = in_process(beside, verb, tmp_path / "place", None, expected, killed=killed)
    result = "failed" if said["wrong"] else "refused" if said["refused"] else "identical"
    what, why = f"{said['calls']} calls beside a run", said["wrong"] or said.get("why", "")
    record_property("survival", json.dumps(vars(Verdict(verb, BESIDE, 0, result, what, why))))
    if said["wrong"]:
        pytest.fail(f"{verb}, {what}: {why}", pytrace=False)


def test_every_public_name_is_tried() -> None:
    tried = {name for verb in VERBS for name in verb.split(",")[0].split()}
    missing = set(dir(ftnb)) - tried - set(NOT_TRIED)
    assert not missing, f"try them in tests/beside.py, or say why not: {sorted(missing)}"


def main(subject: str, fault: str, seed: str) -> None:
    """One trial, as the table names it."""
    with tempfile.TemporaryDirectory() as folder:
        verdict = Bench(SUBJECTS[subject], Path(folder) / "bench").trial(fault, int(seed))
    print(f"{verdict.subject}: {verdict.what}\n{verdict.result} {verdict.why}")
    sys.exit(verdict.result == "failed")


if __name__ == "__main__":
    main(*sys.argv[1:])
