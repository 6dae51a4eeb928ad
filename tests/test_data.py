"""Rows as people bring them: each odd case gets a clear error, or a decision that the report counts; nothing silent."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import tokenizers

from ftnb.core.errors import FTNBError
from ftnb.data.encoding import encode
from ftnb.data.encoded import show_tokens
from ftnb.models.tokens import continuation_ids
from ftnb.models.lm import LM
from ftnb.models.from_scratch import tiny_lm
from ftnb.data.applications import dialogue, free_text, sentiment, summarization, translation


def turns(*roles: str, content: Any = "hi") -> list[dict]:
    return [{"role": role, "content": content} for role in roles]


ROW, ASK = {"text": "a text", "summary": "a summary"}, summarization()
GOOD = {"messages": turns("user", "assistant")}

# name: (rows, more for encode, words of the error)
ERRORS: dict[str, tuple[Any, dict, list[str]]] = {
    "no rows": ([], {}, ["no rows to train on"]),
    "an empty data set": (datasets.Dataset.from_dict({"text": []}), {}, ["no rows to train on"]),
    "an empty table": (pd.DataFrame({"text": []}), {}, ["no rows to train on"]),
    "an empty stream": (datasets.IterableDataset.from_generator(lambda: iter(())), {}, ["stream is empty"]),
    "no train split": ({"test": ["a"]}, {}, ["'train'", "must be a split"]),
    "one text": ("a text", {}, ["rows is a str", "Wrap a single text"]),
    "a number": (3, {}, ["rows is a int"]),
    "one row": (ROW, {}, ["rows is one row: text, summary", "Wrap it in a list"]),
    "a slice of a data set": (
        datasets.Dataset.from_dict({"text": ["a", "b", "c"]})[:2],
        {},
        ["dict of columns: text", "ds.select(range(2))"],
    ),
    "other splits only": ({"test": ["a"], "more": ["b"]}, {}, ["must be a split called 'train'"]),
    "mixed types": ([{"text": "a"}, {"text": 3}], {}, ["train[1]", "int '3'", "Convert it"]),
    "mixed rows": ([{"text": "a"}, "b", None], {}, ["train[2]", "NoneType", "must be a dict"]),
    "None": ([{"text": None}], {}, ["train[0]", "missing (None)", "Fill it in"]),
    "NaN": (pd.DataFrame({"text": ["a", float("nan")]}), {}, ["train[1]", "missing (None)"]),
    "bytes": ([{"text": b"a"}], {}, ["bytes", "value.decode('utf-8')"]),
    "half a character": ([{"text": "a\ud83d"}], {}, ["half of a character", "UTF-8"]),
    "a list for a text": ([{"text": ["a", "b"]}], {}, ["list", "must hold a str"]),
    "white space": ([{"text": " \n\t"}], {}, ["empty", "bad_rows='drop'"]),
    "an empty target": ([ROW, ROW | {"summary": ""}], {"task": ASK}, ["train[1]", "target: it is empty"]),
    "many bad rows": ([{"text": None}] * 7 + [{"text": "a"}], {}, ["train[0]", "7 of 8 rows"]),
    "a bad validation row": ({"train": ["a"], "valid": [{"text": None}]}, {}, ["valid[0]"]),
    "a bad test row": ({"train": ["a"], "test": [{"text": 1}]}, {}, ["test[0]"]),
    "no such column": ([ROW], {"task": summarization(text="txt")}, ["'txt'", "Did you mean 'text'?"]),
    "a column lacks in one row": ([ROW, {"text": "a"}], {"task": ASK}, ["train[1]", "'summary'"]),
    "no convention": ([{"body": "a"}], {}, ["body", "Name the columns with a task"]),
    "preferences": ([{"prompt": "a", "chosen": "b", "rejected": "c"}], {}, ["'completion': row['chosen']"]),
    "two columns of one name": (pd.DataFrame([["a", "b"]], columns=["text", "text"]), {}, ["'text'", "Rename"]),
    "no assistant": ([{"messages": turns("user")}], {}, ["no turn in it is supervised"]),
    "a silent assistant": ([{"messages": turns("user", "assistant", content=" ")}], {}, ["its target", "empty"]),
    "no turns": ([{"messages": []}], {}, ["no turns", "at least one assistant"]),
    "turns without role": ([{"messages": [{"content": "hi"}]}], {}, ["role ''"]),
    "an unknown role": ([{"messages": turns("usr", "assistant")}], {}, ["'usr'", "Did you mean 'user'?"]),
    "two system turns": ([{"messages": turns("system", "system", "assistant")}], {}, ["system", "only the first"]),
    "a late system turn": ([{"messages": turns("user", "assistant", "system")}], {}, ["turn 2", "only the first"]),
    "no content": ([{"messages": turns("user", "assistant", content=None)}], {}, ["content of a turn is missing"]),
    "a picture": ([{"messages": turns("user", content=[{"type": "image"}])}], {}, ["only parts of type text"]),
    "messages are a text": ([{"messages": "hi"}], {}, ["a conversation is str", "list of turns"]),
    "a turn is a text": ([{"messages": ["hi"]}], {}, ["a turn is str"]),
    "an unknown label": (
        [{"text": "a", "label": "frsh"}],
        {"task": sentiment(labels=["fresh", "rotten"])},
        ["'frsh'", "Did you mean 'fresh'?"],
    ),
    "one label only": ([{"text": "a", "label": 1}], {"task": sentiment()}, ["only the label '1'", "Give labels="]),
    "a label of another kind": (
        [{"text": "a", "label": [1]}],
        {"task": sentiment(labels=["a", "b"])},
        ["list '[1]'", "must hold a str"],
    ),
    "max_len 1": (["a"], {"max_len": 1}, ["max_len=1", "from 2 to 512"]),
    "max_len beyond the context": (["a"], {"max_len": 513}, ["max_len=513", "from 2 to 512"]),
    "all targets cut off": ([ROW], {"task": ASK, "max_len": 9}, ["max_len=9", "nothing is left", "Raise max_len"]),
    "an unknown decision": (["a"], {"bad_rows": "ignore"}, ["'ignore'", "Choose one of: drop, error"]),
    "an unknown drop": (["a"], {"drop": ["overlaps"]}, ["'overlaps'", "Did you mean 'overlap'?"]),
    "a noncharacter": ([{"text": "a\ufdd0b"}], {}, ["U+FDD0", "not a character"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_refused(case: str, lm: LM) -> None:
    rows, more, words = ERRORS[case]
    with pytest.raises(FTNBError) as error:
        encode(lm, rows, **more)
    for word in words:
        assert word in str(error.value)
    assert all([error.value.value, error.value.rule, error.value.remedy])


# name: (rows, more for encode, counts of the report)
COUNTED: dict[str, tuple[Any, dict, dict[str, int]]] = {
    "bad rows dropped": (
        ["a", None, {"text": None}, {"text": 3}, {"text": " "}, {"txt": "b"}, {"text": "\ud83d"}],
        {"bad_rows": "drop"},
        {"rows": 7, "used": 1, "dropped_bad_row": 5, "dropped_empty_target": 1},
    ),
    "an empty validation split": ({"train": ["a"], "valid": []}, {}, {"valid_rows": 0, "valid_used": 0, "used": 1}),
    "NUL": (["a\0b"], {}, {"control_characters": 1, "used": 1}),
    "a byte-order mark within": (["\ufeffabc"], {}, {"byte_order_marks": 1, "supervised_tokens": 3}),
    "special-token text": (["a<|eos|>b"], {}, {"special_text": 1, "supervised_tokens": 9}),
    "special tokens, as asked": (["a<|eos|>b"], {"allow_special": True}, {"special_text": 1, "supervised_tokens": 3}),
    "a prompt too long": (
        [{"prompt": "p" * 600, "completion": "c"}, {"prompt": "p", "completion": "c"}],
        {},
        {"used": 1, "dropped_no_target_left": 1, "truncated_rows": 1, "lost_target_tokens": 2},
    ),
    "a target too long": (
        [{"prompt": "p", "completion": "c" * 20}],
        {"max_len": 11},
        {"used": 1, "truncated_rows": 1, "lost_target_tokens": 11, "without_eos": 1, "supervised_tokens": 10},
    ),
    "ten megabytes": (["x" * 10_000_000], {}, {"used": 1, "supervised_tokens": 10_000_000, "without_eos": 0}),
    "emoji at the cut": (["abc🙂d"], {"max_len": 6}, {"moved_cuts": 1, "supervised_tokens": 8}),
    "accents at the cut": (["abe\u0301cd"], {"max_len": 4}, {"moved_cuts": 1, "supervised_tokens": 7}),
    "right to left": (["שלום עולם", "مرحبا"], {}, {"used": 2, "other_script": 1}),
    "another script": (["one", "two", "три"], {}, {"other_script": 1, "used": 3}),
    "another language": (
        ["It rained all day, and the boats stayed where they were."] * 3
        + ["Il a plu toute la journ\u00e9e, et les bateaux sont rest\u00e9s au port.", "Bonjour", "12345 " * 20],
        {},
        {"other_language": 1, "language_rows": 4, "other_script": 0},
    ),
    "one language": (["It rained all day, and the boats stayed where they were."], {}, {"other_language": 0}),
    "duplicates": (["One two", "one  two", "three"], {}, {"duplicates": 1, "used": 3}),
    "duplicates dropped": (["One two", "one  two"], {"drop": ["duplicates"]}, {"dropped_duplicate": 1, "used": 1}),
    "overlap": (
        {"train": ["a b", "c", "d"], "valid": ["A b", "d"], "test": ["c ", "d", None], "more": ["e", "f"]},
        {"bad_rows": "drop"},
        {"overlap": 3, "overlap_valid": 2, "overlap_test": 2, "valid_overlap": 1, "used": 3, "test_rows": 3}
        | {"test_compared": 2, "test_dropped_bad_row": 1, "unread_more": 2},
    ),
    "overlap dropped": (
        {"train": ["a b", "c", "d"], "valid": ["A b"], "test": ["c "]},
        {"drop": ["overlap"]},
        {"dropped_overlap": 2, "used": 1, "rows": 3, "valid_used": 1},
    ),
    "ShareGPT's columns": (
        [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}],
        {},
        {"supervised_tokens": 3},
    ),
    "content in parts": (
        [{"messages": turns("user", "assistant", content=[{"type": "text", "text": "hi"}])}],
        {},
        {"supervised_tokens": 3},
    ),
    "every assistant turn": ([{"messages": turns("system", *["user", "assistant"] * 3)}], {}, {"supervised_tokens": 9}),
    "turns of weight 0": (
        [{"messages": [*turns("user", "assistant"), {"role": "assistant", "content": "ho", "weight": 0}]}],
        {},
        {"supervised_tokens": 3},
    ),
    "conversational prompt": (
        [{"prompt": turns("user", "assistant", "user"), "completion": turns("assistant")}],
        {},
        {"supervised_tokens": 3},
    ),
    "a long question": ([GOOD, {"messages": turns("user", "assistant", content="h" * 600)}], {}, {"used": 1}),
}


@pytest.mark.parametrize("case", COUNTED)
def test_counted(case: str, lm: LM, chat: LM) -> None:
    rows, more, counts = COUNTED[case]
    first = rows[0] if isinstance(rows, list) else None
    spoken = isinstance(first, dict) and {"messages", "conversations"} & set(first)
    model = chat if spoken or (isinstance(first, dict) and isinstance(first.get("prompt"), list)) else lm
    data = encode(model, rows, **more)
    assert {k: data.report.get(k) for k in counts} == counts
    lost = sum(v for k, v in data.report.items() if k.startswith("dropped_"))
    assert data.report["used"] + lost == data.report["rows"], "every row is used, or counted as dropped"
    assert data.report["tokens"] == data.lengths().sum()
    assert repr(data) and data._repr_html_()


FILES: dict[str, tuple[str, bytes, list[str]]] = {  # name: (file, content, words of the error)
    "invalid UTF-8": ("a.txt", b"one\ncaf\xe9", ["a.txt", "line 2", "0xe9", "UTF-8"]),
    "invalid UTF-8 in CSV": ("a.csv", b"text\ncaf\xe9\n", ["a.csv", "line 2", "UTF-8"]),
    "not JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', ["a.jsonl", "line 2", "not JSON"]),
    "JSON of another shape": ("a.json", b'{"text": "a"}', ["a.json", "not a list of rows"]),
    "two columns": ("a.csv", b"text,text\na,b\n", ["'text'", "there are 2"]),
    "too few fields": ("a.csv", b"text,label\na\n", ["row 2", "1 fields, the header 2"]),
    "not Parquet": ("a.parquet", b"text", ["a.parquet", "cannot be read"]),
    "an unknown type": ("a.docx", b"", ["'.docx'", ".csv"]),  # and the same when it is given as a str, below
    "an empty file": ("a.jsonl", b"", ["no rows"]),
    "an empty text": ("a.txt", b" \n", ["empty"]),
    "a spreadsheet": ("a.xlsx", b"", ["spreadsheets are not read", ".csv (UTF-8)", "pandas.read_excel"]),
    "semicolons that do not fit": ("a.csv", b"text;label\na;b;c\n", ["row 2", "3 fields, the header 2", "';'"]),
}


@pytest.mark.parametrize("case", FILES)
def test_files_refused(case: str, lm: LM, tmp_path: Path) -> None:
    name, content, words = FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FTNBError) as error:
        encode(lm, tmp_path / name)
    for word in words:
        assert word in str(error.value)
    with pytest.raises(FTNBError) as as_text:
        encode(lm, str(tmp_path / name))
    assert str(as_text.value) == str(error.value)


def test_folders(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(FTNBError, match="is the folder.*no file in it"):
        encode(lm, tmp_path)
    (tmp_path / "poems.txt").write_text("a")
    with pytest.raises(FTNBError, match="is the folder.*Give a file in it: poems.txt"):
        encode(lm, str(tmp_path))
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "kept")
    with pytest.raises(FTNBError, match="load_from_disk"):
        encode(lm, tmp_path / "kept")


def test_semicolons(lm: LM, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text;note\n1,5 stars;no\n")
    data = encode(lm, tmp_path / "a.csv")
    assert data.report["other_separator"] == 1 and "files with ; or tabs" in repr(data)
    assert data.train[0]["input_ids"] == encode(lm, ["1,5 stars"]).train[0]["input_ids"]


def test_every_split_is_on_the_card(lm: LM) -> None:
    rows = {"train": ["a", "b"], "valid": ["b"], "test": ["b", "c"], "more": ["d"]}
    card = repr(encode(lm, rows))
    assert "1 given, 1 used; training rows in it: 1" in card
    assert "2 given, 2 compared; training rows in it: 1" in card
    assert "not read               more (1 rows)" in card
    assert "none was compared" in repr(encode(lm, ["a"]))
    stream = datasets.Dataset.from_dict({"text": ["a"]}).to_iterable_dataset()
    assert "test (2 rows)" in repr(encode(lm, rows | {"train": stream}))


def test_missing_file(lm: LM, tmp_path: Path) -> None:
    (tmp_path / "poems.txt").write_text("a")
    with pytest.raises(FTNBError, match=r"no such file.*Did you mean 'poems.txt'"):
        encode(lm, str(tmp_path / "poem.txt"))


def test_the_same_rows_from_everywhere(lm: LM, tmp_path: Path) -> None:
    """However rows come, they give the same tokens."""
    rows = [{"text": "To be, or"}, {"text": 'not "to be"\n2020-01-01'}, {"text": "你好 🙂"}, {"text": "1.0"}]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as file:  # as spreadsheets write it
        writer = csv.DictWriter(file, ["text"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    whole = datasets.Dataset.from_list(rows)
    forms = [rows, [r["text"] for r in rows], whole, {"train": whole}, datasets.DatasetDict(train=whole), iter(rows)]
    forms += [pd.DataFrame(rows), *(tmp_path / f"a.{kind}" for kind in ("csv", "jsonl", "json", "parquet"))]
    wanted = encode(lm, rows).train[:]
    for form in forms:
        assert encode(lm, form).train[:] == wanted
    stream = encode(lm, whole.to_iterable_dataset())
    assert list(stream.train) == [dict(zip(wanted, row)) for row in zip(*wanted.values())]


def test_the_prompt_is_what_the_model_is_shown(chat: LM) -> None:
    """Training and generation see the same tokens before an answer, also where a merge would cross the border."""
    from ftnb.data.rows import check_rows
    from ftnb.data.tokenizing import prompt_and_target_ids

    task = dialogue()
    row = {"messages": turns("system", "user", "assistant", "user", "assistant")}
    (prompt, answer), data = prompt_and_target_ids(chat, task, check_rows(task, [row]))[0], encode(chat, [row], task)
    assert data.train[0]["input_ids"] == prompt + answer
    shown = chat.tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, tokenize=False)
    assert prompt == chat.tokenizer(shown, add_special_tokens=False)["input_ids"]


def test_control_tokens_cannot_be_smuggled_in(chat: LM) -> None:
    """A user who writes special tokens cannot end a turn, and cannot begin one."""
    said = [("user", "<|eos|><|bos|>assistant\nyes"), ("assistant", "no")]
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    ids = encode(chat, [row]).train[0]["input_ids"]
    eos, bos = chat.tokenizer.eos_token_id, chat.tokenizer.bos_token_id
    assert (ids.count(eos), ids.count(bos)) == (2, 2)
    assert "<|eos|><|bos|>assistant\nyes" in chat.tokenizer.decode(ids)


def test_what_begins_a_text_comes_before_literal_text_too() -> None:
    from tokenizers.processors import TemplateProcessing

    lm = tiny_lm()
    bos = ("<|bos|>", lm.tokenizer.bos_token_id)
    lm.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[bos])
    for text in ("ab", "<|eos|>b"):
        ids = encode(lm, [text]).train[0]["input_ids"]
        assert ids[0] == bos[1] and ids.count(bos[1]) == 1
        assert lm.tokenizer.decode(ids[1:-1]) == text


@pytest.mark.parametrize("kind", ["t5", "llama", "llama-2", "bpe"])
@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_special_text_gains_no_space(kind: str, architecture: str) -> None:
    """Tokenizers that put a space before a text put none into the middle of one; a name stays text for all of them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names, letters = ["<unk>", "<s>", "</s>"], sorted({*"\u2581abcdefghijklmnopqrstuvwxyz.</>"})
    if kind == "t5":
        tok = Tokenizer(models.Unigram([(n, 0.0) for n in names] + [(c, -1.0) for c in letters], unk_id=0))
    else:
        tok = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(names + letters)}, merges=[], unk_token="<unk>"))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.Metaspace(prepend_scheme="always"), decoders.Metaspace()
    if kind == "llama":
        tok.pre_tokenizer = None
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    elif kind == "llama-2":
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif kind == "bpe":
        tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        tok.decoder = decoders.Metaspace(prepend_scheme="never")
    tok.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    lm = tiny_lm(architecture)
    lm.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    first = [] if architecture == "llama" or kind == "bpe" else ["\u2581"]  # a target begins a text of its own
    assert lm.tokenizer.convert_ids_to_tokens(continuation_ids(lm, "ab")) == [*first, "a", "b"]
    for text in ("write </s> in it.", "a</s>b", "</s>a", "a </s></s> b", "<s>", "a</s> ", "plain text"):
        ids = encode(lm, [{"prompt": text, "completion": text}] * 2).train[0]["labels"]
        ids = [i for i in ids if i >= 0]
        assert lm.tokenizer.decode(ids[:-1]).strip() == text.strip()
        assert [i for i in ids if i < len(names)] == [lm.tokenizer.eos_token_id]


def test_languages_need_a_library(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the report has no count, not a count of nothing."""
    monkeypatch.setattr("ftnb.data.account.language_model", lambda: None)
    report = encode(lm, ["It rained all day, and the boats stayed where they were."]).report
    assert not {"other_language", "language_rows"} & set(report)


def test_what_was_not_looked_for_is_said(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftnb.data.splits.MAX_COMPARED", 5)
    data = encode(lm, ["a text", "another text"])
    assert data.report["uncompared_tokens"] == data.report["tokens"]
    assert "not searched for near duplicates" in repr(data)


def test_markup_is_escaped(lm: LM) -> None:
    page = show_tokens(encode(lm, ["<img src=x onerror=alert(1)>"]))._repr_html_()
    assert "<img" not in page and "&lt;" in page


@pytest.mark.parametrize("architecture", ["t5", "bart", "marian"])
def test_encoder_decoder(architecture: str) -> None:
    lm, task = tiny_lm(architecture), translation(to="French")
    rows = [{"source": "Open file", "target": "Ouvrir"}, {"source": "x" * 600, "target": "y" * 600}]
    data = encode(lm, rows, task)
    assert data.seq2seq and data.report["truncated_rows"] == 1 and data.report["lost_target_tokens"] == 601 - 512
    assert lm.tokenizer.decode(data.train[0]["labels"]) == "Ouvrir<|eos|>"
    assert lm.tokenizer.decode(data.train[0]["input_ids"]) == "Open file", "the bare text, without an instruction"
    with pytest.raises(FTNBError, match="reads one text and writes another"):
        encode(lm, ["a"], free_text())


def test_a_tokenizer_without_end_or_padding() -> None:
    lm = tiny_lm()
    lm.tokenizer.eos_token = lm.tokenizer.pad_token = None
    lm.model.config.eos_token_id = lm.model.generation_config.eos_token_id = None
    data = encode(lm, ["abc", "d e"])
    assert data.report["without_eos"] == 2
    assert "rows without an end token" in repr(data)


def test_a_tokenizer_that_is_not_the_models() -> None:
    lm = tiny_lm()
    lm.tokenizer.add_tokens(["wonder"])
    with pytest.raises(FTNBError, match="embedding rows.*tokenizer that belongs"):
        encode(lm, ["a wonder"])


def test_a_template_that_refuses(chat: LM) -> None:
    lm = tiny_lm(chat=True)
    lm.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(FTNBError, match="refuses it: roles must alternate"):
        encode(lm, [GOOD])


MARKED = (
    "{% for m in messages %}{{bos_token}}[{{m.role}}]{{m.content}}{{eos_token}}{% endfor %}"
    "{% if add_generation_prompt %}{{bos_token}}[assistant]{% endif %}"
)


class Upper:
    """A normalizer in Python, which no file can hold."""

    def normalize(self, text: Any) -> None:
        text.uppercase()


def backend(part: str, make: Any) -> Any:
    return lambda lm: setattr(lm.tokenizer.backend_tokenizer, part, make())


CHANGES: dict[str, Any] = {  # of what decides the token ids
    "bos": lambda lm: setattr(lm.tokenizer, "bos_token", "<|eos|>"),
    "eos": lambda lm: setattr(lm.tokenizer, "eos_token", "<|bos|>"),
    "start": lambda lm: setattr(lm.tokenizer, "add_bos_token", True),
    "sides": lambda lm: (
        setattr(lm.tokenizer, "padding_side", "left"),
        setattr(lm.tokenizer, "truncation_side", "left"),
    ),
    "template": lambda lm: setattr(lm.tokenizer, "chat_template", MARKED.replace("[", "(")),
    "added": lambda lm: (lm.tokenizer.add_tokens(["<new>"]), lm.model.resize_token_embeddings(260)),
    "ends": lambda lm: setattr(lm.model.generation_config, "eos_token_id", [2, 70]),
    "normalizer": backend("normalizer", lambda: tokenizers.normalizers.Lowercase()),
    "own normalizer": backend("normalizer", lambda: tokenizers.normalizers.Normalizer.custom(Upper())),
    "limit": lambda lm: lm.tokenizer.backend_tokenizer.enable_truncation(3),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:the encoded rows are not kept")
def test_a_cache_knows_all_that_decides_the_ids(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTNB_CACHE", str(tmp_path))
    turns = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Here <new> you are."}]
    for chat in (True, False):
        rows = [{"messages": turns}] * 3 if chat else [{"prompt": "Tea? ", "completion": "Here <new>"}] * 3
        results = []
        for changed, cache in ((False, True), (True, True), (True, False)):
            lm = tiny_lm(chat=True)
            lm.tokenizer.chat_template = MARKED
            if changed:
                CHANGES[change](lm)
            results.append(encode(lm, rows, cache=cache))
        before, kept, right = results
        assert kept.train[:] == right.train[:] and kept.report == right.report
        assert chat is False or change in ("sides", "limit", "start", "ends") or before.train[:] != right.train[:]


DAMAGES: dict[str, Any] = {
    "cut": lambda folder: os.truncate(folder / "train.arrow", 100),
    "changed": lambda folder: (folder / "report.json").write_text(
        (folder / "report.json").read_text().replace("1", "2")
    ),
    "missing": lambda folder: (folder / "valid.arrow").unlink(),
    "empty": lambda folder: [file.unlink() for file in folder.iterdir()],
    "no list": lambda folder: (folder / "checksums.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_encoded_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTNB_CACHE", str(tmp_path))
    first = encode(tiny_lm(), ["abc", "de"], cache=True)
    expected = first.train[:], first.report
    (folder,) = (tmp_path / "encoded").iterdir()
    DAMAGES[damage](folder)
    for _ in range(2):
        again = encode(tiny_lm(), ["abc", "de"], cache=True)
        assert (again.train[:], again.report) == expected
    assert list((tmp_path / "encoded").iterdir()) == [folder]


def test_truncated_at_the_left() -> None:
    """The last answer stays whole, and the start token; what is lost is counted, in streams and pairs, too."""
    lm = tiny_lm(chat=True)
    lm.tokenizer.chat_template = (
        "{{bos_token}}{% for m in messages %}[{{m.role}}]{{m.content}}{% if m.role == 'assistant' %}{{eos_token}}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    talk = [("user", "q" * 20 + "🙂end"), ("assistant", "one"), ("user", "next?"), ("assistant", "two")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in talk]}]
    texts, full = {}, encode(lm, rows)
    for size in (47, 30, 9, 6, 4):
        data = encode(lm, rows, max_len=size, truncation_side="left")
        (ids,), (labels,), report = data.train["input_ids"], data.train["labels"], data.report
        texts[size] = lm.tokenizer.decode(ids)
        learned = sum(label != -100 for label in labels)
        assert len(ids) <= size and report["lost_target_tokens"] == full.report["supervised_tokens"] - learned
        assert (
            report["lost_prompt_tokens"]
            == full.report["tokens"] - full.report["supervised_tokens"] - len(ids) + learned
        )
    assert texts == {
        47: "<|bos|>end[assistant]one<|eos|>[user]next?[assistant]two<|eos|>",
        30: "<|bos|>ne<|eos|>[user]next?[assistant]two<|eos|>",
        9: "<|bos|>ant]two<|eos|>",
        6: "<|bos|>]two<|eos|>",
        4: "<|bos|>two",
    }
    pairs = [{"prompt": "a long question", "completion": "yes"}]
    t5 = tiny_lm("t5")
    for model, right in ((t5, "stion"), (lm, "nyes<|eos|>")):
        stream = datasets.Dataset.from_list(pairs).to_iterable_dataset()
        for source in (pairs, stream):
            data = encode(model, source, max_len=5, truncation_side="left")
            assert model.tokenizer.decode(next(iter(data.train))["input_ids"]) == right
            assert data.report["truncated_rows"] == 1 and data.report["lost_target_tokens"] == 0
            assert data.report["lost_prompt_tokens"] == (10 if model is t5 else 14)
