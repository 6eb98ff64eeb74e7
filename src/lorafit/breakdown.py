"""What stands behind a score: by class, by length, and the errors to read. Plain values, for `scores.json`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array, hstack
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

from lorafit import intervals, tasks
from lorafit.intervals import wilson

ERRORS_SHOWN = 20
LONGEST_TEXT_SHOWN = 1000  # characters
_LENGTH_GROUPS = 5


def label_sums(given: np.ndarray, label_ids: np.ndarray, labels: int) -> csr_array:
    """Return what the scores of labels are functions of, once summed over texts: (texts, 3 labels).

    For each label whether it was given rightly, whether it was given, whether it is true.

    Args:
        given: the label ids that were given, in the form of
        label_ids: the true ones; (texts), or (texts, labels) of 0 and 1.
        labels: how many there are.

    >>> label_sums(np.array([0, 1]), np.array([0, 0]), 2).sum(axis=0).tolist()
    [1.0, 0.0, 1.0, 1.0, 2.0, 0.0]
    """
    was_given, is_true = (csr_array(tasks.one_hot(ids, labels), dtype=np.float64) for ids in (given, label_ids))
    return csr_array(hstack([was_given * is_true, was_given, is_true]))


def label_scores(sums: np.ndarray) -> np.ndarray:
    """Return precision, recall and F1 of each label, (3, samples, labels), of sums over `label_sums`.

    Where no text was given a label there is no precision of it, where none has it no recall, where neither no F1: nan.
    """
    hits, given, true = np.split(sums, 3, axis=1)
    return np.stack([share(hits, given), share(hits, true), share(2 * hits, given + true)])


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, nan where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def per_class(given: np.ndarray, label_ids: np.ndarray, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return precision, recall, F1 and support of each label, the first three with their intervals (bootstrap).

    A score that is not defined, such as the precision of a label that was never given, is 0, and its interval None. A
    label with few texts that were all got right has an interval without width: it is surer than it should be.

    Args:
        given: the label ids that were given, in the form of
        label_ids: the true ones; (texts), or (texts, labels) of 0 and 1.
        labels: names in the order of their ids.

    >>> per_class(np.array([0, 1]), np.array([0, 1]), ["neg", "pos"])["pos"]["support"]
    1
    """
    sums = label_sums(given, label_ids, len(labels))
    total = sums.sum(axis=0)
    scores = np.nan_to_num(label_scores(total[None])[:, 0])
    limits = intervals.bootstrap(sums, lambda resampled: np.concatenate([*label_scores(resampled)], axis=1))
    names = ("precision", "recall", "f1")
    return {
        label: {name: float(scores[row, number]) for row, name in enumerate(names)}
        | {f"{name}_interval": known(limits[row * len(labels) + number]) for row, name in enumerate(names)}
        | {"support": int(total[2 * len(labels) + number])}
        for number, label in enumerate(labels)
    }


def known(interval: intervals.Interval) -> intervals.Interval | None:
    """Return an interval as JSON can hold it: None for one of nan."""
    return None if np.isnan(interval[0]) else interval


def confusion(given: np.ndarray, label_ids: np.ndarray, labels: Sequence[str]) -> list[Any] | dict[str, Any]:
    """Return how many texts of each label (rows) were given each label (columns).

    Of several labels a text: for each label [[without it and not given, but given], [with it but not given, given]].
    """
    if label_ids.ndim == 2:
        counts = multilabel_confusion_matrix(label_ids, given)
        return {label: matrix.tolist() for label, matrix in zip(labels, counts, strict=True)}
    return list(confusion_matrix(label_ids, given, labels=np.arange(len(labels))).tolist())


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


def _shown(text: str | Sequence[str]) -> Any:
    return text[:LONGEST_TEXT_SHOWN] if isinstance(text, str) else [part[:LONGEST_TEXT_SHOWN] for part in text]


def _named(label_ids: np.ndarray, labels: Sequence[str]) -> str | list[str]:
    """Return the name of a label id, or the names of those that a row of 0 and 1 holds."""
    if label_ids.ndim:
        return [labels[number] for number in np.flatnonzero(label_ids).tolist()]
    return labels[int(label_ids)]
