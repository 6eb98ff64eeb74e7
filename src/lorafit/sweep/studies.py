"""The study of a search, through Optuna: who works on which trial, and what came of it.

Optuna is Akiba et al. 2019 (arXiv:1907.10902). Its sampler draws each trial from a seed of the trial's own, so that a
search that was killed goes on to the trials that it would have had.
"""

import json
import logging
import math
import os
import platform
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import psutil
from filelock import FileLock

from lorafit import checkpoints, runs, runtime
from lorafit.errors import LorafitError, RecipeError, RunError, StorageError
from lorafit.files import storing, write_text
from lorafit.recipe import Recipe
from lorafit.runs import Run
from lorafit.sweep.space import Range, Space

State = Literal["running", "finished", "stopped early", "failed"]
_STARTUP_TRIALS = 5  # of which each comes to its end, before others are measured by them
_SECONDS_TO_SIGN = 60  # between asking for a trial and signing it
_MOST_DEATHS = 5  # of processes of one trial, none of which came as far as a checkpoint
_LEAST_PATIENCE_SECONDS = 600
_CLOCK_SECONDS = 5  # by which a clock may be set while a process runs
# What differs between two machines or two calls on one search, and changes no result.
_OWN = ("name", "training.threads")
_SIGNED = "sweep.json"  # which study a folder's trials are of
_OURS_BEFORE = ("study.db", "study.db-journal", ".lock")


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
    optuna = _optuna()
    from optuna.exceptions import StorageInternalError
    from sqlalchemy import make_url
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(logging.ERROR)
    place = url or f"sqlite:///{folder / 'study.db'}"
    shown = place
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        shown = make_url(place).render_as_string(hide_password=True)
        with FileLock(folder / ".lock"):  # two that make its tables at once are in each other's way
            storage = optuna.storages.RDBStorage(place, engine_kwargs=_patient(place))
            study = optuna.create_study(
                storage=storage,
                study_name=recipe.name,
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS),
                load_if_exists=True,
            )
    except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
        raise RecipeError(f"The study's database {shown} can't be opened: {str(error).splitlines()[0]}.") from None
    _refuse_other(study, recipe, space, shown)
    _refuse_other_folder(study, folder)
    return Study(study, recipe, space, folder)


def _refuse_other_folder(study: Any, folder: Path) -> None:
    """Sign a new folder; refuse one that holds another search, or something else.

    Raises:
        RunError: it holds another search.
        StorageError: it holds files that are no search.
    """
    ours, file = study.user_attrs["lorafit"]["id"], folder / _SIGNED
    if not file.is_file():
        foreign = [path.name for path in folder.iterdir() if path.name not in _OURS_BEFORE]
        if foreign:
            raise StorageError(
                f"{folder} holds files that are no search of lorafit's. Choose another folder with --out."
            )
        write_text(file, json.dumps({"study": ours}) + "\n")
    elif json.loads(file.read_text(encoding="utf-8")).get("study") != ours:
        raise RunError(f"{folder} holds the trials of another search. Choose another folder with --out.")


def _patient(place: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 60}} if place.startswith("sqlite") else {}


def _refuse_other(study: Any, recipe: Recipe, space: Space, place: str) -> None:
    """Sign a new study; refuse one of something else."""
    ours = {"recipe": _plain(recipe), "space": json.loads(json.dumps(space.as_record()))}
    theirs = study.user_attrs.get("lorafit")
    if theirs is None and not study.trials:
        study.set_user_attr("lorafit", ours | {"id": uuid4().hex})
        return
    if theirs is None:
        raise RunError(f"{place} holds a study {recipe.name!r} that is not lorafit's. Choose another --storage.")
    what, keys = _difference(theirs, ours)
    if keys:
        raise RunError(
            f"{place} holds a search over another {what} (it differs in {', '.join(keys)}). "
            "Choose another folder with --out; of a --storage of your own, another name in the recipe too."
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
            while (left := next((found for found in self._frozen() if self._is_left(found)), None)) is not None:
                if left.number >= count:
                    return None
                if _deaths(left) < _MOST_DEATHS:
                    break
                reason = f"{_MOST_DEATHS} processes died of it without a step forward, perhaps for want of memory"
                self._study._storage.set_trial_user_attr(left._trial_id, "reason", reason)
                self._study.tell(left.number, state=_states().FAIL)
            if left is None and len(self.trials()) >= count:
                return None
            trial = self._study.ask() if left is None else _optuna().trial.Trial(self._study, left._trial_id)
            self._sign(trial, left)
            if sum(other.number < trial.number for other in self.trials()) >= count:  # another machine was as fast
                trial.set_user_attr("surplus", True)
                self._study.tell(trial, state=_states().FAIL)
                return None
            self._draw(trial)
        self._held[trial.number] = trial
        return self._as_trial(self._frozen_of(trial.number))

    def open_elsewhere(self) -> list[Trial]:
        """Return the trials that other processes work on."""
        running = [found for found in self._frozen() if found.state == _states().RUNNING]
        return [self._as_trial(found) for found in running if not self._is_left(found)]

    def precision(self) -> str:
        """Return the precision of all trials where the recipe leaves it open: what the first process has measured.

        How much faster bf16 is depends on the threads, of which a trial has more or fewer.
        """
        wanted = self._recipe.encoder.precision
        if wanted != "auto":
            return wanted
        if "precision" not in self._study.user_attrs:
            chosen = runtime.choose(wanted, self._recipe.training.threads).precision
            self._study.set_user_attr("precision", chosen)
        return str(self._study.user_attrs["precision"])

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
        held.set_user_attr("seen", time.time())
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

    def note_test(self, best: Trial) -> None:
        """Note that the test set is looked at for a trial, before it is."""
        self._study.set_user_attr("tests", sorted({*self.tests(), best.number}))

    def tests(self) -> list[int]:
        """Return the numbers of the trials that were the best when a search ended, which the test was looked at for."""
        return list(self._study.user_attrs.get("tests", []))

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

    def _draw(self, trial: Any) -> None:
        """Give a trial its values, each from a seed of its own; what a dead process has drawn stays."""
        for place, (key, allowed) in enumerate(self._space.keys.items()):
            self._study.sampler = _sampler(self._recipe.seed, trial.number, place)
            trial._suggest(key, _distribution(allowed))

    def _sign(self, trial: Any, left: Any) -> None:
        """Write on a trial whose it is: the machine, the process, the run's folder; and what its dead ones reached."""
        if left is not None:
            trial.set_user_attr("deaths", _deaths(left))
            trial.set_user_attr("reached", _reached(left))
        trial.set_user_attr("seen", time.time())
        folder = (self.folder / "trials" / f"{trial.number:04d}").absolute()
        trial.set_user_attr("folder", str(folder))
        trial.set_user_attr("host", platform.node())
        # Last: where it stands, the others do too.
        trial.set_user_attr("process", [os.getpid(), psutil.Process().create_time()])

    def _is_left(self, found: Any) -> bool:
        """Tell whether a trial was begun by a process that is gone."""
        if found.state != _states().RUNNING:
            return False
        of = found.user_attrs
        if "process" not in of:  # its process signs it at once, unless it was killed then
            begun = found.datetime_start  # without a zone, as Optuna has it
            return bool((datetime.now() - begun).total_seconds() > _SECONDS_TO_SIGN)
        if not _is_here(found):  # of which nothing can be known but how long it has been silent
            return bool(time.time() - of["seen"] > self._patience())
        if of["process"][0] == os.getpid():  # of this process, which was interrupted and is called again
            return found.number not in self._held
        folder = Path(of["folder"])
        return not _is_alive(*of["process"]) and not (folder.is_dir() and Run(folder).is_being_written)

    def _patience(self) -> float:
        """Return the seconds after which a silent trial of another machine is taken for dead."""
        seconds = [trial.facts.get("seconds", 0.0) for trial in self.trials() if trial.state == "finished"]
        return _LEAST_PATIENCE_SECONDS + 3 * max(seconds, default=6 * 3600)

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


def _optuna() -> Any:
    import optuna

    return optuna


def _states() -> Any:
    return _optuna().trial.TrialState


def _deaths(left: Any) -> int:
    """Return how many processes of a trial have died since it last came forward, the last one too."""
    came_forward = _reached(left) > left.user_attrs.get("reached", 0)
    return 1 if came_forward else int(left.user_attrs.get("deaths", 0)) + 1


def _reached(left: Any) -> int:
    """Return the step of a trial's last checkpoint, 0 before the first."""
    last = checkpoints.last(Run(Path(left.user_attrs.get("folder", ""))).checkpoints)
    return int(last.name.rpartition("-")[2]) if last else 0


def _is_here(found: Any) -> bool:
    return bool(found.user_attrs.get("host") == platform.node())


def _is_alive(pid: int, created: float) -> bool:
    try:
        return bool(abs(psutil.Process(pid).create_time() - created) < _CLOCK_SECONDS)
    except psutil.Error:
        return False


def _sampler(*seed: int) -> Any:
    """Return the sampler of one trial's key: TPE (Bergstra et al. 2011), which learns from the trials before."""
    return _optuna().samplers.TPESampler(seed=int(np.random.SeedSequence(seed).generate_state(1)[0]))


def _distribution(allowed: Range | dict[str, Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(allowed, Range):
        return CategoricalDistribution(list(allowed))
    if allowed.is_whole:
        return IntDistribution(int(allowed.low), int(allowed.high), log=allowed.log, step=int(allowed.step or 1))
    return FloatDistribution(float(allowed.low), float(allowed.high), log=allowed.log, step=allowed.step)
