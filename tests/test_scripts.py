"""Every script, at every door: what a reader sees as equal is equal, and what counts words has words to count."""

import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rouge_score import rouge_scorer

from ftnb import (
    Task,
    encode,
    metric,
    normalize_text,
    rate,
    score,
    score_texts,
    sentiment,
    text_metric,
    tiny_lm,
    translation,
)
from ftnb.core.texts import UNSPACED_LETTER, graphemes
from ftnb.data.account import is_repeat, text_hashes
from ftnb.data.labels import first_label, plain_label
from ftnb.data.languages import language_code
from ftnb.evaluation.metric import unicode_words
from ftnb.evaluation.metrics import METRICS

# A sentence, the same with another end, and whether the script has spaces between words
SCRIPTS = {
    "Chinese": ("我们今天去公园散步", "我们今天去公园吃饭", False),
    "Japanese": ("今日はデータを見ました", "今日はデータを消します", False),
    "Thai": ("วันนี้อากาศดีมาก", "วันนี้อากาศร้อน", False),
    "Lao": ("ມື້ນີ້ອາກາດດີຫຼາຍ", "ມື້ນີ້ອາກາດຮ້ອນ", False),
    "Khmer": ("ខ្ញុំស្រលាញ់អ្នក", "ខ្ញុំស្រលាញ់ឆ្មា", False),
    "Burmese": ("ဒီနေ့ရာသီဥတုကောင်းတယ်", "ဒီနေ့ရာသီဥတုပူတယ်", False),
    "Javanese": ("ꦲꦏ꧀ꦱꦫꦗꦮ", "ꦲꦏ꧀ꦱꦫꦧꦭꦶ", False),
    "Tibetan": ("བོད་སྐད་ཡག་པོ", "བོད་སྐད་མི་འདུག", True),
    "Korean": ("오늘 날씨가 좋아요", "오늘 날씨가 나빠요", True),
    "Hindi": ("आज मौसम अच्छा है", "आज मौसम बुरा है", True),
    "Tamil": ("இன்று வானிலை நன்று", "இன்று வானிலை மோசம்", True),
    "Arabic": ("الطقس جميل اليوم", "الطقس سيئ اليوم", True),
    "Persian": ("امروز می\u200cخواهم بروم", "امروز می\u200cخواهم بمانم", True),
    "Hebrew": ("מזג האוויר יפה היום", "מזג האוויר רע היום", True),
    "Russian": ("сегодня хорошая погода", "сегодня плохая погода", True),
    "Greek": ("ο καιρός είναι καλός", "ο καιρός είναι κακός", True),
    "Amharic": ("ዛሬ አየሩ ጥሩ ነው", "ዛሬ አየሩ መጥፎ ነው", True),
    "French": ("il fait très beau", "il fait très chaud", True),
    "emoji": ("😀👩🏽‍🚀🇫🇷❤️👍🏽", "😀👩🏽‍🚀🇫🇷❤️👎🏽", False),
    "maths": ("∑ ∫ √ ≤ ∞", "∑ ∫ √ ≤ ∂", True),
}
WIDER = [name for name, (_, _, spaces) in SCRIPTS.items() if not spaces and name != "emoji"]
WORDS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "length_ratio")


@pytest.mark.parametrize("name", SCRIPTS)
def test_words_of_every_script(name: str) -> None:
    """Equal texts score full marks, similar ones something between, and every metric of words sees more than one."""
    one, other, _ = SCRIPTS[name]
    assert len(unicode_words(one)) >= 3 and "".join(unicode_words(one)) == "".join(
        normalize_text(one).replace("་", "").split()
    )
    for kind in WORDS:
        top = 1 if kind == "length_ratio" else 100
        assert text_metric(kind)([one], [one]) == pytest.approx(top), kind
        if kind != "length_ratio":
            assert (15 if kind != "rouge2" else -1) < text_metric(kind)([other], [one]) < 100, kind
    assert text_metric("distinct1")([one, one]) == pytest.approx(50, abs=25)
    assert text_metric("distinct1")([one, other]) < 100
    assert text_metric("repetition")([one * 3]) > 20 or SCRIPTS[name][2]
    assert text_metric("repetition", n=2)([f"{one} {one} {one}"]) > 30
    assert text_metric("copy_rate")([one], [f"x {one} y"]) == 100
    assert 0 < text_metric("copy_rate", n=1)([other], [one]) < 100
    assert text_metric("novelty", train=[one], n=2)([one]) == 0
    assert 0 < text_metric("novelty", train=[one], n=1)([other]) < 100
    assert text_metric("accuracy")([one], [one]) == text_metric("exact_match")([one], [one]) == 100


def warned(work: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("kind", ["bleu", "ter", "meteor", "chrf++", "self_bleu"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_metrics_of_spaces_warn_where_there_are_none(name: str, kind: str) -> None:
    one, other, _ = SCRIPTS[name]
    made = text_metric(kind, **({"synonyms": False} if kind == "meteor" else {}))
    found = warned(lambda: made([other, other], [one, one]))
    assert len(found) == (name in WIDER) and all("2 of 2 rows" in text for text in found)


@pytest.mark.parametrize("name", WIDER)
def test_the_remedies_work(name: str) -> None:
    """Whatever a warning says should be used gives a number that tells texts apart, without a warning."""
    one, other, _ = SCRIPTS[name]
    for kind in ("bleu", "ter", "self_bleu"):
        (text,) = warned(lambda kind=kind: text_metric(kind)([other, other], [one, one]))
        ways = text.split("Use ")[1].partition(". (")[0].rstrip(".").split(" or ")
        for way in ways:
            made = eval(way) if "(" in way else text_metric(way.strip("'"))
            assert not warned(lambda made=made: made([one, other], [one, one])), way
            few, more = made([other, other], [one, one]), made([one, one], [one, one])
            if "self_bleu" not in way:
                assert 0 < few != more, (way, few, more)


def test_how_many_rows_are_counted() -> None:
    english, thai = "It rains today.", SCRIPTS["Thai"][0]
    bleu = text_metric("bleu")
    for n, rows, expected in ((1, 10, "1 of 10"), (1, 21, ""), (3, 40, "3 of 40"), (0, 5, "")):
        texts = [thai] * n + [english] * (rows - n)
        assert [expected in x for x in warned(lambda texts=texts: bleu(texts, texts))] == [True] * bool(expected)
    assert not warned(lambda: bleu([english], ["He said ดี and left the room."]))
    assert not warned(lambda: text_metric("bleu_zh")([SCRIPTS["Chinese"][0]], [SCRIPTS["Chinese"][1]]))
    assert warned(lambda: text_metric("bleu_zh")([thai], [thai])) == warned(
        lambda: text_metric("bleu_zh")([thai], [thai])
    )
    assert "'chrf'" in warned(lambda: text_metric("bleu_zh")([thai], [thai]))[0]
    for several in ([[thai, english]], [[thai]]):
        assert len(warned(lambda several=several: bleu([thai], several))) == 1


# The same for a reader: the plain text, then others
ALIKE = {
    "accent": ("café crème", "cafe\u0301 cre\u0300me"),
    "syllables": ("한국어 좋다", unicodedata.normalize("NFD", "한국어 좋다")),
    "dakuten": ("データガ", "テ\u3099ータカ\u3099"),
    "zero-width space": ("one word", "one wo\u200brd"),
    "word joiner": ("one word", "one\u2060 word"),
    "byte order mark": ("one word", "\ufeffone word"),
    "soft hyphen": ("one word", "one wo\xadrd"),
    "no-break space": ("10 % là", "10\xa0% là"),
    "narrow space": ("10 000", "10\u202f000"),
    "wide space": ("东京 大阪", "东京\u3000大阪"),
    "line ends": ("one\ntwo", "one\r\ntwo"),
    "old line ends": ("one\ntwo", "one\rtwo"),
    "joiner": ("one word", "one wo\u200drd"),
    "marks of direction": ("שלום abc", "\u200fשלום\u200e abc"),
    "selector": ("❤ 👍", "❤\ufe0f 👍"),
    "no-break hyphen": ("GPT-2", "GPT\u20112"),
    "ångström": ("Å Ω 5", "\u212b \u2126 5"),
    "Vietnamese": ("tiếng Việt", unicodedata.normalize("NFD", "tiếng Việt")),
    "Hindi": ("ज़रा क़लम", "\u095bरा \u0958लम"),
}
DIFFERENT = {  # what a reader tells apart
    "width": ("２４", "24"),
    "raised": ("10²", "102"),
    "fraction": ("½", "1/2"),
    "accent": ("cafe", "café"),
    "Persian": ("می\u200cخواهم", "میخواهم"),
    "Hindi": ("क्ष", "क्\u200cष"),
    "Sinhala": ("ශ්රී", "ශ්\u200dරී"),
    "family": ("👨\u200d👩\u200d👧", "👨👩👧"),
    "skin": ("👍🏽", "👍🏿"),
    "flag": ("🇫🇷", "🇩🇪"),
    "Cyrillic": ("а", "a"),
    "words": ("a b", "ab"),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_looks_the_same_is_the_same(name: str) -> None:
    one, other = ALIKE[name]
    assert one != other and normalize_text(other) == normalize_text(one)
    assert normalize_text(normalize_text(other)) == normalize_text(other)
    for p, r in ((one, other), (other, one)):
        for kind in ("accuracy", "exact_match", "f1", "rouge1", "rougeL", "rougeLsum"):
            assert text_metric(kind)([p], [r]) == pytest.approx(100), kind
            assert metric(kind).compute(predictions=[p], references=[r])[kind] == pytest.approx(100)
        assert text_metric("length_ratio")([p], [r]) == 1
        assert text_metric("copy_rate", n=1)([p], [r]) == 100
        assert text_metric("novelty", train=[r], n=1)([p]) == 0
        assert text_metric("self_bleu")([p, r]) == pytest.approx(100)
        assert first_label(f"Answer: {p}!", [r, "other"]) == r
        assert text_metric("mcc")([p, "b"], [r, "b"]) == 1
        assert score_texts([p], [r], ("accuracy",)).values == {"accuracy": 100}
    assert is_repeat(text_hashes([one, other])).tolist() == [False, True]
    distinct = text_metric("distinct1")
    assert distinct([one, other]) == distinct([one, one])


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_looks_different_is_different(name: str) -> None:
    one, other = DIFFERENT[name]
    assert normalize_text(one) != normalize_text(other)
    assert text_metric("accuracy")([one], [other]) == text_metric("exact_match")([one], [other]) == 0
    assert is_repeat(text_hashes([one, other])).tolist() == [False, False]


@pytest.mark.parametrize("kind", ["bleu", "chrf", "chrf++", "ter", "meteor"])
@pytest.mark.parametrize("name", ALIKE)
def test_published_metrics_say_where_they_see_two_texts(name: str, kind: str) -> None:
    """There is a warning where the form of a text moves the score, and only there; the remedy mends it."""
    one, other = (f"{text} a b c" for text in ALIKE[name])
    made = text_metric(kind, **({"synonyms": False} if kind == "meteor" else {}))
    scores: list[float] = []
    found = [x for x in warned(lambda: scores.append(made([other, "x y z w"], [one, "x y z w"]))) if "code points" in x]
    best = made([one, "x y z w"], [one, "x y z w"])
    assert len(found) == (abs(scores[0] - best) > 1e-9) and all("1 of 2 rows" in x for x in found)
    normal = [normalize_text(x) for x in (other, "x y z w")], [normalize_text(x) for x in (one, "x y z w")]
    assert made(*normal) == pytest.approx(best)
    assert not [x for x in warned(lambda: made([other], [other])) if "code points" in x]  # both alike
    assert not [x for x in warned(lambda: made([one], [one])) if "code points" in x]


def test_bertscore_says_it_too() -> None:
    made = text_metric("bertscore")
    assert [x for x in warned(lambda: made(["GPT\u20112", "a"], ["GPT-2", "a"])) if "1 of 2 rows" in x]
    assert not warned(lambda: made(["cafe\u0301", "a\xa0cat"], ["café", "a cat"]))  # its tokenizer sees no difference


SIGNS = ["!!!", "...", "?", "$ + =", "-", "***", "()[]", "...!?"]


@pytest.mark.parametrize("text", SIGNS)
def test_rouge_of_ascii_is_the_published_one(text: str) -> None:
    kinds = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    for pair in ((text, text), (f"{text} a\rb", f"a {text}\r\nb\n\nc"), (text, "a")):
        published = rouge_scorer.RougeScorer(kinds).score(*reversed(pair))
        for kind in kinds:
            assert text_metric(kind)([pair[0]], [pair[1]]) == 100 * published[kind].fmeasure
    for kind in ("length_ratio", "copy_rate"):  # our own count the signs
        options = {"n": 1} if kind == "copy_rate" else {}
        assert text_metric(kind, **options)([text], [text]) == (1 if kind == "length_ratio" else 100)
    assert text_metric("repetition", n=1)([text * 4]) >= 75


@pytest.mark.parametrize("text", ["👨‍👩‍👧", "👍🏽", "🇫🇷", "❤️", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "∑", "€", "→", "。", "…", "☺", "‼️", "①"])
def test_a_sign_is_a_word(text: str) -> None:
    assert len(unicode_words(text)) == 1 and len(unicode_words(f"{text} {text}")) == 2
    for kind in ("rouge1", "rougeL", "rougeLsum"):
        assert text_metric(kind)([text], [text]) == 100 and text_metric(kind)([text], ["x"]) == 0
    assert text_metric("length_ratio")([text], [text]) == 1
    assert text_metric("distinct1")([text, f"{text} {text}"]) == pytest.approx(100 / 3)


# labels, then answers and what they are
ANSWERS: list[tuple[list[str], dict[str, str]]] = [
    (
        ["not", "not sure"],
        {
            " not sure": "not sure",
            "Not sure.": "not sure",
            "I am not sure": "not sure",
            "not": "not",
            "**Not**": "not",
            "not_sure": "not sure",
            "not\xa0sure": "not sure",
            "knot": "knot",
        },
    ),
    (["sure", "not sure"], {"not sure": "not sure", "sure, not": "sure", "'not sure'": "not sure"}),
    (["New", "New York", "York"], {" New York": "New York", "New": "New", "in York, New": "York"}),
    (["正面", "负面"], {"情感是正面。": "正面", "负面情绪": "负面", "「正面」": "正面"}),
    (["满意", "不满意"], {"我很不满意": "不满意", "满意": "满意"}),
    (["良い", "悪い"], {"とても良いです": "良い"}),
    (["ดี", "ไม่ดี"], {"มันดีมาก": "ดี", "ไม่ดีเลย": "ไม่ดี"}),
    (["ด", "ก"], {"ดี": "ดี"}),
    (["ល្អ", "អាក្រក់"], {"វាល្អណាស់": "ល្អ"}),
    (["ດີ", "ບໍ່ດີ"], {"ມັນດີຫຼາຍ": "ດີ", "ບໍ່ດີ": "ບໍ່ດີ"}),
    (["ကောင်း", "ဆိုး"], {"အရမ်းကောင်းတယ်": "ကောင်း"}),
    (["긍정", "부정"], {"긍정적입니다": "긍정", unicodedata.normalize("NFD", "부정"): "부정"}),
    (["अच्छा", "बुरा"], {"यह अच्छा है।": "अच्छा", "अच्छाई": "अच्छाई"}),
    (["سلبي", "إيجابي"], {"الجواب: سلبي.": "سلبي", "والسلبي": "والسلبي", "\u200fإيجابي\u200f": "إيجابي"}),
    (["c", "c++", "c#"], {"C++": "c++", "C# is it": "c#", "c": "c", "C.": "c", "in C, I think": "c"}),
    (["c", "java"], {"C++": "C++", "c'est java": "java"}),
    (["n/a", "yes", "no"], {"N/A": "n/a", "n/a.": "n/a", "Nope": "Nope"}),
    (["+", "-", "0"], {"+": "+", " - ": "-", "0": "0", "**+**": "+", "10": "10", "++": "++"}),
    (
        ["-1", "0", "1"],
        {"-1": "-1", "−1": "-1", "The answer is -1": "-1", "1": "1", "+1": "1", "0.1": "0.1", "score: -1.": "-1"},
    ),
    (
        [*"12345"],
        {
            "4": "4",
            "4/5": "4",
            "10": "10",
            "1.5": "1.5",
            "-1": "-1",
            "４": "4",
            "٤": "4",
            "4️⃣": "4",
            "④": "4",
            "4²": "4²",
            "4 stars": "4",
            "3½": "3½",
            "1,000": "1,000",
            "It is 5.": "5",
        },
    ),
    (["1 star", "3 stars", "stars"], {"3 stars": "3 stars", "3-stars": "3 stars", "13 stars": "stars"}),
    (["👍", "👎"], {"👍🏽": "👍", "I say 👎!": "👎"}),
    (["👩", "👨‍👩‍👧"], {"👨‍👩‍👧": "👨‍👩‍👧", "👩🏽": "👩"}),
    (["👩", "👨"], {"👨‍👩‍👧": "👨‍👩‍👧"}),
    (["très bien", "bien"], {"tre\u0300s bien": "très bien", "C’est bien": "bien"}),
    (["iyi", "kötü"], {"İYİ": "iyi", "KÖTÜ": "kötü"}),
    (["can", "cannot"], {"can't": "can't", "cannot": "cannot", "I can": "can"}),
    (["Yes", "yes"], {"yes": "yes", "Yes": "Yes", " YES ": "Yes"}),
    (["A", "B"], {"A": "A", "(b)": "B", "B) since": "B", "A+": "A+", "AB": "AB"}),
    (["", "a"], {"": "", "a": "a"}),
]


@pytest.mark.parametrize("labels", range(len(ANSWERS)), ids=lambda i: "/".join(ANSWERS[i][0]))
def test_labels_in_answers(labels: int) -> None:
    names, answers = ANSWERS[labels]
    assert {answer: first_label(answer, names) for answer in answers} == answers
    assert {answer: first_label(answer, names[::-1]) for answer in answers} == answers or names == ["Yes", "yes"]
    distinct = len(set(map(plain_label, names))) == len(names) and all(names)
    if distinct:  # the task reads an answer in the same way
        task = sentiment(labels=names)
        assert {answer: task.read(answer) for answer in answers} == answers


def test_labels_at_the_doors(tmp_path: Path) -> None:
    lm = tiny_lm(chat=True)
    forms = ["très bien", "tre\u0300s bien", "très\xa0bi\xaden", "bof", "\ufeffbof", "bof "]
    rows = [{"text": f"row {i}", "label": label} for i, label in enumerate(forms * 3)]
    for task in (sentiment(labels=["très bien", "bof"]), sentiment()):
        data = encode(lm, rows, task)
        assert set(data.task.labels) == {"très bien", "bof"} and len(data.train) == 18
        scores = score(lm, rows[:6], data.task, progress=False)
        assert list(scores.rows["reference"]) == ["très bien"] * 3 + ["bof"] * 3
    labelled = Task("own", ("text",), lambda r: "not sure", lambda r: r["text"], labels=("not", "not sure"))
    assert list(score(lm, rows[:2], labelled, progress=False).rows["reference"]) == ["not sure"] * 2
    assert score_texts([" not sure", "not"], ["not sure", "not"], ("accuracy", "f1", "mcc")).values == {
        "accuracy": 100,
        "f1": 100,
        "mcc": 1,
    }


def test_other_doors(tmp_path: Path) -> None:
    a = score_texts(["cafe\u0301", "one", "two"], ["x", "y", "z"], ("accuracy",), name="a", prompts=["p", "q", "r"])
    b = score_texts(["café", "one\u200b", "three"], ["x", "y", "z"], ("accuracy",), name="b", prompts=["p", "q", "r"])
    rating = rate(a, b, file=tmp_path / "ratings.db")
    assert rating.win_rates()["identical"].tolist() == [2] * len(rating.win_rates())
    assert list(a.sorted(where="CAFÉ")["prediction"]) == ["cafe\u0301"]
    assert language_code("franc\u0327ais") == "fr"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thai = [{"source": "Good", "target": SCRIPTS["Thai"][i % 2]} for i in range(6)]
        assert set(score(tiny_lm(chat=True), thai, translation(), progress=False).values) >= {"chrf", "rougeL"}


def test_signatures_say_so() -> None:
    own = (
        "accuracy",
        "exact_match",
        "f1",
        "mcc",
        "label_accuracy",
        "rougeL",
        "length_ratio",
        "distinct1",
        "repetition",
        "copy_rate",
    )
    for kind in METRICS:
        options = {"meteor": {"synonyms": False}, "novelty": {"train": ["a b c d"]}}.get(kind, {})
        parts = text_metric(kind, **options).signature.split("|")
        if kind in (*own, "self_bleu", "novelty"):
            assert "norm:nfc" in parts, kind
        words = kind.startswith(("rouge", "distinct")) or kind in ("length_ratio", "repetition", "copy_rate", "novelty")
        assert ("tok:unicode+graphemes" in parts) == words, kind


def test_characters() -> None:
    assert graphemes("") == [] and graphemes("a\r\nb") in (["a", "\r", "\n", "b"], ["a", "\r\n", "b"])
    assert len(graphemes("👨‍👩‍👧🇫🇷👍🏽é")) == 4 and np.sum([len(x) for x in graphemes("ကောင်း")]) == len("ကောင်း")
    assert "Han" in UNSPACED_LETTER
