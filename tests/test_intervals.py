"""Intervals and tests against statsmodels and scipy, and their coverage by simulation."""

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from lorafit import evaluation, intervals


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (1, 3), (265, 300), (1742, 2000)])
def test_wilson_is_that_of_statsmodels(right: int, n: int) -> None:
    assert intervals.wilson(right, n) == pytest.approx(list(proportion_confint(right, n, method="wilson")), abs=1e-12)


def test_88_percent_of_300_texts_is_anything_from_84_to_92() -> None:
    low, high = intervals.wilson(265, 300)
    assert (round(low, 3), round(high, 3)) == (0.842, 0.915)


def test_wilson_covers_the_true_accuracy_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    for accuracy, n in ((0.88, 300), (0.6, 40), (0.97, 200)):
        limits = np.array([intervals.wilson(int(right), n) for right in random.binomial(n, accuracy, 2000)])
        covered = ((limits[:, 0] <= accuracy) & (accuracy <= limits[:, 1])).mean()
        assert 0.93 < covered < 0.975


def test_mcnemar_is_that_of_statsmodels() -> None:
    random = np.random.default_rng(1)
    for better in (0.5, 0.6, 0.9):
        first, second = random.random(200) < 0.5, random.random(200) < better
        both = [[(first & second).sum(), (first & ~second).sum()], [(~first & second).sum(), (~first & ~second).sum()]]
        found = intervals.mcnemar(first, second)
        assert found.p == pytest.approx(statsmodels_mcnemar(both, exact=True).pvalue, rel=1e-9)
        assert (found.only_first_right, found.only_second_right) == (both[0][1], both[1][0])


def test_classifiers_that_never_differ_are_not_told_apart() -> None:
    right = np.array([True, False, True])
    assert intervals.mcnemar(right, right) == intervals.McNemar(0, 0, 1.0)


def test_mcnemar_raises_a_false_alarm_at_most_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    alarms = [intervals.mcnemar(*(random.random((2, 100)) < 0.8)).p < 0.05 for _ in range(1000)]
    assert 0.01 < np.mean(alarms) < 0.05  # exact, so a little careful


def test_holm_is_that_of_statsmodels() -> None:
    for p_values in ([0.01, 0.04, 0.03, 0.005], [0.5, 0.9], [0.2]):
        assert intervals.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_the_bootstrap_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(3).exponential(size=150)
    ours = intervals.bootstrap(values[:, None], lambda sums: sums / 150, resamples=20_000)[0]
    theirs = scipy_bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=0).confidence_interval
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.01)


def test_the_bootstrap_is_seeded() -> None:
    values = np.random.default_rng(4).random((50, 1))
    found = [intervals.bootstrap(values, lambda sums: sums / 50, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_blocks_of_resamples_draw_each_text_as_often_as_there_are_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_WEIGHTS_AT_ONCE", 70)
    blocks = list(intervals._resampled(10, 25, seed=0))
    assert [block.shape for block in blocks] == [(10, 7), (10, 7), (10, 7), (10, 4)]
    assert all((block.sum(axis=0) == 10).all() for block in blocks)


def test_the_bootstrap_covers_the_true_f1_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals.bootstrap, "__kwdefaults__", {"resamples": 300, "seed": 0})
    random = np.random.default_rng(5)
    cells = np.array([[0.40, 0.06, 0.02], [0.05, 0.25, 0.02], [0.03, 0.03, 0.14]])  # true, given
    true_f1 = (2 * np.diag(cells) / (cells.sum(axis=0) + cells.sum(axis=1))).mean()
    covered = []
    for _ in range(300):
        drawn = random.choice(9, 200, p=cells.ravel())
        low, high = evaluation.score_intervals(drawn % 3, drawn // 3, labels=3)["f1"]
        covered.append(low <= true_f1 <= high)
    assert 0.90 < np.mean(covered) < 0.985


def test_the_bootstrap_covers_the_true_f1_of_several_labels_about_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intervals.bootstrap, "__kwdefaults__", {"resamples": 300, "seed": 0})
    random = np.random.default_rng(7)
    frequent, found, false = np.array([0.5, 0.3, 0.15]), np.array([0.9, 0.8, 0.7]), np.array([0.1, 0.1, 0.05])
    hits = frequent * found
    true_f1 = (2 * hits / (frequent + hits + (1 - frequent) * false)).mean()
    covered = []
    for _ in range(300):
        label_ids = (random.random((200, 3)) < frequent).astype(int)
        given = (random.random((200, 3)) < np.where(label_ids, found, false)).astype(int)
        low, high = evaluation.score_intervals(given, label_ids, labels=3)["f1"]
        covered.append(low <= true_f1 <= high)
    assert 0.90 < np.mean(covered) < 0.985


@pytest.mark.parametrize(
    ("only_first", "only_second"),
    [(0.04, 0.40), (0.05, 0.08), (0.10, 0.10)],
    ids=["an adapter over its base", "a run a little better than another", "runs that are equally good"],
)
def test_the_paired_bootstrap_covers_the_true_gain_about_as_often_as_it_says(
    only_first: float, only_second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of an evaluation and that of a comparison, which are one."""
    monkeypatch.setattr(intervals.bootstrap, "__kwdefaults__", {"resamples": 300, "seed": 0})
    random = np.random.default_rng(8)
    label_ids = np.zeros(300, dtype=int)
    covered = []
    for _ in range(400):
        kind = random.choice(3, 300, p=[only_first, only_second, 1 - only_first - only_second])
        first, second = kind != 0, kind != 1  # the label given: 1 is wrong
        low, high = evaluation.gain(first.astype(int), second.astype(int), label_ids)["improvement_interval"]
        covered.append(low <= 100 * (only_second - only_first) <= high)
    assert 0.91 < np.mean(covered) < 0.98


def test_a_paired_difference_is_known_better_than_an_unpaired_one() -> None:
    random = np.random.default_rng(6)
    label_ids = random.integers(0, 2, 1000)
    base = np.where(random.random(1000) < 0.8, label_ids, 1 - label_ids)
    adapted = np.where(random.random(1000) < 0.1, label_ids, base)  # a little better on the same texts
    low, high = evaluation.gain(base, adapted, label_ids)["improvement_interval"]
    unpaired = 100 * 2 * 1.96 * np.sqrt(2 * 0.8 * 0.2 / 1000)
    assert 0 < low < high
    assert high - low < 0.6 * unpaired
