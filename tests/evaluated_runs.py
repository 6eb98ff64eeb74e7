"""Finished, evaluated runs for the report's tests: records of the form that `evaluate` writes, from simulated answers.

What is simulated are the models' answers; the scores of them are real, so that counts and curves agree.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax
from scipy.stats import binomtest
from sklearn.metrics import (
    auc,
    average_precision_score,
    confusion_matrix,
    multilabel_confusion_matrix,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_curve,
)

from lorafit import recipe, runs
from lorafit.runs import Run

HOSTILE = "</details></p><script>document.title = 'owned'</script><img src='http://evil.test/x.png' onerror='alert(1)'>"
HOSTILE_MARKDOWN = (
    "| [a](javascript:alert(1)) ![b](http://evil.test/b.png) `code` *bold*\n\n# no heading\n<script>x</script>"
)
HEBREW = "הסרט היה ארוך מדי, אבל המוזיקה יפה. " * 12
BINARY = ["neg", "pos"]
TOPICS = ["world & politics", "sports", "business", "science/technology", "_health_", "costs $5 to $9"]
_REASONS = ("fee charged", "not recognised", "wrong exchange rate", "pending")
_PLACES = ("a shop", "a cash machine", "an app abroad", "the bank", "a web shop")
_CASES = [
    f"card payment: {what} in {place}, case {case}" for case in range(8) for what in _REASONS for place in _PLACES
]
INTENTS = ["שירות לקוחות", "<script>document.title='owned'</script>", "a|b", "x" * 120, *_CASES[:146]]
LENGTHS = ((9, 118, 0.9), (119, 162, 0.925), (163, 221, 0.875), (222, 340, 0.85), (341, 512, 0.8))
EMOTIONS = ["joy", "anger", "fear", "surprise", "sadness"]


def wilson(share: float, n: int) -> list[float]:
    """Return Wilson's 95% interval."""
    found = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return [float(found.low), float(found.high)]


def record_of(labels: list[str], n: int = 400, task: str = "single_label", gain: float = 2.2) -> dict[str, Any]:
    """Return the `test` part of a scores.json; a `gain` under 1.2 leaves LoRA behind TF-IDF."""
    chance = np.random.default_rng(0)
    several = task == "multi_label"
    true = chance.random((n, len(labels))) < 0.3 if several else chance.integers(len(labels), size=n)
    truth = true.astype(float) if several else np.eye(len(labels))[true]
    noise = chance.normal(size=truth.shape)
    answers = {who: _answers(noise + gain_ * truth - several * gain_ / 2, several) for who, gain_ in (
        ("majority", 0.0), ("base", 0.1), ("tfidf", 1.2), ("adapted", gain))}  # fmt: skip
    right = {who: _right(found, true) for who, found in answers.items()}
    scores = {who: _scores(found, true) for who, found in answers.items()}
    adapted, base = scores["adapted"], scores["base"]
    by = "f1" if several else "accuracy"  # that which the thresholds are fitted for
    points = 100 * (adapted["accuracy"] - base["accuracy"])
    return {
        "n": n,
        "task": task,
        "labels": labels,
        "test_sha256": "0" * 64,
        "base": base,
        "adapted": adapted,
        "improvement_points": points,
        "improvement_interval": [points - 4.1, points + 4.0],
        "relative_improvement": points / 100 / base["accuracy"],
        **_mcnemar(right, "base"),
        "baselines": {
            name: {key: value for key, value in scores[name].items() if key.startswith(("accuracy", "f1"))}
            | _mcnemar(right, name)
            | {"seconds": seconds}
            for name, seconds in (("majority", 0.01), ("tfidf", 2.6))
        },
        "compared_by": by,
        "beaten_by": [name for name in ("majority", "tfidf") if scores[name][by] >= adapted[by]],
        "calibration": _calibration(answers["adapted"], right["adapted"]),
        "per_class": _per_class(answers["adapted"], true, labels),
        "confusion": _confusion(answers["adapted"], true, labels),
        **_curves(answers["adapted"], truth, labels),
        "errors": _errors(labels, several),
        "by_length": [
            {"from_tokens": low, "to_tokens": high, "n": n // 5, "accuracy": share, "accuracy_interval": interval}
            for low, high, share in LENGTHS
            for interval in [wilson(share, n // 5)]
        ],
        "thresholds": [0.4] * len(labels) if several else None,
    }  # fmt: skip


def seeds_record() -> dict[str, Any]:
    """Return the `seeds` part of a scores.json, in which LoRA is ahead of TF-IDF by 0.2 ± 1.0 points."""
    found, base, majority, tfidf = [0.871, 0.8755, 0.868], [0.509] * 3, [0.5, 0.501, 0.499], [0.8665, 0.865, 0.877]
    return {
        "n": 3,
        "note": "Each seed has its own split.",
        "accuracy": spread(found),
        "f1": {"mean": 0.8712, "standard_deviation": 0.0039},
        "improvement_points": beside(found, base)["gain_points"]["accuracy"],
        "base": beside(found, base),
        "baselines": {"majority": beside(found, majority), "tfidf": beside(found, tfidf)},
        "runs": [
            {
                "seed": seed,
                "path": f"/home/somebody/runs/demo-seed{seed}",
                "accuracy": accuracy,
                "f1": accuracy - 0.0004,
                "base_accuracy": base[seed],
                "base_f1": base[seed],
                "baselines": {
                    "majority": {"accuracy": majority[seed], "f1": majority[seed]},
                    "tfidf": {"accuracy": tfidf[seed], "f1": tfidf[seed]},
                },
                "seconds": 83.2 + seed,
            }
            for seed, accuracy in enumerate(found)
        ],
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return mean and standard deviation."""
    return {"mean": float(np.mean(values)), "standard_deviation": float(np.std(values, ddof=1))}


def beside(found: list[float], other: list[float]) -> dict[str, Any]:
    """Return what a seeds record holds of a base or baseline with the same macro F1 as accuracy."""
    scores, gain = spread(other), spread([100 * (ours - theirs) for ours, theirs in zip(found, other, strict=True)])
    return {"accuracy": scores, "f1": scores, "gain_points": {"accuracy": gain, "f1": gain}}


def evaluated(folder: Path, test: dict[str, Any], seeds: dict[str, Any] | None = None) -> Run:
    """Return a run folder with a history of four epochs and this record, as training and evaluation leave it."""
    made = recipe.from_values({"name": folder.name, "data": {"source": "/home/somebody/private/reviews.csv"}})
    facts = {
        "texts": {"train": 1700, "validation": 300, "test": test["n"]},
        "parameters": {"trainable": 338_690, "total": 23_052_676},
        "runtime": {"device": "cpu", "precision": "bf16", "threads": 2, "reason": "bf16 measured 2.0x fp32"},
        "machine": {
            "processor": "AMD EPYC",
            "cores": 2,
            "packages": {"lorafit": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        },
        "best_epoch": 3,
        "epochs": 4,
        "steps": 428,
        "seconds": 83.4,
        "tokens": 925_384,
        "peak_memory_bytes": 1_497_313_280,
        "adapter_bytes": 1_365_072,
        "state": runs.FINISHED,
    }
    with runs.create(folder, made, facts) as run:
        run.update(state=runs.FINISHED)
        for epoch, accuracy in enumerate((0.463, 0.857, 0.896, 0.9067, 0.9033)):
            line = {"accuracy": accuracy, "f1": accuracy, "loss": 0.69 - 0.1 * epoch}
            run.log({"step": 107 * epoch, "epoch": epoch, "seconds": 2.8, "validation": line})
        write_scores(run, test, seeds)
    return run


def write_scores(run: Run, test: dict[str, Any], seeds: dict[str, Any] | None = None) -> None:
    """Write a record in the place of the run's own."""
    record = {"adapter_sha256": "0" * 64, "test": test} | ({"seeds": seeds} if seeds else {})
    run.write("scores.json", json.dumps(record, allow_nan=False))


def _answers(logits: np.ndarray, several: bool) -> np.ndarray:
    return np.asarray(expit(2 * logits) if several else softmax(2 * logits, axis=1))


def _given(probabilities: np.ndarray, true: np.ndarray) -> np.ndarray:
    return probabilities >= 0.5 if true.ndim == 2 else probabilities.argmax(axis=1)


def _right(probabilities: np.ndarray, true: np.ndarray) -> np.ndarray:
    same = _given(probabilities, true) == true
    return same.all(axis=1) if true.ndim == 2 else same


def _scores(probabilities: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    given = _given(probabilities, true)
    precision, recall, f1, _ = precision_recall_fscore_support(true, given, average="macro", zero_division=0)
    accuracy = float(_right(probabilities, true).mean())
    found = {"f1": f1, "precision": precision, "recall": recall, "loss": 0.4}
    return {"accuracy": accuracy, "accuracy_interval": wilson(accuracy, len(true)), **_with_intervals(found)}


def _with_intervals(found: dict[str, float]) -> dict[str, Any]:
    """Return scores, each with an interval about as wide as it might be."""
    return found | {
        f"{name}_interval": [max(0.0, value - 0.02), min(1.0, value + 0.02)] for name, value in found.items()
    }


def _mcnemar(right: dict[str, np.ndarray], other: str) -> dict[str, Any]:
    theirs, ours = int((right[other] & ~right["adapted"]).sum()), int((right["adapted"] & ~right[other]).sum())
    p = binomtest(min(theirs, ours), theirs + ours).pvalue if theirs + ours else 1.0
    return {"mcnemar_p": float(p), "mcnemar": {f"only_{other}_right": theirs, "only_adapted_right": ours}}


def _calibration(probabilities: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    bins = [
        {"confidence": confidence, "accuracy": min(1.0, confidence + 0.02), "count": 20 + 10 * number}
        for number, confidence in enumerate(np.linspace(0.52, 0.98, 8))
    ]
    before = [line | {"accuracy": max(0.0, line["accuracy"] - 0.09)} for line in bins]
    errors = _with_intervals({"ece_before": 0.081, "ece_after": 0.019})
    return {"temperature": 1.43, **errors, "bins_before": before, "bins_after": bins}


def _per_class(probabilities: np.ndarray, true: np.ndarray, labels: list[str]) -> dict[str, Any]:
    columns = precision_recall_fscore_support(
        true, _given(probabilities, true), labels=range(len(labels)), zero_division=0
    )
    rows = np.stack(columns, axis=1).tolist()
    return {
        label: _with_intervals({"precision": precision, "recall": recall, "f1": f1}) | {"support": support}
        for label, (precision, recall, f1, support) in zip(labels, rows, strict=True)
    }


def _confusion(probabilities: np.ndarray, true: np.ndarray, labels: list[str]) -> Any:
    given = _given(probabilities, true)
    if true.ndim == 2:
        return dict(zip(labels, multilabel_confusion_matrix(true, given).tolist(), strict=True))
    return confusion_matrix(true, given, labels=range(len(labels))).tolist()


def _curves(probabilities: np.ndarray, truth: np.ndarray, labels: list[str]) -> dict[str, Any]:
    found = {}
    for number, label in enumerate(labels):
        have, chance = truth[:, number], probabilities[:, number]
        if not have.any():
            continue
        fpr, tpr, _ = roc_curve(have, chance)
        precision, recall, _ = precision_recall_curve(have, chance)
        step, steps = max(1, len(fpr) // 100), max(1, len(recall) // 100)
        found[label] = {
            "roc": {"fpr": fpr[::step].tolist(), "tpr": tpr[::step].tolist()}
            | _with_intervals({"auc": float(auc(fpr, tpr))}),
            "pr": {"precision": precision[::steps].tolist(), "recall": recall[::steps].tolist()}
            | _with_intervals({"average_precision": float(average_precision_score(have, chance))}),
        }
    return {"curves": found, "macro_curves": found[labels[0]]}


def _errors(labels: list[str], several: bool) -> list[dict[str, Any]]:
    texts = [HOSTILE, HEBREW, ["A man plays a guitar.", "Nobody is making music."], "w" * 900, "", HOSTILE_MARKDOWN]
    texts += [f"It starts slowly. {'And then it never gets going, whatever the critics say. ' * k}" for k in range(14)]
    true, given = ([labels[0], labels[-1]], []) if several else (labels[0], labels[-1])
    return [
        {"text": text, "label": true, "predicted": given, "probability": 0.9991 - 0.004 * place}
        for place, text in enumerate(texts)
    ]
