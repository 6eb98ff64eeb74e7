"""A run as it goes on: what it does, how far it is, its curves, read from its folder and from the page's job on it."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from lorafit import runs
from lorafit.console import duration
from lorafit.errors import LorafitError, RunError
from lorafit.runs import DEFAULT_ROOT, Run
from lorafit.ui import jobs
from lorafit.ui.jobs import Job

State = Literal["starting", "waiting", "training", "evaluating", "elsewhere", "stopped", "failed", "finished"]
UNDER_WAY: tuple[State, ...] = ("starting", "waiting", "training", "evaluating", "elsewhere")
_POINTS = 200  # of a curve
_LATEST = 20  # steps, whose rate tells the time left


@dataclass(frozen=True)
class Watched:
    """What there is to show of a run just now."""

    name: str
    state: State
    sentence: str
    """What happens, or happened, in plain words."""
    warnings: list[str] = field(default_factory=list)
    step: int = 0
    steps: int = 0
    losses: pd.DataFrame = field(default_factory=lambda: _losses([]))
    scores: pd.DataFrame = field(default_factory=lambda: _scores([]))

    @property
    def can_stop(self) -> bool:
        """Whether it is a process of the page's."""
        return self.state in ("starting", "waiting", "training", "evaluating")

    @property
    def can_resume(self) -> bool:
        """Whether a training is left to go on with."""
        return self.state in ("stopped", "failed") and self.steps > 0


def names() -> list[str]:
    """Return the names of all runs and of those that are about to be: those under way first, then the newest."""
    begun = [job.name for job in jobs.under_way()]
    return list(dict.fromkeys([*begun, *(run.path.name for run in runs.list_runs())]))


def open_named(name: str | None) -> Run:
    """Return the run of a name, which a browser may have made up.

    Raises:
        RunError: none was chosen, or there is none of that name.
    """
    if not name or name not in {run.path.name for run in runs.list_runs()}:
        raise RunError(f"There is no run {name!r} in {DEFAULT_ROOT}." if name else "Choose a run.")
    return Run(DEFAULT_ROOT / name)


def is_known(name: str | None) -> bool:
    """Tell whether there is a run of a name, which a browser may have made up, or was to be one."""
    if not name or Path(name).name != name or name.startswith("."):
        return False
    return _run_of(name) is not None or jobs.find(name) is not None


def look(name: str) -> Watched:
    """Return what there is to show of a run just now; where its files can't be read, why."""
    job, run = jobs.find(name), _run_of(name)
    try:
        state, sentence = _state(job, run)
        history = _history(run) if run else []
        steps = _steps(run) if run else 0
        warnings = job.warnings if job else []
    except LorafitError as error:
        return Watched(name, "failed", str(error))
    step = max((line["step"] for line in history), default=0)
    if state == "training" and run is not None:
        sentence = _how_far(history, step, steps, run.recipe.training.epochs) or sentence
    return Watched(name, state, sentence, warnings, step, steps, _losses(history), _scores(history))


def _history(run: Run) -> Sequence[dict[str, Any]]:
    file = run.path / "history.jsonl"
    found = file.stat() if file.is_file() else None
    return _read_history(run, found.st_size, found.st_mtime_ns) if found else ()


@functools.lru_cache(maxsize=16)
def _read_history(run: Run, _size: int, _changed: int) -> Sequence[dict[str, Any]]:
    """Return the lines; many visitors look each second, and most find nothing new."""
    return tuple(run.history)


def _run_of(name: str) -> Run | None:
    run = Run(DEFAULT_ROOT / name)
    return run if (run.path / "run.json").is_file() else None


def _state(job: Job | None, run: Run | None) -> tuple[State, str]:
    if job is not None and job.state != "ended":
        return _alive(job)
    if run is None and job is not None and job.interrupted:
        return "stopped", "Stopped before the first step."
    if run is None:
        return "failed", why_it_ended(job)
    if run.finished:
        accuracy = run.record["best_validation_accuracy"]
        return "finished", (
            f"Trained in {duration(run.record['seconds'])}: validation accuracy {accuracy:.4f} in the best epoch, "
            f"number {run.record['best_epoch']}."
        )
    if run.is_being_written:
        return "elsewhere", "Another process works on it, which was not begun on this page."
    if job is not None and job.interrupted:
        return "stopped", "Stopped behind a checkpoint. Resume goes on from there, to the very same weights."
    return ("failed", why_it_ended(job)) if job else ("stopped", "It was interrupted. Resume goes on with it.")


def _alive(job: Job) -> tuple[State, str]:
    if job.state == "waiting":
        first = next((other.name for other in jobs.under_way() if other.name != job.name), "")
        if first:
            return "waiting", f"Waits for its turn: {DEFAULT_ROOT / first} is being worked on."
        return "starting", "Starting."
    doing: State = "evaluating" if job.arguments[0] == "evaluate" else "training"
    return doing, (job.said or ["Starting."])[-1]


def why_it_ended(job: Job | None) -> str:
    """Return why a job came to nothing."""
    if job is None:
        return "There is no such run."
    if job.error:
        return job.error
    last = (job.said or ["nothing"])[-1]
    return f"The process broke off, as one does that is killed or runs out of memory. Last it said: {last}"


def _steps(run: Run) -> int:
    texts, settings = run.record["texts"]["train"], run.recipe.training
    return int(math.ceil(texts / settings.batch_size) * settings.epochs)


def _how_far(history: Sequence[dict[str, Any]], step: int, steps: int, epochs: int) -> str:
    latest = [line for line in history if "loss" in line][-_LATEST:]
    if not latest:
        return ""
    left = float(np.median([line["seconds"] for line in latest])) * (steps - step)
    rate = sum(line["tokens"] for line in latest) / sum(line["seconds"] for line in latest)
    ending = f"about {duration(left)} left" if step < steps else "calibrating and proving the adapter"
    return f"Epoch {min(epochs, int(latest[-1]['epoch']) + 1)} of {epochs}, {rate:,.0f} tokens a second, {ending}."


def _losses(history: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the training loss by step, as means over so many steps that a curve has few points."""
    by_step = {line["step"]: line["loss"] for line in history if "loss" in line}  # a resumed run repeats some
    if not by_step:
        return pd.DataFrame({"step": [], "loss": []})
    steps, losses = (np.array(values, dtype=float) for values in (list(by_step), list(by_step.values())))
    parts = min(_POINTS, len(steps))
    means = [[part.mean() for part in np.array_split(values, parts)] for values in (steps, losses)]
    return pd.DataFrame({"step": means[0], "loss": means[1]})


def _scores(history: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return accuracy and macro F1 on the validation texts by epoch; epoch 0 is the base."""
    by_epoch = {line["epoch"]: line["validation"] for line in history if "validation" in line}
    rows = [
        {"epoch": epoch, "score": found[key], "of": name}
        for epoch, found in sorted(by_epoch.items())
        for key, name in (("accuracy", "accuracy"), ("f1", "macro F1"))
    ]
    return pd.DataFrame(rows, columns=["epoch", "score", "of"])
