"""A run's test texts, looked at once: base, adapted and baselines -> scores.json, the report, the model card."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from lorafit import baselines, card, checks, evaluation, predict, predictions, report, runtime, tasks
from lorafit.console import say
from lorafit.errors import RunError
from lorafit.files import sha256_of
from lorafit.predictions import Predictions
from lorafit.prepared import Prepared
from lorafit.runs import Run
from lorafit.runtime import Runtime


def assess(run: Run, data_of: Callable[[Run], Prepared], asked: Sequence[str] = ()) -> dict[str, Any]:
    """Return what `scores.json` holds under "test", made now or found; baselines that are not there yet are added.

    Args:
        run: a finished run.
        data_of: gives the run's data.
        asked: baselines beside those that every evaluation has: see `baselines.ON_REQUEST`.

    Raises:
        RecipeError: no such baseline.
        RunError: the run is not finished, its adapter is gone, or its data has changed.
    """
    baselines.refuse_unknown(asked)
    _refuse_unfinished(run)
    weights = sha256_of(run.adapter / checks.WEIGHTS)
    wanted = list(dict.fromkeys([*baselines.ALWAYS, *asked]))
    scores = run.scores
    if scores is not None and _is_complete(run, scores, weights):
        missing = [name for name in wanted if name not in scores["test"]["baselines"]]
        if not missing:
            say(f"Evaluated already; the scores stand in {run.path / 'scores.json'}.")
            return dict(scores["test"])
        wanted = missing
    else:
        scores = None
    with run.locked():
        found = data_of(run)
        if scores is None:
            test, answers = _asked(run, found)
            scores = {"adapter_sha256": weights, "test": test}
        else:
            answers = predictions.read(run.predictions)
        for name in wanted:
            scores["test"] = _with_baseline(name, scores["test"], run, found, answers)
        predictions.write(run.predictions, answers)
        write(run, scores)
    return dict(scores["test"])


def write(run: Run, scores: dict[str, Any]) -> None:
    """Write `scores.json`, and what is made of it: the report and the model card.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    run.write("scores.json", json.dumps(scores, indent=2, allow_nan=False) + "\n")
    report.write(run)
    made = checks.check(run.adapter)
    if made is not None:
        card.write(run.adapter, made, scores["test"])


def _refuse_unfinished(run: Run) -> None:
    if not run.finished:
        raise RunError(f"{run.path} is not finished. Go on with: lorafit train --resume {run.path}")
    if not (run.adapter / checks.WEIGHTS).is_file():
        raise RunError(f"{run.path} is finished, but its adapter is gone. Train it anew with --overwrite.")


def _is_complete(run: Run, scores: dict[str, Any], weights: str) -> bool:
    """Tell whether these scores are of this adapter, by this version, and all that belongs to them is there."""
    there = run.predictions.is_file() and (run.path / "report.md").is_file()
    return there and scores["adapter_sha256"] == weights and "test_sha256" in scores["test"]


def _asked(run: Run, found: Prepared) -> tuple[dict[str, Any], Predictions]:
    """Ask base and adapted about the test texts; returns the record and the answers."""
    classifier = predict.Classifier.load(
        run.path, precision=run.record["runtime"]["precision"], threads=run.recipe.training.threads
    )
    made = checks.check(run.adapter)
    test = evaluation.Test(
        texts=found.test.texts,
        lengths=found.test.tokens.lengths,
        label_ids=found.test.label_ids,
        labels=found.labels,
        base=classifier.logits(found.test.tokens, base=True),
        adapted=classifier.logits(found.test.tokens),
        temperature=made.temperature if made else 1.0,
        thresholds=made.thresholds if made else None,
    )
    task = tasks.task_of(test.label_ids)
    probabilities = {who: tasks.probabilities(getattr(test, who), task) for who in ("base", "adapted")}
    return evaluation.record(test), Predictions(test.label_ids, test.given(), probabilities)


def _with_baseline(name: str, test: dict[str, Any], run: Run, found: Prepared, answers: Predictions) -> dict[str, Any]:
    """Return the record with one baseline more, whose answers are kept too."""
    say(f"Baseline: {baselines.DESCRIBED[name]} ...")
    start = time.perf_counter()
    answers.given[name] = baselines.answer(name, run.recipe, found, _where(run))
    seconds = time.perf_counter() - start
    return evaluation.with_baseline(
        test, name, answers.given[name], answers.given["adapted"], answers.label_ids, seconds
    )


def _where(run: Run) -> Runtime:
    return runtime.choose(run.record["runtime"]["precision"], run.recipe.training.threads)
