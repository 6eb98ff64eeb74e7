"""A search over recipes that shares work: trials in one study, each a run that stops before it hands anything over.

sweeps/NAME/
  study.db         the study, Optuna's own, unless it lies in another database
  trials/0007/     a run folder a trial; the best one is finished, and evaluated: the test set's one look
  best.toml        the best trial's recipe: it trains to the same adapter again
  trials.csv       a row a trial
  report.html, report.md, figures/    what the search found, and out of how many

Trials are compared on validation texts only. What a killed process leaves, the next one goes on with, to the same
trials; a second process takes trials of its own.
"""

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lorafit import pipeline
from lorafit import recipe as recipes
from lorafit.console import complain, duration, say, without_sentences
from lorafit.errors import LorafitError, LorafitWarning, RecipeError, RunError, StorageError
from lorafit.files import write_text
from lorafit.recipe import Recipe
from lorafit.runs import Run
from lorafit.sweep import database, outcome
from lorafit.sweep.space import Space, shown
from lorafit.sweep.studies import Pruned, Study
from lorafit.sweep.trials import Trial, best_of

DEFAULT_ROOT = Path("sweeps")
BEST = "best.toml"


@dataclass(frozen=True)
class Swept:
    """What a search left.

    Attributes:
        folder: the sweep's.
        trials: all of them.
        best: the run of the best trial, evaluated; None while other processes still work on trials, or where the best
            one lies on another machine.
    """

    folder: Path
    trials: list[Trial]
    best: Run | None


def run(recipe: Recipe, space: Space, trials: int, out: Path | str | None = None, storage: str = "") -> Swept:
    """Return the search, carried on until it has had `trials` trials, those of earlier and other processes included.

    Args:
        recipe: what every trial is, but for the keys in the space.
        space: what these keys may be.
        trials: how many in all.
        out: the sweep's folder; by default sweeps/NAME.
        storage: the study's database, as Optuna takes it; by default SQLite in the folder.

    Raises:
        RecipeError: fewer than one trial, or a database that can't be opened.
        RunError: the study is one of another recipe or space, or no trial came to its end.
        LorafitError: Optuna is not installed.

    >>> run(recipe.load("recipes/demo.toml"), space.load("recipes/spaces/demo.toml", recipe), trials=20)
    """
    study, chosen = begin(recipe, space, trials, out, storage)
    try:
        while carry_out_one(study, chosen, trials):
            pass
    except (KeyboardInterrupt, SystemExit):
        complain("Interrupted", "the same command goes on with the search, in the middle of its trial.", "yellow")
        raise
    return finish(study, chosen)


def begin(
    recipe: Recipe, space: Space, trials: int, out: Path | str | None = None, storage: str = ""
) -> tuple[Study, Recipe]:
    """Return the study, made now or found, and what each of its trials is but for the space: see `run`."""
    database.refuse_missing()
    if trials < 1:
        raise RecipeError(f"A sweep needs at least one trial; asked for was {trials}.")
    folder = Path(out) if out else DEFAULT_ROOT / recipe.name
    study = database.opened(recipe, space, folder, storage)
    pipeline.prepare(recipe)  # what is wrong with the data is said before the first trial, and once
    return study, recipes.changed(recipe, {"encoder.precision": study.precision()})


def carry_out_one(study: Study, recipe: Recipe, trials: int) -> bool:
    """Carry out one trial, new or left by a dead process; tell whether there was one.

    Raises:
        StorageError: the database does not answer, or the disk is full.
    """
    from optuna.exceptions import StorageInternalError

    try:
        trial = study.claim(trials)
        if trial is not None:
            _carry_out(study, trial, recipe, trials)
    except StorageInternalError as error:
        raise StorageError(f"The study's database does not answer: {str(error).splitlines()[0]}.") from error
    return trial is not None


def finish(study: Study, recipe: Recipe) -> Swept:
    """Finish and evaluate the best trial's run, and write what the search found.

    Raises:
        RunError: no trial came to its end.
    """
    with FileLock(study.folder / ".finish"):  # two that end at once
        return _finish(study, recipe)


def _carry_out(study: Study, trial: Trial, recipe: Recipe, trials: int) -> None:
    """Train one trial, and tell the study what came of it."""
    described = ", ".join(f"{key} = {shown(value)}" for key, value in trial.changes.items())
    say(f"Trial {trial.number + 1} of {trials}: {described}")
    if (same := study.finished_like(trial)) is not None:
        study.tell_same(trial, same)
        say(f"Trial {trial.number + 1}: as trial {same.number + 1}, {same.score:.4f}")
        return
    try:
        own = {"name": f"{recipe.name}-{trial.number:04d}", "training.threads": study.threads_a_trial()}
        chosen = recipes.changed(recipe, trial.changes | own)
        with without_sentences(), warnings.catch_warnings():
            warnings.simplefilter("ignore", LorafitWarning)  # that a trial learns badly is what its score says
            found = pipeline.try_out(
                chosen, trial.folder, lambda epoch, scores: study.report(trial, epoch, scores[study.by])
            )
    except Pruned:
        study.tell_pruned(trial, **_facts(Run(trial.folder)))
        say(f"Trial {trial.number + 1}: stopped early, behind most trials at this epoch")
    except StorageError:  # which other trials would meet too
        raise
    except (LorafitError, MemoryError, RuntimeError) as error:  # of these values; other trials may do better
        if not isinstance(error, LorafitError) and "memory" not in repr(error).lower():
            raise
        study.tell_failed(trial, str(error).splitlines()[0])
        complain(f"Trial {trial.number + 1} failed", str(error).splitlines()[0], "yellow")
    else:
        facts = _facts(Run(trial.folder)) | {"best_epoch": found.best_epoch, "loss": found.best["loss"]}
        study.tell(trial, found.best[study.by], **facts)
        scored = f"{study.by} {found.best[study.by]:.4f} on validation"
        say(f"Trial {trial.number + 1}: {scored}, {duration(facts['seconds'])}")
    for lost in study.behind_the_best():
        shutil.rmtree(Run(lost.folder).checkpoints, ignore_errors=True)


def _facts(run: Run) -> dict[str, Any]:
    record = run.record
    return {
        "seconds": round(run.seconds, 2),
        "trained_parameters": record["parameters"]["trainable"],
        "validation_sha256": record["validation_sha256"],
    }


def _finish(study: Study, recipe: Recipe) -> Swept:
    """Finish and evaluate the best trial's run, and write what the search found."""
    found = study.trials()
    if open_ones := study.open_elsewhere():
        places = ", ".join(sorted({trial.host for trial in open_ones}))
        say(
            f"{len(open_ones)} of {len(found)} trials are still worked on ({places}); who ends last writes the report. "
            "Where that one has gone, the same command does, some time after its last sign of life."
        )
        return Swept(study.folder, found, None)
    best = best_of(found)
    if best is None:
        reason = next((trial.reason for trial in reversed(found) if trial.reason), "each was stopped early")
        raise RunError(f"None of the {len(found)} trials in {study.folder} came to its end; the last: {reason}")
    write_text(study.folder / BEST, _best_toml(recipe, best, found))
    winner = Run(best.folder)
    if not (winner.path / "run.json").is_file():
        way_on = f"lorafit train {study.folder / BEST}"
        say(f"The best trial's run is {best.folder} on {best.host}. Train it here with: {way_on}")
        return Swept(study.folder, found, None)
    say(f"The best of {len(found)}: trial {best.number + 1}, {study.by} {best.score:.4f} on validation.")
    winner = pipeline.resume(winner.path)
    study.note_test(best)
    pipeline.evaluate(winner)
    outcome.write(study, found, best, winner)
    return Swept(study.folder, found, winner)


def _best_toml(recipe: Recipe, best: Trial, found: list[Trial]) -> str:
    chosen = recipes.changed(recipe, best.changes | {"name": f"{recipe.name}-best"})
    title = f"The best of {len(found)} trials on validation, number {best.number + 1}."
    return recipes.to_commented_toml(chosen, f"{title} Train it again with: lorafit train {BEST}")
