"""Files in which answers are kept, of models and of people: a bit that has changed is noticed, and what a kill or a
full disk leaves is gone on with."""

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftnb import generate, open_ratings, rate, score_texts
from ftnb.core.errors import FTNBError
from ftnb.core.files import sealed

PROMPTS = ["To be", "or not", "中文 prompts", "To be"]
HOW: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.8, "progress": False}


@pytest.fixture(scope="module")
def texts(lm: Any) -> list[str]:
    return generate(lm, PROMPTS, **HOW)


@pytest.fixture
def answers(lm: Any, tmp_path: Path, texts: list[str]) -> Path:
    file = tmp_path / "answers.jsonl"
    assert generate(lm, PROMPTS, file=file, **HOW) == texts
    return file


def test_flipped_bits_of_answers(lm: Any, answers: Path, texts: list[str]) -> None:
    content, chance, refused = answers.read_bytes(), np.random.default_rng(0), 0
    for bit in chance.choice(8 * len(content), 60, replace=False):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        answers.write_bytes(bytes(flipped))
        try:
            assert generate(lm, PROMPTS, file=answers, **HOW) == texts, f"bit {bit}"
        except FTNBError as error:
            assert answers.name in str(error)
            refused += 1
    assert refused > 40


def test_answers_that_are_cut_anywhere(lm: Any, answers: Path, texts: list[str]) -> None:
    content = answers.read_bytes()
    for end in {*range(0, len(content), 37), *range(len(content) - 3, len(content) + 1)}:
        answers.write_bytes(content[:end])
        assert generate(lm, PROMPTS, file=answers, **HOW) == texts
        assert answers.read_bytes() == content
    answers.write_bytes(content[: len(content) - 20] + b"\0" * 20)  # what some disks leave after a power cut
    assert generate(lm, PROMPTS, file=answers, **HOW) == texts


ODD = [
    b"5",
    b"[]",
    b"null",
    b'"x"',
    b"{}",
    b"\xff\xfe",
    b"{" * 9999,
    b"\0\0",
    json.dumps(sealed({"prompt": 1})).encode(),
]


@pytest.mark.parametrize("odd", ODD)
def test_odd_lines_among_answers(odd: bytes, lm: Any, answers: Path, texts: list[str]) -> None:
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join([*lines[:2], odd + b"\n", *lines[2:]]))
    with pytest.raises(FTNBError, match=r"line 3 of .*Delete this line") as error:
        generate(lm, PROMPTS, file=answers, **HOW)
    assert "Delete this line" in error.value.remedy
    rest = [line for n, line in enumerate(answers.read_bytes().split(b"\n")) if n != 2]
    answers.write_bytes(b"\n".join(rest))
    assert generate(lm, PROMPTS, file=answers, **HOW) == texts
    answers.write_bytes(odd + b"\n" + b"".join(lines))
    with pytest.raises(FTNBError, match="no file of answers|line 1 of"):
        generate(lm, PROMPTS, file=answers, **HOW)


def test_lines_that_mean_the_same(lm: Any, answers: Path, texts: list[str]) -> None:
    lines = answers.read_bytes().splitlines(keepends=True)
    for same in (
        b"\r\n".join(line.rstrip(b"\n") for line in lines) + b"\r\n",  # a mail program's
        b"".join([*lines, *lines[1:]]),  # each twice
        b"\n\n".join(line.rstrip(b"\n") for line in lines) + b"\n",
        b"".join([lines[0], *lines[:0:-1]]),  # in another order
    ):
        answers.write_bytes(same)
        assert generate(lm, PROMPTS, file=answers, **HOW) == texts


@pytest.mark.parametrize("name", ["/dev/null", "", "a\0b", "x" * 300, ".", "no/such/folder.jsonl", "pipe", "a\ud800"])
@pytest.mark.parametrize("door", ["generate", "rate", "open_ratings"])
def test_names_that_cannot_be(door: str, name: str, lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    systems = [score_texts([text, "b"], ["c", "d"], ("chrf",), name=text) for text in ("x", "y")]
    doors = {
        "generate": lambda: generate(lm, PROMPTS, file=name, **HOW),
        "rate": lambda: rate(*systems, file=name),
        "open_ratings": lambda: open_ratings(name),
    }
    with pytest.raises(FTNBError):
        doors[door]()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"] and stat.S_ISFIFO(Path("pipe").stat().st_mode)
    assert not Path("/dev/null.lock").exists()


FULL = """
import resource, sys
from ftnb import generate, tiny_lm, FTNBError
from tests_how import PROMPTS, HOW
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try: generate(tiny_lm(), PROMPTS, file=sys.argv[1], **HOW)
except FTNBError as e: print(e)
"""


def test_a_full_disk_among_answers(lm: Any, answers: Path, texts: list[str], tmp_path: Path) -> None:
    content = answers.read_bytes()
    (tmp_path / "tests_how.py").write_text(f"PROMPTS = {PROMPTS!r}\nHOW = {HOW!r}\n")
    ends = [n + 1 for n, byte in enumerate(content) if byte == 10]
    for limit in (ends[0] - 5, ends[1] + 10, ends[2]):
        file = tmp_path / f"full{limit}.jsonl"
        done = subprocess.run(
            [sys.executable, "-c", FULL, file, str(limit)],
            env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert "cannot be written" in done.stdout and "Make room" in done.stdout, done.stderr
        assert file.read_bytes() == content[: max([0, *(e for e in ends if e <= limit)])], "only whole lines stay"
        assert generate(lm, PROMPTS, file=file, **HOW) == texts


@pytest.fixture
def rated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two comparisons with some verdicts of two raters, one of them taken back."""
    monkeypatch.chdir(tmp_path)
    words = ["the first", "the second", "another", "the last"]
    systems = [score_texts([f"{w} {name}" for w in words], words, ("chrf",), name=name) for name in ("a", "b")]
    for rater in ("anna", "bert"):
        ratings = rate(*systems, rater=rater)
        for choice in ("A", "B", "tie"):
            ratings.record(ratings.next(), choice, seconds=1.5)
        ratings.undo()
    marks = rate(systems[0], criteria=["fluency"])
    marks.record(marks.next(), {"fluency": 4})
    return tmp_path / "ratings.db"


def found(file: Path) -> list[Any]:
    """What a ratings file says, of each of its comparisons."""
    with contextlib.closing(sqlite3.connect(file)) as db:
        ids = [id for (id,) in db.execute("SELECT id FROM sets ORDER BY rowid")]
    said: list[Any] = [ids]
    for id in ids:
        ratings = open_ratings(file, which=id)
        said += [ratings.to_pandas().to_json(), ratings.systems, ratings.prompts, ratings.outputs, ratings.order]
    return said


def test_flipped_bits_of_ratings(rated: Path) -> None:
    content, before, chance, refused = rated.read_bytes(), found(rated), np.random.default_rng(0), 0
    used = np.flatnonzero(np.frombuffer(content, np.uint8))  # most of a small file is zeros
    bits = [int(at) * 8 + int(chance.integers(8)) for at in chance.choice(used, 250, replace=False)]
    bits += chance.choice(8 * len(content), 50).tolist()
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file = rated.with_name("flipped.db")
        for old in rated.parent.glob("flipped*"):
            old.unlink()
        file.write_bytes(bytes(flipped))
        try:
            assert found(file) == before, f"bit {bit} of byte {bit // 8}"
        except (FTNBError, sqlite3.Error, UnicodeDecodeError) as error:  # the last two: from this test's own reading
            assert not isinstance(error, FTNBError) or "flipped.db" in str(error), error
            refused += 1
    assert refused > 100


def test_changed_verdicts_are_refused(rated: Path) -> None:
    changes = {
        "UPDATE ratings SET choice = 'A' WHERE choice = 'B'": "is not as it was given",
        "UPDATE ratings SET rater = 'x' WHERE n = 2": "verdict 2 is not as it was given",
        "DELETE FROM ratings WHERE n = 3": "is not as it was given",
        "DELETE FROM ratings WHERE n = (SELECT max(n) FROM ratings)": "verdicts are missing",
        "UPDATE sets SET content = replace(content, 'the first', 'the worst')": "is not as it was begun",
        "UPDATE sets SET id = 'x' WHERE rowid = 1": "is not as it was begun",
        """UPDATE sets SET content = replace(content, '"seed": 0', '"seed": 1')""": "is not as it was begun",
    }
    for n, (sql, words) in enumerate(changes.items()):
        file = rated.with_name(f"{n}.db")
        shutil.copy(rated, file)
        with contextlib.closing(sqlite3.connect(file)) as db, db:
            db.execute(sql)
        with pytest.raises(FTNBError, match=words):
            found(file)
