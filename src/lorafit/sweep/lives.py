"""Who works on a trial: the process that has signed it, and whether that is still alive."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil

from lorafit import checkpoints
from lorafit.runs import Run

MOST_DEATHS = 5  # of processes of one trial, none of which came as far as a checkpoint
CLOCK_SECONDS = 5  # by which a clock may be set while a process runs


def sign(trial: Any, trials: Path, worker: str = "", left: Any = None) -> None:
    """Write on a trial of Optuna's whose it is: the machine, this process, the run's folder.

    Args:
        trial: to be written on.
        trials: the folder of the runs.
        worker: who works on it, if that has a name that outlives its process.
        left: the same trial as a process that is gone has left it.
    """
    if left is not None:
        trial.set_user_attr("deaths", deaths(left))
        trial.set_user_attr("reached", _reached(left))
    trial.set_user_attr("seen", time.time())
    trial.set_user_attr("folder", str((trials / f"{trial.number:04d}").absolute()))
    trial.set_user_attr("host", platform.node())
    trial.set_user_attr("worker", worker)
    # Last: where it stands, the others do too.
    trial.set_user_attr("process", [os.getpid(), psutil.Process().create_time()])


def deaths(left: Any) -> int:
    """Return how many processes of a trial have died since it last came forward, the last one too."""
    came_forward = _reached(left) > left.user_attrs.get("reached", 0)
    return 1 if came_forward else int(left.user_attrs.get("deaths", 0)) + 1


def _reached(left: Any) -> int:
    """Return the step of a trial's last checkpoint, 0 before the first."""
    last = checkpoints.last(Run(Path(left.user_attrs.get("folder", ""))).checkpoints)
    return int(last.name.rpartition("-")[2]) if last else 0


def is_here(found: Any) -> bool:
    """Tell whether a trial was signed on this machine."""
    return bool(found.user_attrs.get("host") == platform.node())


def is_at_work(found: Any) -> bool:
    """Tell whether a process of this machine that has signed a trial is alive, or writes its run."""
    pid, created = found.user_attrs["process"]
    return _is_alive(pid, created) or is_writing(found)


def is_writing(found: Any) -> bool:
    """Tell whether somebody writes a trial's run."""
    folder = Path(found.user_attrs["folder"])
    return folder.is_dir() and Run(folder).is_being_written


def _is_alive(pid: int, created: float) -> bool:
    try:
        return bool(abs(psutil.Process(pid).create_time() - created) < CLOCK_SECONDS)
    except psutil.Error:
        return False
