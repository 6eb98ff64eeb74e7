"""A run folder: written and read in one place.

runs/NAME/
  run.json         state, recipe, versions, machine, data, parameters, time, memory; where it is, is a run
  recipe.toml      the resolved recipe, every key written out, to read and to train with again
  history.jsonl    a line a step (loss, learning rate, tokens per second) and a line a validation
  adapter/         the files we hand over
  checkpoints/     what an interrupted training goes on from
  scores.json, report.html, report.md, figures/    what `evaluate` found
  predictions.parquet                 what each test text was given, by base, adapted and baselines
  .lock, .process  who writes here
"""

import json
import os
import platform
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lorafit import recipe as recipes
from lorafit.errors import RunError, StorageError
from lorafit.files import is_unfinished, remove_unfinished, storing, write_text
from lorafit.recipe import Recipe

DEFAULT_ROOT = Path("runs")
TRAINING, FINISHED = "training", "finished"
_LOCK, _PROCESS = ".lock", ".process"
_EVALUATED = ("scores.json", "predictions.parquet", "report.html", "report.md", "figures")
_ATTEMPT = ("history.jsonl", "adapter", "checkpoints", *_EVALUATED)


@dataclass(frozen=True)
class Run:
    """One run folder. Properties read from disk, so that two readers never disagree."""

    path: Path

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe that the run was started with."""
        values = self.record.get("recipe")
        if not isinstance(values, dict):
            raise RunError(f"{self.path / 'run.json'} holds no recipe. Train the run anew with --overwrite.")
        return recipes.from_values(values, place=str(self.path / "run.json"))

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` holds."""
        return _read_json(self.path / "run.json")

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return bool(self.record.get("state") == FINISHED)

    @property
    def scores(self) -> dict[str, Any] | None:
        """What `scores.json` holds, or None before `evaluate`."""
        file = self.path / "scores.json"
        return _read_json(file) if file.is_file() else None

    @property
    def predictions(self) -> Path:
        """The file of what each test text was given: see `predictions`."""
        return self.path / "predictions.parquet"

    @property
    def adapter(self) -> Path:
        """The folder of the adapter."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of `history.jsonl`; a line that a kill cut short is left out."""
        file = self.path / "history.jsonl"
        lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise RunError(f"{file} can't be read: {error}. Mend that line, or take it out.") from error

    @property
    def seconds(self) -> float:
        """Seconds of training and validation, those of interrupted attempts included."""
        return float(sum(line["seconds"] for line in self.history))

    @property
    def tokens(self) -> int:
        """Tokens trained on, padding not counted."""
        return sum(line.get("tokens", 0) for line in self.history)

    @property
    def validations(self) -> list[dict[str, Any]]:
        """The validation lines of the history, one an epoch, the latest where a resumed run repeated one."""
        by_epoch = {line["epoch"]: line for line in self.history if "validation" in line}
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to the history, in the place of one that a kill cut short."""
        file = self.path / "history.jsonl"
        with storing(file), file.open("a+b") as stream:
            stream.seek(max(0, stream.tell() - 1))
            if stream.read(1) not in (b"", b"\n"):
                stream.truncate(file.read_bytes().rfind(b"\n") + 1)
            stream.write(json.dumps(line).encode() + b"\n")
            if "validation" in line:  # a checkpoint often comes next, which survives a loss of power
                stream.flush()
                os.fsync(stream.fileno())

    def update(self, **facts: Any) -> None:
        """Add facts to `run.json`."""
        self.write("run.json", json.dumps(self.record | facts, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a text file of the run, whole or not at all."""
        write_text(self.path / name, text)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing here; the system lets go when this one ends, however it ends.

        Raises:
            RunError: another one writes here.
            StorageError: the folder can't be written.
        """
        lock = FileLock(self.path / _LOCK, timeout=0)
        try:
            with storing(self.path):
                lock.acquire()
        except Timeout:
            raise RunError(f"{self.path} is being written by {self._writer()}. Wait for it, or stop it.") from None
        try:
            remove_unfinished(self.path)
            self.write(_PROCESS, f"{os.getpid()} on {platform.node()}")
            yield
        finally:
            lock.release()

    @property
    def is_being_written(self) -> bool:
        """Whether a process writes here just now."""
        lock = FileLock(self.path / _LOCK, timeout=0)
        try:
            with storing(self.path), lock:
                return False
        except Timeout:
            return True

    def _writer(self) -> str:
        try:  # a file of its own: where locks bind, the locked one can't be read
            return f"process {(self.path / _PROCESS).read_text(encoding='utf-8')}"
        except OSError:
            return "another process"

    def start_over(self) -> None:
        """Remove what an earlier attempt made; what others put into the folder stays."""
        self.remove(*_ATTEMPT)
        self.write("recipe.toml", recipes.to_toml(self.recipe))

    def remove(self, *names: str) -> None:
        """Remove files and folders of the run, where they are there."""
        with storing(self.path):
            for made in (self.path / name for name in names):
                if made.is_dir():
                    shutil.rmtree(made)
                else:
                    made.unlink(missing_ok=True)


@contextmanager
def create(path: Path, recipe: Recipe, facts: dict[str, Any], *, overwrite: bool = False) -> Iterator[Run]:
    """Yield a fresh run, locked; with `overwrite`, a run that stood there before is gone.

    Raises:
        RunError: a run stands there, perhaps since a moment ago, or is being written by another process.
        StorageError: the place can't be written, or holds files that are no run.
    """
    run = Run(path)
    with storing(path):
        _refuse_foreign(path)
        path.mkdir(parents=True, exist_ok=True)
    with run.locked():
        if (path / "run.json").is_file() and not overwrite:
            raise RunError(f"{path} holds a run that was started meanwhile. Choose another place with --out.")
        # Killed at any moment, the folder holds the old run, or the new one before its first checkpoint; never the new
        # one with checkpoints of the old.
        run.remove("checkpoints", "recipe.toml")
        created = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"state": TRAINING, "created": created, "recipe": recipe.model_dump()} | facts
        run.write("run.json", json.dumps(record, indent=2) + "\n")
        run.start_over()
        yield run


def refuse_taken(path: Path, recipe: Recipe, *, overwrite: bool = False) -> None:
    """Refuse a folder in which a run of this recipe can't be: neither begun nor found.

    Raises:
        RunError: it holds a run of another recipe, which `overwrite` would replace.
        StorageError: it holds files that are no run.
    """
    with storing(path):
        _refuse_foreign(path)
    if not (path / "run.json").is_file() or overwrite:
        return
    changed = changed_keys(Run(path).recipe, recipe)
    if changed:
        raise RunError(
            f"{path} holds a run of another recipe (it differs in {', '.join(changed)}). "
            "Choose another folder with --out, or replace it with --overwrite."
        )


def _refuse_foreign(path: Path) -> None:
    if path.is_dir() and not _is_run(path) and any(map(_is_foreign, path.iterdir())):
        raise StorageError(f"{path} holds files that are no run of lorafit. Choose another place with --out.")


def _is_run(path: Path) -> bool:
    """Tell whether a folder holds a run of ours, one of an earlier version too, and not another program's run.json."""
    try:
        record = Run(path).record
    except RunError:
        return False
    return "state" in record and ("recipe" in record or (path / "recipe.toml").is_file())


def _is_foreign(file: Path) -> bool:
    """Tell whether a file is not what we left when we were killed before the run was one."""
    return file.name not in (_LOCK, _PROCESS) and not is_unfinished(file)


def open_run(path: Path | str) -> Run:
    """Return the run in a folder.

    Raises:
        RunError: there is none.
    """
    run = Run(Path(path))
    if not (run.path / "run.json").is_file():
        there = [str(other.path) for other in list_runs()]
        known = f" There are {', '.join(there)}." if there else " Train one first: lorafit train RECIPE."
        raise RunError(f"{path} is no run folder.{known}")
    return run


def refuse_changed(run: Run, recipe: Recipe | None = None) -> None:
    """Refuse to go on with another recipe than the one that the run was started with.

    Args:
        run: the run.
        recipe: the one to go on with; without one, recipe.toml in the run's folder, which may have been edited.

    Raises:
        RunError: names the keys that differ.
    """
    file = run.path / "recipe.toml"
    if recipe is None and not file.is_file():  # killed before it was written
        return
    changed = changed_keys(run.recipe, recipe or recipes.load(file))
    if changed:
        raise RunError(
            f"{run.path} was started with another {'recipe' if recipe else 'recipe.toml'}; they differ in "
            f"{', '.join(changed)}. Change that back, or train into another folder with --out."
        )


def was_begun_by(path: Path, launch: str | None) -> bool:
    """Tell whether the run in a folder was begun by this launch of several ranks: see `ranks.launch`."""
    return launch is not None and (path / "run.json").is_file() and Run(path).record.get("launch") == launch


def find_unfinished(path: Path, recipe: Recipe, but_for: Collection[str] = ()) -> Run | None:
    """Return the run in a folder if it is one of this recipe, but for some keys, that did not come to its end."""
    run = Run(path)
    if not (path / "run.json").is_file() or run.finished or set(changed_keys(run.recipe, recipe)) - set(but_for):
        return None
    return run


def list_runs(root: Path = DEFAULT_ROOT) -> list[Run]:
    """Return the runs in a folder, newest first."""
    runs = [Run(file.parent) for file in root.glob("*/run.json") if _is_run(file.parent)]
    runs = [run for run in runs if "recipe" in run.record]  # those of earlier versions can't be opened
    return sorted(runs, key=lambda run: str(run.record.get("created")), reverse=True)


def changed_keys(old: Recipe, new: Recipe) -> list[str]:
    """Return the keys in which two recipes differ, such as ``["adapter.rank"]``.

    >>> changed_keys(Recipe(), Recipe(seed=1))
    ['seed']
    """
    before, after = dict(flat(old.model_dump())), dict(flat(new.model_dump()))
    return [key for key in after if before.get(key) != after[key]]


def flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the values of nested tables by their whole keys, such as "adapter.rank"."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} can't be read: {error}.") from error
    if not isinstance(values, dict):
        raise RunError(f"{file} can't be read: it holds no JSON object.")
    return values
