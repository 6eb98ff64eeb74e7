"""What a reader should take away from an evaluation: the verdict in one sentence, and the comparison in four lines."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from lorafit.baselines import DESCRIBED
from lorafit.intervals import as_interval

UNTRAINED = "the same encoder with an untrained head"
CHANCE = 0.05


def verdict(scores: dict[str, Any]) -> str:
    """Return in one sentence what LoRA reaches, and by how much it beats, or does not beat, base and baselines.

    In accuracy, or where thresholds were fitted for macro F1, in that; McNemar's p is of accuracy alone. Where the
    training was repeated with other seeds, the means over the seeds decide, for all baselines that every seed has; what
    stands behind ± is the standard deviation, of a gain that of the differences seed by seed.

    Args:
        scores: what `scores.json` holds.

    >>> verdict(run.scores)
    "LoRA reaches an accuracy of 0.871 (95% interval 0.856 to 0.885) on 2,000 test texts: 35.7 points above ..."
    """
    test, seeds = scores["test"], seeds_of(scores)
    rivals = _rivals(test) if seeds is None else _rivals_over_seeds(seeds, test["compared_by"])
    rivals = sorted(rivals, key=lambda rival: rival.gain > 0)  # those that LoRA does not beat come first
    beaten_by = [rival.name for rival in rivals if rival.gain <= 0]
    by = "" if seeds is None else f" on the mean of {seeds['n']} seeds"
    opening = f"LoRA does not beat {_listed(beaten_by, 'or')}{by}: it" if beaten_by else "LoRA"
    said = f"{opening} reaches {_reached(test, seeds)}: {_listed(_differences(rivals), 'and')}"
    return f"{said}." if seeds is None else f"{said}; {_of_the_first_seed(test, seeds)}."


def seeds_of(scores: dict[str, Any]) -> dict[str, Any] | None:
    """Return what several seeds say together; None of one, and where an earlier version kept no baselines of them."""
    seeds: dict[str, Any] = scores.get("seeds", {})
    return seeds if "baselines" in seeds else None


class _Rival(NamedTuple):
    name: str
    gain: float
    """Points that LoRA is ahead, of several seeds the mean."""
    deviation: float | None = None
    p: float | None = None


def _rivals(test: dict[str, Any]) -> list[_Rival]:
    """Return the base, and the baselines, the best first, with McNemar's p."""
    by = test["compared_by"]
    best_first = sorted(test["baselines"].items(), key=lambda item: -item[1][by])
    named = [("its base", test["base"] | {"mcnemar_p": test["mcnemar_p"]})]
    named += [(DESCRIBED[name], found) for name, found in best_first]
    return [
        _Rival(
            name,
            gain=round(100 * (test["adapted"][by] - found[by]), 6),
            p=found["mcnemar_p"] if by == "accuracy" else None,
        )
        for name, found in named
    ]


def _rivals_over_seeds(seeds: dict[str, Any], by: str) -> list[_Rival]:
    """Return the base, and the baselines that every seed has, the best first."""
    best_first = sorted(seeds["baselines"].items(), key=lambda item: -item[1][by]["mean"])
    named = [("its base", seeds["base"]), *((DESCRIBED[name], found) for name, found in best_first)]
    gains = [(name, found["gain_points"][by]) for name, found in named]
    return [_Rival(name, round(gain["mean"], 6), gain["standard_deviation"]) for name, gain in gains]


def _reached(test: dict[str, Any], seeds: dict[str, Any] | None) -> str:
    by = test["compared_by"]
    name = {"accuracy": "an accuracy", "f1": "a macro F1"}[by]
    several = "all labels of a text right, " if test["task"] == "multi_label" and by == "accuracy" else ""
    if seeds is not None:
        return f"{name} of {as_mean(seeds[by])} ({several}mean ± standard deviation of {seeds['n']} seeds)"
    return f"{name} of {_with_interval(test, several)}"


def _with_interval(test: dict[str, Any], several: str = "") -> str:
    by = test["compared_by"]
    score, interval = test["adapted"][by], as_interval(test["adapted"][f"{by}_interval"])
    return f"{score:.3f} ({several}95% interval {interval}) on {test['n']:,} test texts"


def _of_the_first_seed(test: dict[str, Any], seeds: dict[str, Any]) -> str:
    """Say what the run itself reaches, and how far it is from baselines that were not made for every seed."""
    found = f"with seed {seeds['runs'][0]['seed']} alone {_with_interval(test)}"
    only_here = {name: one for name, one in test["baselines"].items() if name not in seeds["baselines"]}
    if not only_here:
        return found
    _base, *rivals = _rivals(test | {"baselines": only_here})
    return f"{found}, {_listed(_differences(rivals), 'and')}, which not every seed has"


def _differences(rivals: Sequence[_Rival]) -> list[str]:
    """Say how far LoRA is from each; the unit and the test are named with the first."""
    return [
        f"{_difference(rival, '' if place else ' points')} {rival.name}{_luck(rival, '' if place else 'McNemar’s ')}"
        for place, rival in enumerate(rivals)
    ]


def _luck(rival: _Rival, test: str) -> str:
    if rival.p is None:
        return ""
    explained = ", which chance may explain" if rival.p > CHANCE and rival.gain else ""
    return f" ({test}{as_p(rival.p)}{explained})"


def _difference(rival: _Rival, unit: str) -> str:
    if rival.gain == 0:
        return "level with"
    deviation = "" if rival.deviation is None else f" ± {rival.deviation:.1f}"
    return f"{abs(rival.gain):.1f}{deviation}{unit} {'above' if rival.gain > 0 else 'below'}"


def beside_each_other(seeds: dict[str, Any], by: str) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows of a table: LoRA, base and baselines, seed by seed, and what LoRA gains over them.

    Args:
        seeds: what `seeds.train` returns.
        by: "accuracy" or "f1".
    """
    score = {"accuracy": "accuracy", "f1": "macro F1"}[by]
    headers = [score, *(f"seed {one['seed']}" for one in seeds["runs"]), "mean ± sd", "LoRA’s gain, points"]
    rows = [["LoRA", *(f"{one[by]:.4f}" for one in seeds["runs"]), as_mean(seeds[by], 4), ""]]
    rows += [_row("base", [one[f"base_{by}"] for one in seeds["runs"]], seeds["base"], by)]
    for name, found in seeds["baselines"].items():
        of_seeds = [one["baselines"][name][by] for one in seeds["runs"]]
        rows += [_row(DESCRIBED[name].removeprefix("the "), of_seeds, found, by)]
    return headers, rows


def _row(name: str, of_seeds: Sequence[float], found: dict[str, Any], by: str) -> list[str]:
    scores = (f"{score:.4f}" for score in of_seeds)
    return [name, *scores, as_mean(found[by], 4), as_mean(found["gain_points"][by], 2)]


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
