"""Rows under headers, for a terminal and for the page: the runs there are, an evaluation, runs beside each other.

What is heavy is imported where it is needed: `lorafit runs` answers at once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from lorafit.runs import Run


class Overview(NamedTuple):
    """A table of words and numbers, all of them as they are shown; what a row is about comes first."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


def of_runs(found: Sequence[Run]) -> Overview:
    """Return a row a run: what it was made of, and what it reached."""
    headers = ("run", "recipe", "encoder", "data", "texts", "base", "adapted", "time", "started")
    return Overview(headers, [_run_row(run) for run in found])


def of_scores(test: dict[str, Any]) -> Overview:
    """Return a row for base, adapted, and each baseline: accuracy and macro F1 with their intervals.

    Args:
        test: what `scores.json` holds under "test".
    """
    from lorafit.baselines import DESCRIBED

    rows = [[who, *with_intervals(test[who], "accuracy", "f1")] for who in ("base", "adapted")]
    rows += [[DESCRIBED[name], *with_intervals(found, "accuracy", "f1")] for name, found in test["baselines"].items()]
    return Overview(("", "accuracy", "95% interval", "macro F1", "95% interval"), rows)


def of_compared(compared: dict[str, Any]) -> Overview:
    """Return a row for each run of what `comparison.compare` returns."""
    from lorafit.report.verdict import as_p

    scores = ("accuracy", "95% interval", "macro F1", "95% interval")
    rows = [
        [
            row["run"],
            ", ".join(f"{key}={value}" for key, value in row["recipe"].items()) or "-",
            *with_intervals(row, "accuracy", "f1"),
            _gained(row),
            "-" if row["mcnemar_p_holm"] is None else as_p(row["mcnemar_p_holm"]),
            f"{row['adapter_bytes'] / 1000:,.0f}",
            f"{row['seconds']:,.0f} s",
        ]
        for row in compared["runs"]
    ]
    return Overview(("run", "recipe", *scores, "points", "McNemar", "kB", "time"), rows)


def with_intervals(scores: dict[str, Any], *names: str) -> list[str]:
    """Return the scores of these names, each with its interval."""
    from lorafit.intervals import as_interval

    return [shown for name in names for shown in (f"{scores[name]:.4f}", as_interval(scores[f"{name}_interval"]))]


def _run_row(run: Run) -> list[str]:
    recipe, record, scores = run.recipe, run.record, run.scores
    test = scores["test"] if scores else None
    return [
        str(run.path),
        recipe.name,
        recipe.encoder.name,
        recipe.data.source,
        f"{record['texts']['train']:,}",
        f"{test['base']['accuracy']:.4f}" if test else "-",
        _with_limits(test["adapted"]) if test else "-",
        f"{record['seconds']:,.0f} s" if run.finished else "unfinished",
        record["created"].replace("T", " ")[:16],
    ]


def _with_limits(scores: dict[str, Any]) -> str:
    """Return an accuracy with its interval, such as "0.8833 (0.842 to 0.915)"."""
    limits = scores.get("accuracy_interval")  # an earlier version wrote none
    return f"{scores['accuracy']:.4f}" + (f" ({limits[0]:.3f} to {limits[1]:.3f})" if limits else "")


def _gained(row: dict[str, Any]) -> str:
    if row["difference_interval"] is None:
        return "-"
    low, high = row["difference_interval"]
    return f"{row['difference_points']:+.2f} ({low:+.2f} to {high:+.2f})"
