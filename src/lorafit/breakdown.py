"""What stands behind a score: by class, by length, curves, and the errors to read. Plain values, for `scores.json`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import (
    auc,
    average_precision_score,
    confusion_matrix,
    multilabel_confusion_matrix,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_curve,
)

from lorafit.intervals import wilson

ERRORS_SHOWN = 20
LONGEST_TEXT_SHOWN = 1000  # characters
_POINTS = 101  # of a curve: as many as a figure shows
_LENGTH_GROUPS = 5
_DIGITS = 6


def per_class(given: np.ndarray, label_ids: np.ndarray, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and support of each label; 0 where a label was never given, or is in no text.

    Args:
        given: the label ids that were given, in the form of
        label_ids: the true ones; (texts), or (texts, labels) of 0 and 1.
        labels: names in the order of their ids.

    >>> per_class(np.array([0, 1]), np.array([0, 1]), ["neg", "pos"])["pos"]["support"]
    1
    """
    columns = precision_recall_fscore_support(
        label_ids, given, labels=np.arange(len(labels)), average=None, zero_division=0
    )
    return {
        label: {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(support),
        }
        for label, precision, recall, f1, support in zip(labels, *columns, strict=True)
    }


def confusion(given: np.ndarray, label_ids: np.ndarray, labels: Sequence[str]) -> list[Any] | dict[str, Any]:
    """Return how many texts of each label (rows) were given each label (columns).

    Of several labels a text: for each label [[without it and not given, but given], [with it but not given, given]].
    """
    if label_ids.ndim == 2:
        counts = multilabel_confusion_matrix(label_ids, given)
        return {label: matrix.tolist() for label, matrix in zip(labels, counts, strict=True)}
    return list(confusion_matrix(label_ids, given, labels=np.arange(len(labels))).tolist())


def curves(probabilities: np.ndarray, label_ids: np.ndarray, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the ROC and the precision-recall curve of each label against all others, of 101 points at most.

    A label that no text has, or every one, is left out: it has no curve.
    """
    found = {}
    for number, label in enumerate(labels):
        truth = label_ids[:, number] == 1 if label_ids.ndim == 2 else label_ids == number
        if 0 < truth.sum() < len(truth):
            found[label] = {
                "roc": _roc(truth, probabilities[:, number]),
                "pr": _precision_recall(truth, probabilities[:, number]),
            }
    return found


def errors(
    texts: Sequence[Any],
    probabilities: np.ndarray,
    given: np.ndarray,
    label_ids: np.ndarray,
    labels: Sequence[str],
) -> list[dict[str, Any]]:
    """Return the texts that were got wrong with the most confidence: text, label, predicted, probability.

    `probability` is that of the label given; of several labels a text, that of the answer that is most wrong, a label
    given or left out. A pair is a list of two.
    """
    if label_ids.ndim == 2:
        confidence = np.where(given == 1, probabilities, 1 - probabilities)
        certainty = np.where(given != label_ids, confidence, -1).max(axis=1)
    else:
        certainty = np.where(given != label_ids, probabilities[np.arange(len(given)), given], -1)
    worst = [row for row in np.argsort(-certainty, kind="stable")[:ERRORS_SHOWN] if certainty[row] >= 0]
    return [
        {
            "text": _shown(texts[row]),
            "label": _named(label_ids[row], labels),
            "predicted": _named(given[row], labels),
            "probability": float(certainty[row]),
        }
        for row in worst
    ]


def by_length(lengths: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Return the accuracy of up to five groups of texts, from the shortest fifth to the longest.

    Args:
        lengths: tokens of each whole text, also of what the encoder does not read.
        right: whether each was got right, bool.
    """
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, _LENGTH_GROUPS + 1)[1:-1]))
    groups = np.searchsorted(edges, lengths, side="right")
    return [
        {
            "from_tokens": int(lengths[groups == group].min()),
            "to_tokens": int(lengths[groups == group].max()),
            "n": int((groups == group).sum()),
            "accuracy": float(right[groups == group].mean()),
            "accuracy_interval": wilson(int(right[groups == group].sum()), int((groups == group).sum())),
        }
        for group in np.unique(groups)
    ]


def _roc(truth: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    false_positive_rate, true_positive_rate, _ = roc_curve(truth, probability)
    area = float(auc(false_positive_rate, true_positive_rate))
    return {"fpr": _thinned(false_positive_rate), "tpr": _thinned(true_positive_rate), "auc": area}


def _precision_recall(truth: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    precision, recall, _ = precision_recall_curve(truth, probability)
    average = float(average_precision_score(truth, probability))
    return {"precision": _thinned(precision), "recall": _thinned(recall), "average_precision": average}


def _thinned(values: np.ndarray) -> list[float]:
    kept = np.unique(np.linspace(0, len(values) - 1, _POINTS).round().astype(int))
    return [round(float(value), _DIGITS) for value in values[kept]]


def _shown(text: str | Sequence[str]) -> Any:
    return text[:LONGEST_TEXT_SHOWN] if isinstance(text, str) else [part[:LONGEST_TEXT_SHOWN] for part in text]


def _named(label_ids: np.ndarray, labels: Sequence[str]) -> str | list[str]:
    """Return the name of a label id, or the names of those that a row of 0 and 1 holds."""
    if label_ids.ndim:
        return [labels[number] for number in np.flatnonzero(label_ids).tolist()]
    return labels[int(label_ids)]
