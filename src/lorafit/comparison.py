"""Runs beside each other on the same test texts: one table, one figure."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorafit import evaluation, intervals, predictions, runs
from lorafit.errors import RunError
from lorafit.files import storing, write_text
from lorafit.report import ADAPTED, BASE
from lorafit.runs import Run

NOTE = (
    "The 95% intervals are Wilson's of accuracy and the bootstrap's of the rest. Points are the gain in accuracy over "
    "the first run, with the interval of the paired bootstrap; p is McNemar's exact test, raised by Holm's method for "
    "the number of comparisons."
)
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
    "svg.fonttype": "none",  # text stays text
}


def compare(folders: Sequence[Path | str], out: Path | str) -> dict[str, Any]:
    """Return the table of evaluated runs, each compared with the first; writes it and a figure into `out`.

    `runs` has a row a run: the scores with their intervals, the recipe's keys in which it differs from the first,
    `difference_points` and `mcnemar_p_holm`, None for the first. `note` says how the numbers were made.

    Args:
        folders: run folders, two or more.
        out: gets comparison.json, comparison.png and comparison.svg.

    Raises:
        RunError: one run only, one run twice, a run that is not evaluated, or runs with different test texts.
        StorageError: a disk that is full or not writable.

    >>> compare(["runs/a", "runs/b"], "comparison")["runs"][1]["difference_interval"]
    """
    found = [runs.open_run(folder) for folder in folders]
    _refuse_too_few(found)
    tests = [_test_of(run) for run in found]
    _refuse_other_tests(found, tests)
    rows = [_row(run, test, found[0]) for run, test in zip(found, tests, strict=True)]
    _add_differences(rows, found)
    compared = {"test_sha256": tests[0]["test_sha256"], "n": tests[0]["n"], "note": NOTE, "runs": rows}
    out = Path(out)
    write_text(out / "comparison.json", json.dumps(compared, indent=2, allow_nan=False) + "\n")
    with storing(out), mpl.rc_context(_STYLE):
        drawn = figure(compared)
        for ending in ("png", "svg"):
            drawn.savefig(out / f"comparison.{ending}")
    return compared


def figure(compared: dict[str, Any]) -> Figure:
    """Return the accuracies of the runs with their intervals, and beside them the gains over the first."""
    rows = compared["runs"]
    names = _names([row["run"] for row in rows])
    drawn = Figure(figsize=(9.6, 1.8 + 0.42 * len(rows)))
    accuracy, gain = drawn.subplots(1, 2, sharey=True)
    _dots(accuracy, [row["accuracy"] for row in rows], [row["accuracy_interval"] for row in rows])
    accuracy.set_yticks(range(len(rows)), names)
    accuracy.set_ylim(len(rows) - 0.5, -0.5)
    accuracy.set_title(f"Accuracy, {compared['n']:,} test texts")
    accuracy.set_xlabel("with 95% interval")
    gain.axvline(0, color=BASE, linestyle="--")
    _dots(gain, [row["difference_points"] for row in rows[1:]], [row["difference_interval"] for row in rows[1:]], 1)
    gain.set_title(f"Gain over {names[0]}")
    gain.set_xlabel("percentage points, with 95% interval")
    return drawn


def _names(folders: list[str]) -> list[str]:
    """Return the last part of each path, where that tells them apart."""
    last = [Path(folder).name for folder in folders]
    return last if len(set(last)) == len(last) else folders


def _dots(axes: Axes, values: list[float], limits: list[list[float]], first_row: int = 0) -> None:
    rows = range(first_row, first_row + len(values))
    axes.hlines(rows, [low for low, _ in limits], [high for _, high in limits], color=ADAPTED, linewidth=2)
    axes.plot(values, rows, "o", color=ADAPTED)
    axes.grid(axis="x", alpha=0.3)


def _refuse_too_few(found: list[Run]) -> None:
    if len(found) < 2:
        raise RunError("A comparison needs two runs or more. Name another one: lorafit compare RUN RUN")
    places = [run.path.resolve() for run in found]
    twice = [run for run, place in zip(found, places, strict=True) if places.count(place) > 1]
    if twice:
        raise RunError(f"{twice[0].path} stands in the comparison twice. Name each run once.")


def _test_of(run: Run) -> dict[str, Any]:
    scores = run.scores
    if scores is None or "test_sha256" not in scores["test"] or not run.predictions.is_file():
        raise RunError(f"{run.path} is not evaluated yet. Do that first: lorafit evaluate {run.path}")
    return dict(scores["test"])


def _refuse_other_tests(found: list[Run], tests: list[dict[str, Any]]) -> None:
    for run, test in zip(found, tests, strict=True):
        if test["test_sha256"] != tests[0]["test_sha256"]:
            keys = [key for key in runs.changed_keys(found[0].recipe, run.recipe) if key.startswith(("data.", "seed"))]
            differ = f" Their recipes differ in {', '.join(keys)}." if keys else ""
            raise RunError(
                f"{found[0].path} and {run.path} were tested on other texts ({tests[0]['n']:,} and {test['n']:,}), so "
                f"their scores can't be compared.{differ} Train both with the same data and seed."
            )


def _row(run: Run, test: dict[str, Any], first: Run) -> dict[str, Any]:
    adapted, record = test["adapted"], run.record
    changed = [key for key in runs.changed_keys(first.recipe, run.recipe) if key != "name"]
    return {
        "run": str(run.path),
        "recipe": {key: _value(run.recipe.model_dump(), key) for key in changed},
        **{key: adapted[key] for key in ("accuracy", "accuracy_interval", "f1", "f1_interval")},
        "difference_points": None,
        "difference_interval": None,
        "mcnemar_p": None,
        "mcnemar_p_holm": None,
        "adapter_bytes": record["adapter_bytes"],
        "seconds": record["seconds"],
    }


def _value(values: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def _add_differences(rows: list[dict[str, Any]], found: list[Run]) -> None:
    """Compare each run's answers with the first one's, text by text."""
    first, *others = (predictions.read(run.predictions) for run in found)
    for row, other in zip(rows[1:], others, strict=True):
        gained = evaluation.gain(first.given["adapted"], other.given["adapted"], first.label_ids)
        row["difference_points"], row["difference_interval"] = (
            gained["improvement_points"],
            gained["improvement_interval"],
        )
        row["mcnemar_p"] = gained["mcnemar_p"]
    raised = intervals.holm([row["mcnemar_p"] for row in rows[1:]])
    for row, p in zip(rows[1:], raised, strict=True):
        row["mcnemar_p_holm"] = p
