"""A run's test texts, looked at once: base, adapted and baselines -> scores.json, the report, the model card."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lorafit import (
    baselines,
    card,
    checks,
    evaluation,
    predict,
    predictions,
    prefix,
    report,
    runtime,
    tasks,
    tokens,
)
from lorafit.console import say
from lorafit.errors import RunError
from lorafit.files import sha256_of
from lorafit.predict import Classifier
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
    wanted = dict.fromkeys([*baselines.ALWAYS, *asked])
    known = _found(run, weights)
    missing = [name for name in wanted if known is None or name not in known[0]["test"]["baselines"]]
    if known is not None and not missing and report.is_whole(run):
        say(f"Evaluated already; the scores stand in {run.path / 'scores.json'}.")
        return dict(known[0]["test"])
    with run.locked():
        if known is None or missing:
            found = data_of(run)
            known = known or _ask(run, found, weights)
            for name in missing:
                _add_baseline(name, run, found, *known)
        write(run, known[0])
    return dict(known[0]["test"])


def write(run: Run, scores: dict[str, Any]) -> None:
    """Write `scores.json`, and what is made of it: the model card, and last the report.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    _write_scores(run, scores)
    made = checks.check(run.adapter)
    if made is not None:
        card.write(run.adapter, made, scores["test"])
    report.write(run)


def _keep(run: Run, scores: dict[str, Any], answers: Predictions) -> None:
    """Write what is there so far: whatever ends this evaluation, the next one goes on from it."""
    predictions.write(run.predictions, answers)
    _write_scores(run, scores)


def _write_scores(run: Run, scores: dict[str, Any]) -> None:
    report.remove(run)  # it is not of these scores
    run.write("scores.json", json.dumps(scores, indent=2, allow_nan=False) + "\n")


def _refuse_unfinished(run: Run) -> None:
    if not run.finished:
        raise RunError(f"{run.path} is not finished. Go on with: lorafit train --resume {run.path}")
    if not (run.adapter / checks.WEIGHTS).is_file():
        raise RunError(f"{run.path} is finished, but its adapter is gone. Train it anew with --overwrite.")


def _found(run: Run, weights: str) -> tuple[dict[str, Any], Predictions] | None:
    """Return scores and answers of this adapter, by this version, or None; with a damaged half, both are made anew."""
    scores = run.scores
    if scores is None or scores.get("adapter_sha256") != weights or "macro_curves" not in scores.get("test", {}):
        return None
    try:
        return scores, predictions.read(run.predictions)
    except RunError:
        return None


def _ask(run: Run, found: Prepared, weights: str) -> tuple[dict[str, Any], Predictions]:
    """Return scores and answers of base and adapted; seeds that the same adapter stood for stay."""
    classifier = Classifier.load(
        run.path, precision=run.record["runtime"]["precision"], threads=run.recipe.training.threads
    )
    made = checks.check(run.adapter)
    base, adapted = _logits(run, classifier, found)
    test = evaluation.Test(
        texts=found.test.texts,
        lengths=tokens.whole_lengths(found.test.texts, classifier.tokenizer),
        label_ids=found.test.label_ids,
        labels=found.labels,
        base=base,
        adapted=adapted,
        temperature=made.temperature if made else 1.0,
        thresholds=made.thresholds if made else None,
    )
    task = tasks.task_of(test.label_ids)
    probabilities = {who: tasks.probabilities(getattr(test, who), task) for who in ("base", "adapted")}
    earlier = run.scores or {}
    seeds = {"seeds": earlier["seeds"]} if "seeds" in earlier and earlier.get("adapter_sha256") == weights else {}
    scores = {"adapter_sha256": weights, "test": evaluation.record(test)} | seeds
    answers = Predictions(test.label_ids, test.given(), probabilities)
    _keep(run, scores, answers)
    return scores, answers


def _logits(run: Run, classifier: Classifier, found: Prepared) -> list[np.ndarray]:
    """Return what base and adapted give the test texts; over a prefix that is kept, which is one and the same."""
    pad_id, where = classifier.tokenizer.pad_token_id, _where(run)
    if not run.recipe.training.cache_prefix:
        return [classifier.logits(found.test.tokens, base=base) for base in (True, False)]
    given, base = [], classifier.reader.manifest.base  # which the name in the recipe need not mean any more
    for doing, model in (("Base", classifier.network(base=True)), ("Adapted", classifier.network())):
        below = prefix.of(model, run.recipe.adapter.layers)
        key = prefix.key_of(below, base, found.key, "test", where)
        states = prefix.states(below, key, [found.test.tokens], pad_id, where)
        with prefix.standing_in(below, states.table):
            given.append(predict.logits(model, states.tokens[0], pad_id, where, doing))
    return given


def _add_baseline(name: str, run: Run, found: Prepared, scores: dict[str, Any], answers: Predictions) -> None:
    say(f"Baseline: {baselines.DESCRIBED[name]} ...")
    start = time.perf_counter()
    given = answers.given[name] = baselines.answer(name, run.recipe, found, _where(run))
    seconds, adapted = time.perf_counter() - start, answers.given["adapted"]
    scores["test"] = evaluation.with_baseline(scores["test"], name, given, adapted, answers.label_ids, seconds)
    _keep(run, scores, answers)


def _where(run: Run) -> Runtime:
    return runtime.choose(run.record["runtime"]["precision"], run.recipe.training.threads)
