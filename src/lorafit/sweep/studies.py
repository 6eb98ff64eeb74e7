"""The study of a search, through Optuna: which trials there are, who takes which, and what came of it.

Optuna is Akiba et al. 2019 (arXiv:1907.10902). Its sampler draws each value of a trial from a seed of its own, so that
a search that was killed goes on to the trials that it would have had.
"""

import math
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from lorafit import runtime
from lorafit.files import storing
from lorafit.recipe import Recipe
from lorafit.sweep import lives
from lorafit.sweep.space import Range, Space
from lorafit.sweep.trials import State, Trial, best_of

_SECONDS_TO_SIGN = 60  # between asking for a trial and signing it
_LEAST_PATIENCE_SECONDS = 600


class Pruned(Exception):  # noqa: N818 - no error: how a poor trial ends
    """The trial is behind most others at this epoch, and is not worth its time."""


class Study:
    """A search's trials, kept in a database that several processes share."""

    def __init__(self, study: Any, recipe: Recipe, space: Space, folder: Path, worker: str = "") -> None:
        self._study, self._recipe, self._space, self._worker = study, recipe, space, worker
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
                if lives.deaths(left) < lives.MOST_DEATHS:
                    break
                reason = f"{lives.MOST_DEATHS} processes died of it without a step forward, perhaps for want of memory"
                self._study._storage.set_trial_user_attr(left._trial_id, "reason", reason)
                self._study.tell(left.number, state=_states().FAIL)
            if left is None and len(self.trials()) >= count:
                return None
            trial = self._study.ask() if left is None else _optuna().trial.Trial(self._study, left._trial_id)
            lives.sign(trial, self.folder / "trials", self._worker, left)
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
            found.state == _states().RUNNING and lives.is_here(found) and not self._is_left(found)
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

    def _is_left(self, found: Any) -> bool:
        """Tell whether a trial was begun by a process that is gone."""
        if found.state != _states().RUNNING:
            return False
        of = found.user_attrs
        if self._worker and of.get("worker") == self._worker:
            # Its process before this one has died, on whatever machine; unless it was given up and still writes.
            return found.number not in self._held and not lives.is_writing(found)
        if "process" not in of:  # its process signs it at once, unless it was killed then
            begun = found.datetime_start  # without a zone, as Optuna has it
            return bool((datetime.now() - begun).total_seconds() > _SECONDS_TO_SIGN)
        if not lives.is_here(found):  # of which nothing can be known but how long it has been silent
            return bool(time.time() - of["seen"] > self._patience())
        if of["process"][0] == os.getpid():  # of this process, which was interrupted and is called again
            return found.number not in self._held
        return not lives.is_at_work(found)

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
