"""Intervals that cover what they promise, tests that agree with sacrebleu's, and nothing lost on the way to a file."""

import functools
import math
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

import ftnb
from ftnb.evaluation import statistics as S
from ftnb.evaluation import tables
from ftnb.evaluation.metric import TextMetric, ratio
from ftnb.evaluation.metrics import text_metric

SETS, RESAMPLES = 200, 800  # simulated test sets that share their draws, and draws


def mean(draw):
    return lambda rng, sets, n: np.stack([x := draw(rng, (sets, n)), np.ones_like(x)], -1)


def overlap(rng, sets, n):
    """BLEU-like: matches of four orders, n-grams of four orders, lengths; rows differ in length and in quality."""
    length, quality = rng.integers(5, 40, (sets, n)), rng.beta(2, 3, (sets, n))
    written = np.maximum(4, np.round(length * rng.normal(0.95, 0.15, (sets, n)))).astype(int)
    total = [np.maximum(written - k, 1) for k in range(4)]
    match = [rng.binomial(t, quality ** (0.6 * (k + 1))) for k, t in enumerate(total)]
    return np.stack([*match, *total, written, length], -1).astype(float)


def bleu(sums):
    precision = np.log(np.maximum(sums[..., :4], 1e-9) / sums[..., 4:8]).mean(-1)
    return 100 * np.exp(precision + np.minimum(0, 1 - sums[..., 9] / sums[..., 8]))


def labels(rng, sets, n):
    right = rng.choice(3, p=[0.5, 0.3, 0.2], size=(sets, n))
    said = np.where(rng.random((sets, n)) < 0.7, right, rng.integers(0, 3, (sets, n)))
    parts = [[(said == x) & (right == x), said == x, right == x] for x in range(3)]
    return np.stack([c for p in parts for c in p], -1).astype(float)


def f1(sums):
    return 100 * np.mean(2 * sums[..., 0::3] / np.maximum(sums[..., 1::3] + sums[..., 2::3], 1), -1)


def share(sums):
    return sums[..., 0] / sums[..., 1]


WORLDS = {
    "skewed mean": (mean(lambda rng, size: 100 * rng.beta(0.8, 3, size)), share),
    "mostly zero": (mean(lambda rng, size: rng.beta(2, 2, size) * (rng.random(size) < 0.3)), share),
    "gains": (mean(lambda rng, size: rng.normal(1, 5, size) * (rng.random(size) < 0.6)), share),
    "bleu": (overlap, bleu),
    "f1": (labels, f1),
}


def coverage(world: str, n: int, parts: int, kind: str = "bca") -> float:
    """The share of simulated intervals that contain the truth, in percent."""
    make, combine = WORLDS[world]
    rng, hits = np.random.default_rng(n), []
    truth = combine(make(rng, 1, 400_000).sum(1))[0]
    for part in range(parts):
        rows = make(rng, SETS, n)
        weights = np.concatenate(list(S.bootstrap_weights(n, RESAMPLES, part)))
        samples = combine(np.einsum("rn,snk->srk", weights, rows, optimize=True))
        left_out = combine(rows.sum(1, keepdims=True) - rows)
        plain = np.quantile(samples, [0.025, 0.975], 1)
        low, high = S.bca(samples, combine(rows.sum(1)), left_out) if kind == "bca" else plain
        hits.append((low <= truth) & (truth <= high))
    return 100 * float(np.mean(hits))


@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize("world", WORLDS)
def test_bca_covers(world: str, n: int) -> None:
    assert 93 <= coverage(world, n, parts=40 if n == 50 else 20) <= 97


def test_the_simulation_can_fail() -> None:
    """An interval for 95 % that is made with the quantiles of 90 % is found out; so is the percentile interval."""
    make, combine = WORLDS["bleu"]
    assert coverage("bleu", 50, 10, "percentile") < 93.5
    rng = np.random.default_rng(0)
    truth, rows = combine(make(rng, 1, 400_000).sum(1))[0], make(rng, 1000, 50)
    samples = combine(np.einsum("rn,snk->srk", next(S.bootstrap_weights(50, RESAMPLES, 0)), rows, optimize=True))
    left_out = combine(rows.sum(1, keepdims=True) - rows)
    low, high = S.bca(samples, combine(rows.sum(1)), left_out, level=0.9)
    assert np.mean((low <= truth) & (truth <= high)) < 0.93


@pytest.mark.parametrize("n", [50, 200])
def test_wilson_covers(n: int) -> None:
    """Exactly, from the binomial distribution: on average over true shares, and never far off."""
    from scipy.stats import binom

    ends = np.array([S.wilson(k, n) for k in range(n + 1)])
    true = np.linspace(0.5, 0.97, 95)
    inside = (ends[:, :1] <= true) & (true <= ends[:, 1:])
    found = 100 * (binom.pmf(np.arange(n + 1)[:, None], n, true) * inside).sum(0)
    assert 94 <= found.mean() <= 96.5, found.mean()
    assert found.min() > 91.5, found.min()
    assert S.wilson(n, n)[0] < 1 and S.wilson(0, n)[1] > 0


@pytest.mark.parametrize("n", [50, 200])
def test_differences_of_shares_cover(n: int) -> None:
    """Where the two differ on a few rows only, more than is promised; there are no intervals between."""
    rng, found = np.random.default_rng(n), []
    for right, again, other in [(0.8, 0.7, 0.6), (0.6, 0.5, 0.7), (0.9, 0.8, 0.9)]:
        a = rng.random((2000, n)) < right
        b = np.where(rng.random((2000, n)) < again, a, rng.random((2000, n)) < other)
        truth = (1 - again) * (other - right)
        ends = np.array([S.tango(x, y) for x, y in zip(a, b)])
        found.append(100 * np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])))
    assert all(93 <= x <= 97 for x in found[:2]) and found[2] >= 93, found
    assert S.tango(a[0], b[0]) == pytest.approx([-x for x in S.tango(b[0], a[0])[::-1]])


def test_tango_by_hand() -> None:
    """Without a disagreement the score equation can be solved by hand: the ends are z² / (n + z²)."""
    assert S.tango(np.ones(44, bool), np.ones(44, bool)) == pytest.approx((-0.080296, 0.080296), abs=1e-5)


def test_interval_is_the_simulated_one() -> None:
    """What the simulations test is what `interval` returns."""
    rng = np.random.default_rng(3)
    rows = overlap(rng, 1, 60)
    m = TextMetric("bleu-like", lambda p, r: rows[0], lambda s: float(bleu(s)), "")
    samples = bleu(np.concatenate(list(S.bootstrap_weights(60, 500, 7))) @ rows[0])
    expected = S.bca(samples, bleu(rows[0].sum(0)), bleu(rows[0].sum(0) - rows[0]))
    assert S.interval(m, rows[0], 500, 7) == pytest.approx(expected)


def test_bca_agrees_with_scipy() -> None:
    """Without the widening for few rows, it is scipy's BCa: the same ends on 5,000 rows, but for chance."""
    from scipy.stats import bootstrap

    x = np.random.default_rng(0).lognormal(0, 1, 2000)
    theirs = bootstrap(
        (x,), np.mean, method="BCa", n_resamples=4000, vectorized=True, axis=-1, batch=500, rng=np.random.default_rng(1)
    ).confidence_interval
    m = TextMetric("mean", lambda p, r: np.stack([x, np.ones(len(x))], 1), ratio, "")
    ours = S.interval(m, m.stats((), ()), 4000)
    width = theirs.high - theirs.low
    assert abs(ours[0] - theirs.low) < 0.06 * width and abs(ours[1] - theirs.high) < 0.06 * width


@pytest.mark.parametrize("n", [3, 10, 200])
def test_bca_is_scipys_given_the_same_draws(n: int) -> None:
    """To twelve digits, at the level that stands for Student's t."""
    from types import SimpleNamespace

    from scipy.special import ndtr, stdtrit
    from scipy.stats import bootstrap

    x = np.random.default_rng(n).lognormal(0, 1, n)
    samples = next(S.bootstrap_weights(n, 999, 1)) @ x / n
    for level in (0.9, 0.95):
        theirs = bootstrap(
            (x,), np.mean, method="BCa", vectorized=True, n_resamples=0,
            bootstrap_result=SimpleNamespace(bootstrap_distribution=samples),
            confidence_level=1 - 2 * ndtr(-stdtrit(n - 1, (1 + level) / 2)),
        ).confidence_interval  # fmt: skip
        assert S.bca(samples, x.mean(), (x.sum() - x) / (n - 1), level) == pytest.approx(tuple(theirs), rel=1e-12)


def test_wilson_by_hand() -> None:
    """The published formula (Wilson 1927), against SciPy's."""
    from scipy.special import ndtri

    for level in (0.9, 0.95):
        z = ndtri((1 + level) / 2)
        for n in (1, 7, 200):
            for k in {0, 1, n // 3, n}:
                middle = k / n + z * z / (2 * n)
                half = z * math.sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
                ends = [(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
                assert S.wilson(k, n, level) == pytest.approx(np.clip(ends, 0, 1).tolist(), abs=1e-12)


def test_portions_do_not_change_the_draws() -> None:
    for draw in (S.bootstrap_weights, S.exchange_weights):
        whole, parts = (np.concatenate(list(draw(37, 100, 5, cells))) for cells in (10**6, 40 * 37))
        assert (whole == parts).all()
        assert whole.shape == (100, 37)
    assert (whole.mean(0) > 0.2).all() and (next(S.bootstrap_weights(37, 9, 1)).sum(1) == 37).all()


@functools.cache
def two_systems(seed: int, rows: int = 40):
    texts = ftnb.sample_data("summarization")["test"].select(range(rows))["summary"]
    rng = np.random.default_rng(seed)
    spoiled = [[" ".join(w for w in t.split() if rng.random() > p) for t in texts] for p in (0.15, 0.2)]
    return list(texts), *spoiled


@pytest.mark.parametrize("seed", [5, 6])
@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
@pytest.mark.parametrize(("kind", "test"), [("ar", "randomization"), ("bs", "bootstrap")])
def test_sacrebleu_to_the_last_digit(kind: str, test: str, name: str, seed: int) -> None:
    from sacrebleu.metrics import BLEU, CHRF, TER
    from sacrebleu.significance import PairedTest

    texts, a, b = two_systems(seed)
    theirs = PairedTest(
        [("a", a), ("b", b)], {"m": {"bleu": BLEU, "chrf": CHRF, "ter": TER}[name]()}, [texts], kind, 400
    )()[1]
    theirs = next(v for k, v in theirs.items() if k != "System")
    mine = [ftnb.score_texts(x, texts, (name,), name=n) for x, n in ((a, "a"), (b, "b"))]
    table = ftnb.compare(*mine, resamples=400, seed=12345, test=test).table
    p = table["p_value"][name]
    if (kind, name) == ("ar", "ter"):  # whole edits: many exchanges tie, and sacrebleu skips them
        m = mine[0].metrics[name]
        x, y = (s.stats[name] for s in mine)
        one = x.sum(0) + S.resampled_sums(S.exchange_weights(len(x), 400, 12345), [y - x])[0]
        gaps = np.abs(S.resampled_values(m, x.sum(0) + y.sum(0) - one) - S.resampled_values(m, one))
        more = (gaps > abs(table["difference"][name]) + 1e-9).sum()
        assert (more + 1) / 401 <= theirs[1].p_value <= p
    else:
        assert p == theirs[1].p_value
    assert (table["a"][name], table["b"][name]) == (theirs[0].score, theirs[1].score)


def test_false_alarms() -> None:
    """Among systems that are equally good, 5 % of the p-values are below 0.05; with Holm, 5 % of the families."""
    rng, m = np.random.default_rng(0), TextMetric("mean", lambda p, r: p, ratio, "")
    alone, families = [], []
    for seed in range(250):
        make = [np.stack([rng.gamma(1, 10, 60), np.ones(60)], 1) for _ in range(8)]
        p = [S.difference(m, x, y, 200, seed)[3] for x, y in zip(make[::2], make[1::2])]
        alone += [x < 0.05 for x in p]
        families.append((S.holm(p) < 0.05).any())
    assert 0.03 < np.mean(alone) < 0.07, np.mean(alone)
    assert np.mean(families) < 0.085, np.mean(families)


def test_jackknife_test_and_interval_agree() -> None:
    """Where all rows are alike, the standard error is 0, but p is not: it is below 0.05 where the interval leaves 0."""
    m = text_metric("distinct1")
    for n in (2, 3, 4, 6, 12, 40):
        a, b = (m.stats([f"{x}{i} {y}{i}" for i in range(n)], None) for x, y in ("ab", "cc"))
        gap, low, high, p = S.difference(m, a, b)
        assert S.interval_kind(m, a, b) == "rows alike" and gap == pytest.approx(-50)
        assert 0 < p <= 1 and (p < 0.05) == (high < 0), (n, low, high, p)
        assert S.difference(m, b, a)[3] == pytest.approx(p)
        assert S.difference(m, a, a)[3] == 1
    assert math.isnan(S.difference(m, a[:1], b[:1])[3])


def test_holm_by_hand() -> None:
    assert S.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert S.holm([0.02, math.nan]).tolist()[0] == 0.02 and math.isnan(S.holm([0.02, math.nan])[1])
    assert S.holm([0.4, 0.9]).tolist() == [0.8, 0.9] and len(S.holm([])) == 0


def three(metrics=("chrf", "rougeL", "accuracy")):
    texts, a, b = two_systems(1)
    return [ftnb.score_texts(x, texts, metrics, prompts=texts, name=n) for x, n in ((a, "a"), (b, "b"), (texts, "c"))]


def test_a_metric_that_is_neither() -> None:
    m = TextMetric("words", lambda ps, r: np.array([[len(p.split()), 1] for p in ps]), ratio, "w", 0, judged="nothing")
    texts = [f"word number {i}" for i in range(12)]
    x, y = (ftnb.score_texts([t + more for t in texts], texts, [m], name=n) for n, more in (("x", ""), ("y", " more")))
    assert x.to_pandas()["better"]["words"] == "neither" and x._repr_html_()
    assert ftnb.compare(x, y).verdict("words") == "higher" and ftnb.compare(y, x).verdict("words") == "lower"
    assert "12 better" in repr(ftnb.compare(x, y))


def test_many_models() -> None:
    a, b, c = three()
    all_of = ftnb.compare(a, b, c, pairs="all")
    assert len(all_of.pairs) == 3 and all_of.tests == 9
    assert np.allclose(all_of.table["p_holm"], S.holm(all_of.table["p_value"]))
    alone = ftnb.compare(a, c)
    first = ftnb.compare(a, b, c)
    assert len(first.pairs) == 2
    assert first.pairs[1].table["p_value"].tolist() == alone.table["p_value"].tolist()
    assert (first.pairs[1].table["p_holm"] >= alone.table["p_holm"]).all()
    assert first.pairs[1].verdict("chrf") == "better"
    with pytest.raises(ftnb.FTNBError, match="smallest corrected p"):
        ftnb.compare(a, b, c, resamples=100)
    for shown in (repr(first), first._repr_html_()):
        assert "a → b" in shown and "a → c" in shown


def test_rows_that_got_worse_come_first() -> None:
    a, b, c = three()
    found = ftnb.compare(c, a)
    worse, better = found.worse("chrf", 4), found.better("chrf", 4)
    assert len(worse) == 4 and not len(better) and (worse["gain in chrf"] < 0).all()
    assert worse["gain in chrf"].is_monotonic_increasing
    assert list(worse.columns) == ["row", "gain in chrf", "c", "a", "reference", "prompt"]
    page = found._repr_html_()
    assert page.index("got worse by chrf") < page.index("The rows that got better by chrf: none")
    row = found.table.loc["chrf"]
    assert row["rows_better"] == 0 and row["rows_worse"] + row["rows_equal"] == 1 and row["d_z"] < 0
    assert row["superiority"] == pytest.approx(row["rows_equal"] / 2)


def test_names_and_html() -> None:
    texts, evil = ["a", "b"], "<script>alert(1)</script>"
    x = ftnb.score_texts([evil, "b"], texts, ("chrf",), prompts=[evil, evil], name=evil)
    y = ftnb.score_texts(texts, texts, ("chrf",), prompts=[evil, evil], name=evil)
    same = ftnb.compare(x, y)
    for page in (
        x._repr_html_(),
        same._repr_html_(),
        ftnb.compare(x, y, x)._repr_html_(),
        x.browse().children[-1].value,
    ):
        assert "<script" not in page
    assert list(same.changed().columns)[2:4] == [evil, f"{evil} (2)"]
    odd = ftnb.compare(replace(x, name="row"), replace(y, name="prompt"))
    assert list(odd.changed().columns) == ["row", "gain in chrf", "row (2)", "prompt (2)", "reference", "prompt"]


def test_nan_scores() -> None:
    """A row without a value is last, takes no part in effect sizes, and a metric that is nan gets no verdict."""

    def stats(ps, judged):
        return np.array([[math.nan if p == "?" else len(p), 1] for p in ps])

    m = TextMetric("length", stats, lambda s: float(s[0] / s[1]), "length", judged="nothing")
    x = ftnb.score_texts(["ab", "?", "abc"], ["a"] * 3, [m, "chrf"], name="x")
    y = ftnb.score_texts(["ab", "abcd", "a"], ["a"] * 3, [m, "chrf"], name="y")
    assert math.isnan(x.values["length"]) and math.isnan(x.intervals["length"][0])
    assert x.sorted("length").index.tolist() == [0, 2, 1] and x.sorted("length", best=True).index.tolist() == [2, 0, 1]
    found = ftnb.compare(x, y)
    assert found.verdict("length") == "undefined" and math.isnan(found.table["p_holm"]["length"])
    assert found.table["p_holm"]["chrf"] == found.table["p_value"]["chrf"]
    assert found.worse("length")["row"].tolist() == [2]
    assert "undefined" in repr(found) and "undefined" in found._repr_html_() and x._repr_html_()


def test_degenerate_intervals() -> None:
    """One row: the whole scale. Rows that are all alike: the same interval for every metric of one scale."""
    one = ftnb.score_texts(["a b"], ["a c"], ("chrf", "exact_match", "distinct1", "ter"))
    scale, open_scale = (0.0, 100.0), (0.0, math.inf)
    assert list(one.intervals.values()) == [scale, scale, scale, open_scale]
    assert set(one.to_pandas()["interval"]) == {"too few rows"}
    same = ("exact_match", "accuracy", "f1", "chrf", "rougeL", "distinct1")
    right = ftnb.score_texts([f"word{i}" for i in range(20)], [f"word{i}" for i in range(20)], (*same, "mcc", "ter"))
    for k in same:
        assert right.intervals[k] == pytest.approx((100 * S.wilson(20, 20)[0], 100)), k
    assert right.intervals["ter"] == open_scale
    assert right.intervals["mcc"] == pytest.approx((2 * S.wilson(20, 20)[0] - 1, 1))
    wrong = ftnb.score_texts(["x"] * 20, ["b"] * 20, ("chrf", "rougeL", "accuracy"))
    for k in wrong.metrics:
        assert wrong.intervals[k] == pytest.approx((0, 100 * S.wilson(0, 20)[1])), k
    gap = ftnb.compare(right, right).table
    for k in same:  # without a difference in any row, Tango's interval is that of rows alike
        assert (gap["low"][k], gap["high"][k]) == pytest.approx([100 * x for x in S.tango(*[np.ones(20, bool)] * 2)]), k
    two = ftnb.score_texts(["a b c d e", "a b c d f"], None, ["self_bleu"])
    assert two.intervals["self_bleu"] == scale


def test_intervals_stay_on_the_scale() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        texts = [" ".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 4)) for _ in range(6)]
        found = ftnb.score_texts(texts, texts[::-1], ("distinct1", "distinct2", "chrf", "f1", "mcc"))
        for k, (low, high) in found.intervals.items():
            assert found.metrics[k].limits[0] <= low <= found.values[k] <= high <= found.metrics[k].limits[1], k


def test_metrics_of_a_set_say_nothing_of_rows() -> None:
    refs = ["a", "b"] * 10
    said = lambda n: [*refs[:n], *["a"] * (20 - n)]
    x, y = (ftnb.score_texts(said(n), refs, ("mcc", "f1", "accuracy"), name=str(n)) for n in (8, 16))
    found = ftnb.compare(x, y)
    assert found.table.loc[["mcc", "f1"], ["d_z", "rows_better", "superiority"]].isna().all(axis=None)
    assert found.table.loc["accuracy", ["d_z", "rows_better"]].notna().all()
    assert "gain in accuracy" in found.better() and "worse by accuracy" in repr(found)
    for call in (lambda: found.worse("mcc"), lambda: x.sorted("f1"), lambda: x.browse("mcc")):
        with pytest.raises(ftnb.FTNBError, match="for a set of rows only.*'accuracy'"):
            call()
    sets = [ftnb.score_texts(p, refs, ("mcc", "f1")) for p in (refs, refs[::-1])]
    assert "<table" in sets[0]._repr_html_() and "mcc" in ftnb.compare(*sets)._repr_html_()
    assert "mcc" in repr(ftnb.compare(*sets))


def test_signature_has_the_number_of_references() -> None:
    found = ftnb.score_texts(["a b", "c d"], [["a b", "b a"], ["c d", "d c"]], ("bleu", "distinct1"))
    assert "nrefs:2" in found.to_pandas()["signature"]["bleu"]


def test_numbers_are_written_for_people() -> None:
    rng = np.random.default_rng(0)
    probs = lambda more: [{"a": p, "b": 1 - p} for p in (0.5 + more + 0.1 * rng.random(200)).tolist()]
    x, y = (ftnb.score_texts(probs(m), ["a"] * 200, ("brier",), name=n) for m, n in ((0, "x"), (0.03, "y")))
    told = repr(ftnb.compare(x, y))
    assert "   -0.0" in told and "[-0.0" in told and "p < 0.001" in told and "p = 0.000" not in told
    assert f"{x.values['brier']:.4f}" in repr(x) and f"{x.values['brier']:.4f}" in x._repr_html_()


def test_lists_of_any_kind() -> None:
    import pandas as pd

    texts = ["a b c", "d e f"]
    plain = ftnb.score_texts(texts, texts[::-1], ("chrf", "copy_rate"), prompts=texts)
    for kind in (pd.Series, tuple, np.array, lambda x: pd.Series(x, index=[7, 3]), lambda x: (t for t in x)):
        again = ftnb.score_texts(kind(texts), kind(texts[::-1]), ("chrf", "copy_rate"), prompts=kind(texts))
        assert again.values == plain.values
    alone = ftnb.score_texts(texts, None, ["distinct2"])
    assert alone.values["distinct2"] == 100 and "distinct2" in alone._repr_html_() and repr(alone)
    assert ftnb.compare(alone, ftnb.score_texts(texts[::-1], None, "distinct2".split())).table["difference"].item() == 0


WRONG = {
    "lengths": (lambda: ftnb.score_texts(["a"], ["a", "b"]), "1 predictions and 2 references"),
    "no references": (lambda: ftnb.score_texts(["a", "b"], ["a", []]), r"references\[1\]"),
    "prompts": (lambda: ftnb.score_texts(["a"], ["a"], prompts=["a", "b"]), "2 prompts"),
    "baseline": (lambda: ftnb.score_texts(["a"], ["a"], baseline=["a", "b"]), "a baseline of 2"),
    "numbers": (lambda: ftnb.score_texts(["a"], ["a"], ("perplexity",)), r"Use score\(lm"),
    "a str": (lambda: ftnb.score_texts("abc", ["a"]), "Put it into brackets"),
    "mixed": (lambda: ftnb.score_texts(["a", {"a": 1.0}], ["a", "a"]), "each must be one"),
    "where": (lambda: ftnb.score_texts(["a"], ["a"]).sorted(where=3), "a function of a row"),
    "None": (lambda: ftnb.score_texts(None, ["a"]), "predictions=None"),
    "a dict": (lambda: ftnb.score_texts({"a": 1.0}, ["a"]), "must be a list"),
    "None among prompts": (lambda: ftnb.score_texts(["a"], ["a"], prompts=[None]), r"prompts\[0\]=None"),
    "references needed": (lambda: ftnb.score_texts(["a"], None, ["distinct2", "chrf"]), "chrf compares with them"),
    "labels are no texts": (lambda: ftnb.score_texts([{1: 0.5, 2: 0.5}], ["1"], ["accuracy"]), "each label is a str"),
    "None for a probability": (lambda: ftnb.score_texts([{"a": None, "b": 1}], ["a"], ["accuracy"]), "are numbers"),
    "a text for it": (lambda: ftnb.score_texts([{"a": "1", "b": "0"}], ["a"], ["brier"]), "are numbers"),
    "twice": (lambda: ftnb.score_texts(["a"], ["a"], ["bleu", text_metric("bleu", tokenize="char")]), "Rename one"),
    "of evaluate": (lambda: ftnb.score_texts(["a"], ["a"], [ftnb.metric("chrf")]), "Give its name, or text_metric"),
    "no column": (
        lambda: ftnb.score_texts(["a"], ["a"]).sorted(where=lambda r: r["predicton"]),
        "columns are prompt, prediction.*Did you mean 'prediction'",
    ),
    "odd function": (lambda: ftnb.score_texts(["a"], ["a"]).sorted(where=lambda r: 1 + "x"), "raises TypeError"),
    "n as a text": (lambda: ftnb.compare(*three()[:2]).worse(n="3"), "without quotes"),
    "n below 0": (lambda: ftnb.compare(*three()[:2]).better(n=-1), "n=-1"),
    "no such option": (lambda: ftnb.score(ftnb.tiny_lm(), *adding(4), temprature=1.0), "Did you mean 'temperature'"),
    "value of an option": (lambda: ftnb.score(ftnb.tiny_lm(), *adding(4), temperature=-1.0), "temperature=-1"),
    "ScoreMonitor: option": (lambda: ftnb.ScoreMonitor(ftnb.tiny_lm(), *adding(4), top_kk=3), "Did you mean 'top_k'"),
    "ScoreMonitor: metric": (
        lambda: ftnb.ScoreMonitor(ftnb.tiny_lm(), *adding(4), metrics=["chrff"]),
        "Did you mean 'chrf",
    ),
    "ScoreMonitor: rows": (lambda: ftnb.ScoreMonitor(ftnb.tiny_lm(), [{"x": 1}], adding(4)[1]), "prompt"),
    "ScoreMonitor: task": (lambda: ftnb.ScoreMonitor(ftnb.tiny_lm(), adding(4)[0], "sum"), "it must be a Task"),
    "no common metric": (
        lambda: ftnb.compare(ftnb.score_texts(["a"], ["a"], ("chrf",)), ftnb.score_texts(["a"], ["a"], ("bleu",))),
        "only texts has it",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(ftnb.FTNBError, match=message):
        call()


def test_other_signatures_are_not_compared() -> None:
    texts = ["one two three four five", "six seven eight nine ten"]
    spaced = text_metric("bleu", tokenize="char")
    x, y = (ftnb.score_texts(texts, texts, [m, "chrf"]) for m in ("bleu", spaced))
    found = ftnb.compare(x, y)
    assert list(found.table.index) == ["chrf"] and "computed as" in found.left_out["bleu"]


VALUES = ["=1+1", "", "'tis", "+a", "-1", "@x", "\ttab", "\rx", "plain", 'quote " and, comma', "two\nlines", "中文"]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_saved_and_loaded(tmp_path: Path, ending: str) -> None:
    refs = [[v or "x", "y"] for v in VALUES]
    found = ftnb.score_texts(VALUES, refs, ("chrf", "exact_match", "distinct1"), name="odd")
    more = found.rows.add_column("empty", [None, *VALUES[1:]]).add_column("nan", [None, math.nan, math.inf] + [0.5] * 9)
    found = replace(found, rows=more)
    path = found.save(tmp_path / f"new/s{ending}")
    again = ftnb.load_scores(path)
    assert repr(again.rows[:]) == repr(found.rows[:]) and again.rows.features == found.rows.features
    assert again.values == found.values and again.intervals == found.intervals and repr(again) == repr(found)
    assert ftnb.compare(found, again).table["p_value"].tolist() == [1.0] * 3
    assert len(list(path.parent.iterdir())) == 2, "nothing is left over"
    if ending == ".csv":
        cells = [line.partition(",")[2][:1] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        assert not {"=", "+", "-", "@"} & set(cells)


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ftnb.score_texts(["a", "b"], ["a", "c"], ("chrf",))
    path = found.save(tmp_path / "s.csv")
    was = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(rows, file):
        file.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(tables.FORMATS, ".csv", (full, tables._read_csv))
    with pytest.raises(ftnb.FTNBError, match="No space left"):
        found.save(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == was
    (tmp_path / "s.csv.scores.json").unlink()
    with pytest.raises(ftnb.FTNBError, match="cannot be read"):
        ftnb.load_scores(path)


def adding(n: int = 60):
    rows = [{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(n)]
    return rows, ftnb.Task(
        "sum",
        ("prompt", "completion"),
        prompt=lambda r: r["prompt"],
        target=lambda r: r["completion"],
        metrics=("exact_match",),
        max_new_tokens=3,
    )


def test_more_metrics() -> None:
    rows, task = adding(6)
    lm = ftnb.tiny_lm()
    copied = TextMetric(
        "copied",
        lambda ps, prompts: np.array([[100.0 * (p in q), 1] for p, q in zip(ps, prompts)]),
        ratio,
        "copied",
        judged="prompts",
    )
    found = ftnb.score(lm, rows, task, metrics=[copied, "bits_per_byte", "distinct1", "chrf", "loss"], progress=False)
    assert set(found.values) == {"exact_match", "copied", "bits_per_byte", "distinct1", "chrf", "loss", "perplexity"}
    assert math.exp(found.values["loss"]) == pytest.approx(found.values["perplexity"])
    nats = found.stats["bits_per_byte"]
    assert nats[:, 1].tolist() == [len(r["completion"]) for r in rows]
    likely = TextMetric(
        "likely", lambda ps, rs: np.array([[100 * p[r], 1] for p, r in zip(ps, rs)]), ratio, "", judged="probabilities"
    )
    films = [{"text": "A joy.", "label": "fresh"}, {"text": "A bore.", "label": "rotten"}]
    mood = ftnb.score(lm, films, ftnb.sentiment(), metrics=[likely], progress=False)
    expected = np.mean([100 * mood.rows[f"p({r['label']})"][i] for i, r in enumerate(films)])
    assert mood.values["likely"] == pytest.approx(expected)
    with pytest.raises(ftnb.FTNBError, match="label probabilities"):
        ftnb.score(lm, rows, task, metrics=[likely])
    with pytest.raises(ftnb.FTNBError, match="compares predictions with prompts"):
        ftnb.score_texts(["a"], ["a"], [copied])
    assert ftnb.score_texts(["a"], ["a"], [copied], prompts=["bab"]).values["copied"] == 100


@pytest.mark.parametrize("name", ["mcc", "self_bleu", "f1", "distinct2"])
def test_metrics_of_a_set_on_a_model(name: str) -> None:
    rows, task = adding(6)
    lm = ftnb.tiny_lm()
    found = ftnb.score(lm, rows, task, metrics=[name], progress=False)
    assert math.isfinite(found.values[name]) and np.isnan(found.rows[name][:]).all()
    assert "ScoreMonitor(" in repr(ftnb.ScoreMonitor(lm, rows, task, metrics=[name])) and "of 6 rows" in repr(
        ftnb.ScoreMonitor(lm, rows, task, metrics=[name])
    )


def test_one_model_is_not_tested_against_itself() -> None:
    rows, task = adding(6)
    lm = ftnb.tiny_lm()
    x, y = (ftnb.score(lm, rows, task, name=n, progress=False, temperature=t) for n, t in (("x", 0.0), ("y", 2.0)))
    found = ftnb.compare(x, y)
    assert found.verdict("perplexity") == "equal" and math.isnan(found.table["p_holm"]["perplexity"])
    assert found.table["p_holm"]["exact_match"] == found.table["p_value"]["exact_match"], "nothing else was tested"
    assert "equal" in repr(found) and "nan" not in repr(found) and "nan" not in found._repr_html_()


def test_many_pairs() -> None:
    a, b, c = three()
    found = ftnb.compare(a, b, c)
    assert found.verdict("chrf")["a", "c"] == "better" and set(found.worse("chrf", 2)) == {("a", "b"), ("a", "c")}
    short = ftnb.compare(c, a).worse("chrf", 3, cut=24)
    assert list(short.columns) == ["row", "gain in chrf", "c", "a"] and max(map(len, short["a"])) <= 27
    assert "..." not in repr(short) and max(map(len, repr(short).splitlines())) <= 80


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    import json

    found = ftnb.score_texts(["a", "b"], ["a", "c"], ("chrf",))
    path = found.save(tmp_path / "s.csv")
    beside = tmp_path / "s.csv.scores.json"
    facts = json.loads(beside.read_text())
    for metrics in (text_metric("chrf"), ["chrf"], [text_metric("chrf")]):
        assert ftnb.load_scores(path, metrics).values == found.values
    wrong = [
        (facts | {"ftnb_scores": 2}, "reads form 1"),
        ({k: v for k, v in facts.items() if k != "asked"}, "changed after it was saved"),
        (facts | {"metrics": {"chrf": {"stats": []}}}, "changed after it was saved"),
        ([], "form None"),
    ]
    for text, message in wrong:
        beside.write_text(json.dumps(text))
        with pytest.raises(ftnb.FTNBError, match=message):
            ftnb.load_scores(path)
    (tmp_path / "a file").write_text("")
    for call, message in [
        (lambda: ftnb.load_scores(tmp_path / "t.csv"), "no such file"),
        (lambda: ftnb.load_scores(beside), "Give 's.csv'"),
        (lambda: found.save(tmp_path), "it is a folder"),
        (lambda: found.save(tmp_path / "a file" / "s.csv"), "cannot be written"),
    ]:
        with pytest.raises(ftnb.FTNBError, match=message):
            call()


def trained(watch=None, **options):
    rows, task = adding()
    lm = ftnb.tiny_lm(attention_dropout=0.1)
    scored = [] if watch is None else [ftnb.ScoreMonitor(lm, rows, task, **watch)]
    run = ftnb.finetune(lm, ftnb.encode(lm, rows, task), epochs=3, lr=1e-2, callbacks=scored, progress=False, **options)
    return run, scored[0] if scored else None


def same_weights(x, y) -> bool:
    x, y = x.lm.model.state_dict(), y.lm.model.state_dict()
    return all(torch.equal(x[k], y[k]) for k in x)


def test_score_monitor_changes_nothing() -> None:
    before = torch.get_rng_state()
    alone, _ = trained()
    after = torch.get_rng_state()
    for options in ({"every": 5, "seconds": 1, "share": None}, {"every": 1, "seconds": 1, "temperature": 1.0}):
        torch.set_rng_state(before)
        run, scored = trained(options)
        assert same_weights(run, alone) and run.losses == alone.losses
        assert torch.equal(torch.get_rng_state(), after), "the generators are as without it"
        assert run.lm.model.training == alone.lm.model.training
        assert scored.history["step"].iloc[0] == 0 and scored.history["step"].iloc[-1] == len(run.losses)
    assert list(scored.history.columns[:5]) == ["step", "metric", "value", "low", "high"]
    assert set(scored.history["rows"]) == {scored.n} and set(scored.history["metric"]) == {"exact_match", "perplexity"}


def test_score_monitor_keeps_to_its_time() -> None:
    _, few = trained({"every": 1, "seconds": 0, "share": 0.0})
    assert few.n == 2 and [s for s, _ in few.records] == [0, 24], "the first and the last look only"
    _, every = trained({"every": 1, "seconds": 0, "share": None})
    assert [s for s, _ in every.records] == list(range(25))
    _, long = trained({"seconds": 100})
    assert long.n == 60, "all rows, where there is time for them"
    assert few.order == long.order, "the same rows first"


def test_score_monitor_is_shown_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows, task = adding()
    whole, watched = trained({"every": 4, "seconds": 0, "share": None})
    lm = ftnb.tiny_lm(attention_dropout=0.1)
    cut = ftnb.ScoreMonitor(lm, rows, task, 4, seconds=0, share=None)

    class Stop(ftnb.Callback):
        def after_step(self, learner):
            if learner.step == 10:
                raise KeyboardInterrupt

    data, folder = ftnb.encode(lm, rows, task), tmp_path / "c"
    ftnb.finetune(lm, data, epochs=3, lr=1e-2, callbacks=[cut, Stop()], checkpoint=folder)
    assert "after step 4\n  scores of 2 rows: exact_match" in capsys.readouterr().out
    again_lm = ftnb.tiny_lm(attention_dropout=0.1)
    again = ftnb.ScoreMonitor(again_lm, rows, task, 4, seconds=0, share=None)
    run = ftnb.resume(folder, again_lm, callbacks=[again], progress=False)
    assert same_weights(run, whole)
    values = lambda s: [(x["step"], x["values"]) for x in s.measurements]
    assert values(again) == values(watched)


def films_task(folder: Path, rows: datasets.Dataset) -> None:
    import json

    (folder / "films.jsonl").write_text("\n".join(json.dumps(dict(r)) for r in rows))
    (folder / "films.yaml").write_text(f"""
task: films
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{folder / "films.jsonl"}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "Is the following text fresh or rotten? Answer with one word.\\n\\n{{{{text}}}}\\n\\nLabel:"
doc_to_choice: ["fresh", "rotten"]
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""")


def test_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import logging
    import os

    pytest.importorskip("lm_eval")
    rows = ftnb.sample_data("sentiment")["test"].select(range(40))
    films_task(tmp_path, rows)
    lm = ftnb.tiny_lm()
    lm.model.train()
    was = {k: v.clone() for k, v in lm.model.state_dict().items()}
    state, pad, environ = torch.get_rng_state(), lm.tokenizer.pad_token, dict(os.environ)
    level = logging.getLogger("lm_eval").level
    found = ftnb.benchmark(lm, "films", tmp_path, progress=False)
    assert capsys.readouterr() == ("", "")
    assert all(torch.equal(v, lm.model.state_dict()[k]) for k, v in was.items()) and lm.model.training
    assert torch.equal(state, torch.get_rng_state()) and lm.tokenizer.pad_token == pad
    assert logging.getLogger("lm_eval").level == level and "DISABLE_MULTIPROC" not in os.environ
    assert {k for k in os.environ if k not in environ} <= {"HF_XET_HIGH_PERFORMANCE"}

    mine = ftnb.score(lm, rows, ftnb.sentiment(), progress=False)
    line = found.table.loc[("films", "acc")]
    assert 100 * line["value"] == pytest.approx(mine.values["label_accuracy"]) and line["n"] == 40
    assert line["stderr"] == pytest.approx(np.std(np.array(mine.rows["label_accuracy"]) / 100, ddof=1) / 40**0.5)
    assert (100 * line["low"], 100 * line["high"]) == pytest.approx(mine.intervals["label_accuracy"])
    assert found.scores["films"].rows["prediction"][0].strip() in ("fresh", "rotten")
    other = ftnb.benchmark(ftnb.tiny_lm(seed=3), ["films"], tmp_path, progress=False)
    assert len(ftnb.compare(found.scores["films"], other.scores["films"]).table) == 1
    assert ftnb.benchmark(lm, "films", tmp_path, limit=5, progress=False).table["n"].tolist() == [5]
    for call, message in [
        (lambda: ftnb.benchmark(lm, "film", tmp_path), "Did you mean 'films'"),
        (lambda: ftnb.benchmark(lm, "films", tmp_path / "no"), "no such folder"),
        (lambda: ftnb.benchmark(lm, [], tmp_path), "tasks"),
        (lambda: ftnb.benchmark("lm", "films", tmp_path), "it must be an LM"),
    ]:
        with pytest.raises(ftnb.FTNBError, match=message):
            call()


FAULTS = {
    "no column in the prompt": ("{{text}}", "{{text.x.y}}", {}, "films.*UndefinedError"),
    "no such split": ("test_split: test", "test_split: validation", {}, "films.*KeyError"),
    "no such output": ("multiple_choice", "choice", {}, "output_type"),
    "no such target": ("doc_to_target: label", "doc_to_target: lable", {}, "Did you mean 'label'"),
    "too many examples": ("test_split: test", "test_split: test\nfewshot_split: test", {"shots": 50}, "shots=50"),
    "no template": ("", "", {"chat": True}, "chat=True for films"),
    "broken yaml": ("task: films", "task: [films", {}, "cannot be read|describes it"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_benchmark_faults(case: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    old, new, options, message = FAULTS[case]
    films_task(tmp_path, ftnb.sample_data("sentiment")["test"].select(range(4)))
    file = tmp_path / "films.yaml"
    file.write_text(file.read_text().replace(old, new) if old else file.read_text())
    with pytest.raises(ftnb.FTNBError, match=message):
        ftnb.benchmark(ftnb.tiny_lm(), "films", tmp_path, progress=False, **options)


def test_benchmark_says_what_it_left_out(tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch) -> None:
    pytest.importorskip("lm_eval")
    films_task(tmp_path, ftnb.sample_data("sentiment")["test"].select(range(4)))
    file = tmp_path / "films.yaml"
    file.write_text(file.read_text() + "  - metric: akkuracy\n    aggregation: mean\n    higher_is_better: true\n")
    monkeypatch.chdir(tmp_path)  # which is no repository
    with pytest.warns(UserWarning, match="akkuracy"):
        found = ftnb.benchmark(ftnb.tiny_lm(), "films", tmp_path, limit=1)
    out = capfd.readouterr()
    assert "fatal" not in out.err and "ran 1 task," in out.out + out.err
    assert "nan" not in repr(found)
    with pytest.raises(ftnb.FTNBError, match="give folder=") as e:
        ftnb.benchmark(ftnb.tiny_lm(), "my_own_qqq", progress=False)
    assert len(str(e.value)) < 300


def test_benchmark_by_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    code = (
        "import ftnb\n"
        "try: ftnb.benchmark(ftnb.tiny_lm(), 'arc_easy', limit=2, progress=False)\n"
        "except ftnb.FTNBError as e: print(e)"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "its rows could not be had" in done.stdout, done.stderr[-2000:]


def test_memory_for_ten_thousand_rows() -> None:
    """Resamples are drawn a part at a time: three times as many need no more memory."""
    rng = np.random.default_rng(0)
    stats = [np.stack([rng.random(10_000), np.ones(10_000)], 1) for _ in range(4)]
    m = TextMetric("mean", lambda p, r: p, ratio, "")
    peaks = []
    for resamples in (1500, 4500):
        tracemalloc.start()
        S.paired_differences([m] * 4, stats, stats[::-1], resamples, 0, "randomization")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 10_000 * 4500 * 8


def test_the_seed_is_also_that_of_the_sampling() -> None:
    lm, rows, task = ftnb.tiny_lm(), [{"text": "a text", "summary": "a"}] * 3, ftnb.summarization()
    said = [ftnb.score(lm, rows, task, 5, temperature=1.0, seed=s).rows["prediction"][:] for s in (0, 0, 1)]
    assert said[0] == said[1] != said[2]


def test_targets_of_prompts_that_were_cut_are_measured() -> None:
    lm, task = ftnb.tiny_lm(), ftnb.summarization()
    with pytest.warns(UserWarning, match="were cut"):
        found = ftnb.score(lm, [{"text": "x" * 600, "summary": "a word"}] * 3, task, 5, truncate=True)
    assert found.values["perplexity"] > 50


def test_free_text_takes_no_options_of_writing() -> None:
    with pytest.raises(ftnb.FTNBError, match="no answers to write"):
        ftnb.score(ftnb.tiny_lm(), ["a text"] * 3, ftnb.free_text(), temperature=1.0)
