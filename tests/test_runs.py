"""A run folder is written and read in one place."""

import os
from pathlib import Path

import pytest

from lorafit import runs
from lorafit.errors import RunError, StorageError
from lorafit.recipe import Recipe, from_values


def make(path: Path, made: Recipe | None = None, **facts: object) -> runs.Run:
    with runs.create(path, made or Recipe(), facts) as run:
        return run


def test_a_run_reads_back_what_was_written(tmp_path: Path) -> None:
    made = from_values({"name": "x", "adapter": {"rank": 3}})
    run = make(tmp_path / "x", made, prepared="abc")
    run.log({"step": 1, "loss": 0.5})
    run.update(steps=3)
    again = runs.open_run(tmp_path / "x")
    assert again.recipe == made
    assert (again.record["prepared"], again.record["steps"], again.finished) == ("abc", 3, False)
    assert again.history == [{"step": 1, "loss": 0.5}]
    assert again.scores is None


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    run = make(tmp_path / "x")
    run.log({"epoch": 1, "validation": {"accuracy": 0.5}})
    run.log({"epoch": 1, "validation": {"accuracy": 0.6}})
    with (run.path / "history.jsonl").open("a") as stream:
        stream.write('{"epoch": 2, "vali')
    assert [line["validation"]["accuracy"] for line in run.validations] == [0.6]
    run.log({"epoch": 2, "validation": {"accuracy": 0.7}})
    assert [line["validation"]["accuracy"] for line in run.validations] == [0.6, 0.7]


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    for name, created in (("a", "2026-01-01"), ("b", "2026-03-01"), ("c", "2026-02-01")):
        make(tmp_path / name).update(created=created)
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
    with (
        pytest.raises(StorageError, match="holds files that are no run"),
        runs.create(foreign, Recipe(), {}, overwrite=True),
    ):
        pass
    assert [file.name for file in foreign.iterdir()] == ["photo.jpg"]


def test_a_run_that_another_process_has_just_started_is_not_replaced(tmp_path: Path) -> None:
    make(tmp_path / "x", mine=True)
    with pytest.raises(RunError, match="holds a run that was started meanwhile"):
        make(tmp_path / "x")
    assert runs.open_run(tmp_path / "x").record["mine"]


def test_changed_keys_are_named() -> None:
    changed = runs.changed_keys(Recipe(), from_values({"seed": 2, "adapter": {"rank": 4}}))
    assert changed == ["seed", "adapter.rank"]


def test_a_run_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with runs.create(tmp_path / "x", Recipe(), {}) as run:
        being_written = f"x is being written by process {os.getpid()} on .*. Wait for it, or stop it."
        with pytest.raises(RunError, match=being_written), runs.Run(run.path).locked():
            pass
        with pytest.raises(RunError, match=being_written), runs.create(run.path, Recipe(), {}, overwrite=True):
            pass
    with run.locked():  # free again
        pass


def test_a_start_that_was_killed_before_the_run_was_one_is_no_hindrance(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    (folder / ".adapter.0123456789ab").mkdir(parents=True)
    for left in (".lock", ".process", "..process.0123456789ab", ".run.json.0123456789ab"):
        (folder / left).touch()
    assert make(folder).recipe == Recipe()
    assert {file.name for file in folder.iterdir()} == {".lock", ".process", "run.json", "recipe.toml"}


def test_overwriting_leaves_nothing_of_the_old_run(tmp_path: Path) -> None:
    old = make(tmp_path / "x", Recipe(seed=1))
    old.log({"step": 1, "loss": 0.5})
    old.update(state=runs.FINISHED)
    for name in ("checkpoints/checkpoint-4/state.json", "adapter/adapter_config.json", "scores.json", "notes.txt"):
        (old.path / name).parent.mkdir(parents=True, exist_ok=True)
        (old.path / name).touch()
    with runs.create(tmp_path / "x", Recipe(seed=2), {}, overwrite=True) as run:
        assert (run.recipe.seed, run.finished, run.history, run.scores) == (2, False, [], None)
    assert {file.name for file in run.path.iterdir()} == {".lock", ".process", "run.json", "recipe.toml", "notes.txt"}


def test_a_run_folder_holds_what_its_module_names(trained: Path) -> None:
    named = {*runs._ATTEMPT, runs._LOCK, runs._PROCESS, "run.json", "recipe.toml"}
    assert {file.name for file in trained.iterdir()} == named


def test_an_edited_recipe_is_refused_by_its_keys(tmp_path: Path) -> None:
    run = make(tmp_path / "x", Recipe())
    runs.refuse_changed(run)
    runs.refuse_changed(run, Recipe())
    with pytest.raises(RunError, match="was started with another recipe; they differ in adapter.rank. Change that"):
        runs.refuse_changed(run, from_values({"adapter": {"rank": 4}}))
    file = run.path / "recipe.toml"
    file.write_text(file.read_text().replace("epochs = 4", "epochs = 5"))
    with pytest.raises(RunError, match="was started with another recipe.toml; they differ in training.epochs. Change"):
        runs.refuse_changed(run)
    file.unlink()  # as when killed before it was written
    runs.refuse_changed(run)


def test_a_run_of_an_earlier_version_can_be_replaced(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "run.json").write_text('{"state": "finished"}')
    (old / "recipe.toml").write_text('name = "old"')
    assert runs.list_runs(tmp_path) == []
    with pytest.raises(RunError, match="holds no recipe. Train the run anew with --overwrite"):
        runs.open_run(old).recipe  # noqa: B018 - reading it is what fails
    with runs.create(old, Recipe(), {}, overwrite=True) as run:
        assert run.recipe == Recipe()


def test_another_programs_run_json_is_no_run_of_ours(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "checkpoints").mkdir(parents=True)
    for content in ('{"state": "done"}', "[1, 2]", "{"):
        (theirs / "run.json").write_text(content)
        with (
            pytest.raises(StorageError, match="holds files that are no run of lorafit"),
            runs.create(theirs, Recipe(), {}, overwrite=True),
        ):
            pass
        assert runs.list_runs(tmp_path) == []
    assert (theirs / "checkpoints").is_dir()
