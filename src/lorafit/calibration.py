"""How far a classifier's probabilities are from its accuracy."""

import numpy as np

from lorafit import tasks


def expected_calibration_error(probabilities: np.ndarray, label_ids: np.ndarray, bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy over equal-width bins of confidence."""
    found = reliability(probabilities, label_ids, bins)
    gaps = sum(part["count"] * abs(part["confidence"] - part["accuracy"]) for part in found)
    return gaps / sum(part["count"] for part in found)


def reliability(probabilities: np.ndarray, label_ids: np.ndarray, bins: int = 15) -> list[dict[str, float]]:
    """Return `confidence`, `accuracy` and `count` of each bin that is not empty."""
    if tasks.task_of(label_ids) == "multi_label":
        confidence, right = probabilities.ravel(), label_ids.ravel() == 1
    else:
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == label_ids
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        {
            "confidence": float(confidence[places == place].mean()),
            "accuracy": float(right[places == place].mean()),
            "count": int((places == place).sum()),
        }
        for place in np.unique(places)
    ]
