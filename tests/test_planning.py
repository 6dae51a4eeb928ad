"""Tests and intervals of few rows agree and are right, whatever the metric; and what is planned is what is found."""

import math

import numpy as np
import pytest

import ftnb
from ftnb.evaluation import power as P
from ftnb.evaluation import statistics as S
from ftnb.evaluation.metric import TextMetric, ratio
from ftnb.evaluation.metrics import METRICS, text_metric
from ftnb.evaluation.planning import _from_gains

MEAN = TextMetric("mean", lambda p, r: p, ratio, "mean", limits=(0.0, 100.0))
OPEN = TextMetric("open", lambda p, r: p, ratio, "open")


def mean_without(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


JACKKNIFE = TextMetric("jackknife", lambda p, r: p, mean_without, "j", spread="jackknife", limits=(0.0, 100.0))
WORLDS = {  # scores of rows, 0 to 100, of a system that is as good as the other
    "even": lambda rng, size: rng.random(size) * 100,
    "mostly right": lambda rng, size: 100.0 * (rng.random(size) < 0.95),
    "half right": lambda rng, size: 100.0 * (rng.random(size) < 0.5),
    "thirds": lambda rng, size: rng.choice([0.0, 50.0, 100.0], size),
    "two heaps": lambda rng, size: np.clip(rng.choice([10.0, 90.0], size) + rng.normal(0, 0.1, size), 0, 100),
    "constant": lambda rng, size: np.full(size, 40.0),
    "heavy": lambda rng, size: np.minimum(100, rng.pareto(0.7, size)),
    "rare": lambda rng, size: rng.random(size) * 100 * (rng.random(size) < 0.2),
}


def rows_of(metric: TextMetric, x: np.ndarray) -> np.ndarray:
    columns = [x, np.ones(len(x))]
    if metric.spread == "jackknife":
        columns.append((x.sum() - x) / max(1, len(x) - 1))
    return np.stack(columns, 1)


def rates(metric: TextMetric, world: str, n: int, times: int, test: str = "randomization") -> tuple[float, float]:
    """Of comparisons of two equal systems, the shares with p < 0.05, and with a verdict."""
    rng, found = np.random.default_rng(n), []
    for i in range(times):
        a, b = (rows_of(metric, WORLDS[world](rng, n)) for _ in "ab")
        gap, low, high, p = S.difference(metric, a, b, 100 if n <= 10 else 400, i, test)
        assert low <= gap <= high and (low < high) and 0 <= p <= 1
        found.append((p < 0.05, p < 0.05 and not low <= 0 <= high))
    return tuple(np.mean(found, 0))


@pytest.mark.parametrize("metric", [MEAN, OPEN, JACKKNIFE], ids=lambda m: m.name)
@pytest.mark.parametrize("world", WORLDS)
def test_no_false_alarms_of_few_rows(world: str, metric: TextMetric) -> None:
    """With two to five rows never, with six to ten in 5 % at most (and an error of three times its own size)."""
    for n in range(2, 11):
        times = 20 if n < 6 else 100
        alarms, verdicts = rates(metric, world, n, times, "bootstrap" if n % 2 else "randomization")
        assert verdicts <= alarms <= (0 if n < 6 else 0.05 + 3 * math.sqrt(0.05 * 0.95 / times)), (n, alarms)


@pytest.mark.parametrize("test", ["randomization", "bootstrap"])
@pytest.mark.parametrize("metric", [MEAN, OPEN, JACKKNIFE], ids=lambda m: m.name)
@pytest.mark.parametrize("world", WORLDS)
def test_no_false_alarms(world: str, metric: TextMetric, test: str) -> None:
    for n in (*range(6, 11), 14, 50):
        alarms, verdicts = rates(metric, world, n, 300, test)
        limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
        assert verdicts <= limit and (alarms <= limit or (test == "bootstrap" and n > 10)), (n, alarms, verdicts)


@pytest.mark.parametrize("n", [6, 8, 10, 20])
def test_intervals_of_differences_cover(n: int) -> None:
    """Of gains that are symmetric, also where they are few, coarse or heavy-tailed: in 95 %, or more."""
    rng = np.random.default_rng(n)
    draws = {
        "normal": lambda: rng.normal(0, 10, n),
        "coarse": lambda: rng.choice([-20.0, 0, 20], n),
        "sparse": lambda: rng.normal(0, 10, n) * (rng.random(n) < 0.4),
        "heavy": lambda: np.clip(rng.standard_t(2, n), -45, 45),
    }
    for world, draw in draws.items():
        inside = []
        for i in range(250):
            a, b = rows_of(MEAN, np.full(n, 50.0)), rows_of(MEAN, 50 + draw())
            _, low, high, _ = S.difference(MEAN, a, b, 400, i)
            inside.append(low <= 0 <= high)
        assert np.mean(inside) > 0.915, (world, np.mean(inside))


def texts_of(n: int, seed: int) -> list[list[str]]:
    """References, and answers of two systems, of few words: many rows are alike."""
    rng = np.random.default_rng(seed)
    return [[" ".join(rng.choice(list("abc"), rng.integers(1, 6))) for _ in range(n)] for _ in range(3)]


def stats_of(name: str, n: int, seed: int) -> tuple[TextMetric, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    options = {"novelty": {"train": ["a b a b c"], "n": 2}, "meteor": {"synonyms": False}}.get(name, {})
    m = text_metric(name, **options)
    if m.judged == "numbers":
        counts = rng.integers(1, 9, n).astype(float)
        return m, [m.stats((rng.choice([1.0, 3.0], n) * counts).tolist(), counts.tolist()) for _ in "ab"]
    if m.judged == "probabilities":
        right = ["x", "y", *rng.choice(["x", "y"], n)][:n]
        sure = [rng.choice([0.1, 0.5, 0.9], n) for _ in "ab"]
        return m, [m.stats([{"x": float(p), "y": 1 - float(p)} for p in q], right) for q in sure]
    references, *answers = texts_of(n, seed)
    references[0] += " c"
    return m, [m.stats(x, references) for x in answers]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [k for k in METRICS if k not in ("bertscore", "wer", "cer")])
def test_every_metric_keeps_to_the_rule(name: str) -> None:
    """Without a warning of NumPy's: below six rows no alarm; and p is below 0.05 in few comparisons of equals."""
    alarms = []
    for n in (2, 3, 5, 6, 8, 10):
        for seed in range(12):
            m, (a, b) = stats_of(name, n, 100 * n + seed)
            gap, low, high, p = S.difference(m, a, b, 100, seed, ("randomization", "bootstrap")[seed % 2])
            alarms.append(p < 0.05)
            assert not (n < 6 and alarms[-1]), (n, p)
            assert low <= gap <= high and low < high, (n, gap, low, high)
            if S.interval_kind(m, a, b) == "rows alike":
                assert (p < 0.05) == (not low <= 0 <= high), (n, gap, low, high, p)
            assert S.difference(m, a, a, 100, seed)[3] in (1.0, math.nan) or n < 3
    assert np.mean(alarms) < 0.12


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_distinct_of_few_rows(n: int) -> None:
    """p was 0 beside an interval with 0 in it, by rounding: rows nearly alike."""
    texts = [[f"{x}{i} {y}{i} {z}" for i in range(n)] for x, y, z in ("abc", "dde")]
    a, b = (ftnb.score_texts(t, None, ["distinct1", "distinct2"]) for t in texts)
    for test in ("randomization", "bootstrap"):
        found = ftnb.compare(a, b, test=test)
        for k, row in found.table.iterrows():
            change = row["p_holm"] < 0.05 and not row["low"] <= 0 <= row["high"]
            assert (found.verdict(k) == "no clear change") == (not change)
            assert row["p_value"] >= 2 / 2**n


def test_user_metrics_that_are_undefined_somewhere() -> None:
    """An exchange or a resampled set without a score is no evidence."""

    def combine(sums: np.ndarray) -> float:
        return float(sums[0] / sums[1]) if sums[1] > 1 else math.nan

    m = TextMetric("some", lambda p, r: p, combine, "some")
    rng = np.random.default_rng(0)
    a = np.stack([np.zeros(8), np.ones(8)], 1)
    b = np.stack([np.full(8, 5.0) + rng.random(8), (np.arange(8) < 3).astype(float)], 1)
    _, low, high, p = S.difference(m, a, b)
    assert 2 / 2**8 <= p <= 1 and low == -math.inf, "many resampled sets have no score: there is no interval"


def test_power_of_the_textbooks() -> None:
    """G*Power: 34 rows for d = 0.5, 199 for 0.2, 15 for 0.8 (two-sided, 80 %)."""
    for d, rows in ((0.5, 34), (0.2, 199), (0.8, 15)):
        assert P.t_power(d, 1, rows - 1) < 0.8 <= P.t_power(d, 1, rows)
    from scipy.stats import binom

    by_hand = sum(
        binom.pmf(m, 30, 0.4) * (binom.sf(c - 1, m, 0.75) + binom.cdf(m - c, m, 0.75))
        for m in range(31)
        for c in [next((c for c in range(m + 1) if 2 * binom.sf(c - 1, m, 0.5) < 0.05), m + 1)]
    )
    assert P.share_power(0.2, 0.4, 30) == pytest.approx(by_hand, abs=1e-9)


def achieved(metric: TextMetric, draw, times: int = 400) -> float:
    """How often a comparison finds a difference: p below 0.05, and an interval without 0."""
    found = [S.difference(metric, *draw(), 400, i) for i in range(times)]
    return float(np.mean([p < 0.05 and not low <= 0 <= high for _, low, high, p in found]))


PILOTS = {
    "normal": lambda rng: rng.normal(0, 8, 40),
    "sparse": lambda rng: rng.normal(0, 15, 40) * (rng.random(40) < 0.3),
    "skewed": lambda rng: np.clip(rng.exponential(6, 40), 0, 40),
}


@pytest.mark.parametrize("metric", [MEAN, JACKKNIFE], ids=lambda m: m.name)
@pytest.mark.parametrize("pilot", PILOTS)
def test_planned_rows_have_the_power(pilot: str, metric: TextMetric) -> None:
    rng = np.random.default_rng(1)
    gains = PILOTS[pilot](rng)
    plan = _from_gains(gains, "", metric is MEAN, 4.0, 0.8, 0.05)
    moved = (gains - gains.mean()) * math.sqrt(40 / 39) + 4

    def draw():
        return rows_of(metric, np.full(plan.rows, 50.0)), rows_of(metric, 50 + rng.choice(moved, plan.rows))

    assert achieved(metric, draw) == pytest.approx(0.8, abs=0.07)
    assert plan.between[0] < plan.rows < plan.between[1] and plan.power == pytest.approx(0.8, abs=0.02)


def test_planned_shares_and_ratings_have_the_power() -> None:
    from ftnb.people import win_rates as W

    rng = np.random.default_rng(2)
    plan = ftnb.rows_needed(15, disagreement=0.75)
    chances = [0.25, (0.75 + 0.15) / 2, (0.75 - 0.15) / 2]  # tied, won, lost

    def draw():
        kind = rng.choice(3, plan.rows, p=chances)
        return [np.stack([100.0 * np.isin(kind, x), np.ones(plan.rows)], 1) for x in ([0, 2], [0, 1])]

    assert achieved(text_metric("accuracy"), draw) == pytest.approx(plan.power, abs=0.07)
    found = []
    for i in range(300):
        share = np.array([0.5, 1.0, 0.0])[rng.choice(3, plan.rows, p=chances)]
        sums = np.stack([share, np.ones(plan.rows)], 1)
        low, high = W.share_interval(sums, 200, i)
        found.append(not low <= 50 <= high)
    assert np.mean(found) == pytest.approx(plan.power, abs=0.07)


def test_detectable_differences_are_found() -> None:
    """At the minimum detectable effect the power is 80 %, for few and many rows, for shares and for distinct-1."""
    rng = np.random.default_rng(3)
    for n in (8, 12, 60):
        gains = rng.normal(0, 10, n)
        a, b = rows_of(MEAN, np.full(n, 50.0)), rows_of(MEAN, 50 + gains)
        least = P.detectable_difference(MEAN, a, b)
        spread = gains.std(ddof=1)
        drawn = [(a, rows_of(MEAN, 50 + rng.normal(least, spread, n))) for _ in range(300)]
        assert achieved(MEAN, drawn.pop, 300) == pytest.approx(0.8, abs=0.09), n
    m = text_metric("distinct1")
    words = [f"w{i}" for i in range(300)]

    def said(p: float) -> np.ndarray:
        texts = [" ".join("the" if rng.random() < p else str(w) for w in rng.choice(words, 8)) for _ in range(60)]
        return m.stats(texts, None)

    a, b = said(0.3), said(0.3)
    least = P.detectable_difference(m, a, b)
    assert 2 < least < 15
    effects = {p: [S.difference(m, said(0.3), said(p), 100) for _ in range(60)] for p in (0.3, 0.25, 0.2, 0.15)}
    for results in effects.values():  # the power rises through 80 % about where it should
        gap, found = abs(np.mean([r[0] for r in results])), np.mean([r[3] < 0.05 for r in results])
        if gap > 1.15 * least:
            assert found > 0.6, (gap, least, found)
        if gap < 0.85 * least:
            assert found < 0.95, (gap, least, found)


def test_equivalence_at_the_margin() -> None:
    """A true difference of just the margin is called "as good as" in 5 % of comparisons at most."""
    rng, found = np.random.default_rng(4), {"mean": [], "share": []}
    accuracy = text_metric("accuracy")
    for i in range(500):
        a, b = rows_of(MEAN, np.full(40, 50.0)), rows_of(MEAN, 50 + rng.normal(3, 5, 40))
        _, low, high, _ = S.difference(MEAN, a, b, 400, i, level=0.9)
        found["mean"].append(low > -3 and high < 3)
        kind = rng.choice(3, 200, p=[0.85, 0.125, 0.025])
        x, y = (np.stack([100.0 * np.isin(kind, r), np.ones(200)], 1) for r in ([0, 2], [0, 1]))
        _, low, high, _ = S.difference(accuracy, x, y, 100, i, level=0.9)
        found["share"].append(low > -10 and high < 10)
    for k, hits in found.items():
        assert np.mean(hits) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500), (k, np.mean(hits))


def test_words_of_a_comparison() -> None:
    texts = [f"text number {i} of many" for i in range(40)]
    spoiled = [t.replace("many", "mny") if i % 4 == 0 else t for i, t in enumerate(texts)]
    a, b = (ftnb.score_texts(x, texts, ("chrf", "ter"), name=n) for x, n in ((texts, "a"), (spoiled, "b")))
    assert ftnb.compare(a, b).verdict("chrf") == "worse"
    near = ftnb.compare(a, b, margin={"chrf": 20.0})
    assert near.verdict("chrf") == "as good as" and near.verdict("ter") == "worse"
    assert "as good as" in repr(near) and "as good as" in near._repr_html_()
    few = [ftnb.score_texts(x[:4], texts[:4], ("chrf",), name=n) for x, n in ((texts, "a"), (spoiled, "b"))]
    found = ftnb.compare(*few, margin={"chrf": 20.0})
    assert found.verdict("chrf") == "inconclusive" and "too few rows to see any" in repr(found)
    assert math.isinf(found.table["detectable"]["chrf"])
    for margin in ({"bleu": 1.0}, {"chrf": -1.0}, {"chrf": "1"}, {"chrf": math.inf}, 1.0):
        with pytest.raises(ftnb.FTNBError):
            ftnb.compare(a, b, margin=margin)


def test_what_cannot_be_planned() -> None:
    for bad in (
        {"effect": 0, "pilot": [1.0, 2, 3, 4, 5, 7]},
        {"effect": 1},
        {"effect": 1, "pilot": [1.0, 2], "disagreement": 0.2},
        {"effect": 1, "pilot": [1.0] * 8},
        {"effect": 1, "pilot": [1.0, math.nan, 3, 4, 5, 7]},
        {"effect": 1, "pilot": np.zeros((3, 3))},
        {"effect": 50, "disagreement": 0.2},
        {"effect": math.nan, "disagreement": 0.2},
        {"effect": 2, "pilot": [1, -1, 0, 1, 0, 0]},
        {"effect": 1, "pilot": [1.0, 2, 3, 4, 5, 7], "tests": 0},
        {"effect": 1, "pilot": [1.0, 2, 3, 4, 5, 7], "power": 1},
        {"effect": 1e-9, "pilot": [1.0, 2, 3, 4, 5, 7]},
    ):
        with pytest.raises(ftnb.FTNBError):
            ftnb.rows_needed(**bad)
    plan = ftnb.rows_needed(1, [1.0, 2, 3, 4, 5, 7])
    assert "<svg" in plan._repr_html_() and f"{plan.rows:,} rows" in repr(plan)
    assert ftnb.rows_needed(1, [1.0, 2, 3, 4, 5, 7], tests=5).rows > plan.rows
