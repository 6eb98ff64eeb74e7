"""The training repeated with other seeds: whole runs, found again, gone on with, and one result of them all."""

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from lorafit import pipeline, report, runs, seeds
from lorafit.errors import RecipeError
from tests.conftest import texts_and_labels, write_csv
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
    assert said.out.startswith(report.verdict(first.scores))

    second.update(state="training")  # as a kill behind the last checkpoint leaves it
    again = cli("train", file, "--out", "all/first", "--seeds", 2)
    assert again.code == 0, again.err
    assert "Going on from" in again.err
    assert runs.open_run("all/first-seed-4").finished
    assert [one["accuracy"] for one in first.scores["seeds"]["runs"]] == accuracies


def test_baselines_are_kept_of_every_seed_and_the_gain_over_them_is_paired(
    cli: Any, tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    file = recipe_file(tmp_path, tiny_recipe(training={"epochs": 1}, data={"train_size": 40}))
    said = cli("train", file, "--seeds", 2)
    assert said.code == 0, said.err
    first, second = runs.open_run("runs/tiny"), runs.open_run("runs/tiny-seed-1")
    pipeline.evaluate(first, ["frozen"])
    again = cli("train", file, "--seeds", 2)
    assert again.code == 0, again.err
    found, tests = first.scores["seeds"], [run.scores["test"] for run in (first, second)]
    assert list(found["baselines"]) == ["majority", "tfidf"]  # those that every seed has
    assert "frozen" in found["runs"][0]["baselines"]
    beside = {name: [test["baselines"][name] for test in tests] for name in found["baselines"]}
    beside["base"] = [test["base"] for test in tests]
    for name, rival in (found["baselines"] | {"base": found["base"]}).items():
        for by in ("accuracy", "f1"):
            theirs = [one[by] for one in beside[name]]
            gains = [100 * (test["adapted"][by] - one) for test, one in zip(tests, theirs, strict=True)]
            assert rival[by] == {"mean": mean(theirs), "standard_deviation": stdev(theirs)}
            assert rival["gain_points"][by]["mean"] == pytest.approx(mean(gains))
            assert rival["gain_points"][by]["standard_deviation"] == pytest.approx(stdev(gains))
    gain = found["baselines"]["tfidf"]["gain_points"]["accuracy"]
    row = next(line for line in again.out.splitlines() if line.startswith("TF-IDF"))
    scores = [f"{test['baselines']['tfidf']['accuracy']:.4f}" for test in tests]
    assert row.split()[4:6] == scores
    assert row.rstrip().endswith(f"{gain['mean']:.2f} ± {gain['standard_deviation']:.2f}")


def test_with_a_test_of_ones_own_all_seeds_have_it_and_ctrl_c_names_the_way_on(
    cli: Any, tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, labels = texts_and_labels(40, seed=5)
    test = write_csv(tmp_path / "test.csv", texts, [["neg", "pos"][number] for number in labels])
    data = {"train_size": 40, "validation_size": 40, "test_source": str(test), "test_size": 1.0}
    file = recipe_file(tmp_path, tiny_recipe(training={"epochs": 1}, data=data))
    evaluate, evaluated = pipeline.evaluate, []

    def broken_off(run: runs.Run) -> None:
        evaluated.append(run)
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        evaluate(run)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate", broken_off)
        said = cli("train", file, "--seeds", 2, "--overwrite")
    assert said.code == 130
    assert "for all 2 seeds repeat the same command, with --seeds 2, without --overwrite" in said.err
    said = cli("train", file, "--seeds", 2)
    assert said.code == 0, said.err
    note = "Each seed has the same test, but its own draw of what else is split, head and order of the texts."
    assert runs.open_run("runs/tiny").scores["seeds"]["note"] == note
    assert note in said.out
    assert note in Path("runs/tiny/report.md").read_text()


def test_all_folders_are_looked_at_before_the_first_training(
    trained: Path, cli: Any, tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    file = recipe_file(tmp_path, tiny_recipe())
    shutil.copytree(trained, "runs/tiny-seed-2")
    said = refused(cli("train", file, "--seeds", 3))
    assert "runs/tiny-seed-2 holds a run of another recipe (it differs in seed, training.epochs)" in said
    assert not Path("runs/tiny").exists()
    shutil.rmtree("runs")
    Path("runs/tiny-seed-1").mkdir(parents=True)
    Path("runs/tiny-seed-1/mine.txt").touch()
    assert "holds files that are no run" in refused(cli("train", file, "--seeds", 3, "--overwrite"))
    assert not Path("runs/tiny").exists()
    for nameless in (".", ".."):
        said = refused(cli("train", file, "--seeds", 2, "--out", nameless))
        assert f"--out is {nameless}, which is no name: the other seeds' runs lie beside it" in said


def test_seeds_that_make_no_sense_are_refused(cli: Any, tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs at least two seeds; asked for was 1"):
        seeds.train(tiny_recipe(), 1)
    file = recipe_file(tmp_path, tiny_recipe(seed=2**32 - 1))
    assert "seed = 4294967296" in refused(cli("train", file, "--seeds", 2))
    assert "no --small, --out, --overwrite, --dry-run, --seeds" in refused(
        cli("train", "--resume", "runs/tiny", "--seeds", 2)
    )
    assert not Path("runs").exists()
