"""Predictions -> scores, with their intervals: base against adapted, and both beside baselines, on the same texts.

All scores are fractions. `accuracy` counts a text with several labels as right when all its labels are. Precision,
recall and F1 are macro averages over the labels that the texts have.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array, hstack

from lorafit import breakdown, calibration, curves, data, intervals, tasks
from lorafit.intervals import Interval

_SCORES = ("accuracy", "f1", "precision", "recall", "loss")


@dataclass(frozen=True)
class Scores:
    """The scores of one model on one set of texts."""

    accuracy: float
    f1: float
    precision: float
    recall: float
    loss: float


@dataclass(frozen=True)
class Test:
    """The test texts, and the logits that base and adapted gave them, (texts, labels)."""

    texts: Sequence[Any]
    """Strings; of pairs, two each."""
    lengths: np.ndarray
    """Tokens of each whole text, also of what lies beyond the encoder's window: see `tokens.whole_lengths`."""
    label_ids: np.ndarray
    labels: Sequence[str]
    """Names in the order of their ids."""
    base: np.ndarray
    adapted: np.ndarray
    temperature: float = 1.0
    """What the adapted logits were divided by in calibration; the head holds it already."""
    thresholds: Sequence[float] | None = None
    """Of the adapted model: see `tasks.decide`."""

    def sha256(self) -> str:
        """Return a sum over texts, labels and label ids in their order: where it is the same, so is the test."""
        return data.fingerprint_of(self.texts, self.labels, self.label_ids)

    def given(self) -> dict[str, np.ndarray]:
        """Return the label ids that "base" and "adapted" give."""
        task = tasks.task_of(self.label_ids)
        return {
            "base": tasks.decide(tasks.probabilities(self.base, task), task),
            "adapted": tasks.decide(tasks.probabilities(self.adapted, task), task, self.thresholds),
        }


@dataclass(frozen=True)
class Comparison:
    """Base against adapted on the same `n` texts; `scores.json` holds more.

    `improvement_points` are percentage points of accuracy; `relative_improvement` is a share of the base's accuracy,
    None where the base got nothing right. `mcnemar_p` is how likely luck alone is. `baselines` holds the accuracy of
    each, `beaten_by` names those that the adapted model does not beat: in accuracy, or where thresholds were fitted for
    macro F1, in that.
    """

    n: int
    base: Scores
    adapted: Scores
    accuracy_interval: Interval
    improvement_points: float
    improvement_interval: Interval
    relative_improvement: float | None
    mcnemar_p: float
    baselines: dict[str, float]
    beaten_by: list[str]

    @classmethod
    def from_record(cls, test: dict[str, Any]) -> "Comparison":
        """Return the comparison in what `record` made."""
        return cls(
            n=test["n"],
            base=Scores(**{name: test["base"][name] for name in _SCORES}),
            adapted=Scores(**{name: test["adapted"][name] for name in _SCORES}),
            accuracy_interval=test["adapted"]["accuracy_interval"],
            improvement_points=test["improvement_points"],
            improvement_interval=test["improvement_interval"],
            relative_improvement=test["relative_improvement"],
            mcnemar_p=test["mcnemar_p"],
            baselines={name: baseline["accuracy"] for name, baseline in test["baselines"].items()},
            beaten_by=test["beaten_by"],
        )


def score(logits: np.ndarray, label_ids: np.ndarray, thresholds: Sequence[float] | None = None) -> Scores:
    """Return the scores of logits (texts, labels) against the true label ids, (texts) or (texts, labels).

    `loss` is the mean cross-entropy in nats, of several labels a text the binary one.

    >>> score(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 1])).accuracy
    1.0
    """
    task = tasks.task_of(label_ids)
    given = tasks.decide(tasks.probabilities(logits, task), task, thresholds)
    sums = _per_text(given, label_ids, logits.shape[1], tasks.losses(logits, label_ids)).sum(axis=0)
    return Scores(*map(float, _scores_of(sums[None], len(given))[0]))


def score_intervals(
    given: np.ndarray, label_ids: np.ndarray, labels: int, loss: np.ndarray | None = None
) -> dict[str, Interval]:
    """Return the 95% interval of each score: Wilson's of the accuracy, the bootstrap's of the rest.

    Where no text was got wrong, the bootstrap has nothing to draw from, and its intervals have no width.

    Args:
        given: the label ids that were given.
        label_ids: the true ones.
        labels: how many labels there are.
        loss: of each text; without, there is no interval of it.

    >>> score_intervals(np.array([0, 1, 1]), np.array([0, 1, 0]), labels=2)["accuracy"]
    """
    n = len(given)
    per_text = _per_text(given, label_ids, labels, np.zeros(n) if loss is None else loss)
    found = dict(zip(_SCORES, intervals.bootstrap(per_text, lambda sums: _scores_of(sums, n)), strict=True))
    found["accuracy"] = intervals.wilson(int(right(given, label_ids).sum()), n)
    if loss is None:
        del found["loss"]
    return found


def right(given: np.ndarray, label_ids: np.ndarray) -> np.ndarray:
    """Return whether each text was given its label, or all of its labels and no other, bool."""
    same = given == label_ids
    return np.asarray(same.all(axis=1) if label_ids.ndim == 2 else same)


def record(test: Test) -> dict[str, Any]:
    """Return all that the test says but for baselines, as plain values, for `scores.json`: see `with_baseline`.

    >>> record(test)["adapted"]["accuracy_interval"]
    """
    task, given = tasks.task_of(test.label_ids), test.given()
    probabilities = tasks.probabilities(test.adapted, task)
    uncalibrated = tasks.probabilities(test.adapted * test.temperature, task)
    return (
        {"n": len(test.texts), "task": task, "labels": list(test.labels), "test_sha256": test.sha256()}
        | {"base": _measured(test.base, given["base"], test, None)}
        | {"adapted": _measured(test.adapted, given["adapted"], test, test.thresholds)}
        | gain(given["base"], given["adapted"], test.label_ids)
        | {
            "baselines": {},
            "compared_by": "accuracy" if test.thresholds is None else "f1",  # that which thresholds are fitted for
            "beaten_by": [],
            "calibration": {
                "temperature": test.temperature,
                "ece_before": calibration.expected_calibration_error(uncalibrated, test.label_ids),
                "ece_before_interval": calibration.error_interval(uncalibrated, test.label_ids),
                "ece_after": calibration.expected_calibration_error(probabilities, test.label_ids),
                "ece_after_interval": calibration.error_interval(probabilities, test.label_ids),
                "bins_before": calibration.reliability(uncalibrated, test.label_ids),
                "bins_after": calibration.reliability(probabilities, test.label_ids),
            },
            "per_class": breakdown.per_class(given["adapted"], test.label_ids, test.labels),
            "confusion": breakdown.confusion(given["adapted"], test.label_ids, test.labels),
            **curves.curves(probabilities, test.label_ids, test.labels),
            "errors": breakdown.errors(test.texts, probabilities, given["adapted"], test.label_ids, test.labels),
            "by_length": breakdown.by_length(test.lengths, right(given["adapted"], test.label_ids)),
            "thresholds": None if test.thresholds is None else list(test.thresholds),
        }
    )


def gain(base: np.ndarray, adapted: np.ndarray, label_ids: np.ndarray) -> dict[str, Any]:
    """Return what the adapted answers gain over the base's in accuracy, and whether luck alone would do.

    `improvement_interval` is from the paired bootstrap, in percentage points; `mcnemar_p` is exact and two-sided.
    """
    base_right, adapted_right = right(base, label_ids), right(adapted, label_ids)
    n, before, after = len(label_ids), int(base_right.sum()), int(adapted_right.sum())
    tested = intervals.mcnemar(base_right, adapted_right)
    difference = adapted_right.astype(float) - base_right
    return {
        "improvement_points": round(100 * (after - before) / n, 6),
        "improvement_interval": intervals.bootstrap(difference[:, None], lambda sums: 100 * sums / n)[0],
        "relative_improvement": round((after - before) / before, 6) if before else None,
        "mcnemar_p": tested.p,
        "mcnemar": {"only_base_right": tested.only_first_right, "only_adapted_right": tested.only_second_right},
    }


def with_baseline(
    test: dict[str, Any], name: str, given: np.ndarray, adapted: np.ndarray, label_ids: np.ndarray, seconds: float
) -> dict[str, Any]:
    """Return the record of a test with one baseline more.

    Args:
        test: from `record`.
        name: what the baseline is called.
        given: the label ids that the baseline gave the test texts.
        adapted: those that the adapted model gave.
        label_ids: the true ones.
        seconds: what the baseline took to train and to answer.
    """
    found = score_intervals(given, label_ids, len(test["labels"]))
    sums = _per_text(given, label_ids, len(test["labels"]), np.zeros(len(given))).sum(axis=0)
    accuracy, f1, *_ = map(float, _scores_of(sums[None], len(given))[0])
    tested = intervals.mcnemar(right(given, label_ids), right(adapted, label_ids))
    baseline = {
        "accuracy": accuracy,
        "accuracy_interval": found["accuracy"],
        "f1": f1,
        "f1_interval": found["f1"],
        "mcnemar_p": tested.p,
        "mcnemar": {"only_baseline_right": tested.only_first_right, "only_adapted_right": tested.only_second_right},
        "seconds": round(seconds, 2),
    }
    baselines = test["baselines"] | {name: baseline}
    by = test["compared_by"]
    beaten_by = [name for name, found in baselines.items() if found[by] >= test["adapted"][by]]
    return test | {"baselines": baselines, "beaten_by": beaten_by}


def _measured(
    logits: np.ndarray, given: np.ndarray, test: Test, thresholds: Sequence[float] | None
) -> dict[str, float | Interval]:
    found: dict[str, float | Interval] = asdict(score(logits, test.label_ids, thresholds))
    limits = score_intervals(given, test.label_ids, len(test.labels), tasks.losses(logits, test.label_ids))
    return found | {f"{name}_interval": interval for name, interval in limits.items()}


def _per_text(given: np.ndarray, label_ids: np.ndarray, labels: int, loss: np.ndarray) -> csr_array:
    """Return what the scores are functions of, once summed over texts: (texts, 3 labels + 2).

    Those of the labels, then right and loss.
    """
    right_and_loss = np.column_stack([right(given, label_ids), loss])
    return csr_array(hstack([breakdown.label_sums(given, label_ids, labels), csr_array(right_and_loss)]))


def _scores_of(sums: np.ndarray, n: int) -> np.ndarray:
    """Return `_SCORES` of sums over `n` texts, (samples, 5), of those of `_per_text`, (samples, 3 labels + 2)."""
    of_labels = breakdown.label_scores(sums[:, :-2])
    there = ~np.isnan(of_labels[1])  # has a recall, so has texts
    precision, recall, f1 = (np.nan_to_num(of_labels) * there).sum(axis=2) / np.maximum(there.sum(axis=1), 1)
    return np.column_stack([sums[:, -2] / n, f1, precision, recall, sums[:, -1] / n])
