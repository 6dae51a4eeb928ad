"""What is scored is what came out: ends of labels, bytes, short rows, shapes of references; and forms."""

import itertools
import math
import random
import sys
import unicodedata
import warnings

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

import ftnb
from ftnb.core.errors import FTNBError, did_you_mean
from ftnb.data.applications import free_text
from ftnb.data.tasks import Task
from ftnb.evaluation.calibration import most_probable
from ftnb.evaluation.metrics import METRICS, metric, text_metric
from ftnb.evaluation.perplexity import text_bytes
from ftnb.evaluation.scores import load_scores
from ftnb.evaluation.scoring import score, score_texts
from ftnb.generation.constraints import check_keywords, make_constraint
from ftnb.generation.decoding import Decoding
from ftnb.generation.likelihood import label_probs
from ftnb.models.from_scratch import byte_tokenizer, tiny_lm
from ftnb.models.lm import eos_ids

LM, CHAT = tiny_lm("gpt2"), tiny_lm("llama", chat=True)


def said(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught]


# Labels


def log_prob(lm, ids: list[int], start: int) -> float:
    with torch.no_grad():
        logs = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(logs[i - 1, ids[i]] for i in range(start, len(ids))))


@pytest.mark.parametrize("labels", [(" New", " New York"), ("a", "ab", "abc", "b"), ("日", "日本", "x")])
@pytest.mark.parametrize("lm", [LM, CHAT], ids=["gpt2", "llama"])
def test_a_label_that_begins_another_is_scored_with_its_end(lm, labels: tuple) -> None:
    for prompt in ("He lives in", "x"):
        ids = lm.tokenizer(prompt)["input_ids"]
        label_ids = [lm.tokenizer(x, add_special_tokens=False)["input_ids"] for x in labels]
        exactly = [sum(math.exp(log_prob(lm, [*ids, *x, e], len(ids))) for e in eos_ids(lm)) for x in label_ids]
        expected = np.array(exactly) / sum(exactly)
        assert list(label_probs(lm, [ids], labels)[0].values()) == pytest.approx(expected, abs=1e-4)
        assert sum(label_probs(lm, prompt, labels).values()) == pytest.approx(1)


def test_labels_of_which_none_begins_another_go_without_the_end() -> None:
    ids, labels = LM.tokenizer("x")["input_ids"], ["yes", "no", "maybe"]
    nats = [log_prob(LM, ids + LM.tokenizer(x)["input_ids"], len(ids)) for x in labels]
    expected = np.exp(nats) / np.exp(nats).sum()
    assert list(label_probs(LM, "x", labels).values()) == pytest.approx(expected, abs=1e-4)


def test_without_any_end_nested_labels_are_refused() -> None:
    lm = tiny_lm("gpt2")
    lm.tokenizer.eos_token = lm.model.config.eos_token_id = lm.model.generation_config.eos_token_id = None
    with pytest.raises(FTNBError, match="begins the other.*set lm.tokenizer.eos_token"):
        label_probs(lm, "x", ["a", "ab"])
    assert set(label_probs(lm, "x", ["a", "b"])) == {"a", "b"}
    lm.tokenizer.eos_token = "<|eos|>"  # the remedy
    assert set(label_probs(lm, "x", ["a", "ab"])) == {"a", "ab"}


def test_a_task_with_nested_labels() -> None:
    task = Task("city", ("q", "a"), lambda r: r["a"], lambda r: r["q"], labels=("New", "New York", "Ne"))
    rows = [{"q": "where?", "a": "New"}, {"q": "and now?", "a": "New York"}]
    found = score(CHAT, rows, task, max_new_tokens=2, progress=False, metrics=["calibration_error"])
    start = CHAT.tokenizer.apply_chat_template(
        [{"role": "user", "content": "where?"}], add_generation_prompt=True, tokenize=False
    )
    end = CHAT.tokenizer.apply_chat_template(
        [{"role": "user", "content": "where?"}, {"role": "assistant", "content": "New"}], tokenize=False
    ).removeprefix(start + "New")
    ids = lambda text: CHAT.tokenizer(text, add_special_tokens=False)["input_ids"]
    ends = [i for i in ids(end) if i in eos_ids(CHAT)][:1]
    logs = [log_prob(CHAT, ids(start) + ids(x) + ends, len(ids(start))) for x in task.labels]
    expected = np.exp(logs) / np.exp(logs).sum()
    assert [found.rows[f"p({x})"][0] for x in task.labels] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("tied", [(0.5, 0.5), (0.1 + 0.2, 0.3), (1 / 3, 1 - 2 / 3)])
def test_one_rule_for_ties(tied: tuple) -> None:
    """Whatever the order of the labels, accuracy, calibration and prediction choose the same one."""
    rest = 1 - sum(tied)
    values = {"b": tied[0], "a": tied[1]} | ({"c": rest / 2, "d": rest / 2} if rest > 1e-6 else {})
    if rest > 1e-6:
        values["a"], values["b"] = tied[1] + 0.0, tied[0] + 0.0
    for order in itertools.permutations(values):
        probs = {k: values[k] for k in order}
        best = most_probable(probs)
        assert best == most_probable(values)
        for right in values:
            found = score_texts([probs] * 2, [right] * 2, ["label_accuracy", "calibration_error"])
            assert found.rows["prediction"][:] == [best] * 2
            assert found.values["label_accuracy"] == 100 * (best == right)
            hits = found.stats["calibration_error"].sum(0).reshape(3, -1)[2].sum()
            assert hits == 2 * (best == right)


# Bytes


def sentencepiece(prefix: bool = True, nfc: bool = False) -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "H", "i", "▁H", "é"]
    vocabulary = {t: i for i, t in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "H")], unk_token="<unk>", byte_fallback=True))
    rules = [normalizers.NFC()] * nfc + [normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(rules)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * prefix)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), sentencepiece(), sentencepiece(False)])
def test_parts_add_up_to_the_bytes_of_the_text(tokenizer) -> None:
    rng = random.Random(0)
    some = ["".join(rng.choices("aé日🎉 H�i", k=9)) for _ in range(60)]
    for text in ["日", "H", " H", "Hi 日", "🎉🎉é�a", "  ", *some]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        sizes = [text_bytes(tokenizer, ids[:n]) for n in range(len(ids) + 1)]
        assert sizes[-1] == len(text.encode()) and sizes == sorted(sizes)


@pytest.mark.parametrize("text, size", [("日", 2), ("H", 0), ("hello 日本", 11), ("🎉", 3), ("a b", 2)])
def test_the_bytes_of_the_first_token_are_not_predicted(text: str, size: int) -> None:
    found = score(LM, [text], free_text(), progress=False)
    nats, counted = found.stats["bits_per_byte"][0]
    assert counted == size
    if size:
        assert found.values["bits_per_byte"] == pytest.approx(nats / size / math.log(2))
    else:
        assert math.isnan(found.values["bits_per_byte"]) and "undefined" in str(found)


def test_bytes_of_a_tokenizer_with_spaces_and_another_form_of_text() -> None:
    for tokenizer, sizes in [(sentencepiece(), [3, 0, 5, 4]), (sentencepiece(False), [2, 0, 5, 2])]:
        lm = tiny_lm()
        lm.tokenizer = tokenizer
        lm.model.resize_token_embeddings(len(tokenizer))
        lm.model.config.eos_token_id = lm.model.generation_config.eos_token_id = 2
        texts = ["日", "H", "Hi 日", unicodedata.normalize("NFD", "éa")]
        found = score(lm, texts, free_text(), progress=False)
        assert found.stats["bits_per_byte"][:, 1].tolist() == [*sizes[:3], sizes[3] if sizes[3] == 4 else 3]


def test_bytes_of_answers_and_of_cut_answers() -> None:
    task = Task("qa", ("q", "a"), lambda r: r["a"], lambda r: r["q"])
    rows = [{"q": "où?", "a": "à 日本"}, {"q": "x", "a": "H"}]
    for lm in (LM, CHAT, tiny_lm("t5")):
        found = score(lm, rows, task, max_new_tokens=1, metrics=["bits_per_byte"], progress=False)
        assert found.stats["bits_per_byte"][:, 1].tolist() == [len(r["a"].encode()) for r in rows]
    short = tiny_lm("gpt2", context=24)
    long = score(short, [{"q": "x", "a": "日" * 30}], task, 1, metrics=["bits_per_byte", "loss"], progress=False)
    assert long.stats["bits_per_byte"][0, 1] == long.stats["loss"][0, 1] == 23  # a token is a byte here


def test_rows_without_a_value(tmp_path) -> None:
    found = score(LM, ["H", "hello", "x"], free_text(), progress=False)
    assert found.sorted("bits_per_byte").index.tolist() == [1, 0, 2]
    assert "worst" in found._repr_html_()
    found.save(tmp_path / "s.csv")
    assert load_scores(tmp_path / "s.csv").rows["bits_per_byte"][1] == found.rows["bits_per_byte"][1]
    other = score(tiny_lm("gpt2", seed=3), ["H", "hello", "x"], free_text(), progress=False)
    assert len(ftnb.compare(found, other).changed("bits_per_byte")) == 1
    none = [score(lm, ["H", "x"], free_text(), progress=False) for lm in (LM, tiny_lm("gpt2", seed=3))]
    assert ftnb.compare(*none).verdict("bits_per_byte") == "undefined"


# BLEU of rows


@pytest.mark.parametrize(
    "options", [{}, {"lowercase": True}, {"max_ngram_order": 2}, {"smooth_method": "floor"}, {"tokenize": "char"}]
)
def test_bleu_of_a_row_is_sentence_bleu(options: dict) -> None:
    rng = random.Random(0)
    said_ = [" ".join(rng.choices("abcdef", k=rng.randint(0, 7))) for _ in range(60)]
    right = [[" ".join(rng.choices("abcdef", k=rng.randint(1, 7))) for _ in range(2)] for _ in said_]
    m, sentence = text_metric("bleu", **options), BLEU(**options, effective_order=True)
    expected = [sentence.sentence_score(p, r).score for p, r in zip(said_, right, strict=True)]
    assert m.of_rows(m.stats(said_, right)) == pytest.approx(expected, abs=1e-9)
    whole = BLEU(**options).corpus_score(said_, list(map(list, zip(*right, strict=True)))).score
    assert m(said_, right) == whole
    assert "eff:no" in m.signature and "eff:yes" in m.row_signature


def test_a_short_perfect_answer_is_not_the_worst_row(tmp_path) -> None:
    answers, right = ["Yes.", "the cat sat on the mat", "No idea"], ["Yes.", "the cat is on the mat", "Paris"]
    for name in ("bleu", "bleu_zh", "chrf", "ter", "wer", "rouge1"):
        found = score_texts(answers, right, [name])
        assert found.sorted(name).index.tolist() == [2, 1, 0], name
    pairs = score_texts(answers, right, ["rouge2"])
    assert pairs.sorted("rouge2").index[0] == 1 and math.isnan(pairs.rows["rouge2"][0])
    assert ">0<" not in pairs._repr_html_().split("worst", 1)[1].split("</tr>")[0]
    found = score_texts(answers, right, ["bleu"])
    found.save(tmp_path / "a.jsonl")
    assert load_scores(tmp_path / "a.jsonl").rows["bleu"][:] == found.rows["bleu"][:]
    change = ftnb.compare(score_texts(["No!", "the cat sat on the mat", "d"], right, ["bleu"]), found)
    assert change.better("bleu")["row"].tolist() == [0]


# Shapes of references, long texts, WER and CER


SQUARE = [["the cat", "a cat"], ["a dog", "the dog"]]


def test_square_references_are_said() -> None:
    answers = ["the cat", "a dog"]
    calls = {
        "text_metric": lambda: text_metric("chrf")(answers, SQUARE),
        "compute": lambda: metric("chrf").compute(predictions=answers, references=SQUARE),
        "score_texts": lambda: score_texts(answers, SQUARE, ["bleu", "chrf", "rougeL"], baseline=["x", "y"]),
    }
    for name, call in calls.items():
        messages = [m for m in said(call) if "2 lists of 2 references" in m]
        assert len(messages) == 1 and "[list(r) for r in zip(*references)]" in messages[0], name
    for quiet in (
        lambda: text_metric("chrf")(answers, ["the cat", "a dog"]),
        lambda: text_metric("chrf")(answers, [["a", "b", "c"], ["d", "e", "f"]]),
        lambda: text_metric("chrf")(["the cat"], [["the cat"]]),
        lambda: score_texts(answers, SQUARE, ["distinct1"]),
    ):
        assert not [m for m in said(quiet) if "lists of" in m]


def test_bertscore_says_what_it_has_cut() -> None:
    pytest.importorskip("bert_score")
    m = text_metric("bertscore")
    (message,) = said(lambda: m(["cat " * 600, "cat"], ["cat " * 510, "cat " * 511]))
    assert "512 tokens" in message and "1 of 2 answers and 1 of 2 references" in message
    assert not said(lambda: m(["cat " * 510], ["cat"]))


@pytest.mark.parametrize("fast", [True, False])
def test_wer_and_cer(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        for name in ("rapidfuzz", "rapidfuzz.distance"):
            monkeypatch.setitem(sys.modules, name, None)
    wer, cer = text_metric("wer"), text_metric("cer")
    assert wer(["the cat sat"], ["the cat is"]) == pytest.approx(100 / 3)
    assert wer(["a b c d", "x"], ["a b c d", "y"]) == pytest.approx(100 / 5)  # all edits by all words
    assert wer([" a  b "], ["a b"]) == 0 == cer([" ab "], ["ab"])
    assert cer(["日本語"], ["日本人"]) == pytest.approx(100 / 3)
    assert cer(["kitten"], ["sitting"]) == pytest.approx(300 / 7)
    assert [wer([p], [r]) for p, r in (("", ""), ("a b", ""), ("", "a b"), ("a b c", "d"))] == [0, 200, 100, 300]
    assert wer(["a b"], [["c d e", "a b d"]]) == pytest.approx(100 / 3)
    assert wer.better == cer.better == -1 and "tok:spaces" in wer.signature


# Suggestions


@pytest.mark.parametrize("name", ["gleu", "mer", "mse", "f2", "auc", "nist", "comet"])
def test_no_misleading_suggestion(name: str) -> None:
    assert did_you_mean(name, METRICS).startswith("Choose")


@pytest.mark.parametrize(
    "name, meant",
    [("blue", "bleu"), ("sacrebleu", "bleu"), ("bert", "bertscore"), ("acc", "accuracy"), ("perplexty", "perplexity")],
)
def test_suggestion(name: str, meant: str) -> None:
    assert did_you_mean(name, METRICS) == f"Did you mean {meant!r}?"
    assert did_you_mean("wer", ["ter", "bleu"]).startswith("Choose")


# Patterns and schemas


@pytest.mark.parametrize(
    "pattern, part, at",
    [
        (r"[0-9]+\b", r"\b", 6), (r"\Bx", r"\B", 0), ("a(?=b)", "(?=", 1), ("a(?!b)", "(?!", 1), ("(?<=a)b", "(?<=", 0),
        ("(?<!a)b", "(?<!", 0), (r"(a|b)\1", r"\1", 5), ("(?P<n>a)(?P=n)", "(?P=n)", 8), (r"a\Z", r"\Z", 1),
        ("x(?>ab)", "(?>", 1), ("a?+", "?+", 1), ("a{2}+", "{2}+", 1), ("a^b", "^", 1), ("a$b", "$", 1),
        (r"\p{Foo}", r"\p{Foo}", 0), (r"日\N{BULLET}", r"\N{BULLET}", 1), ("(?a)b", "(?a)", 0), ("b(?#c)", "(?#c)", 1),
        (r"[a\b]", r"\b", 2), ("a{,3}", "{,3}", 1), (r"\0", r"\0", 0), (r"(?(1)a|b)", "(?(1)", 0), ("a\\", "\\", 1),
        ("a\nb(?=c)", "(?=", 3),
    ],
)  # fmt: skip
def test_the_error_names_the_part_of_a_pattern(pattern: str, part: str, at: int) -> None:
    with pytest.raises(FTNBError) as caught:
        make_constraint(CHAT, Decoding(), pattern, None)
    assert f"{part!r} at character {at}" in caught.value.rule and caught.value.remedy.startswith(("Write", "Leave"))


@pytest.mark.parametrize(
    "pattern",
    [
        r"\p{L}+", r"\pL", r"\p{Greek}\P{N}", "a+?b*?", "a{2,3}?", "a++", "(?P<n>a)(?<m>b)", "^ab$", "(^a|b$)",
        r"\Aab\z", "(?i)ab", "(?i:a)b", "(?s).", "(?x) a b", "[[:alpha:]]", r"\x41\u0041", "[]a]", r"a{3,}|",
        r"\d{1,3}(?:,\d{3})*", r"\\", r"[\w.]+@[\w.]+", "é{2}日",
    ],
)  # fmt: skip
def test_what_is_supported_is_not_refused(pattern: str) -> None:
    constraint = make_constraint(CHAT, Decoding(), pattern, None)
    assert constraint([0], torch.zeros(1, constraint.vocab_size)).isfinite().any()


def test_slips_and_sizes() -> None:
    for pattern, reason, remedy in [
        ("[0-9", "class at character 0", r"write \["), ("(a", "group at character 0", r"write \("),
        ("*a", "missing", r"\*"),
        ("a{3,2}", "start must be", "lower one first"), ("[z-a]", "character 1", "lower one first"),
    ]:  # fmt: skip
        with pytest.raises(FTNBError) as caught:
            make_constraint(CHAT, Decoding(), pattern, None)
        assert reason in caught.value.rule and remedy in caught.value.remedy
    with pytest.raises(FTNBError, match=r"too much.*'\{1000\}' at character 2"):
        ftnb.generate(CHAT, "a", 40, pattern="(a{1000}){1000}", progress=False)


INNER = {
    "properties": lambda s: {"type": "object", "properties": {"a": s}},
    "items": lambda s: {"type": "array", "items": s},
    "anyOf": lambda s: {"anyOf": [{"type": "null"}, s]},
    "$defs": lambda s: {"$ref": "#/$defs/a", "$defs": {"a": s}},
    "additionalProperties": lambda s: {"type": "object", "additionalProperties": s},
}


@pytest.mark.parametrize("place", INNER)
@pytest.mark.parametrize(
    "wrong", ["proprties", "requird", "maxLenght", "Minimum", "item", "enums", "nullable", "optional"]
)
def test_misspelt_words_of_a_schema(place: str, wrong: str) -> None:
    with pytest.raises(FTNBError, match=f"'{wrong}' in schema.*no such word") as caught:
        make_constraint(CHAT, Decoding(), None, INNER[place]({"type": "string", wrong: 1}))
    known = {"proprties": "properties", "requird": "required", "maxLenght": "maxLength", "Minimum": "minimum"}
    assert known.get(wrong, "") in caught.value.remedy


def test_notes_and_names_in_a_schema_are_free() -> None:
    notes = {"title": "t", "description": "d", "default": {"requird": 1}, "examples": [{"proprties": 1}],
             "$comment": "c", "deprecated": True, "readOnly": True, "writeOnly": True, "x-order": 1,
             "definitions": {}}  # fmt: skip
    schema = {"type": "object", "properties": {"requird": {"type": "null"} | notes}, "required": ["requird"],
              "$schema": "https://json-schema.org/draft/2020-12/schema",
              "additionalProperties": False} | notes  # fmt: skip
    assert make_constraint(CHAT, Decoding(), None, schema)
    assert ftnb.generate(CHAT, "a", 40, schema=schema, progress=False) == '{"requird": null}'
    check_keywords({"$ref": "#/components/schemas/A", "components": {"schemas": {"A": {"type": "integer"}}}})


def test_a_pattern_in_a_schema() -> None:
    with pytest.raises(FTNBError, match=r"at character 1 of its pattern"):
        make_constraint(CHAT, Decoding(), None, {"type": "array", "items": {"type": "string", "pattern": r"^\bfoo"}})
