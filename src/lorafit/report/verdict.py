"""What a reader should take away from an evaluation: the verdict in one sentence, and the comparison in four lines."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from lorafit.baselines import DESCRIBED
from lorafit.intervals import as_interval

UNTRAINED = "the same encoder with an untrained head"
CHANCE = 0.05


def verdict(scores: dict[str, Any]) -> str:
    """Return in one sentence what LoRA reaches, and by how much it beats, or does not beat, base and baselines.

    In accuracy, or where thresholds were fitted for macro F1, in that; McNemar's p is of accuracy alone.

    Args:
        scores: what `scores.json` holds.

    >>> verdict(run.scores)
    "LoRA reaches an accuracy of 0.871 (95% interval 0.856 to 0.885) on 2,000 test texts: 35.7 points above ..."
    """
    test = scores["test"]
    rivals = sorted(_rivals(test), key=lambda rival: rival.gain > 0)  # those that LoRA does not beat come first
    beaten_by = [rival.name for rival in rivals if rival.gain <= 0]
    opening = f"LoRA does not beat {_listed(beaten_by, 'or')}: it" if beaten_by else "LoRA"
    return f"{opening} reaches {_reached(scores)}: {_listed(_differences(rivals), 'and')}."


class _Rival(NamedTuple):
    name: str
    gain: float
    p: float | None


def _rivals(test: dict[str, Any]) -> list[_Rival]:
    """Return name, points that LoRA is ahead, and McNemar's p, of the base, and of the baselines, the best first."""
    by = test["compared_by"]
    best_first = sorted(test["baselines"].items(), key=lambda item: -item[1][by])
    named = [("its base", test["base"] | {"mcnemar_p": test["mcnemar_p"]})]
    named += [(DESCRIBED[name], found) for name, found in best_first]
    return [
        _Rival(name, 100 * (test["adapted"][by] - found[by]), found["mcnemar_p"] if by == "accuracy" else None)
        for name, found in named
    ]


def _reached(scores: dict[str, Any]) -> str:
    test, seeds, by = scores["test"], scores.get("seeds"), scores["test"]["compared_by"]
    name = {"accuracy": "an accuracy", "f1": "a macro F1"}[by]
    several = "all labels of a text right, " if test["task"] == "multi_label" and by == "accuracy" else ""
    score, interval = f"{test['adapted'][by]:.3f}", as_interval(test["adapted"][f"{by}_interval"])
    if seeds is None:
        return f"{name} of {score} ({several}95% interval {interval}) on {test['n']:,} test texts"
    gain = seeds["improvement_points"]
    ahead = f", {gain['mean']:.1f} ± {gain['standard_deviation']:.1f} points above its base" if by == "accuracy" else ""
    return (
        f"{name} of {as_mean(seeds[by])} ({several}mean ± standard deviation of {seeds['n']} seeds){ahead}; with seed "
        f"{seeds['runs'][0]['seed']}, {score} (95% interval {interval}) on {test['n']:,} test texts"
    )


def _differences(rivals: Sequence[_Rival]) -> list[str]:
    """Say how far LoRA is from each; the unit and the test are named with the first."""
    return [
        f"{_difference(gain, '' if place else 'points ')} {name}{_luck(p, gain, '' if place else 'McNemar’s ')}"
        for place, (name, gain, p) in enumerate(rivals)
    ]


def _luck(p: float | None, gain: float, test: str) -> str:
    if p is None:
        return ""
    return f" ({test}{as_p(p)}{', which chance may explain' if p > CHANCE and gain else ''})"


def _difference(gain: float, unit: str) -> str:
    if gain == 0:
        return "level with"
    return f"{abs(gain):.1f} {unit}{'above' if gain > 0 else 'below'}"


def _listed(parts: Sequence[str], word: str) -> str:
    """Return `a, b and c`."""
    return f" {word} ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def as_mean(found: dict[str, float], digits: int = 3) -> str:
    """Return `0.882 ± 0.003`."""
    return f"{found['mean']:.{digits}f} ± {found['standard_deviation']:.{digits}f}"


def as_p(p: float) -> str:
    """Return `p = 0.012`, or `p < 0.001` where it is smaller still."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def four_lines(test: dict[str, Any]) -> list[str]:
    """Return base accuracy, adapted accuracy, improvement and relative improvement, as the demo project A says them."""
    relative = test["relative_improvement"]
    return [
        f"Base accuracy:         {test['base']['accuracy']:.4f}   ({UNTRAINED})",
        f"Adapted accuracy:      {test['adapted']['accuracy']:.4f}",
        f"Improvement:           {test['improvement_points']:.2f} percentage points",
        f"Relative improvement:  {'not defined' if relative is None else f'{relative:.2%}'}",
    ]
