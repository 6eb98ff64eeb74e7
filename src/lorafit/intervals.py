"""How sure a score is: 95% intervals, and tests of whether one classifier is better than another on the same texts."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import binomtest

Interval = list[float]  # low and high

CONFIDENCE = 0.95
RESAMPLES = 1000
_WEIGHTS_AT_ONCE = 2_000_000  # 16 MB of them


@dataclass(frozen=True)
class McNemar:
    """Of two classifiers on the same texts: how many only one of them got right, and how likely luck alone is."""

    only_first_right: int
    only_second_right: int
    p: float


def wilson(right: int, n: int) -> Interval:
    """Return the interval of a share: `right` of `n` texts (Wilson 1927).

    >>> [round(limit, 3) for limit in wilson(265, 300)]
    [0.842, 0.915]
    """
    found = binomtest(right, n).proportion_ci(CONFIDENCE, method="wilson")
    return [float(found.low), float(found.high)]


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> McNemar:
    """Return McNemar's exact two-sided test; texts that both got right, or both wrong, say nothing (McNemar 1947).

    Args:
        first_right: whether the first classifier got each text right, bool.
        second_right: the same of the second, on the same texts.

    >>> mcnemar(np.array([True, True, False]), np.array([False, True, True])).p
    1.0
    """
    first, second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    p = float(binomtest(min(first, second), first + second).pvalue) if first + second else 1.0
    return McNemar(first, second, p)


def paired_gap(first_right: np.ndarray, second_right: np.ndarray) -> tuple[float, Interval]:
    """Return by how much the second classifier's share of right answers is the larger, and its interval.

    From Wilson's intervals of the two shares that differ, only the first right and only the second (MOVER: Zou and
    Donner 2008); so it has a width where the two never differ, as with few texts they may.

    >>> [round(limit, 3) for limit in paired_gap(np.ones(200, bool), np.ones(200, bool))[1]]
    [-0.019, 0.019]
    """
    n = len(first_right)
    lost, won = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    (lost_low, lost_high), (won_low, won_high) = wilson(lost, n), wilson(won, n)
    gap = (won - lost) / n
    below = math.hypot(won / n - won_low, lost_high - lost / n)
    above = math.hypot(won_high - won / n, lost / n - lost_low)
    return gap, [gap - below, gap + above]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of several tests, raised so that one false alarm among all is as rare as p (Holm 1979).

    >>> holm([0.01, 0.04])
    [0.02, 0.04]
    """
    order = np.argsort(p_values, kind="stable")
    raised = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return [float(p) for p in adjusted]


def as_interval(interval: Sequence[float]) -> str:
    """Return an interval as text.

    >>> as_interval([0.8556, 0.8850])
    '0.856 to 0.885'
    """
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


def bootstrap(
    per_text: np.ndarray | csr_array,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Return an interval for each score by the percentile bootstrap over texts (Efron and Tibshirani 1993, ch. 13).

    Whatever is a function of sums over texts needs no loop over resamples: see `bootstrap_of_counts`, of which this is
    the common case.

    Args:
        per_text: what is summed over texts, (texts, sums).
        statistic: the scores, (resamples, scores), of the sums, (resamples, sums); nan where one is not defined.
        resamples: how many.
        seed: decides them.

    >>> bootstrap(np.array([[1.0], [0.0], [1.0], [1.0]]), lambda sums: sums / 4)
    [[0.25, 1.0]]
    """
    columns = csr_array(per_text).T
    return bootstrap_of_counts(
        columns.shape[1], lambda counts: statistic((columns @ counts).T), resamples=resamples, seed=seed
    )


def bootstrap_of_counts(
    texts: int,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Return an interval for each score, as `bootstrap` does, where it is a function of how often each text is drawn.

    A resample in which a score is not defined, such as a share of no texts, says nothing of it and is left out; where
    none defines it, the interval is nan. The same seed and number of texts give the same resamples: differences of two
    classifiers are paired.

    Args:
        texts: how many there are.
        statistic: the scores, (resamples, scores), of the counts, (texts, resamples).
        resamples: how many.
        seed: decides them.

    >>> bootstrap_of_counts(4, lambda counts: (np.array([1.0, 0.0, 1.0, 1.0]) @ counts / 4)[:, None])
    [[0.25, 1.0]]
    """
    scores = np.concatenate([statistic(counts) for counts in _resampled(texts, resamples, seed)])
    return [_percentiles(of_score[~np.isnan(of_score)]) for of_score in scores.T]


def _percentiles(scores: np.ndarray) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    return list(map(float, np.quantile(scores, [tail, 1 - tail]))) if len(scores) else [float("nan")] * 2


def _resampled(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each of `n` texts is drawn, (texts, some resamples), until there were as many as asked for."""
    random = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = random.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        yield counts.T.astype(np.float64, order="C")  # a product with them would copy them into this order each time
