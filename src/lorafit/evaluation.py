"""Predictions -> scores. All scores are fractions; precision, recall and F1 are macro averages over the classes."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support


@dataclass(frozen=True)
class Scores:
    """The scores of one model on one set of texts."""

    accuracy: float
    f1: float
    precision: float
    recall: float
    loss: float


@dataclass(frozen=True)
class Comparison:
    """Base against adapted on the same `n` texts.

    `improvement_points` are percentage points of accuracy; `relative_improvement` is a share of the base's accuracy,
    None where the base got nothing right.
    """

    n: int
    base: Scores
    adapted: Scores
    improvement_points: float
    relative_improvement: float | None

    def as_record(self) -> dict[str, Any]:
        """Return the comparison as plain nested values, for `scores.json`."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Comparison":
        """Return the comparison that `as_record` wrote."""
        return cls(**record | {"base": Scores(**record["base"]), "adapted": Scores(**record["adapted"])})


def score(logits: np.ndarray, label_ids: np.ndarray) -> Scores:
    """Return the scores of logits (texts, labels) against the true label ids (texts).

    `loss` is the mean cross-entropy in nats.

    >>> score(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 1])).accuracy
    1.0
    """
    predicted = logits.argmax(axis=1)
    classes = np.arange(logits.shape[1])
    precision, recall, f1, _ = precision_recall_fscore_support(
        label_ids, predicted, labels=np.unique(label_ids), average="macro", zero_division=0
    )
    loss = log_loss(label_ids, softmax(logits.astype(np.float64), axis=1), labels=classes)
    return Scores(float(accuracy_score(label_ids, predicted)), float(f1), float(precision), float(recall), float(loss))


def compare(base: Scores, adapted: Scores, n: int) -> Comparison:
    """Return what the adapter gained over the base."""
    gain = adapted.accuracy - base.accuracy
    relative = round(gain / base.accuracy, 6) if base.accuracy > 0 else None
    return Comparison(n, base, adapted, round(100 * gain, 6), relative)
