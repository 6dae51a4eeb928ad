"""Human ratings: nothing given is lost, nothing is told too early, and bad input gets a clear error."""

import contextlib
import csv
import hashlib
import inspect
import os
import pydoc
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ftnb.core.errors import FTNBError
from ftnb.people import judge as judge_room
from ftnb.people.judge import judge
from ftnb.people.ratings import Ratings, _readable, open_ratings, rate
from ftnb.people.screen import STATIC, _screen_class, _state, screen
from ftnb.people.session import current_verdicts
from ftnb.people.store import APPLICATION_ID, SCHEMAS, overview
from ftnb.models.from_scratch import tiny_lm
from ftnb.evaluation.scores import Scores, load_scores
from ftnb.evaluation.scoring import score_texts
from ftnb.data.applications import free_text


def system(name: str, n: int = 12, start: int = 0, references: list[str] | None = None) -> Scores:
    """A system that wrote other texts than any other."""
    asked = [f"Question {i}?" for i in range(start, start + n)]
    texts = [f"{name} {i}" for i in range(start, start + n)]
    refs = [f"reference {i}" for i in range(start, start + n)] if references is None else references
    return score_texts(texts, refs, ("chrf",), None, asked, name, 100)


ONE, TWO = system("mole"), system("otter")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def all_rated(r: Ratings, prefer: str) -> Ratings:
    """Everything rated by somebody who always finds this system's texts better."""
    for key, flipped in r.order:
        item = r.item(key, flipped)
        r.record(item, "A" if item.A.startswith(prefer) else "B")
    return r


def python(code: str, *args: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True, **options)


# Several at once, and sudden ends

WRITE = """
import sys
from ftnb.people.ratings import open_ratings
r = open_ratings('ratings.db', rater=sys.argv[1])
for key, flipped in r.order:
    r.record(r.item(key, flipped), 'A')
    print(key, flush=True)
"""


def test_two_processes_lose_nothing() -> None:
    r = rate(system("a", 200), system("b", 200))
    for worker in [python(WRITE, name) for name in ("anna", "ben")]:
        said, _ = worker.communicate(timeout=120)
        assert worker.returncode == 0 and len(said.split()) == 200
    assert current_verdicts(r).groupby("rater").size().to_dict() == {"anna": 200, "ben": 200}
    with sqlite3.connect("ratings.db") as db:
        assert db.execute("SELECT count(*) FROM ratings").fetchone() == (400,)


def test_killed_while_rating() -> None:
    """What was acknowledged is there after kill -9, and rating goes on."""
    r = rate(system("a", 200), system("b", 200), rater="anna")
    worker = python(WRITE, "anna")
    assert worker.stdout
    said = [worker.stdout.readline().strip() for _ in range(20)]
    worker.kill()
    said += worker.stdout.read().split()
    assert worker.wait() == -9
    there = set(current_verdicts(r, "anna")["item"])
    assert set(said) <= there and len(there) <= len(said) + 1
    assert open_ratings(rater="anna").progress == (len(there), 200)
    r.record(r.next(), "tie")
    assert r.progress[0] == len(there) + 1


BEGIN = """
from ftnb.people.ratings import rate
from ftnb.evaluation.scoring import score_texts
make = lambda x: score_texts([x + str(i) for i in range(9)], ['r'] * 9, ('chrf',), None, None, x, 100)
print(rate(make('a'), make('b')).id)
"""


def test_begun_by_several_at_once() -> None:
    workers = [python(BEGIN) for _ in range(3)]
    ids = {w.communicate(timeout=120)[0].strip() for w in workers}
    assert [w.returncode for w in workers] == [0, 0, 0] and len(ids) == 1
    assert open_ratings().id in ids


# Files of all kinds


def older(file: Path) -> Ratings:
    """The first version of a file, with a rating in it."""
    now = rate(ONE, TWO, file="now.db")
    with contextlib.closing(sqlite3.connect(file)) as db, contextlib.closing(sqlite3.connect("now.db")) as new, db:
        for sql in SCHEMAS[1].split(";"):
            db.execute(sql)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("PRAGMA user_version = 1")
        db.execute("INSERT INTO sets VALUES (?, ?)", new.execute("SELECT id, content FROM sets").fetchone())
        db.execute("INSERT INTO ratings VALUES (1, ?, 'me', '3:0-1', 1, 'A', '2024-01-01')", [now.id])
    return now


def test_older_version(folder: Path) -> None:
    older(folder / "old.db")
    was = (folder / "old.db").read_bytes()
    r = open_ratings("old.db")
    assert r.to_pandas()[["row", "better"]].values.tolist() == [[3, "otter"]]
    r.record(r.next(), "tie", seconds=2.5)
    assert r.to_pandas()["seconds"].fillna(-1).tolist() == [-1, 2.5]
    assert "begun 2024-01-01 UTC, 2 ratings" in overview(Path("old.db"))  # the day of the first rating
    with contextlib.closing(sqlite3.connect("old.db.v1")) as db:  # the copy is whole
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM ratings").fetchone() == (1,)
    (folder / "old.db").write_bytes(was)  # somebody takes the old one back
    open_ratings("old.db")
    assert sorted(p.name for p in folder.glob("old*")) == ["old.db", "old.db.v1", "old.db.v1-1"]


def test_a_step_that_fails_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older(folder / "old.db")
    before = (folder / "old.db").read_bytes()
    monkeypatch.setitem(SCHEMAS, 2, SCHEMAS[2] + "; ALTER TABLE absent ADD COLUMN x")
    with pytest.raises(FTNBError, match="no such table"):
        open_ratings("old.db")
    assert (folder / "old.db").read_bytes() == before
    monkeypatch.undo()
    os.chdir(folder)
    assert len(open_ratings("old.db").to_pandas()) == 1


def newer(file: Path) -> None:
    rate(ONE, TWO, file=file)
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA user_version = 99")


def foreign(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE mine (x)")


def damaged(file: Path) -> None:
    all_rated(rate(system("a", 100), system("b", 100), file=file), "a")
    raw = bytearray(file.read_bytes())
    raw[4096:12288] = os.urandom(8192)
    file.write_bytes(raw)


def cut(file: Path) -> None:
    all_rated(rate(system("a", 100), system("b", 100), file=file), "a")
    file.write_bytes(file.read_bytes()[:5000])


FILES = {  # how it is made: what is said of it
    newer: "version 99 is newer than this ftnb",
    foreign: "a database of another program",
    damaged: "damaged|malformed",
    cut: "damaged|malformed",
    lambda file: file.write_text("Dear diary, " * 1000): "not a database",
}


@pytest.mark.parametrize("make", FILES, ids=lambda f: f.__name__.strip("<>"))
def test_files_that_are_refused(make, folder: Path) -> None:
    file = folder / "ratings.db"
    make(file)
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    for attempt in (lambda: rate(ONE, TWO), open_ratings):
        with pytest.raises(FTNBError, match=FILES[make]) as e:
            attempt()
        assert "ratings.db" in e.value.value and e.value.remedy
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before
    assert [p.name for p in folder.iterdir() if p.suffix != ".db"] == []


def as_nobody(do) -> int:
    """The exit status of a child without rights that does something; root may write everywhere."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        do()
        status = 0
    except FTNBError as e:
        status = 2 if "writable" in e.remedy else 3
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_read_only() -> None:
    place = Path(tempfile.mkdtemp())
    try:
        file = place / "ratings.db"
        r = rate(ONE, TWO, file=file)
        r.record(r.next(), "A")
        file.chmod(0o444)
        place.chmod(0o555)
        assert as_nobody(lambda: open_ratings(file).to_pandas()) == 0, "what is there can be read"
        assert as_nobody(lambda: r.record(r.next(), "A")) == 2
        assert as_nobody(lambda: rate(ONE, TWO, file=place / "new.db")) == 2
        assert r.progress == (1, 12)
    finally:
        place.chmod(0o755)
        shutil.rmtree(place)


# What is shown


@pytest.mark.parametrize("n,k,checks", [(1, 2, 0), (7, 2, 3), (40, 2, 0), (10, 3, 2), (9, 4, 0)])
def test_balanced(n: int, k: int, checks: int) -> None:
    given = [system(f"s{i}", n) for i in range(k)]
    orders = []
    for rater in ("anna", "ben"):
        r = rate(*given, file=f"{n}-{k}.db", rater=rater, checks=checks)
        keys = [key for key, _ in r.order]
        assert len(set(keys)) == len(keys) == n * k * (k - 1) // 2 + checks
        for pair in {r.items[key].systems for key in keys}:
            flips = [f for key, f in r.order if r.items[key].systems == pair]
            assert abs(2 * sum(flips) - len(flips)) <= 1, "each on the left as often as on the right"
        real = [key for key in keys if not r.items[key].check]
        for at in range(0, len(real), n):  # a round
            assert len({r.items[key].row for key in real[at : at + n]}) == n
            counts = Counter(r.items[key].systems for key in real[at : at + n])
            assert max(counts.values()) - min(counts.get(a, 0) for a in r.groups) <= 1
        orders.append(r.order)
    assert n < 3 or orders[0] != orders[1]


def test_sides_cannot_be_guessed() -> None:
    """Whoever knows the side of an item does not know that of the next."""
    flips = [f for _, f in rate(system("a", 400), system("b", 400)).order]
    assert 0.4 < np.mean(np.diff(flips) != 0) < 0.6


def test_blind(folder: Path) -> None:
    r = rate(ONE, TWO, checks=2)
    names = lambda text: any(n in text.replace("mole ", "").replace("otter ", "") for n in ("mole", "otter"))
    while item := r.next():
        assert not names(repr(item) + repr(r) + r._repr_html_() + str(_state(r)))
        r.record(item, "skip")
    assert "mole" in repr(r)
    assert not names(rate(ONE, TWO, rater="ben", checks=2).to_csv("sheet.csv").read_text("utf-8-sig"))


def test_prompts_of_chat_models() -> None:
    """Raters see what was asked, and not in which template."""
    prompt = "<|im_start|>system\nYou are X.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    for given, seen in {
        prompt: "Why?",
        "<bos><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n": "Why?",
        "<s>[INST] Why? [/INST]": "Why?",
        "Is 1 < 2, and user friendly?": "Is 1 < 2, and user friendly?",
        "The user said: <why>": "The user said: <why>",
    }.items():
        assert _readable(given) == seen


def test_equal_names() -> None:
    again = system("otter")
    again = score_texts(["else"] * 12, again.rows["reference"][:], ("chrf",), None, again.rows["prompt"][:], "otter")
    assert rate(TWO, again).systems == ["otter (1)", "otter (2)"]


def test_changes_are_kept() -> None:
    """To change one's mind, or to take a verdict back, deletes nothing."""
    r = rate(ONE, TWO)
    item = r.next()
    for choice in ("A", "tie", "B"):
        r.record(item, choice)
    assert r.to_pandas()["choice"].tolist() == ["B"]
    assert r.undo() == item == r.next() and r.undo() is None
    with contextlib.closing(sqlite3.connect("ratings.db")) as db:
        assert [c for (c,) in db.execute("SELECT choice FROM ratings")] == ["A", "tie", "B", None]


def test_several_comparisons_in_a_file() -> None:
    first, other = rate(ONE, TWO), rate(ONE, TWO, criteria=["fluency"])
    assert first.id != other.id and rate(TWO, ONE).id == first.id, "the order of systems does not matter"
    assert open_ratings(which=other.id).criteria == ["fluency"]
    first.record(first.next(), "A")
    third = rate(ONE, TWO, rows=1)
    with pytest.raises(FTNBError, match="the file holds 3 comparisons") as e:
        open_ratings()
    begun = r"begun \d{4}-\d\d-\d\d \d\d:\d\d UTC"
    for r, told in (
        (first, f"mole and otter, 12 rows, {begun}, 1 rating;"),
        (other, f"mole and otter by fluency, 12 rows, {begun}, 0 ratings;"),
        (third, f"mole and otter, 1 row, {begun}, 0 ratings\\."),
    ):
        assert re.search(f"which='{r.id}': {told}", e.value.remedy), e.value.remedy
    for which in ([], None, 3, ONE):
        with pytest.raises(FTNBError, match="holds 3 comparisons"):
            open_ratings(which=which)


def test_the_screen_is_in_the_package() -> None:
    """Its JavaScript and its style are files beside the code, and the widget has them."""
    there = {
        file.name: file.read_text(encoding="utf-8") for file in (resources.files("ftnb.people") / "static").iterdir()
    }
    assert set(there) == {"screen.js", "screen.css"} and all(there.values())
    assert there == {file.name: file.read_text(encoding="utf-8") for file in STATIC.iterdir()}
    widget = _screen_class()(state=_state(rate(ONE, TWO)))
    assert (widget._esm, widget._css) == (there["screen.js"], there["screen.css"])
    assert "export default { render }" in there["screen.js"] and "innerHTML" not in there["screen.js"]


METHODS = (
    "agreement check_failures from_csv judge_agreement mark_differences means metric_agreement ranking to_csv win_rates"
)


@pytest.mark.parametrize("name", METHODS.split())
def test_methods_are_documented(name: str) -> None:
    """What is a function of another room has its parameters and its documentation as a method, too."""
    from nbdev.showdoc import show_doc

    method = getattr(Ratings, name)
    text = pydoc.plain(pydoc.render_doc(method))
    page = show_doc(method, name=f"Ratings.{name}")._repr_markdown_()
    assert all(line.strip() in text for line in method.__doc__.splitlines()) and "Args:" in text
    assert method.__doc__.splitlines()[0] in page and f"Ratings.{name}" in page
    for parameter in inspect.signature(method).parameters:
        assert parameter in text and parameter in page


# Results


def test_equal_texts_are_ties() -> None:
    """Also while the rating goes on, where they count in proportion."""
    texts = [f"otter {i}" if i % 3 else f"mole {i}" for i in range(12)]  # in 4 of 12 rows the same as the mole's
    third = score_texts(texts, ONE.rows["reference"][:], ("chrf",), None, ONE.rows["prompt"][:], "third")
    r = rate(ONE, third, rater="anna")
    assert len(r.order) == 8
    for key, flipped in r.order[:4]:
        item = r.item(key, flipped)
        r.record(item, "A" if item.A.startswith("otter") else "B")
    half = r.results().iloc[0]
    assert (half["won"], half["identical"]) == (4, 4)
    assert half["win_rate"] == pytest.approx(100 * (4 + 2 * 0.5) / (4 + 2))
    all_rated(r, "otter")
    all_rated(rate(ONE, third, rater="ben"), "mole")
    both = r.results().iloc[0]
    assert (both["win_rate"], both["won"], both["lost"]) == (50, 8, 8)


@pytest.mark.parametrize("criteria", [(), ("fluency",)])
def test_agreement_is_the_libraries(criteria: tuple[str, ...]) -> None:
    """With missing ratings, alpha and kappa are what the libraries say of a table made by hand."""
    import krippendorff
    from sklearn.metrics import cohen_kappa_score

    rng, table = np.random.default_rng(0), np.full((3, 24 if criteria else 12), np.nan)
    for i, name in enumerate(("anna", "ben", "zoe")):
        r = rate(ONE, TWO, rater=name, criteria=criteria)
        where = {k: n for n, k in enumerate(sorted(r.items))}
        for key, flipped in r.order:
            value, item = int(rng.integers(1, 6 if criteria else 4)), r.item(key, flipped)
            if rng.random() < 0.2:
                continue
            table[i, where[key]] = value
            sides = {1: "BA"[not flipped], 2: "tie", 3: "AB"[not flipped]}
            r.record(item, {"fluency": value} if criteria else sides[value])
    found = r.agreement()
    level = "ordinal" if criteria else "nominal"
    alpha = krippendorff.alpha(table[:, (~np.isnan(table)).sum(0) >= 2], level_of_measurement=level)
    assert found["value"][0] == pytest.approx(alpha)
    both = table[:2, ~np.isnan(table[:2]).any(0)].astype(int)
    kappa = cohen_kappa_score(*both, weights="quadratic" if criteria else None)
    assert found["value"][1] == pytest.approx(kappa) and found["items"][1] == both.shape[1]


def test_too_little_to_agree_on() -> None:
    for name in ("anna", "ben"):
        r = rate(ONE, TWO, rater=name)
        r.record(r.next(), "tie")
    assert set(r.agreement()["note"]) <= {"fewer than 5 items rated by two", "fewer than 5 items in common"}
    for name in ("anna", "ben"):
        all_rated(rate(ONE, TWO, rater=name), "mole")
    notes = r.agreement()["note"]
    assert all("the same verdict on everything" in n for n in notes)
    assert "none: everybody" in repr(rate(ONE, TWO, rater="ben"))


def test_never_lost() -> None:
    """Strengths of a system that has never lost have no maximum: it is said, and they are finite."""
    best, middle, worst = (system(x, 6) for x in ("best", "middle", "worst"))
    r = rate(best, middle, worst)
    for key, flipped in r.order:
        item = r.item(key, flipped)
        r.record(item, "A" if item.A < item.B else "B")  # in alphabetical order
    table = r.ranking()
    assert list(table.index) == ["best", "middle", "worst"] and np.isfinite(table["strength"]).all()
    assert table["note"].str.contains("half a win").all()


def test_metrics_beside_people() -> None:
    worse = score_texts(["reference"] * 12, ONE.rows["reference"][:], ("chrf",), None, ONE.rows["prompt"][:], "bare")
    r = all_rated(rate(ONE, worse), "reference")
    assert r.metric_agreement(worse, ONE).loc["chrf", "agreement"] == 100
    some = all_rated(rate(ONE, worse, rows=[3, 7], file="some.db"), "mole")
    assert some.metric_agreement(worse, ONE).loc["chrf", ["agreement", "rows"]].tolist() == [0, 2]
    broken = Scores(
        worse.name,
        worse.metrics,
        worse.stats,
        worse.rows.remove_columns("chrf").add_column("chrf", [float("nan")] * 12),
        worse.intervals,
        worse.asked,
    )
    with pytest.raises(FTNBError, match="NaN"):
        r.metric_agreement(broken, ONE)


def test_checks_of_marks() -> None:
    """A text that comes again should get the same marks, within a point."""
    for name, jump in (("steady", 1), ("erratic", 2)):
        r, seen = rate(ONE, TWO, criteria=["fluency"], rater=name, checks=3), {}
        while item := r.next():
            r.record(item, {"fluency": 2 + jump * (item.A in seen)})
            seen[item.A] = True
        assert r.progress == (27, 27)
    assert r.check_failures().values.tolist() == [["erratic", 3, 3], ["steady", 3, 0]]
    assert set(r.results()["marks"]) == {24}, "checks are in no result"


def test_one_row_is_one_row() -> None:
    near = score_texts(["mole 0", *TWO.rows["prediction"][1:]], ONE.rows["reference"][:], ("chrf",), None, None, "near")
    shown = repr(all_rated(rate(ONE, near, prompts=["?"] * 12), "mole"))
    assert "the same text in 1 row " in shown and "on 12 rows" in shown
    assert "on 1 row\n" in repr(all_rated(rate(ONE, TWO, rows=[3]), "mole"))


def test_interval_and_p_value_agree() -> None:
    """Six wins of six: p is below 0.05, and the interval does not reach 50 %; five of five: neither."""
    for rows, p in ((6, 2 / 2**6), (5, 2 / 2**5)):
        r = all_rated(rate(system("a", rows), system("b", rows), file=f"{rows}.db"), "b")
        line = r.results().iloc[0]
        assert line["p_value"] == pytest.approx(p) and line["high"] == 100
        assert (line["low"] > 50) == (p < 0.05)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 8])
@pytest.mark.parametrize("kind", ["all alike", "apart", "one constant", "by chance"])
def test_marks_that_are_alike(kind: str, rows: int) -> None:
    """Every interval has a width and agrees with its p; no warning of NumPy's comes out of constant marks."""
    rng, one, two = np.random.default_rng(rows), system("p", rows), system("q", rows)
    for rater in ("anna", "ben"):
        r = rate(one, two, criteria=["style"], rater=rater)
        while item := r.next():
            chance = int(rng.integers(1, 6))
            marks = {"all alike": 5, "apart": 5 if item.A[0] == "q" else 1, "by chance": chance}
            r.record(item, {"style": marks.get(kind, 4 if rater == "anna" else chance)})
    means, gap = r.means(), r.mark_differences().iloc[0]
    assert ((means["low"] >= 1) & (means["low"] < means["high"]) & (means["high"] <= 5)).all()
    assert -4 <= gap["low"] < gap["high"] <= 4 and gap["low"] <= gap["difference"] <= gap["high"]
    if kind in ("all alike", "apart"):
        assert (gap["p_value"] < 0.05) == (not gap["low"] <= 0 <= gap["high"]) == (kind == "apart" and rows >= 6)
    for shown in (repr(r), r._repr_html_(), r.agreement(), r.judge_agreement(), r.metric_agreement(one, two)):
        assert len(shown) or kind


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [1, 2, 6])
def test_rankings_of_rows_that_are_alike(rows: int) -> None:
    r = all_rated(rate(system("a", rows), system("b", rows), system("c", rows)), "c")
    table = r.ranking()
    assert (table["high"] - table["low"] > 0.5).all() and repr(r)


# Sheets


def filled(path: Path, choose, **form) -> None:
    """Fill a sheet in, and save it as some program does."""
    with path.open(encoding="utf-8-sig", newline="") as f:
        lines = list(csv.DictReader(f))
    for line in lines:
        line["choice"] = choose(line)
    head, encoding = form.pop("head", ""), form.pop("encoding", "utf-8")
    with path.open("w", encoding=encoding, newline="") as f:
        f.write(head)
        out = csv.DictWriter(f, lines[0], **form)
        out.writeheader()
        out.writerows(lines)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"delimiter": ";", "encoding": "utf-8-sig"},
        {"delimiter": "\t", "encoding": "utf-16"},
        {"delimiter": ";", "head": "sep=;\r\n", "quoting": csv.QUOTE_ALL},
        {"encoding": "cp1252", "lineterminator": "\n"},
    ],
    ids=str,
)
def test_sheets(form: dict, folder: Path) -> None:
    r = rate(ONE, TWO)
    path = r.to_csv(folder / "sheet.csv")
    filled(path, lambda line: " b " if line["A"].startswith("mole") else "A", **form)
    anna = r.from_csv(path, "anna")
    assert anna.progress == (12, 12) and set(anna.to_pandas()["better"]) == {"otter"}
    assert r.progress == (0, 12)


def test_dangerous_cells(folder: Path) -> None:
    """No cell is a formula, and what comes back is what was asked."""
    bad = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'quoted", "＝1", '=HYPERLINK("x")', "\n=1", "-", "="]
    evil = score_texts(bad, ONE.rows["reference"][:], ("chrf",), None, bad, "evil")
    other = score_texts(TWO.rows["prediction"][:], ONE.rows["reference"][:], ("chrf",), None, bad, "other")
    r = rate(evil, other)
    path = r.to_csv(folder / "sheet.csv")
    with path.open(encoding="utf-8-sig", newline="") as f:
        cells = [cell for line in csv.reader(f) for cell in line]
    assert not [c for c in cells if c[:1] in tuple("=+-@\t\r\n＝")]
    filled(path, lambda line: "tie")
    assert len(r.from_csv(path, "zoe").to_pandas()) == 12


def test_sheets_with_mistakes(folder: Path) -> None:
    """Every bad cell is named, and nothing is taken over."""
    r, choices = rate(ONE, TWO), iter(["A", "B", "both", "tie", "", "C", "a", "b", "TIE", "skip", "1", "B"])
    path = r.to_csv(folder / "sheet.csv")
    filled(path, lambda line: next(choices))
    with pytest.raises(FTNBError, match="line 4: choice='both'.*line 7: choice='C'.*line 12: choice='1'") as e:
        r.from_csv(path, "anna")
    assert "Nothing was taken over" in e.value.remedy and not len(current_verdicts(r))
    right = iter(["A", "B", "A", "tie", "", "B", "a", "b", "TIE", "skip", "A", "B"])
    filled(path, lambda line: next(right))
    assert r.from_csv(path, "anna").progress == (11, 12), "an empty cell is not rated yet"


def test_a_sheet_whose_columns_were_sorted_alone(folder: Path) -> None:
    r = rate(ONE, TWO)
    path = r.to_csv(folder / "sheet.csv")
    with path.open(encoding="utf-8-sig", newline="") as f:
        lines = list(csv.reader(f))
    ids = sorted(line[0] for line in lines[1:])
    with path.open("w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([lines[0], *([i, *line[1:-1], "A"] for i, line in zip(ids, lines[1:]))])
    with pytest.raises(FTNBError, match="another one than was asked"):
        r.from_csv(path, "anna")


def as_excel_saves(path: Path, **form) -> None:
    """What a spreadsheet makes of a sheet that is opened, filled in and saved."""

    def kept(cell: str) -> str:
        if re.fullmatch(r"\d+e\d+", cell) and float(cell) < 1e308:
            return f"{float(cell):.2E}".replace(".", ",")
        if re.fullmatch(r"[\d.]+", cell) and cell.count(".") < 2:
            return f"{float(cell):g}"
        return {"1/2": "01. Feb", "MARCH1": "01. Mrz", "True": "WAHR", "(5)": "-5", "12:30": "12:30:00"}.get(cell, cell)

    lines = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
    with path.open("w", encoding="utf-16", newline="") as f:
        csv.writer(f, **{"delimiter": "\t", **form}).writerows([[*map(kept, line[:-1]), line[-1]] for line in lines])


LIKE_NUMBERS = ["00123", "1/2", "MARCH1", "True", "(5)", "12:30", "1e5", "71136143e8", "1.50", "007", "2", "-1"]


def test_texts_like_numbers(folder: Path) -> None:
    """A spreadsheet may have opened and saved the sheet: ids, texts, criteria and raters stay what they are."""
    asked = [f"{x} {i}" for i, x in enumerate(LIKE_NUMBERS)]
    one = score_texts(LIKE_NUMBERS, asked, ("chrf",), None, LIKE_NUMBERS, "007", 100)
    two = score_texts(LIKE_NUMBERS[::-1], asked, ("chrf",), None, LIKE_NUMBERS, "1-2", 100)
    r = rate(one, two)
    path = r.to_csv("sheet.csv")
    filled(path, lambda line: "A")
    as_excel_saves(path)
    done = r.from_csv(path, "007")
    assert done.progress == (len(r.order),) * 2 and set(done.to_pandas()["rater"]) == {"007"}
    assert set(done.to_pandas()["left"]) == {"007", "1-2"}
    assert all(re.fullmatch("x[0-9a-f]{10}", id) for id in r.ids)


def with_numeric_ids() -> tuple[Ratings, list[str]]:
    """Ratings some ids of which looked like numbers, as long as they had no letter before them."""
    for i in range(99):
        r = rate(system(f"a{i}", 60), system(f"b{i}", 60))
        shown = [r.item(*place).id[1:] for place in r.order]
        found = [id for id in shown if re.fullmatch(r"\d+e\d+", id) and float(id) < 1e308]
        if found:
            return r, found
    raise AssertionError("none")


def test_sheets_with_ids_of_before(folder: Path) -> None:
    """Sheets and ratings files of before stay readable, also where a spreadsheet has made a number of an id."""
    r, found = with_numeric_ids()
    path = r.to_csv("sheet.csv")
    filled(path, lambda line: "A")
    text = path.read_text("utf-8").replace("\nx", "\n")
    path.write_text(text, encoding="utf-8")
    assert found[0] in text and "\nx" not in text
    assert r.from_csv(path, "anna").progress == (60, 60)
    as_excel_saves(path)
    assert found[0] not in path.read_text("utf-16") and "E+" in path.read_text("utf-16")
    assert r.from_csv(path, "ben").progress == (60, 60)
    again = open_ratings(rater="me", which=r.id)
    again.record(found[0], "tie")
    assert set(again.to_pandas()["better"]) >= {"tie"} and open_ratings(which=r.id).progress[0] == 1
    text = path.read_text("utf-16")
    path.write_text(re.sub(r"(?m)^\d,\d\dE\+\d+", "1E+1", text), encoding="utf-16")
    with pytest.raises(FTNBError, match="line .*item='1E.1', a spreadsheet has made a number of it"):
        r.from_csv(path, "carl")


def test_a_text_that_a_spreadsheet_has_changed_is_named(folder: Path) -> None:
    one = score_texts(["1/2", "x"], ["", ""], ("chrf",), None, ["a", "b"], "one", 100)
    two = score_texts(["0.5", "y"], ["", ""], ("chrf",), None, ["a", "b"], "two", 100)
    r = rate(one, two)
    path = r.to_csv("sheet.csv")
    path.write_text(path.read_text("utf-8-sig").replace("'1/2", "01. Feb").replace("'0.5", "0.50"))  # as written before
    with pytest.raises(FTNBError, match="line .*text [AB] of item x.*'1/2' may have become '01. Feb'.*empty this cell"):
        r.from_csv(path, "anna")
    path.write_text(path.read_text().replace("01. Feb", ""))
    assert r.from_csv(path, "anna").progress == (0, 2)


@pytest.mark.parametrize(
    "bad", ["plain;=HYPERLINK(1)", "a\t =1", "a\n＝1", "a\r@x", " =1", '"=1', "\x01+1", "\u200b-1", "x,=1"]
)
def test_no_cell_is_a_formula_wherever_lines_are_split(bad: str, folder: Path) -> None:
    prompts = [bad, "b"]
    scores = [score_texts([bad, str(i)], prompts, ("chrf",), None, prompts, f"s{i}", 100) for i in range(2)]
    sheets = [
        rate(*scores, prompts=[f"{bad}{bad}", ";;"]).to_csv("a.csv"),
        rate(*scores, criteria=[bad]).to_csv("b.csv"),
    ]
    sheets += [scores[0].save("c.csv")]
    for path in sheets:
        text = path.read_text(encoding="utf-8-sig")
        for separator in ",;\t":
            for line in csv.reader(text.splitlines(), delimiter=separator):
                for cell in line:
                    assert not re.match('[\\s"\x01\u200b]*[=+@＝-]', cell), (separator, line)
    assert load_scores("c.csv").rows["prediction"][:] == [bad, "0"]


# Judges


def test_judges_are_asked_in_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that sees the texts is consistent; one that sees the sides is not. Neither is counted with people."""
    lm, asked = tiny_lm(context=2048), []

    def sees(lm, questions, labels):
        asked.extend(questions)
        first = lambda q: q.index("otter") < q.index("mole")
        side = lambda q: int(not first(q)) if "Question 1?" not in q else 0  # by the side, in one row
        return np.eye(3)[[side(q) for q in questions]]

    monkeypatch.setattr(judge_room, "_answer_probs", sees)
    r = judge(lm, ONE, TWO, name="fair")
    assert len(asked) == 24 and r.rater == "lm:fair"
    assert Counter(current_verdicts(r)["choice"]) == {"B": 11, "inconsistent": 1}
    people = all_rated(rate(ONE, TWO, rater="anna"), "mole")
    table = people.results().set_index("by")
    assert table.loc["people", "win_rate"] == 0 and table.loc["lm:fair", "win_rate"] == 100
    found = people.judge_agreement().iloc[0]
    assert (found["items"], found["common"], found["agrees"]) == (12, 11, 0)
    assert found["inconsistent"] == pytest.approx(100 / 12)
    judge(lm, ONE, TWO, name="fair")
    assert len(asked) == 24, "once judged is judged"


def test_judges_give_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    four = lambda lm, questions, labels: np.eye(5)[[3] * len(questions)]
    monkeypatch.setattr(judge_room, "_answer_probs", four)
    r = judge(tiny_lm(), ONE, TWO, criteria=["fluency", "adequacy"])
    assert set(r.results()["mean"]) == {4} and len(r.results()) == 4


def test_a_judge_without_a_consistent_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has rows without numbers, and the card says why; people's results are as they were."""
    monkeypatch.setattr(judge_room, "_answer_probs", lambda lm, questions, labels: np.eye(3)[[0] * len(questions)])
    people = all_rated(rate(ONE, TWO, rater="anna"), "otter")
    before = people.results()
    r = judge(tiny_lm(), ONE, TWO, name="left")
    table = r.results()
    pd.testing.assert_frame_equal(table[:1], before, check_dtype=False)
    line = table.iloc[1]
    assert line[["by", "won", "tied", "lost", "inconsistent"]].tolist() == ["lm:left", 0, 0, 0, 12]
    assert line[["win_rate", "low", "high", "p_value"]].isna().all()
    assert "none of its 12 answers is consistent" in repr(r) and "nan" not in repr(r)
    assert "no item in common" not in repr(r)
    with pytest.raises(FTNBError, match="no chain.*another judge"):
        r.ranking(by="lm:left")
    marked = iter(range(1000))
    monkeypatch.setattr(
        judge_room, "_answer_probs", lambda lm, questions, labels: np.eye(5)[[next(marked) % 2 for _ in questions]]
    )
    m = judge(tiny_lm(), ONE, TWO, criteria=["style"], name="torn")
    assert m.results()[["by", "system", "marks"]].values.tolist() == [["lm:torn", "mole", 0], ["lm:torn", "otter", 0]]
    assert "none of its 24 answers is consistent" in repr(m) and "nan" not in repr(m)
    assert not m.to_pandas()["skipped"].any() and m.to_pandas()["style"].isna().all()


# Nothing yet


@pytest.mark.parametrize("criteria", [(), ("fluency", "style")])
def test_no_verdicts(criteria: tuple[str, ...]) -> None:
    """Tables have their columns, and something says that there is nothing."""
    r = rate(ONE, TWO, criteria=criteria)
    own = ["system", *criteria, "skipped"] if criteria else ["left", "right", "choice", "better"]
    columns = ["rater", "row", "check", *own, "seconds", "at"]
    for state, word in (("new", "nothing: no verdict yet"), ("all skipped", "nothing: no verdict counts")):
        if state != "new":
            while item := r.next():
                r.record(item, "skip")
        assert list(r.to_pandas().columns) == columns, state
        assert len(r.results()) == 0 and {"by", "system", "low", "high"} <= set(r.results().columns), state
        agreement = r.agreement()
        assert set(agreement["note"]) == {"fewer than two people have rated"}, state
        assert agreement["criterion"].tolist() == (list(criteria) or ["better"]), state
        assert word in repr(r) and word in r._repr_html_(), state
    done = rate(ONE, TWO, criteria=criteria, rater="ben")
    done.record(done.next(), dict.fromkeys(criteria, 3) or "A")
    assert list(done.to_pandas().columns) == columns and "see results()" in repr(done)


@pytest.mark.parametrize(
    "rows", [np.arange(3), np.array([0, 1, 2], np.int32), pd.Series([0, 1, 2]), range(3), (0, 1, 2)]
)
def test_rows_of_any_kind(rows) -> None:
    r = rate(ONE, TWO, rows=rows)
    assert r.rows == [0, 1, 2] and r.id == rate(ONE, TWO, rows=[0, 1, 2]).id


@pytest.mark.parametrize("mark", [4, 4.0, np.int64(4), np.float32(4)], ids=repr)
def test_marks_of_any_kind(mark, folder: Path) -> None:
    """What a sheet may say, a script may say as well."""
    r = rate(ONE, criteria=["style"])
    r.record(r.next(), {"style": mark}, seconds=np.float32(1.5))
    assert r.to_pandas()[["style", "seconds"]].values.tolist() == [[4, 1.5]]


@pytest.mark.parametrize("cell,value", [("4", 4), ("4.0", 4), ("4,0", 4), ("4.5", None), ("4,5", None), ("0", None)])
def test_marks_in_a_sheet(cell: str, value: int | None, folder: Path) -> None:
    r = rate(ONE, criteria=["style"], rows=[0])
    path = r.to_csv(folder / "s.CSV")
    path.write_text(path.read_text("utf-8-sig").rstrip() + f'"{cell}"', "utf-8")
    if value is None:
        with pytest.raises(FTNBError, match="line 2: style=.*from 1 to 5"):
            r.from_csv(path, "anna")
    else:
        assert r.from_csv(path, "anna").to_pandas()["style"].tolist() == [value]


@pytest.mark.parametrize(
    "wrong", [ONE, pd.DataFrame({"a": [1, 2]}), None, "ratings.db"], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize(
    "do",
    [
        lambda r: Ratings.to_csv(r, "s.csv"),
        lambda r: Ratings.from_csv(r, "s.csv", "anna"),
        lambda r: Ratings.metric_agreement(r, ONE, TWO),
        Ratings.agreement,
        Ratings.ranking,
        Ratings.win_rates,
        Ratings.means,
        Ratings.mark_differences,
        Ratings.judge_agreement,
        Ratings.check_failures,
        screen,
        current_verdicts,
    ],
)
def test_no_ratings(do, wrong) -> None:
    with pytest.raises(FTNBError, match=r"must be Ratings\. Give what rate\(\.\.\.\)") as e:
        do(wrong)
    assert "\n" not in str(e.value) and len(e.value.value) < 60 and not list(Path().iterdir())


# Bad input


def first_of(r: Ratings, *verdict, **more) -> None:
    r.record(r.next(), *verdict, **more)


def finished() -> Ratings:
    return all_rated(rate(ONE, TWO), "mole")


def nothing_written(lm) -> Scores:
    from ftnb.evaluation.scoring import score

    return score(lm, ["a text", "another"], free_text(), progress=False)


CASES = {  # name: (what is done, words that the value, the rule and the remedy must have)
    "one system": (lambda: rate(ONE), ["mole", "two to choose from", "criteria="]),
    "the same system twice": (lambda: rate(ONE, ONE), ["mole (1) and mole (2)", "the same in every row", "differ"]),
    "other rows": (lambda: rate(ONE, system("x", 12, 50)), ["x (12 rows)", "the same rows", "Score both"]),
    "fewer rows": (lambda: rate(ONE, system("x", 5)), ["x (5 rows)", "the same rows", "Score both"]),
    "no scores": (lambda: rate(ONE, "otter"), ["system 1 is str", "must be Scores", "score("]),
    "free text": (
        lambda: rate(nothing_written(tiny_lm()), criteria=["style"]),
        ["prediction 0", "free text", "score_texts"],
    ),
    "checks without references": (
        lambda: rate(system("a", 3, 0, [""] * 3), system("b", 3, 0, [""] * 3), checks=1),
        ["checks=1", "a check needs a reference", "Change checks"],
    ),
    "other checks later": (
        lambda: (rate(ONE, TWO), rate(ONE, TWO, checks=2)),
        ["checks=2", "begun with checks=0", "Change checks"],
    ),
    "a judge's name": (lambda: rate(ONE, TWO, rater="lm:x"), ["lm:x", "judge", "Change rater"]),
    "no name": (lambda: rate(ONE, TWO, rater=" "), ["rater", "a name", "Change rater"]),
    "criteria as a text": (lambda: rate(ONE, TWO, criteria="style"), ["'style'", "list of str", "brackets"]),
    "rows that are not there": (lambda: rate(ONE, TWO, rows=[12]), ["rows[0]=12", "from 0 to 11", "Change rows[0]"]),
    "a row twice": (lambda: rate(ONE, TWO, rows=[1, 1]), ["[1, 1]", "once", "Change rows"]),
    "prompts of other rows": (
        lambda: rate(ONE, TWO, prompts=["?"]),
        ["prompts of 1 text", "each of 12 rows", "Change prompts"],
    ),
    "no folder": (lambda: rate(ONE, TWO, file="no/r.db"), ["no/r.db", "folder does not exist", "Make the folder"]),
    "a folder as a file": (lambda: rate(ONE, TWO, file="."), ["'.'", "it is no file", "Name another"]),
    "no file": (lambda: open_ratings("r.db"), ["r.db", "no such file", "rate("]),
    "unknown choice": (lambda: rate(ONE, TWO).record(rate(ONE, TWO).next(), "C"), ["'C'", "'A', 'B', 'tie'", "Change"]),
    "NaN as a choice": (lambda: rate(ONE, TWO).record(rate(ONE, TWO).next(), float("nan")), ["nan", "'tie'", "Change"]),
    "NaN as a mark": (
        lambda: rate(ONE, criteria=["style"]).record(rate(ONE, criteria=["style"]).next(), {"style": float("nan")}),
        ["style=nan", "from 1 to 5", "Change style"],
    ),
    "unknown criterion": (
        lambda: rate(ONE, criteria=["style"]).record(rate(ONE, criteria=["style"]).next(), {"stile": 3}),
        ["stile", "a mark for each of style", "{'style': 3}"],
    ),
    "unknown item": (lambda: rate(ONE, TWO).record("abc", "A"), ["'abc'", "none of this comparison", "next()"]),
    "a sheet that is there": (
        lambda: (Path("s.csv").touch(), rate(ONE, TWO).to_csv("s.csv")),
        ["s.csv", "filled in", "another name"],
    ),
    "a sheet of something else": (
        lambda: (Path("s.csv").write_text("a,b\n1,2\n"), rate(ONE, TWO).from_csv("s.csv", "x")),
        ["s.csv", "no column item", "to_csv"],
    ),
    "an empty sheet": (
        lambda: (Path("s.csv").touch(), rate(ONE, TWO).from_csv("s.csv", "x")),
        ["s.csv", "no column item", "to_csv"],
    ),
    "no ranking yet": (lambda: rate(ONE, TWO).ranking(), ["people", "no chain", "Rate more"]),
    "marks of pairs": (lambda: rate(ONE, TWO).means(), ["pairs", "another question", "win_rates"]),
    "no model as a judge": (lambda: judge("gpt", ONE, TWO), ["gpt", "must be an LM", "load_lm("]),
    "a criterion named like a text": (
        lambda: rate(ONE, criteria=["A"]),
        ["criterion 'A'", "there already", "another name"],
    ),
    "a criterion twice": (
        lambda: judge(tiny_lm(), ONE, criteria=["Style", "style"]),
        ["criterion 'style'", "there already", "another name"],
    ),
    "Scores as a model": (lambda: judge(ONE, ONE, TWO), ["lm is Scores", "must be an LM", "load_lm("]),
    "a judge's name that is none": (lambda: judge(tiny_lm(), ONE, TWO, name=3), ["name=3", "a text", "Change name"]),
    "nothing": (lambda: rate(None), ["system 0 is NoneType", "must be Scores", "score("]),
    "nothing and something": (lambda: rate(None, ONE), ["system 0 is NoneType", "must be Scores", "score("]),
    "Ratings for Scores": (lambda: rate(rate(ONE, TWO), ONE), ["system 0 is Ratings", "must be Scores", "score("]),
    "file=None": (lambda: rate(ONE, TWO, file=None), ["file=None", "must be a path", "Change file"]),
    "no file name": (lambda: rate(ONE, TWO, file=""), ["file=''", "must be a path", "Change file"]),
    "Scores as a file": (lambda: rate(ONE, TWO, file=TWO), ["file is Scores", "must be a path", "Change file"]),
    "judge, file=None": (lambda: judge(tiny_lm(), ONE, TWO, file=None), ["file=None", "must be a path", "Change"]),
    "open None": (lambda: open_ratings(None), ["file=None", "must be a path", "Change file"]),
    "Scores as a rater": (lambda: rate(ONE, TWO, rater=TWO), ["rater is Scores", "a name", "Change rater"]),
    "to_csv to None": (lambda: rate(ONE, TWO).to_csv(None), ["path=None", "must be a path", "Change path"]),
    "from_csv of None": (lambda: rate(ONE, TWO).from_csv(None, "x"), ["path=None", "must be a path", "Change path"]),
    "from_csv by nobody": (lambda: rate(ONE, TWO).from_csv("s.csv", None), ["rater=None", "a name", "Change rater"]),
    "a sheet for Excel": (
        lambda: rate(ONE, TWO).to_csv("x.xlsx"),
        ["'x.xlsx'", "written as CSV", "Write 'x.csv'"],
    ),
    "a sheet without an ending": (lambda: rate(ONE, TWO).to_csv("x"), ["'x'", "end in .csv", "Write 'x.csv'"]),
    "a sheet for who is done": (
        lambda: finished().to_csv("s.csv"),
        ["sheet for me", "nothing is left to rate: all 12 are rated", "another rater"],
    ),
    "a text as seconds": (lambda: first_of(rate(ONE, TWO), "A", seconds="x"), ["seconds='x'", "a number", "Change"]),
    "time that runs back": (lambda: first_of(rate(ONE, TWO), "A", seconds=-4), ["seconds=-4", "at least 0", "Change"]),
    "NaN seconds": (lambda: first_of(rate(ONE, TWO), "A", seconds=float("nan")), ["=nan", "at least 0", "Change"]),
    "endless seconds": (lambda: first_of(rate(ONE, TWO), "A", seconds=float("inf")), ["=inf", "a number", "Change"]),
    "after the last": (lambda: finished().record(None, "A"), ["item=None", "when all are rated", "Stop"]),
    "a list as an item": (lambda: rate(ONE, TWO).record([], "A"), ["item=[]", "none of this", "next()"]),
    "Scores as a choice": (lambda: first_of(rate(ONE, TWO), TWO), ["choice is Scores", "'A', 'B', 'tie'", "Change"]),
    "half a mark": (
        lambda: first_of(rate(ONE, criteria=["style"]), {"style": 4.5}),
        ["style=4.5", "a whole number from 1 to 5", "Change style"],
    ),
    "prompts that are numbers": (lambda: rate(ONE, TWO, prompts=[1] * 12), ["prompts[0]=1", "a text", "Change"]),
    "prompts in one text": (
        lambda: rate(ONE, TWO, prompts="123456789abc"),
        ["prompts='123456789abc'", "a list of 12 texts", "Change prompts"],
    ),
    "prompts of a number": (lambda: rate(ONE, TWO, prompts=3), ["prompts=3", "a list of 12 texts", "Change prompts"]),
    "rows as a text": (lambda: rate(ONE, TWO, rows="3"), ["rows='3'", "from 1 to 12, or a list", "Write rows=3"]),
    "rows of fractions": (
        lambda: rate(ONE, TWO, rows=np.array([0.0, 1.0])),
        ["rows[0]=0.0", "a whole number from 0 to 11", "Change rows[0]"],
    ),
    "rows as a mask": (lambda: rate(ONE, TWO, rows=np.ones(12, bool)), ["rows[0]=True", "a whole number", "Change"]),
    "no rows": (lambda: rate(ONE, TWO, rows=np.array([], int)), ["rows=[]", "one at least", "Change rows"]),
    "agreement of no Scores": (
        lambda: rate(ONE, TWO).metric_agreement(),
        ["no Scores", "those of mole and otter are missing", "Give all"],
    ),
    "agreement of one Scores": (
        lambda: rate(ONE, TWO).metric_agreement(TWO),
        ["Scores of otter", "those of mole are missing", "Give all"],
    ),
    "a judge that cannot read so much": (
        lambda: judge(tiny_lm(context=64), ONE, TWO),
        ["24 of 24 questions", "context of 64", "longer context"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str) -> None:
    do, words = CASES[case]
    with pytest.raises(FTNBError) as e:
        do()
    parts = [e.value.value, e.value.rule, e.value.remedy]
    for part, word in zip(parts, words, strict=True):
        assert word in part, parts
    assert "\n" not in str(e.value), "no card in a message"
