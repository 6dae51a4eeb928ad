"""Files in which answers are kept, of models and of people: a bit that has changed is noticed, and what a kill or a
full disk leaves is gone on with."""

import contextlib
import csv
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftnb import generate, judge, open_ratings, rate, score_texts
from ftnb.core.errors import FTNBError
from ftnb.core import files
from ftnb.core.files import sealed
from ftnb.people import session, store
from ftnb.people.store import APPLICATION_ID, SCHEMAS

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


def two_systems() -> list[Any]:
    return [score_texts([f"{text} 1", f"{text} 2"], ["c", "d"], ("chrf",), name=text) for text in ("x", "y")]


NO_FILES = ["/dev/null", "", "  ", "a\0b", "x" * 300, "a/" * 3000, ".", "..", "no/such/folder.csv", "pipe.csv"]
NO_FILES += ["a\ud800",
            "loop.csv", "plain/below.csv", b"a.csv", None, 3]  # fmt: skip
FILE_DOORS = ["generate", "rate", "judge", "open_ratings", "to_csv", "from_csv"]


@pytest.mark.parametrize("name", NO_FILES, ids=lambda name: repr(name)[:20])
@pytest.mark.parametrize("door", FILE_DOORS)
def test_names_that_cannot_be(
    door: str, name: Any, lm: Any, tmp_path: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (door, name) == ("generate", None):
        pytest.skip("means: no file")
    ratings = rate(*two_systems(), file=tmp_path_factory.mktemp("other") / "ratings.db")
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.csv")
    os.symlink("loop.csv", "loop.csv")
    Path("plain").touch()
    doors = {
        "generate": lambda: generate(lm, PROMPTS, file=name, **HOW),
        "rate": lambda: rate(*two_systems(), file=name),
        "judge": lambda: judge(lm, *two_systems(), file=name),
        "open_ratings": lambda: open_ratings(name),
        "to_csv": lambda: ratings.to_csv(name),
        "from_csv": lambda: ratings.from_csv(name, "anna"),
    }
    with pytest.raises(FTNBError) as error:
        doors[door]()
    assert error.value.value and error.value.rule and error.value.remedy
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loop.csv", "pipe.csv", "plain"]
    assert stat.S_ISFIFO(Path("pipe.csv").stat().st_mode) and not Path("/dev/null.lock").exists()


def test_a_name_without_room_for_a_journal(tmp_path: Path) -> None:
    """SQLite's own file beside it has a longer name; nothing is begun that could not be gone on with."""
    for door in (rate, lambda a, b, file: open_ratings(file)):
        with pytest.raises(FTNBError):
            door(*two_systems(), file=tmp_path / ("x" * 250))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [":memory:", "file:x?mode=ro", "file::memory:?cache=shared", "a?b#c", "a%20b%zz", "a\nb", 'it\'s "a"', "a*[b]"],
)
def test_odd_names_are_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ratings = rate(*two_systems(), file=name)
    ratings.record(ratings.next(), "A")
    assert len(open_ratings(name).to_pandas()) == 1
    open_ratings(name).from_csv(ratings.to_csv(f"{name}.csv"), "anna")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, f"{name}.csv"])


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


def killed(do: Callable[[], Any], at: int) -> bool:
    """A child does something, and is killed when it calls SQLite or the disk for the `at`-th time."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    count, rooms = 0, {session.__file__, store.__file__, files.__file__}

    def watch(frame: Any, event: str, what: Any) -> None:
        nonlocal count
        ours = event in ("c_call", "c_return") and frame.f_code.co_filename in rooms
        if ours and (getattr(what, "__module__", None) or "sqlite3") in ("sqlite3", "posix"):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.setprofile(watch)
        do()
    finally:
        os._exit(0)


def older(file: Path, new: Path) -> None:
    """The same ratings in a file as the first version of ftnb wrote them."""
    with contextlib.closing(sqlite3.connect(file)) as db, contextlib.closing(sqlite3.connect(new)) as now, db:
        for sql in SCHEMAS[1].split(";"):
            db.execute(sql)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("PRAGMA user_version = 1")
        for id, content in now.execute("SELECT id, content FROM sets"):
            content = json.dumps({k: v for k, v in json.loads(content).items() if k != "sum"})
            db.execute("INSERT INTO sets VALUES (?, ?)", [id, content])
        columns = "n, set_id, rater, item, flipped, choice, at"
        db.executemany(f"INSERT INTO ratings VALUES (?{', ?' * 6})", now.execute(f"SELECT {columns} FROM ratings"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_an_old_file_is_migrated(rated: Path) -> None:
    times, at, given = 0, 0, found(rated)[0]
    older(rated.with_name("old.db"), rated)
    content = rated.with_name("old.db").read_bytes()
    before = {id: open_ratings(rated, which=id).to_pandas().drop(columns="seconds") for id in given}
    while True:
        at, times = at + 1 + at // 12, times + 1
        (place := rated.parent / str(at)).mkdir()
        file = place / "ratings.db"
        file.write_bytes(content)
        dead = killed(lambda f=file: open_ratings(f, which=given[0]), at)
        for id, table in before.items():
            now = open_ratings(file, which=id).to_pandas().drop(columns="seconds")
            assert now.to_json() == table.to_json(), f"call {at}"
        left = sorted(p.name for p in place.iterdir())
        assert left in (["ratings.db", "ratings.db.v1"], ["ratings.db", "ratings.db.v1", "ratings.db.v1-1"]), at
        for copy in place.glob("*.v1*"):
            with contextlib.closing(sqlite3.connect(copy)) as db:
                assert db.execute("SELECT count(*) FROM ratings").fetchone() == (9,), "copies are whole"
        if not dead:
            break
    assert times > 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_verdicts_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a sheet, or nothing, also if half of it was on the disk already."""
    monkeypatch.chdir(tmp_path)
    texts = [f"{i} " + "word " * 10 for i in range(200)]
    ratings = rate(*(score_texts([t + n for t in texts], texts, ("chrf",), name=n) for n in ("a", "b")))
    for _ in range(3):
        ratings.record(ratings.next(), "A")
    given, sheet = ratings.to_pandas().to_json(), ratings.to_csv("sheet.csv")
    rows = list(csv.reader(sheet.open(encoding="utf-8-sig", newline="")))
    with sheet.open("w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([rows[0], *([*row[:-1], "tie"] for row in rows[1:])])
    add = session.add_verdicts

    def spilling(db: sqlite3.Connection, *rest: Any) -> None:
        db.execute("PRAGMA cache_size = 1")  # pages are written before the end
        add(db, *rest)

    monkeypatch.setattr(session, "add_verdicts", spilling)
    start = Path("ratings.db").read_bytes()
    for at in (*range(1, 16, 2), 40, 100, 200, 300, *range(380, 430, 3)):
        for p in tmp_path.glob("ratings.db*"):
            p.unlink()
        Path("ratings.db").write_bytes(start)
        dead = killed(lambda: ratings.from_csv(sheet, "anna"), at)
        anna = open_ratings(rater="anna")
        assert anna.progress in ((0, 200), (197, 200)) and (dead or anna.progress[0]), f"call {at}"
        mine = anna.to_pandas()
        assert mine[mine["rater"] == "me"].reset_index(drop=True).to_json() == given
        assert not Path("ratings.db-journal").exists()


def test_a_sheet_that_is_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole rows count; a piece of one is refused, and then nothing is taken over."""
    monkeypatch.chdir(tmp_path)
    texts = ['one, "quoted"', "two\nlines", "three " * 60, "four"]
    systems = [score_texts([t + n for t in texts], texts, ("chrf",), prompts=texts, name=n) for n in ("a", "b")]
    for criteria, verdict in (([], ["tie"]), (["style", "truth"], ["4", "2"])):
        ratings = rate(*systems, criteria=criteria, file=f"{len(criteria)}.db")
        sheet = ratings.to_csv(f"{len(criteria)}.csv")
        rows = list(csv.reader(sheet.open(encoding="utf-8-sig", newline="")))
        filled = [rows[0], *([*row[: -len(verdict)], *verdict] for row in rows[1:])]
        lines = []
        for row in filled:
            with Path("line").open("w", encoding="utf-8", newline="") as f:
                csv.writer(f).writerow(row)
            lines.append(Path("line").read_bytes())
        content, ends = b"".join(lines), [len(b"".join(lines[:n])) for n in range(1, len(lines) + 1)]
        for end in range(ends[0], len(content) + 1):
            sheet.write_bytes(content[:end])
            whole = sum(e - 2 <= end for e in ends) - 1  # the line end may be missing
            try:
                done = ratings.from_csv(sheet, f"rater {end}").progress[0]
            except FTNBError as error:
                assert "Nothing was taken over" in error.remedy or "breaks off" in error.rule
                done, whole = open_ratings(ratings.file, rater=f"rater {end}").progress[0], 0
                assert end not in ends
            assert done == whole or content[end - 1 : end + 1] == b",t", (end, content[:end][-30:])
