"""One rule at every door: half of a character is refused with an `FTNBError`, and whatever else Unicode has is text."""

import csv
import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pydantic
import pytest

from ftnb import (
    Chat,
    FTNBError,
    ScoreMonitor,
    Task,
    dialogue,
    encode,
    finetune,
    free_text,
    generate,
    judge,
    label_probs,
    load_checkpoint,
    load_lm,
    load_scores,
    metric,
    next_tokens,
    open_ratings,
    random_gpt2,
    rate,
    resume,
    save_lm,
    score,
    score_texts,
    sentiment,
    stream,
    summarization,
    text_metric,
    tiny_lm,
    train_tokenizer,
    translation,
)
from ftnb.core.tables import escape_cell, read_csv, unescape_cell, write_csv

HALF = json.loads('"\\ud83d"')
ODD = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\x00j"  # all that str.splitlines takes for line ends, and a zero
TASK = summarization()
LLAMA, CHAT, T5, CALLS = tiny_lm(), tiny_lm(chat=True), tiny_lm("t5"), tiny_lm(chat=True)
CALLS.tokenizer.chat_template = (
    "{% for m in messages %}[{{m.role}}]{{m.content}}{% for c in m.tool_calls or [] %}{{c.function.name}}{% endfor %}"
    "{{eos_token}}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def asked(content: str, **turn: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "b", **turn}]


def call(name: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "arguments": {}}}]


def scores(text: str = "one", name: str = "a") -> Any:
    return score_texts([text, "two", "three"], ["one", "two", "four"], ("chrf",), name=name, prompts=["p", "q", "r"])


def ratings(d: Path, **options: Any) -> Any:
    return rate(scores(), scores("other", "b"), file=d / "ratings.db", **options)


def written(lm: Any, **options: Any) -> Any:
    return generate(lm, "a", max_new_tokens=2, **options)


def scored(text: str, **options: Any) -> Any:
    rows = [{"text": "a", "summary": text}]
    return score(LLAMA, rows, TASK, max_new_tokens=2, progress=False, **options)


def added(x: str) -> Any:
    m = metric("chrf")
    m.add(prediction=x, reference="a")
    return m.compute()


def in_schema(x: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": x}, "additionalProperties": False}


DOORS: dict[str, Callable[[str, Path], Any]] = {
    "encode": lambda x, d: encode(LLAMA, [x, "b"]),
    "encode, validation": lambda x, d: encode(LLAMA, {"train": ["a"], "valid": [x]}),
    "encode, prompt": lambda x, d: encode(LLAMA, [{"prompt": x, "completion": "b"}]),
    "encode, completion": lambda x, d: encode(LLAMA, [{"prompt": "a", "completion": x}], cache=True),
    "encode, encoder-decoder": lambda x, d: encode(T5, [{"prompt": x, "completion": "b"}]),
    "encode, messages": lambda x, d: encode(CHAT, [{"messages": asked(x)}]),
    "encode, calls": lambda x, d: encode(CALLS, [{"messages": asked("a", tool_calls=call(x))}]),
    "encode, tools": lambda x, d: encode(CHAT, [{"messages": asked("a"), "tools": call(x)}]),
    "encode, template": lambda x, d: encode(CHAT, [{"messages": asked("a"), "chat_template_kwargs": {"k": x}}]),
    "encode, table": lambda x, d: encode(LLAMA, pd.DataFrame({"text": pd.Series([x], dtype=object)})),
    "encode, stream": lambda x, d: next(
        iter(encode(LLAMA, datasets.IterableDataset.from_generator(lambda: iter([{"text": x}]))).train)
    ),
    "system": lambda x, d: encode(CHAT, [{"messages": asked("a")}], dialogue(system=x)),
    "instruction": lambda x, d: encode(LLAMA, [{"text": "a", "summary": "b"}], summarization(instruction=x)),
    "language": lambda x, d: encode(LLAMA, [{"source": "a", "target": "b"}], translation(to=x)),
    "labels": lambda x, d: sentiment(labels=["a", x]),
    "task": lambda x, d: Task(x, ("text",), target=str),
    "column": lambda x, d: Task("t", (x,), target=str),
    "cue": lambda x, d: Task("t", ("text",), target=str, cue=x),
    "tokenizer": lambda x, d: train_tokenizer(iter(["abc", x]), 300),
    "generate": lambda x, d: generate(LLAMA, ["a", x], max_new_tokens=2),
    "generate, stop": lambda x, d: written(LLAMA, stop=["b", x]),
    "generate, one stop": lambda x, d: written(LLAMA, stop=x, file=d / "answers.jsonl"),
    "generate, pattern": lambda x, d: written(LLAMA, pattern="a" + x),
    "generate, schema": lambda x, d: written(LLAMA, schema=in_schema({"enum": ["a", x]})),
    "generate, const": lambda x, d: written(LLAMA, schema={"const": x}),
    "generate, title": lambda x, d: written(LLAMA, schema={"type": "null", "title": x}),
    "generate, description": lambda x, d: written(LLAMA, schema=in_schema({"type": "null", "description": x})),
    "generate, definition": lambda x, d: written(LLAMA, schema={"type": "null", "$defs": {x: {}}}),
    "generate, class": lambda x, d: written(LLAMA, schema=pydantic.create_model("M", a=(int, pydantic.Field(title=x)))),
    "generate, file": lambda x, d: written(LLAMA, pattern="a|" + x, file=d / "answers.jsonl"),
    "stream, pattern": lambda x, d: list(stream(LLAMA, "a", max_new_tokens=2, pattern="a|" + x)),
    "stream, schema": lambda x, d: list(stream(LLAMA, "a", max_new_tokens=2, schema={"enum": [x]})),
    "generate, key": lambda x, d: written(LLAMA, schema={"type": "object", "properties": {x: {"type": "null"}}}),
    "stream": lambda x, d: list(stream(LLAMA, x, max_new_tokens=2)),
    "stream, stop": lambda x, d: list(stream(LLAMA, "a", max_new_tokens=2, stop=x)),
    "next_tokens": lambda x, d: next_tokens(LLAMA, x),
    "label_probs": lambda x, d: label_probs(LLAMA, x, ["a", "b"]),
    "label_probs, labels": lambda x, d: label_probs(LLAMA, "x", ["a", x]),
    "Chat": lambda x, d: Chat(CHAT, max_new_tokens=2)(x),
    "Chat, system": lambda x, d: Chat(CHAT, system=x, max_new_tokens=2),
    "Chat, stop": lambda x, d: Chat(CHAT, stop=x),
    "finetune, samples": lambda x, d: finetune(LLAMA, encode(LLAMA, ["a b"]), samples=[x], progress=False),
    "score": lambda x, d: scored(x),
    "score, name": lambda x, d: scored("b", name=x),
    "score, stop": lambda x, d: scored("b", stop=x),
    "score, free text": lambda x, d: score(LLAMA, [x], free_text()),
    "score, labels": lambda x, d: score(
        LLAMA, [{"text": "b", "label": "a"}], sentiment(labels=["a", x]), max_new_tokens=2, progress=False
    ),
    "ScoreMonitor": lambda x, d: ScoreMonitor(LLAMA, [{"text": "b", "summary": x}], TASK),
    "predictions": lambda x, d: score_texts([x, "a"], ["a", "b"], ("chrf",)),
    "references": lambda x, d: score_texts(["a", "a"], [["b", x], ["a", "c"]], ("chrf",)),
    "no references": lambda x, d: score_texts(["a", x], None, ("distinct2",)),
    "prompts": lambda x, d: score_texts(["a", "a"], ["b", "c"], ("chrf",), prompts=["a", x]),
    "name": lambda x, d: scores(name=x),
    "baseline": lambda x, d: score_texts(["a", "a"], ["b", "c"], ("chrf",), baseline=["a", x]),
    "probabilities": lambda x, d: score_texts([{"a": 0.5, x: 0.5}], ["a"], ("log_loss",)),
    "brier": lambda x, d: metric("brier").compute(predictions=[{"a": 0.5, x: 0.5}], references=["a"]),
    "copy_rate": lambda x, d: metric("copy_rate").compute(predictions=["a"], prompts=[x]),
    "novelty": lambda x, d: text_metric("novelty", train=["a b c d e", x]),
    "add": lambda x, d: added(x),
    "criteria": lambda x, d: ratings(d, criteria=[x]).to_csv(d / "sheet.csv"),
    "rater": lambda x, d: ratings(d, rater=x),
    "other rater": lambda x, d: open_ratings(ratings(d).file, rater=x),
    "rater of a sheet": lambda x, d: ratings(d).from_csv(ratings(d).to_csv(d / "sheet.csv"), x),
    "rated prompts": lambda x, d: ratings(d, prompts=["a", "b", x]).to_csv(d / "sheet.csv"),
    "question": lambda x, d: judge(CHAT, scores(), scores("other"), file=d / "r.db", question=x),
    "judge": lambda x, d: judge(CHAT, scores(), scores("other"), file=d / "r.db", name=x),
    "cell": lambda x, d: write_csv(d / "t.csv", ["a"], [[x]]),
    "nested cell": lambda x, d: write_csv(d / "t.csv", ["a"], [[{"k": [x]}]]),
    "head": lambda x, d: write_csv(d / "t.csv", [x], [["a"]]),
}
for name in (
    "bleu",
    "bleu_zh",
    "chrf",
    "ter",
    "rougeL",
    "exact_match",
    "f1",
    "self_bleu",
    "repetition",
    "length_ratio",
):
    given: dict[str, list[str]] = {} if name in ("self_bleu", "repetition") else {"references": ["a b", "c d"]}
    DOORS[f"metric {name}"] = lambda x, d, n=name, g=given: metric(n).compute(predictions=["a b", f"c {x}"], **g)
PATHS: dict[str, Callable[[Path], Any]] = {
    "save_lm": lambda p: save_lm(LLAMA, p),
    "load_lm": load_lm,
    "encode": lambda p: encode(LLAMA, p.with_name(p.name + ".txt")),
    "checkpoint": lambda p: finetune(LLAMA, encode(LLAMA, ["a b"]), checkpoint=p, progress=False),
    "resume": resume,
    "load_checkpoint": load_checkpoint,
    "answers": lambda p: written(LLAMA, file=p),
    "scores.save": lambda p: scores().save(p.with_name(p.name + ".csv")),
    "load_scores": lambda p: load_scores(p.with_name(p.name + ".csv")),
    "rate": lambda p: rate(scores(), scores("other"), file=p),
    "open_ratings": open_ratings,
    "judge": lambda p: judge(CHAT, scores(), scores("other"), file=p),
    "random_gpt2": lambda p: random_gpt2(p, n_layer=1, n_embd=16, n_head=2),
    "to_csv": lambda p: ratings(p.parent).to_csv(p.with_name(p.name + ".csv")),
    "from_csv": lambda p: ratings(p.parent).from_csv(p.with_name(p.name + ".csv"), "anna"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTNB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("door", DOORS)
def test_half_of_a_character(door: str, tmp_path: Path) -> None:
    for n, half in enumerate((HALF, f"a b c d {HALF}", f"{HALF}🙂")):
        (folder := tmp_path / str(n)).mkdir()
        with pytest.raises(FTNBError, match="half of a character") as error:
            DOORS[door](half, folder)
        assert error.value.value and error.value.remedy
        print(error.value)  # a message can always be written


@pytest.mark.parametrize("door", DOORS)
def test_odd_characters_are_text(door: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        DOORS[door](ODD, tmp_path)


@pytest.mark.parametrize("door", PATHS)
@pytest.mark.parametrize("name", [HALF, "a\0b"])
def test_no_file_has_such_a_name(door: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(FTNBError):
        PATHS[door](tmp_path / name)


def test_odd_characters_end_no_line(tmp_path: Path) -> None:
    """A row stays one row in each kind of file, and its text stays what it is."""
    texts = [ODD, "x", ODD + ODD]
    lines = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    files = {
        "a.jsonl": "\n".join(lines),
        "a.json": f"[{','.join(lines)}]",
        "a.csv": "\n".join(["text,n", *(f"{t},1" for t in texts)]),
        "a.tsv": "\r\n".join(["text\tn", *(f"{t}\t1" for t in texts)]),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
        data = encode(LLAMA, tmp_path / name)
        ids = data.train["input_ids"]
        assert [LLAMA.tokenizer.decode(i, skip_special_tokens=True) for i in ids] == texts, name
    (tmp_path / "a.txt").write_text(ODD, encoding="utf-8", newline="")
    assert encode(LLAMA, tmp_path / "a.txt").report["rows"] == 1
    saved = score_texts(texts, texts, ("chrf",), prompts=texts, name=ODD)
    for name in ("s.csv", "s.jsonl", "s.parquet"):
        saved.save(tmp_path / name)
        again = load_scores(tmp_path / name)
        assert again.rows[:] == saved.rows[:] and again.name == ODD, name
    rated = rate(saved, score_texts(["1", "2", "3"], texts, ("chrf",), prompts=texts), file=tmp_path / "r.db")
    table = read_csv(rated.to_csv(tmp_path / "sheet.csv"), strict=False)
    assert len(table.rows) == 3
    filled = [[*row.values()][:-1] + ["A"] for row in table.rows]
    write_csv(tmp_path / "filled.csv", table.columns, filled)
    assert rated.from_csv(tmp_path / "filled.csv", "anna").progress == (3, 3)


ALPHABET = [
    *"'\"=+-@＝;,\t\r\n |eE01/.: aé中",
    "\ufeff",
    "\u200b",
    "\x00",
    "\x85",
    "\u2028",
    "';'",
    "true",
    "Mar 5",
    "😀",
]


@pytest.mark.parametrize("seed", range(5))
def test_every_text_comes_back_from_a_table(seed: int, tmp_path: Path) -> None:
    """Whatever a cell holds, its own escapes, and every separator."""
    draw = random.Random(seed)
    texts = ["".join(draw.choices(ALPHABET, k=draw.choice([0, 1, 2, 3, 4, 9, 60]))) for _ in range(3000)]
    assert [unescape_cell(escape_cell(t)) for t in texts] == texts
    rows = [texts[i : i + 3] for i in range(0, 3000, 3)]
    write_csv(tmp_path / "t.csv", [f"a{texts[0]}", f"{texts[1]}b", f"{texts[2]}"], rows, bom=bool(seed % 2))
    table = read_csv(tmp_path / "t.csv", separator=",")
    assert [unescape_cell(c) or "" for c in table.columns] == [f"a{texts[0]}", f"{texts[1]}b", texts[2]]
    assert [[unescape_cell(cell) for cell in row.values()] for row in table.rows] == rows
    nested = [[t, {t: [-1, t]}] for t in texts]
    assert [json.loads(escape_cell(n)) for n in nested] == nested


def test_a_table_that_cannot_be_written_is_not_begun(tmp_path: Path) -> None:
    for rows in ([["a"], [HALF]], [["a"], [["b", {"c": HALF}]]], [["a"], [{1, 2}]]):
        with pytest.raises((FTNBError, TypeError)):
            write_csv(tmp_path / "t.csv", ["a"], rows)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("separator", ",;\t")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_million_characters_in_a_cell(separator: str, encoding: str, tmp_path: Path) -> None:
    long = ['a "b";,\t\n' * 110_000, "x" * 1_000_000, "=1;=2\n" * 200_000]
    write_csv(tmp_path / "t.csv", ["n", "text"], enumerate(long), bom=True)
    cells = [*map(escape_cell, long)]
    with (tmp_path / "o.csv").open("w", encoding=encoding, newline="") as f:
        csv.writer(f, delimiter=separator).writerows([["n", "text"], *enumerate(cells)])
    before = csv.field_size_limit(4321)
    try:
        for name in ("t.csv", "o.csv"):
            assert [unescape_cell(row["text"]) for row in read_csv(tmp_path / name).rows] == long
            assert csv.field_size_limit() == 4321
    finally:
        csv.field_size_limit(before)


def test_a_row_with_half_of_a_character_can_be_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d"}\n{"text": "b"}\n')
    assert encode(LLAMA, tmp_path / "a.jsonl", bad_rows="drop").report["dropped_bad_row"] == 1


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "null"}


def endless() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    return schema


class Odd(pydantic.BaseModel):
    a: Callable[[], int]


FORMS: dict[str, tuple[dict[str, Any], str]] = {  # what is asked for: what is said of it
    "no regular expression": ({"pattern": "(a"}, "cannot be read.*unclosed group.*Correct it"),
    "another's escape": ({"pattern": r"a\Z"}, "cannot be read.*unrecognized escape"),
    "half a character, escaped": ({"pattern": r"\ud800"}, "cannot be read.*not a Unicode scalar"),
    "empty": ({"pattern": ""}, "it is empty"),
    "look-ahead": ({"pattern": "(?=a)b"}, "look-ahead.*Leave out look-around"),
    "look-behind": ({"pattern": "(?<!a)b"}, "look-behind.*Leave out look-around"),
    "word": ({"pattern": r"\ba"}, "lookarounds.*Leave out"),
    "anchor": ({"pattern": "a$b"}, "lookarounds.*Leave out"),
    "back-reference": ({"pattern": r"(a)\1"}, "backreferences.*Leave out"),
    "named back-reference": ({"pattern": "(?P<x>a)(?P=x)"}, "unrecognized flag.*Leave out"),
    "atomic": ({"pattern": "(?>a)"}, "unrecognized flag.*Leave out"),
    "too often": ({"pattern": "(a{1000}){1000}"}, "too much for llguidance.*Simplify"),
    "too many": ({"pattern": "|".join(f"w{i}x" for i in range(300_000))}, "too big.*Simplify"),
    "too deep": ({"pattern": "(" * 9999 + ")" * 9999}, "cannot be read.*nested"),
    "what matches nothing": ({"pattern": "[a&&b]"}, "no text matches it"),
    "a pattern in a schema": ({"schema": {"type": "string", "pattern": "(?=a)b"}}, "look-ahead.*Leave out"),
    "a set": ({"schema": {"enum": {"a"}}}, "no JSON .set is nothing"),
    "bytes": ({"schema": {"const": b"a"}}, "no JSON .bytes is nothing"),
    "not a number": ({"schema": {"const": float("nan")}}, "no JSON"),
    "endless number": ({"schema": {"type": "number", "minimum": float("-inf")}}, "no JSON"),
    "a tuple as a key": ({"schema": in_schema({"enum": [{(1,): 2}]})}, "no JSON .keys must be"),
    "huge number": ({"schema": {"type": "integer", "minimum": 10**400}}, "llguidance cannot read it.*Simplify"),
    "in itself": ({"schema": endless()}, "no JSON .Circular"),
    "deep": ({"schema": nested(200)}, "recursion limit.*Simplify"),
    "very deep": ({"schema": nested(700)}, "nested too deeply|recursion limit"),
    "no such part": ({"schema": {"$ref": "#/nowhere"}}, "cannot be read.*nowhere"),
    "a class without a schema": ({"schema": Odd}, "pydantic has no JSON schema"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_that_cannot_be(form: str) -> None:
    options, said = FORMS[form]
    for write in (written, lambda lm, **o: list(stream(lm, "a", 2, **o))):
        with pytest.raises(FTNBError, match=said) as error:
            write(LLAMA, **options)
        assert error.value.value and error.value.remedy and len(str(error.value)) < 500


def test_forms_as_json_has_them() -> None:
    """Numbers of NumPy and keys that are numbers are what JSON makes of them."""
    odd = {
        "type": "object",
        "properties": {1: {"const": np.int64(3)}},
        "required": ("1",),
        "additionalProperties": False,
    }
    assert generate(LLAMA, "a", max_new_tokens=20, schema=odd) == '{"1": 3}'
