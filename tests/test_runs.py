"""A run folder is written and read in one place."""

from pathlib import Path

import pytest

from lorafit import runs
from lorafit.errors import RunError, StorageError
from lorafit.recipe import Recipe, from_values


def test_a_run_reads_back_what_was_written(tmp_path: Path) -> None:
    made = from_values({"name": "x", "adapter": {"rank": 3}})
    run = runs.create(tmp_path / "x", made, {"prepared": "abc"})
    run.log({"step": 1, "loss": 0.5})
    run.update(steps=3)
    again = runs.open_run(tmp_path / "x")
    assert again.recipe == made
    assert (again.record["prepared"], again.record["steps"], again.finished) == ("abc", 3, False)
    assert again.history == [{"step": 1, "loss": 0.5}]
    assert again.scores is None


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    run = runs.create(tmp_path / "x", Recipe(), {})
    run.log({"epoch": 1, "validation": {"accuracy": 0.5}})
    run.log({"epoch": 1, "validation": {"accuracy": 0.6}})
    with (run.path / "history.jsonl").open("a") as stream:
        stream.write('{"epoch": 2, "vali')
    assert [line["validation"]["accuracy"] for line in run.validations] == [0.6]
    run.log({"epoch": 2, "validation": {"accuracy": 0.7}})
    assert [line["validation"]["accuracy"] for line in run.validations] == [0.6, 0.7]


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    for name, created in (("a", "2026-01-01"), ("b", "2026-03-01"), ("c", "2026-02-01")):
        runs.create(tmp_path / name, Recipe(), {}).update(created=created)
    (tmp_path / "no-run").mkdir()
    assert [run.path.name for run in runs.list_runs(tmp_path)] == ["b", "c", "a"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run folder"):
        runs.open_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="run.json can't be read"):
        runs.open_run(tmp_path).record  # noqa: B018 - reading it is what fails
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "photo.jpg").write_bytes(b"")
    with pytest.raises(StorageError, match="holds files that are no run"):
        runs.create(foreign, Recipe(), {}, overwrite=True)
    assert (foreign / "photo.jpg").exists()


def test_a_run_that_another_process_has_just_started_is_not_replaced(tmp_path: Path) -> None:
    runs.create(tmp_path / "x", Recipe(), {"mine": True})
    with pytest.raises(RunError, match="holds a run that was started meanwhile"):
        runs.create(tmp_path / "x", Recipe(), {})
    assert runs.open_run(tmp_path / "x").record["mine"]


def test_changed_keys_are_named() -> None:
    changed = runs.changed_keys(Recipe(), from_values({"seed": 2, "adapter": {"rank": 4}}))
    assert changed == ["seed", "adapter.rank"]
