"""The training repeated with other seeds: whole runs, found again, gone on with, and one result of them all."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from lorafit import runs, seeds
from lorafit.errors import RecipeError
from tests.test_cli import recipe_file, refused

pytestmark = pytest.mark.usefixtures("proved_in_this_process")


def test_seeds_are_whole_runs_and_the_first_holds_what_they_say_together(
    cli: Any, tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    made = tiny_recipe(seed=3, training={"epochs": 1}, data={"train_size": 40})
    file = recipe_file(tmp_path, made)
    assert cli("train", file, "--out", "all/first").code == 0
    weights = Path("all/first/adapter/adapter_model.safetensors")
    before = weights.stat().st_mtime_ns

    said = cli("train", file, "--out", "all/first", "--seeds", 2)
    assert said.code == 0, said.err
    assert weights.stat().st_mtime_ns == before  # found, not trained again
    first, second = runs.open_run("all/first"), runs.open_run("all/first-seed-4")
    assert (first.recipe.seed, second.recipe.seed) == (3, 4)
    found = first.scores["seeds"]
    accuracies = [run.scores["test"]["adapted"]["accuracy"] for run in (first, second)]
    assert found["accuracy"] == {"mean": mean(accuracies), "standard_deviation": stdev(accuracies)}
    assert [one["accuracy"] for one in found["runs"]] == accuracies
    assert [(one["seed"], one["path"]) for one in found["runs"]] == [(3, "all/first"), (4, "all/first-seed-4")]
    assert found["n"] == 2
    assert "its own split" in found["note"]
    assert "seeds" not in second.scores
    assert first.scores["test"]["test_sha256"] != second.scores["test"]["test_sha256"]
    assert f"accuracy {mean(accuracies):.4f} ± {stdev(accuracies):.4f}" in said.out

    second.update(state="training")  # as a kill behind the last checkpoint leaves it
    again = cli("train", file, "--out", "all/first", "--seeds", 2)
    assert again.code == 0, again.err
    assert "Going on from" in again.err
    assert runs.open_run("all/first-seed-4").finished
    assert [one["accuracy"] for one in first.scores["seeds"]["runs"]] == accuracies


def test_seeds_that_make_no_sense_are_refused(cli: Any, tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs at least two seeds; asked for was 1"):
        seeds.train(tiny_recipe(), 1)
    file = recipe_file(tmp_path, tiny_recipe(seed=2**32 - 1))
    assert "seed = 4294967296" in refused(cli("train", file, "--seeds", 2))
    assert "no --small, --out, --overwrite, --dry-run, --seeds" in refused(
        cli("train", "--resume", "runs/tiny", "--seeds", 2)
    )
    assert not Path("runs").exists()
