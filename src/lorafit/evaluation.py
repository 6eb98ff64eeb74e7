"""Predictions -> scores. All scores are fractions; precision, recall and F1 are macro averages over the classes."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from lorafit import tasks


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
    """Return the scores of logits (texts, labels) against the true label ids: (texts), or (texts, labels) of 0 and 1.

    `accuracy` is the share of texts with all labels right. `loss` is that of the task, in nats.

    >>> score(np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 1])).accuracy
    1.0
    """
    task = tasks.task_of(label_ids)
    predicted = tasks.decide(tasks.probabilities(logits, task), task)
    present = np.unique(label_ids) if task == "single_label" else None
    precision, recall, f1, _ = precision_recall_fscore_support(
        label_ids, predicted, labels=present, average="macro", zero_division=0
    )
    loss = float(tasks.loss(torch.tensor(logits).double(), torch.tensor(label_ids)))
    return Scores(float(accuracy_score(label_ids, predicted)), float(f1), float(precision), float(recall), loss)


def compare(base: Scores, adapted: Scores, n: int) -> Comparison:
    """Return what the adapter gained over the base."""
    gain = adapted.accuracy - base.accuracy
    relative = round(gain / base.accuracy, 6) if base.accuracy > 0 else None
    return Comparison(n, base, adapted, round(100 * gain, 6), relative)
