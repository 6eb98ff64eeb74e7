"""The study of a search, through Optuna: who works on which trial, and what came of it.

Optuna is Akiba et al. 2019 (arXiv:1907.10902). Its sampler draws each trial from a seed of the trial's own, so that a
search that was killed goes on to the trials that it would have had.
"""

import json
import logging
import math
import os
import platform
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from filelock import FileLock

from lorafit import runs, runtime
from lorafit.errors import LorafitError, RecipeError, RunError
from lorafit.files import storing
from lorafit.recipe import Recipe
from lorafit.sweep.space import Range, Space

State = Literal["running", "finished", "stopped early", "failed"]
_STARTUP_TRIALS = 5  # of which each comes to its end, before others are measured by them
_SECONDS_TO_SIGN = 60  # between asking for a trial and signing it
# What differs between two machines or two calls on one search, and changes no result.
_OWN = ("name", "training.threads")


class Pruned(Exception):  # noqa: N818 - no error: how a poor trial ends
    """The trial is behind most others at this epoch, and is not worth its time."""


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: from 0.
        changes: the recipe's keys that it chose, and their values.
        state: how far it came.
        score: the best epoch's validation score; NaN where it did not come to its end.
        folder: its run's.
        host: the machine on which that lies.
        reason: why it failed.
        facts: loss, best epoch, seconds, trained parameters.
    """

    number: int
    changes: dict[str, Any]
    state: State
    score: float
    folder: Path
    host: str
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def merit(self) -> tuple[float, float]:
        """What is compared: the score, and of equal ones the lower loss."""
        return (-math.inf if math.isnan(self.score) else self.score), -self.facts.get("loss", math.inf)


def best_of(trials: list[Trial]) -> Trial | None:
    """Return the trial with the highest score, of equals the one with the lower loss, or None if none is finished."""
    return max((trial for trial in trials if trial.state == "finished"), key=lambda trial: trial.merit, default=None)


def refuse_missing() -> None:
    """Refuse to go on without Optuna.

    Raises:
        LorafitError: says how to install it.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise LorafitError("Optuna is not installed. Install it with: pip install 'lorafit[sweep]'") from None


def opened(recipe: Recipe, space: Space, folder: Path, url: str) -> "Study":
    """Return the study of a recipe and a space, made now or found.

    Args:
        recipe: what every trial is, but for the keys in the space.
        space: what these may be.
        folder: the sweep's.
        url: the database, as Optuna takes it; "": SQLite in the folder.

    Raises:
        RunError: the study is one of another recipe or space.
        RecipeError: the database can't be opened.
    """
    import optuna
    from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

    optuna.logging.set_verbosity(logging.ERROR)
    place = url or f"sqlite:///{folder / 'study.db'}"
    try:
        with FileLock(folder / ".lock"):  # two that make its tables at once are in each other's way
            storage = optuna.storages.RDBStorage(place, engine_kwargs=_patient(place))
            study = optuna.create_study(
                storage=storage,
                study_name=recipe.name,
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS),
                load_if_exists=True,
            )
    except (ArgumentError, DatabaseError, NoSuchModuleError, ImportError, RuntimeError) as error:
        raise RecipeError(f"The study's database {place} can't be opened: {str(error).splitlines()[0]}.") from None
    _refuse_other(study, recipe, space, place)
    return Study(study, recipe, space, folder)


def _patient(place: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 60}} if place.startswith("sqlite") else {}


def _refuse_other(study: Any, recipe: Recipe, space: Space, place: str) -> None:
    """Sign a new study; refuse one of something else."""
    ours = {"recipe": _plain(recipe), "space": json.loads(json.dumps(space.as_record()))}
    theirs = study.user_attrs.get("lorafit")
    if theirs is None and not study.trials:
        study.set_user_attr("lorafit", ours)
        return
    if theirs is None:
        raise RunError(f"{place} holds a study {recipe.name!r} that is not lorafit's. Choose another --storage.")
    what, keys = _difference(theirs, ours)
    if keys:
        raise RunError(
            f"{place} holds a search over another {what} (it differs in {', '.join(keys)}). "
            "Choose another folder with --out, or another name in the recipe."
        )


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[str, list[str]]:
    for what in ("recipe", "space"):
        old, new = theirs[what], ours[what]
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if keys:
            return what, keys
    return "", []


def _plain(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in runs.flat(recipe.model_dump()) if key not in _OWN}


class Study:
    """A search's trials, kept in a database that several processes share."""

    def __init__(self, study: Any, recipe: Recipe, space: Space, folder: Path) -> None:
        self._study, self._recipe, self._space = study, recipe, space
        self.folder = folder
        self._held: dict[int, Any] = {}

    @property
    def by(self) -> str:
        """The validation score that trials are compared by."""
        return self._recipe.training.select_by

    def trials(self) -> list[Trial]:
        """Return all trials so far, but for those that were one too many."""
        return [self._as_trial(found) for found in self._frozen() if not found.user_attrs.get("surplus")]

    def claim(self, count: int) -> Trial | None:
        """Return a trial to work on: one that a dead process of this machine left, else a new one.

        None: there are `count`, and nobody has left one.
        """
        with storing(self.folder), FileLock(self.folder / ".lock"):
            left = next((found for found in self._frozen() if self._is_left(found)), None)
            number = left.number if left is not None else len(self.trials())
            if number >= count:
                return None
            self._study.sampler = _sampler(self._recipe.seed, number)
            trial = self._ask(left)
            self._sign(trial)
        if trial.number >= count:  # a process on another machine was as fast
            trial.set_user_attr("surplus", True)
            self._study.tell(trial, state=_states().FAIL)
            return None
        self._held[trial.number] = trial
        return self._as_trial(self._frozen_of(trial.number))

    def threads_a_trial(self) -> int:
        """Return the recipe's threads; where that is all cores, this trial's share beside those of other processes.

        Two that take all cores at once are ten times as slow: their threads wait for each other, and for a core.
        """
        own = self._recipe.training.threads
        beside = sum(
            found.state == _states().RUNNING and _is_here(found) and not self._is_left(found)
            for found in self._frozen()
        )
        return own if own or beside < 2 else max(1, runtime.usable_cores() // beside)

    def report(self, trial: Trial, epoch: int, score: float) -> None:
        """Tell how a trial does.

        Raises:
            Pruned: worse than half of those that came as far; the base's score, epoch 0, says nothing yet.
        """
        if epoch < 1:
            return
        held = self._held[trial.number]
        held.report(score, epoch)
        if epoch < self._epochs(trial) and held.should_prune():
            raise Pruned

    def tell(self, trial: Trial, score: float, **facts: Any) -> None:
        """Note a trial that came to its end."""
        self._note(trial, facts)
        self._study.tell(self._held.pop(trial.number), score)

    def tell_pruned(self, trial: Trial, **facts: Any) -> None:
        """Note a trial that was stopped early."""
        self._note(trial, facts)
        self._study.tell(self._held.pop(trial.number), state=_states().PRUNED)

    def tell_failed(self, trial: Trial, reason: str) -> None:
        """Note a trial that can't be, or diverged."""
        self._note(trial, {"reason": reason})
        self._study.tell(self._held.pop(trial.number), state=_states().FAIL)

    def tell_same(self, trial: Trial, other: Trial) -> None:
        """Note a trial whose values another one had, which would end as that did."""
        same = {"seconds": 0.0, "folder": str(other.folder), "host": other.host, "same_as": other.number}
        self.tell(trial, other.score, **(other.facts | same))

    def finished_like(self, trial: Trial) -> Trial | None:
        """Return the finished trial with the same values, if there is one; a training is the same twice."""
        return next((t for t in self.trials() if t.state == "finished" and t.changes == trial.changes), None)

    def behind_the_best(self) -> list[Trial]:
        """Return the trials that have ended and are not the best, and whose run the best one does not need."""
        found = self.trials()
        best = best_of(found)
        kept = {best.folder} if best else set()
        return [trial for trial in found if trial.state != "running" and trial.folder not in kept]

    def note_test(self, best: Trial, scores: dict[str, Any] | None) -> None:
        """Note that the test set was looked at, by whom and with what result."""
        assert scores is not None
        looks = self.tests() | {str(best.number): scores["test"]["adapted"]["accuracy"]}
        self._study.set_user_attr("tests", looks)

    def tests(self) -> dict[str, float]:
        """Return the test accuracy of each trial that was the best when a search ended, by its number."""
        return dict(self._study.user_attrs.get("tests", {}))

    def importances(self) -> dict[str, float]:
        """Return for each key its share of what the score varies by (fANOVA, Hutter et al. 2014); {} if nobody can say.

        Of the finished trials; a key that had one value only has none.
        """
        import optuna

        finished = [trial for trial in self.trials() if trial.state == "finished"]
        if len(finished) < 4 or len({trial.score for trial in finished}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(self._study, evaluator=evaluator))

    def _ask(self, left: Any) -> Any:
        """Return a trial of Optuna's with all its values."""
        import optuna

        if left is None:
            return self._study.ask(fixed_distributions=self._distributions())
        trial = optuna.trial.Trial(self._study, left._trial_id)  # what has been drawn stays
        for key, distribution in self._distributions().items():
            trial._suggest(key, distribution)
        return trial

    def _distributions(self) -> dict[str, Any]:
        return {key: _distribution(allowed) for key, allowed in self._space.keys.items()}

    def _sign(self, trial: Any) -> None:
        """Write on a trial whose it is: the machine, the process, the run's folder."""
        folder = (self.folder / "trials" / f"{trial.number:04d}").absolute()
        trial.set_user_attr("folder", str(folder))
        trial.set_user_attr("host", platform.node())
        # Last: where it stands, the others do too.
        trial.set_user_attr("process", [os.getpid(), psutil.Process().create_time()])

    def _is_left(self, found: Any) -> bool:
        """Tell whether a trial was begun by a process of this machine, in this folder, that is gone."""
        if found.state != _states().RUNNING:
            return False
        of = found.user_attrs
        if "process" not in of:  # its process signs it at once, unless it was killed then
            begun = found.datetime_start  # without a zone, as Optuna has it
            return bool((datetime.now() - begun).total_seconds() > _SECONDS_TO_SIGN)
        in_this_folder = Path(of["folder"]).parent == (self.folder / "trials").absolute()
        return _is_here(found) and in_this_folder and not _is_alive(*of["process"])

    def _note(self, trial: Trial, facts: dict[str, Any]) -> None:
        for name, value in facts.items():
            self._held[trial.number].set_user_attr(name, value)

    def _epochs(self, trial: Trial) -> int:
        return int(trial.changes.get("training.epochs", self._recipe.training.epochs))

    def _frozen(self) -> list[Any]:
        return list(self._study.get_trials(deepcopy=False))

    def _frozen_of(self, number: int) -> Any:
        return next(found for found in self._frozen() if found.number == number)

    def _as_trial(self, found: Any) -> Trial:
        of = dict(found.user_attrs)
        states: dict[Any, State] = {
            _states().COMPLETE: "finished",
            _states().PRUNED: "stopped early",
            _states().FAIL: "failed",
        }
        return Trial(
            number=found.number,
            changes=self._space.changes(found.params) if len(found.params) == len(self._space.keys) else {},
            state=states.get(found.state, "running"),
            score=math.nan if found.value is None else float(found.value),
            folder=Path(of.pop("folder", "")),
            host=of.pop("host", ""),
            reason=of.pop("reason", ""),
            facts=of,
        )


def _states() -> Any:
    import optuna

    return optuna.trial.TrialState


def _is_here(found: Any) -> bool:
    return bool(found.user_attrs.get("host") == platform.node())


def _is_alive(pid: int, created: float) -> bool:
    try:
        return bool(psutil.Process(pid).create_time() == created)
    except psutil.Error:
        return False


def _sampler(seed: int, number: int) -> Any:
    """Return the sampler of one trial: TPE (Bergstra et al. 2011), which learns from the trials before."""
    import optuna

    drawn_from = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=drawn_from)


def _distribution(allowed: Range | dict[str, Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(allowed, Range):
        return CategoricalDistribution(list(allowed))
    if allowed.is_whole:
        return IntDistribution(int(allowed.low), int(allowed.high), log=allowed.log, step=int(allowed.step or 1))
    return FloatDistribution(float(allowed.low), float(allowed.high), log=allowed.log, step=allowed.step)
