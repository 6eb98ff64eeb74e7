"""What a task makes of logits: a loss to train with, probabilities, and the labels that are given.

One label a text ("single_label") or any number ("multi_label"). Label ids say which it is by their shape: (texts), or
(texts, labels) of 0 and 1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import expit, log_expit, log_softmax, softmax
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from lorafit.manifest import Task


def task_of(label_ids: np.ndarray) -> Task:
    """Return the task whose label ids these are.

    >>> task_of(np.array([[0, 1], [1, 1]]))
    'multi_label'
    """
    return "multi_label" if label_ids.ndim == 2 else "single_label"


def loss(logits: torch.Tensor, label_ids: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean loss in nats: cross-entropy, or for several labels a text the binary one of each label.

    Args:
        logits: (texts, labels).
        label_ids: (texts), or (texts, labels) of 0 and 1.
        weights: from `class_weights`.
    """
    if label_ids.ndim == 2:
        return binary_cross_entropy_with_logits(logits, label_ids.to(logits.dtype), pos_weight=weights)
    return cross_entropy(logits, label_ids, weight=weights)


def losses(logits: np.ndarray, label_ids: np.ndarray, believed: np.ndarray | None = None) -> np.ndarray:
    """Return the loss of each text in nats, fp64, whose mean `loss` is; that of several labels is the mean over them.

    Args:
        logits: (texts, labels).
        label_ids: (texts), or (texts, labels) of 0 and 1.
        believed: a probability of each label in the place of 0 and 1, (texts, labels).

    >>> losses(np.array([[0.0, 0.0]]), np.array([1])).round(4).tolist()
    [0.6931]
    """
    exact = logits.astype(np.float64)
    true = one_hot(label_ids, logits.shape[1]) if believed is None else believed
    if label_ids.ndim == 2:
        return np.asarray(-(true * log_expit(exact) + (1 - true) * log_expit(-exact)).mean(axis=1))
    return np.asarray(-(true * log_softmax(exact, axis=1)).sum(axis=1))


def one_hot(label_ids: np.ndarray, labels: int) -> np.ndarray:
    """Return 1 for each label that a text has and else 0, (texts, labels).

    >>> one_hot(np.array([1]), 2).tolist()
    [[0.0, 1.0]]
    """
    return label_ids if label_ids.ndim == 2 else np.eye(labels)[label_ids]


def class_weights(label_ids: np.ndarray, labels: int) -> np.ndarray:
    """Return a weight for each label that makes rare ones count as much as common ones, fp32.

    Of one label a text: texts / (labels x texts with it). Of several: texts without it / texts with it, for the loss of
    the texts that have it. A label that no text has, or every text, gets 1.

    >>> class_weights(np.array([0, 0, 0, 1]), 2).round(2).tolist()
    [0.67, 2.0]
    """
    from sklearn.utils.class_weight import compute_class_weight  # here: a cold prediction need not wait for it

    found = np.ones(labels, dtype=np.float32)
    if label_ids.ndim == 2:
        having = label_ids.sum(axis=0)
        lacking = len(label_ids) - having
        return np.where(having * lacking > 0, lacking / np.maximum(having, 1), found).astype(np.float32)
    present = np.unique(label_ids)
    found[present] = compute_class_weight("balanced", classes=present, y=label_ids)
    return found


def guess(label_ids: np.ndarray, labels: int, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Return the logits, (labels), that have the lowest loss of all that are the same for every text, fp32.

    What learns nothing but how common each label is comes down to their loss. A label that no text has, or every text,
    counts as if half a text said otherwise.

    Args:
        label_ids: of the training texts, (texts) or (texts, labels).
        labels: how many there are.
        weights: from `class_weights`, where the loss has them.

    >>> guess(np.array([0, 0, 0, 1]), 2).round(4).tolist()
    [1.0986, 0.0]
    """
    if label_ids.ndim == 2:
        having = label_ids.sum(axis=0)
        odds = np.maximum(having, 0.5) / np.maximum(len(label_ids) - having, 0.5)
    else:
        odds = np.maximum(np.bincount(label_ids, minlength=labels), 0.5)
    return np.asarray(np.log(weights * odds), dtype=np.float32)


def probabilities(logits: np.ndarray, task: Task) -> np.ndarray:
    """Return the probability of each label for each text, (texts, labels): they sum to 1 where a text has one label."""
    exact = logits.astype(np.float64)
    return np.asarray(expit(exact) if task == "multi_label" else softmax(exact, axis=1))


def decide(probabilities: np.ndarray, task: Task, thresholds: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
    """Return the labels that are given, in the form of label ids: (texts), or (texts, labels) of 0 and 1.

    Several labels a text: those whose probability reaches their threshold, without thresholds 0.5. One label: the most
    probable, with thresholds the one whose probability is largest as a share of its threshold; of two labels whose
    thresholds sum to 1 that is the one that reaches its own.

    >>> decide(np.array([[0.7, 0.3]]), "single_label", [0.8, 0.2]).tolist()
    [1]
    """
    if task == "multi_label":
        limits = 0.5 if thresholds is None else np.asarray(thresholds)
        return np.asarray(probabilities >= limits).astype(np.int64)
    shares = probabilities if thresholds is None else probabilities / np.asarray(thresholds)
    return np.asarray(shares.argmax(axis=1))
