"""Work that goes on when the page is closed: lorafit's commands as processes, one at a time, found by their run's name.

runs/.page/
  NAME.json   the last command on runs/NAME: its arguments, its process
  NAME.log    what it said
  .turn       the name whose turn it is
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import psutil
from filelock import FileLock

from lorafit.errors import LorafitError, RunError, StorageError
from lorafit.files import storing, write_text
from lorafit.runs import DEFAULT_ROOT
from lorafit.ui.worker import TURN

FOLDER = DEFAULT_ROOT / ".page"
_ERROR, _WARNING, _INTERRUPTED = "Error: ", "Warning: ", "Interrupted: "
_LOCK = ".lock"  # while a job is begun
_ESTIMATE = "-"  # whose turn it is; no run has this name
_estimates: set[subprocess.Popen[str]] = set()

_CLOCK_SECONDS = 2  # by which a process's start may move, where somebody sets the clock

State = Literal["waiting", "working", "ended"]


@dataclass(frozen=True)
class Job:
    """A command on a run, begun by the page."""

    name: str
    """The run's."""
    arguments: list[str]
    """As on the command line, behind `lorafit`."""
    pid: int = 0
    started: float = 0.0
    """The process's own time, which tells it from a later one of the same number."""
    stopped: bool = False
    """Whether somebody asked it to stop."""

    @property
    def state(self) -> State:
        """Whether it waits for another one, works, or has ended, however it did."""
        process = self._process()
        if process is None:
            return "ended"
        return "working" if turn() == self.name else "waiting"

    @property
    def said(self) -> list[str]:
        """The sentences it said, warnings and errors left out."""
        kinds = (_ERROR, _WARNING, _INTERRUPTED)
        return [line for line in self._log() if not line.startswith(kinds)]

    @property
    def warnings(self) -> list[str]:
        """What it warned of."""
        return [line.removeprefix(_WARNING) for line in self._log() if line.startswith(_WARNING)]

    @property
    def error(self) -> str:
        """The sentence it was refused with; empty where it was not."""
        return next((line.removeprefix(_ERROR) for line in self._log() if line.startswith(_ERROR)), "")

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped, by the page or by a signal."""
        return self.stopped or any(line.startswith(_INTERRUPTED) for line in self._log())

    def stop(self) -> None:
        """Ask it to stop: training does so at the end of a step, behind a checkpoint."""
        process = self._process()
        if process is not None:
            process.terminate()  # also where the disk is full
            _remember(replace(self, stopped=True))

    def _process(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            there = (
                abs(process.create_time() - self.started) < _CLOCK_SECONDS and process.status() != psutil.STATUS_ZOMBIE
            )
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None
        return process if there else None

    def _log(self) -> list[str]:
        file = _file(self.name, "log")
        return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def begin(name: str, arguments: Sequence[str], *, fresh: bool = False) -> Job:
    """Return the job of a command on a run, begun now; it waits for its turn.

    Args:
        name: the run's.
        arguments: the command's, behind `lorafit`.
        fresh: there may be no run of this name yet.

    Raises:
        RunError: its last command has not ended, or there is such a run.
        StorageError: a disk that is full or not writable.
    """
    with storing(FOLDER):
        FOLDER.mkdir(parents=True, exist_ok=True)
    with storing(_file(name, "json")), FileLock(FOLDER / _LOCK):
        before = find(name)
        if before is not None and before.state != "ended":
            raise RunError(f"{DEFAULT_ROOT / name} is being worked on already.")
        if fresh and (DEFAULT_ROOT / name).exists():
            raise RunError(f"{DEFAULT_ROOT / name} is there already. Choose another name.")
        process = _started(name, arguments)
        job = Job(name, list(arguments), process.pid, psutil.Process(process.pid).create_time())
        try:
            _remember(job)
        except StorageError:  # nobody could find it
            process.terminate()
            raise
    break_estimates_off()
    threading.Thread(target=process.wait, daemon=True).start()  # or it would stay as a zombie
    return job


def find(name: str) -> Job | None:
    """Return the last command that the page began on a run, if there is one."""
    try:
        return Job(**json.loads(_file(name, "json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, one that is being begun, or one of another version
        return None


def under_way() -> list[Job]:
    """Return the jobs that wait or work, of all visitors; the one whose turn it is comes first."""
    alive = [job for job in _all() if job.state != "ended"]
    return sorted(alive, key=lambda job: (job.state == "waiting", job.started))


def turn() -> str:
    """Return the name of the run that is, or was last, being worked on."""
    try:
        return (FOLDER / TURN).read_text(encoding="utf-8")
    except OSError:
        return ""


def free_name(wanted: str) -> str:
    """Return the name, or the first that counts on from it under which there is no run yet, and nobody begins one.

    >>> free_name("reviews")
    'reviews-2'
    """
    first, number = _counted(wanted)
    name = wanted
    while not _is_free(name):
        number += 1
        name = f"{first}-{number}"
    return name


def estimate(arguments: Sequence[str]) -> list[str]:
    """Return what `lorafit train ... --dry-run` says it would do, once it is its turn.

    Raises:
        LorafitError: what it refuses.
    """
    with storing(FOLDER):
        FOLDER.mkdir(parents=True, exist_ok=True)
    command = _command(_ESTIMATE, [*arguments, "--dry-run"])
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_plain(), text=True
    ) as process:
        _estimates.add(process)
        try:
            _, said = process.communicate()
        finally:
            _estimates.discard(process)
    lines = said.splitlines()
    if process.returncode:
        refused = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
        if process.returncode == -signal.SIGTERM:
            raise LorafitError("The time was not measured to the end: something else began.")
        last = (lines or ["nothing"])[-1]
        raise LorafitError(refused[0] if refused else f"The time could not be measured. Last it said: {last}")
    return lines


def break_estimates_off() -> None:
    """End all estimates: something begins that would make them wrong, or the page ends."""
    for process in list(_estimates):
        process.terminate()


def _counted(name: str) -> tuple[str, int]:
    """Return a name without the number that it ends with, and this number; 1 where it has none, or a year."""
    first, _, number = name.rpartition("-")
    return (first, int(number)) if first and re.fullmatch(r"[1-9]\d?", number) else (name, 1)


def _is_free(name: str) -> bool:
    """Tell whether a training may have this name, such as one that was refused before there was a run."""
    job = find(name)
    return (job is None or job.state == "ended") and not (DEFAULT_ROOT / name).exists()


def _all() -> Iterator[Job]:
    yield from filter(None, (find(file.stem) for file in FOLDER.glob("*.json")))


def _file(name: str, ending: str) -> Path:
    return FOLDER / f"{name}.{ending}"


def _remember(job: Job) -> None:
    write_text(_file(job.name, "json"), json.dumps(asdict(job), indent=2) + "\n")


def _started(name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    with _file(name, "log").open("wb") as log:
        return subprocess.Popen(
            _command(name, arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_plain(),
            start_new_session=True,  # Ctrl-C is the page's alone
        )


def _command(name: str, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "lorafit.ui.worker", str(FOLDER), name, *arguments]


def _plain() -> dict[str, str]:
    """Return our environment without what makes rich colour a file."""
    return {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
