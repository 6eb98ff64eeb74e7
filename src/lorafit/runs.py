"""A run folder: written and read in one place.

runs/NAME/
  recipe.toml      the resolved recipe, every key written out
  run.json         state, versions, machine, data, parameters, time, memory
  history.jsonl    a line a step (loss, learning rate, tokens per second) and a line a validation
  adapter/         the files we hand over
  checkpoints/     what an interrupted training goes on from
  scores.json, report.md, figures/    what `evaluate` found
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorafit import recipe as recipes
from lorafit.errors import RunError, StorageError
from lorafit.files import storing, write_text
from lorafit.recipe import Recipe

DEFAULT_ROOT = Path("runs")
TRAINING, FINISHED = "training", "finished"


@dataclass(frozen=True)
class Run:
    """One run folder. Properties read from disk, so that two readers never disagree."""

    path: Path

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return recipes.load(self.path / "recipe.toml")

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
        return [json.loads(line) for line in lines]

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

    def update(self, **facts: Any) -> None:
        """Add facts to `run.json`."""
        self.write("run.json", json.dumps(self.record | facts, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a text file of the run, whole or not at all."""
        write_text(self.path / name, text)


def create(path: Path, recipe: Recipe, facts: dict[str, Any], *, overwrite: bool = False) -> Run:
    """Make a fresh run folder; with `overwrite`, a run that stood there before is gone.

    Raises:
        RunError: a run stands there, perhaps since a moment ago.
        StorageError: the place can't be written, or holds files that are no run.
    """
    run = Run(path)
    with storing(path):
        if path.is_dir() and any(path.iterdir()):
            if not (path / "run.json").is_file():
                raise StorageError(f"{path} holds files that are no run of lorafit. Choose another place with --out.")
            if not overwrite:
                raise RunError(f"{path} holds a run that was started meanwhile. Choose another place with --out.")
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    run.write("recipe.toml", recipes.to_toml(recipe))
    run.write("run.json", json.dumps({"state": TRAINING, "created": created} | facts, indent=2) + "\n")
    return run


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


def find_unfinished(path: Path, recipe: Recipe) -> Run | None:
    """Return the run in a folder if it is one of this recipe that did not come to its end."""
    run = Run(path)
    if not (path / "run.json").is_file() or run.finished or changed_keys(run.recipe, recipe):
        return None
    return run


def list_runs(root: Path = DEFAULT_ROOT) -> list[Run]:
    """Return the runs in a folder, newest first."""
    runs = [Run(file.parent) for file in root.glob("*/run.json") if (file.parent / "recipe.toml").is_file()]
    return sorted(runs, key=lambda run: str(run.record.get("created")), reverse=True)


def changed_keys(old: Recipe, new: Recipe) -> list[str]:
    """Return the keys in which two recipes differ, such as ``["adapter.rank"]``.

    >>> changed_keys(Recipe(), Recipe(seed=1))
    ['seed']
    """
    before, after = dict(_flat(old.model_dump())), dict(_flat(new.model_dump()))
    return [key for key in after if before.get(key) != after[key]]


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} can't be read: {error}.") from error
    return dict(values)
