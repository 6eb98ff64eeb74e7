"""Work that goes on when the page is closed: lorafit's commands as processes, one at a time, found by their run's name.

runs/.page/
  NAME.json   the last command on runs/NAME: its arguments, its process
  NAME.log    what it said
  .turn       the name whose turn it is
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from lorafit.errors import LorafitError, RunError
from lorafit.files import storing, write_text
from lorafit.runs import DEFAULT_ROOT, Run
from lorafit.ui.worker import TURN

FOLDER = DEFAULT_ROOT / ".page"
_ERROR, _WARNING, _INTERRUPTED = "Error: ", "Warning: ", "Interrupted: "
_MOST_SECONDS = 600  # for an estimate, whose encoder may have to be downloaded

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
        """Whether it was stopped behind a checkpoint."""
        return any(line.startswith(_INTERRUPTED) for line in self._log())

    def stop(self) -> None:
        """Ask it to stop: training does so at the end of a step, behind a checkpoint."""
        process = self._process()
        if process is not None:
            process.terminate()

    def _process(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            there = process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE
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
        fresh: nobody may have begun one of this name.

    Raises:
        RunError: its last command has not ended, or the name is taken.
        StorageError: a disk that is full or not writable.
    """
    record = _file(name, "json")
    with storing(record):
        FOLDER.mkdir(parents=True, exist_ok=True)
        try:
            record.touch(exist_ok=not fresh)
        except FileExistsError:
            raise RunError(f"{DEFAULT_ROOT / name} is somebody else's. Choose another name.") from None
    before = find(name)
    if before is not None and before.state != "ended":
        raise RunError(f"{DEFAULT_ROOT / name} is being worked on already.")
    with storing(_file(name, "log")), _file(name, "log").open("wb") as log:
        command = [sys.executable, "-m", "lorafit.ui.worker", str(FOLDER), name, *arguments]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_plain(), start_new_session=True
        )
    threading.Thread(target=process.wait, daemon=True).start()  # or it would stay as a zombie
    job = Job(name, list(arguments), process.pid, _started(process.pid))
    write_text(record, json.dumps(asdict(job), indent=2) + "\n")
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
    """Return the name, or the first of NAME-2, NAME-3, ... under which there is no run yet.

    >>> free_name("reviews")
    'reviews-2'
    """
    number, name = 1, wanted
    while (DEFAULT_ROOT / name).exists() or _file(name, "json").exists():
        number += 1
        name = f"{wanted}-{number}"
    return name


def forget(name: str) -> None:
    """Give a name free again whose command was refused before there was a run."""
    if not (Run(DEFAULT_ROOT / name).path / "run.json").is_file():
        for ending in ("json", "log"):
            _file(name, ending).unlink(missing_ok=True)


def estimate(arguments: Sequence[str]) -> list[str]:
    """Return what `lorafit train ... --dry-run` says it would do.

    Raises:
        LorafitError: what it refuses.
    """
    command = [sys.executable, "-m", "lorafit", *arguments, "--dry-run"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", env=_plain(), timeout=_MOST_SECONDS)
    except subprocess.TimeoutExpired:
        raise LorafitError(f"The estimate took longer than {_MOST_SECONDS // 60} minutes.") from None
    lines = done.stderr.splitlines()
    if done.returncode:
        refused = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
        raise LorafitError(refused[0] if refused else f"The estimate failed: {' '.join(lines[-1:])}")
    return lines


def _all() -> Iterator[Job]:
    yield from filter(None, (find(file.stem) for file in FOLDER.glob("*.json")))


def _file(name: str, ending: str) -> Path:
    return FOLDER / f"{name}.{ending}"


def _started(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


def _plain() -> dict[str, str]:
    """Return our environment without what makes rich colour a file."""
    return {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
