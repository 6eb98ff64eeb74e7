"""What makes probabilities mean what they say, fitted on validation texts: a temperature, and thresholds.

How far they are from it: the expected calibration error.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from lorafit import intervals, tasks

COLDEST, HOTTEST = 0.05, 20.0  # a temperature beyond is no calibration: the logits are constant, or worse than chance
FINEST = 1e-6  # thresholds have six digits


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and the mean loss of the validation texts in nats without the temperature and with it."""

    temperature: float
    thresholds: list[float] | None
    loss_before: float
    loss: float

    def __str__(self) -> str:
        digits = f"temperature {self.temperature:.3g} (validation loss {self.loss_before:.3f} -> {self.loss:.3f})"
        if self.thresholds is None:
            return digits
        return f"{digits}, thresholds from {min(self.thresholds):.3g} to {max(self.thresholds):.3g}"


def fit(logits: np.ndarray, label_ids: np.ndarray, *, thresholds: bool = False) -> Calibration:
    """Return the temperature of a classifier, and if wanted the thresholds for the probabilities that it then gives.

    Args:
        logits: of the validation texts, (texts, labels).
        label_ids: (texts), or (texts, labels) of 0 and 1.
        thresholds: fit them too.

    >>> fit(np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]), np.array([0, 1, 1])).thresholds is None
    True
    """
    temperature = fit_temperature(logits, label_ids)
    cooled = logits / temperature
    return Calibration(
        temperature,
        fit_thresholds(tasks.probabilities(cooled, tasks.task_of(label_ids)), label_ids) if thresholds else None,
        float(tasks.losses(logits, label_ids).mean()),
        float(tasks.losses(cooled, label_ids).mean()),
    )


def fit_temperature(logits: np.ndarray, label_ids: np.ndarray) -> float:
    """Return the T that minimises the loss of logits / T (Guo et al. 2017, arXiv:1706.04599), between 0.05 and 20.

    Logits that are all on the right side would want a T of zero, and probabilities of exactly 0 and 1. But n texts
    without an error do not show that there are fewer errors than about one in n: as in Platt's scaling (1999), the true
    label counts as true with a probability of (n + 1) / (n + 2). For 300 texts that is one wrong text more; T moves by
    less than chance moves it. A T with which the loss itself is no lower is left alone: 1.

    Args:
        logits: of texts that were not trained on, (texts, labels).
        label_ids: (texts), or (texts, labels) of 0 and 1, where n is the number of texts times that of labels.

    >>> fit_temperature(np.array([[4.0, 0.0]] * 4), np.array([0, 0, 0, 1])) > 1
    True
    """
    doubt = 1 / (label_ids.size + 2)
    true = tasks.one_hot(label_ids, logits.shape[1])
    others = 1 if label_ids.ndim == 2 else logits.shape[1] - 1
    believed = true * (1 - doubt) + (1 - true) * doubt / others
    found = minimize_scalar(
        lambda log_t: tasks.losses(logits / math.exp(log_t), label_ids, believed).mean(),
        bounds=(math.log(COLDEST), math.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    temperature = round(math.exp(float(found.x)), 6)
    before, after = (tasks.losses(cooled, label_ids).mean() for cooled in (logits, logits / temperature))
    return temperature if after < before else 1.0


def reliability(probabilities: np.ndarray, label_ids: np.ndarray, bins: int = 15) -> list[dict[str, float]]:
    """Return mean `confidence`, `accuracy` and `count` of each bin of equal width that holds anything, in their order.

    Of one label a text: the probability of the most probable label, against its being the true one. Of several: each
    label's probability, against its being there.

    Args:
        probabilities: (texts, labels).
        label_ids: (texts), or (texts, labels) of 0 and 1.
        bins: how many, between 0 and 1; a bin holds its upper limit.

    >>> reliability(np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 0]))
    [{'confidence': 0.75, 'accuracy': 0.5, 'count': 2}]
    """
    confidence, right, places = _answers(probabilities, label_ids, bins)
    return [
        {
            "confidence": float(confidence[places == place].mean()),
            "accuracy": float(right[places == place].mean()),
            "count": int((places == place).sum()),
        }
        for place in np.unique(places)
    ]


def expected_calibration_error(probabilities: np.ndarray, label_ids: np.ndarray, bins: int = 15) -> float:
    """Return how far confidence and accuracy are apart on average (Naeini et al. 2015, as Guo et al. 2017 use it).

    The gaps of the bins of `reliability`, weighted by what lies in them; 0 is best. Few texts make it too high: chance
    opens gaps in a calibrated model too, to 0.05 with 300 texts and 0.02 with 2,000. See `error_interval`.

    >>> expected_calibration_error(np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 0]))
    0.25
    """
    return float(np.abs(_gaps(probabilities, label_ids, bins).sum(axis=0)).sum())


def error_interval(probabilities: np.ndarray, label_ids: np.ndarray, bins: int = 15) -> intervals.Interval:
    """Return the 95% interval of the expected calibration error, by the bootstrap over texts.

    A resample's error is too high once more, so that its percentiles would never hold the true error, 0, of a
    calibrated model. The upper limit is the basic bootstrap's, which takes that back (Davison and Hinkley 1997, section
    5.2). The lower is the error less what chance alone may open: the sum of how far a resample's gaps are from the
    sample's, which is no less than their errors differ. So an interval from 0 says that the model may well be
    calibrated, and the error itself stands nearer to the upper limit. Simulated, it holds the true error 91 to 99 times
    in 100, where the basic bootstrap does 60 times for a calibrated model.

    >>> error_interval(np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 1]))
    [0.25, 0.25]
    """
    per_text = _gaps(probabilities, label_ids, bins)
    gaps = per_text.sum(axis=0)
    error = np.abs(gaps).sum()
    (low, _), (_, apart) = intervals.bootstrap(
        per_text, lambda sums: np.column_stack([np.abs(sums).sum(axis=1), np.abs(sums - gaps).sum(axis=1)])
    )
    return [max(0.0, float(error - apart)), float(max(error, 2 * error - low))]


def _gaps(probabilities: np.ndarray, label_ids: np.ndarray, bins: int) -> np.ndarray:
    """Return right less confidence in each bin, as a share of all answers: over texts they sum to the bins' gaps."""
    confidence, right, places = _answers(probabilities, label_ids, bins)
    texts, rows = len(label_ids), np.arange(len(places)) // (len(places) // len(label_ids))
    gaps = np.bincount(rows * bins + places, right - confidence, minlength=texts * bins)
    return np.asarray(gaps.reshape(texts, bins) / len(places))


def _answers(probabilities: np.ndarray, label_ids: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return confidence, whether right, and the bin's number of each answer, text by text: one, or one a label."""
    if label_ids.ndim == 2:
        confidence, right = probabilities.ravel(), label_ids.ravel() == 1
    else:
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == label_ids
    return confidence, right, np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)


def fit_thresholds(probabilities: np.ndarray, label_ids: np.ndarray) -> list[float]:
    """Return one threshold a label for `tasks.decide`, with the best macro F1 on these texts.

    Several labels a text: each label's own F1 is its own threshold's, so each is found alone. Two labels, one a text:
    one threshold t for the second, and 1 - t for the first. Of equal ones the nearest to 0.5; a label that no text has
    keeps 0.5.

    Args:
        probabilities: (texts, labels), of validation texts; more than two labels only where a text may have several.
        label_ids: (texts), or (texts, labels) of 0 and 1.

    >>> fit_thresholds(np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]]), np.array([0, 0, 1]))
    [0.7, 0.3]
    """
    if label_ids.ndim == 2:
        return [_best_threshold(*of, both_sides=False) for of in zip(probabilities.T, label_ids.T, strict=True)]
    second = _best_threshold(probabilities[:, 1], label_ids, both_sides=True)
    return [round(1 - second, 6), second]


def _best_threshold(probabilities: np.ndarray, has: np.ndarray, *, both_sides: bool) -> float:
    """Return the threshold of one label with its best F1, or of two sides the best mean of both.

    Args:
        probabilities: of the label, (texts).
        has: 1 for the texts that have it, else 0.
        both_sides: those without it count as a label too.
    """
    order = np.argsort(probabilities)
    ends = np.concatenate([[0.0], probabilities[order], [1.0]])
    candidates = np.unique(np.clip(np.round((ends[1:] + ends[:-1]) / 2, 6), FINEST, 1 - FINEST))
    below = np.searchsorted(probabilities[order], candidates)  # the number of texts that are not given the label
    lost = np.concatenate([[0], np.cumsum(has[order])])[below]
    given, having, lacking = len(has) - below, int(has.sum()), int(len(has) - has.sum())
    scores = _f1(having - lost, given, having)
    if both_sides:
        scores = (scores + _f1(below - lost, below, lacking)) / 2
    best = candidates[scores == scores.max()] if having else np.array([0.5])
    return float(best[np.abs(best - 0.5).argmin()])


def _f1(right: np.ndarray, given: np.ndarray, having: int) -> np.ndarray:
    """Return 2 x right / (given + having), 0 where there is neither."""
    return np.asarray(2 * right / np.maximum(given + having, 1))
