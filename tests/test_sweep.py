"""A search: what it may choose, the same trials after a kill, several processes in one study, what it leaves."""

import random
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from lorafit import pipeline, proof, runs, sweep
from lorafit import recipe as recipes
from lorafit.errors import RecipeError
from lorafit.sweep import database, lives, outcome, space, studies
from lorafit.sweep.trials import Trial, best_of
from tests.conftest import STARTED, Said

SPACE = """
adapter.rank = [1, 2, 4]
adapter.targets = ["attention", ["query", "value"]]
[training]
learning_rate = { from = 1e-3, to = 3e-2, log = true }
epochs = { from = 1, to = 2 }
"""


@pytest.fixture(autouse=True)
def proved_in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "_ask_fresh_process", proof.answer)
        yield


@pytest.fixture
def files(tiny_recipe: Callable[..., Any], tmp_path: Path) -> tuple[Path, Path]:
    """A recipe and a space, as files."""
    recipe, space_file = tmp_path / "tiny.toml", tmp_path / "space.toml"
    recipe.write_text(recipes.to_toml(tiny_recipe(training={"threads": 1})))
    space_file.write_text(SPACE)
    return recipe, space_file


def start(files: tuple[Path, Path], out: Path, trials: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "lorafit",
        "sweep",
        files[0],
        "--space",
        files[1],
        "--trials",
        trials,
        "--out",
        out,
    ]
    with (out.parent / f"{out.name}-{time.monotonic_ns()}.log").open("wb") as log:
        STARTED.append(subprocess.Popen([*map(str, command)], stdout=log, stderr=log, stdin=subprocess.DEVNULL))
    return STARTED[-1]


def trials_of(folder: Path) -> list[dict[str, Any]]:
    """Return what decides a search: values, state and score of each trial."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    (name,) = optuna.get_all_study_names(storage)
    found = optuna.load_study(study_name=name, storage=storage).trials
    return [{"state": trial.state.name, "value": trial.value} | trial.params for trial in found]


def test_a_search_leaves_a_table_figures_a_report_and_a_recipe_that_trains_to_the_same_adapter(
    files: tuple[Path, Path], cli: Callable[..., Said], tmp_path: Path
) -> None:
    said = cli("sweep", files[0], "--space", files[1], "--trials", 7)
    assert said.code == 0, said.err
    folder = tmp_path / "sweeps" / "tiny"
    rows = pd.read_csv(folder / "trials.csv")
    assert list(rows["trial"]) == list(range(1, 8))
    assert set(rows["adapter.rank"]) <= {1, 2, 4}
    best = (
        rows[rows["state"] == "finished"].sort_values(["validation_accuracy", "loss"], ascending=[False, True]).iloc[0]
    )
    winner = runs.open_run(best["run"])
    assert winner.finished
    assert winner.record["best_validation_accuracy"] == best["validation_accuracy"]
    others = [run for run in (folder / "trials").iterdir() if run != Path(best["run"])]
    assert others
    assert not any((run / "scores.json").exists() or (run / "checkpoints").exists() for run in others)
    for name in ("history", "importance", "tradeoff"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5_000
        assert (folder / "figures" / f"{name}.svg").is_file()
    report = (folder / "report.md").read_text()
    assert winner.scores is not None
    assert f"The best of 7 trials reaches {winner.scores['test']['adapted']['accuracy']:.3f} accuracy" in report
    assert "the highest of 7, which luck alone lifts" in report
    assert "looked at once." in report
    made = tomllib.loads((folder / "best.toml").read_text())
    assert made["adapter"]["rank"] == best["adapter.rank"]
    again = pipeline.train(recipes.load(folder / "best.toml"), tmp_path / "again")
    assert (again.adapter / "adapter_model.safetensors").read_bytes() == (
        winner.adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_a_search_that_was_stopped_goes_on_to_the_same_trials(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load(files[0])
    chosen = space.load(files[1], recipe)
    whole = sweep.run(recipe, chosen, 6, tmp_path / "whole")
    ours = studies.Study.report
    told = 0

    def interrupted(self: studies.Study, *args: Any) -> None:
        nonlocal told
        ours(self, *args)
        told += 1
        if told in (2, 6, 9):
            raise KeyboardInterrupt

    monkeypatch.setattr(studies.Study, "report", interrupted)
    stops = 0
    for _ in range(9):
        try:
            found = sweep.run(recipe, chosen, 6, tmp_path / "stopped")
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == 3
    assert found.best is not None
    assert whole.best is not None
    assert trials_of(tmp_path / "stopped") == trials_of(tmp_path / "whole")
    scores = [run.scores["test"]["adapted"] for run in (found.best, whole.best) if run.scores]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_two_processes_work_on_one_study_and_a_killed_one_loses_nothing(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "shared"
    first, second = start(files, out, 8), start(files, out, 8)
    deadline = time.monotonic() + 120
    while not (out / "trials").is_dir() or len(list((out / "trials").glob("*/history.jsonl"))) < 3:
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.1)
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert first.wait(timeout=180) == 0
    found = trials_of(out)
    assert len(found) == 8
    assert {trial["state"] for trial in found} <= {"COMPLETE", "PRUNED"}
    assert (out / "report.html").is_file()
    assert len(pd.read_csv(out / "trials.csv")) == 8


@pytest.mark.soak
def test_a_search_killed_at_random_ends_with_the_same_trials(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole = start(files, tmp_path / "whole", 10)
    begun = time.monotonic()
    assert whole.wait(timeout=600) == 0
    seconds = time.monotonic() - begun
    chance, kills = random.Random(0), 0
    for _ in range(20):
        process = start(files, tmp_path / "killed", 10)
        try:
            assert process.wait(timeout=chance.uniform(4, max(6, seconds / 2))) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    else:
        assert start(files, tmp_path / "killed", 10).wait(timeout=600) == 0
    assert kills >= 2
    assert trials_of(tmp_path / "killed") == trials_of(tmp_path / "whole")


def test_a_search_goes_on_when_more_trials_are_asked_for_and_counts_its_looks_at_the_test(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load(files[0])
    chosen = space.load(files[1], recipe)
    out = tmp_path / "out"
    first = sweep.run(recipe, chosen, 1, out)
    before = trials_of(out)
    sweep.run(recipe, chosen, 1, out)  # nothing left to do
    assert trials_of(out) == before
    assert "looked at once." in (out / "report.md").read_text()
    found = sweep.run(recipe, chosen, 6, out)
    assert trials_of(out)[:1] == before
    assert len(found.trials) == 6
    assert found.best is not None
    assert first.best is not None
    changed = found.best.path != first.best.path
    assert ("looked at 2 times" in (out / "report.md").read_text()) == changed


def test_trials_that_cannot_be_are_noted_and_the_others_go_on(
    files: tuple[Path, Path], tmp_path: Path, cli: Callable[..., Said]
) -> None:
    files[1].write_text('adapter.init = ["orthogonal", "default"]\nadapter.rank = [2, 3]\n')
    said = cli("sweep", files[0], "--space", files[1], "--trials", 8, "--out", tmp_path / "out")
    # 3 alone fits no orthogonal start, which the recipe does not have; both together do not fit.
    assert said.code == 0, said.err
    rows = pd.read_csv(tmp_path / "out" / "trials.csv")
    failed = rows[rows["state"] == "failed"]
    assert len(failed)
    assert set(zip(failed["adapter.init"], failed["adapter.rank"], strict=True)) == {("orthogonal", 3)}
    assert "needs an even adapter.rank" in failed["reason"].iloc[0]
    repeated = rows[rows["same_as"].notna()]
    assert len(repeated)
    assert (repeated["seconds"] == 0).all()


def test_a_split_that_cannot_be_is_a_failed_trial_and_own_splits_are_said_to_be_so(
    files: tuple[Path, Path], tmp_path: Path, cli: Callable[..., Said]
) -> None:
    files[1].write_text("data.train_size = [100, 110, 190]\n")
    said = cli("sweep", files[0], "--space", files[1], "--trials", 6, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    rows = pd.read_csv(tmp_path / "out" / "trials.csv")
    failed = rows[rows["state"] == "failed"]
    assert set(failed["data.train_size"]) == {190}
    assert "splits of their own" in (tmp_path / "out" / "report.md").read_text()


def test_a_trial_whose_processes_die_again_and_again_is_given_up(files: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = recipes.load(files[0])
    chosen = space.load(files[1], recipe)
    drawn = []
    for _ in range(5):  # each a process of its own, as far as the study can tell
        trial = database.opened(recipe, chosen, tmp_path / "out", "").claim(9)
        assert trial is not None
        drawn.append((trial.number, trial.changes))
    assert drawn == [drawn[0]] * 5
    after = database.opened(recipe, chosen, tmp_path / "out", "")
    trial = after.claim(9)
    assert trial is not None
    assert trial.number == 1
    assert after.trials()[0].state == "failed"
    assert "processes died of it" in after.trials()[0].reason
    for step in range(1, 8):  # one that is killed, but comes forward, is gone on with
        (trial.folder / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        again = database.opened(recipe, chosen, tmp_path / "out", "").claim(9)
        assert again is not None
        assert again.number == 1


def test_a_trial_of_another_machine_is_taken_over_once_it_has_been_silent_for_long(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load(files[0])
    chosen = space.load(files[1], recipe)
    monkeypatch.setattr(lives.platform, "node", lambda: "elsewhere")
    assert database.opened(recipe, chosen, tmp_path / "out", "").claim(9) is not None
    monkeypatch.undo()
    here = database.opened(recipe, chosen, tmp_path / "out", "")
    assert [trial.host for trial in here.open_elsewhere()] == ["elsewhere"]
    second = here.claim(9)
    assert second is not None
    assert second.number == 1
    monkeypatch.setattr(studies, "_LEAST_PATIENCE_SECONDS", -(10**9))
    assert [trial.number for trial in here.open_elsewhere()] == [1]
    taken = here.claim(9)
    assert taken is not None
    assert taken.number == 0


def test_a_folder_holds_one_search_and_nothing_else(
    files: tuple[Path, Path], tmp_path: Path, cli: Callable[..., Said]
) -> None:
    assert cli("sweep", files[0], "--space", files[1], "--trials", 1, "--out", tmp_path / "out").code == 0
    best = (tmp_path / "out" / "trials" / "0000" / "adapter" / "adapter_model.safetensors").read_bytes()
    files[1].write_text("adapter.rank = [1, 2]\n")
    other = cli("sweep", files[0], "--space", files[1], "--out", tmp_path / "out", "-s", "name=other")
    assert other.code == 2
    assert "holds the trials of another search" in other.err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    foreign = cli("sweep", files[0], "--space", files[1], "--out", tmp_path / "mine")
    assert foreign.code == 2
    assert "holds files that are no search of lorafit's" in foreign.err
    assert (tmp_path / "out" / "trials" / "0000" / "adapter" / "adapter_model.safetensors").read_bytes() == best


def test_all_trials_have_one_precision_and_so_has_the_best_recipe(files: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = recipes.changed(recipes.load(files[0]), {"encoder.precision": "auto"})
    found = sweep.run(recipe, space.load(files[1], recipe), 1, tmp_path / "out")
    assert found.best is not None
    precision = tomllib.loads((tmp_path / "out" / "best.toml").read_text())["encoder"]["precision"]
    assert precision in ("bf16", "fp32")
    assert found.best.recipe.encoder.precision == precision


def test_only_failing_trials_are_an_error(files: tuple[Path, Path], tmp_path: Path, cli: Callable[..., Said]) -> None:
    files[1].write_text("training.learning_rate = [1e6, 1e7]\n")
    said = cli("sweep", files[0], "--space", files[1], "--trials", 2, "--out", tmp_path / "out")
    assert said.code == 2
    assert "None of the 2 trials" in said.err
    assert "diverged" in said.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adapter.rnk = [1]", "adapter.rnk is no key of a recipe. Did you mean 'adapter.rank'?"),
        ("rank = [1]", "rank is no key of a recipe. Did you mean 'adapter.rank'?"),
        ("adapter = [1]", "adapter is a table of a recipe, not a key, such as adapter.rank"),
        ("name = ['a', 'b']", "name can't be searched: each trial has a name of its own"),
        ("training.select_by = ['f1']", "training.select_by can't be searched: it is what trials are compared by"),
        ("adapter.rank = []", "adapter.rank is neither choices, such as [4, 8], nor a range"),
        ("adapter.rank = 4", "adapter.rank is neither choices, such as [4, 8], nor a range"),
        ("adapter.rank = { from = 8, to = 4 }", "adapter.rank: from 8 to 4 is an empty range"),
        ("adapter.rank = { from = 8, to = 8 }", "from 8 to 8 is an empty range"),
        ("adapter.rank = { from = 8 }", "a range has a number at `from` and one at `to`"),
        ("adapter.rank = { from = 0, to = 8 }", "adapter.rank = 0"),
        ("adapter.rank = { from = 1.5, to = 8.0 }", "adapter.rank = 1.5"),
        ("adapter.rank = { from = 1, to = 8, lgo = true }", "`lgo` of a range: extra inputs are not permitted"),
        ("training.weight_decay = { from = 0.0, to = 1.0, log = true }", "log = true needs a range above 0"),
        ("adapter.rank = { from = 1, to = 8, step = 0.5 }", "adapter.rank = 1.5"),
        ("adapter.rank = { from = 1, to = 8, step = 9 }", "step = 9 needs to fit into the range"),
        ("adapter.rank = [4, 'x']", 'adapter.rank = "x"'),
        ("", "names no key of a recipe"),
        ("[adapter", "is not valid TOML"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_in_a_sentence(
    text: str, said: str, files: tuple[Path, Path], cli: Callable[..., Said], tmp_path: Path
) -> None:
    files[1].write_text(text)
    refused = cli("sweep", files[0], "--space", files[1])
    assert refused.code == 2
    assert said in refused.err
    assert len(refused.err.splitlines()) == 1
    assert str(files[1]) in refused.err
    assert not (tmp_path / "sweeps").exists()


def test_other_bad_input_is_refused_in_a_sentence(
    files: tuple[Path, Path], cli: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "There is no space nowhere.toml" in cli("sweep", files[0], "--space", "nowhere.toml").err
    assert "at least one trial; asked for was 0" in cli("sweep", files[0], "--space", files[1], "--trials", 0).err
    for url in ("nosuch://host/db", "postgresql://nobody@127.0.0.1:9/none", f"sqlite:///{tmp_path}/no/such/folder.db"):
        refused = cli("sweep", files[0], "--space", files[1], "--storage", url)
        assert refused.code == 2
        assert f"The study's database {url} can't be opened" in refused.err
        assert len(refused.err.splitlines()) == 1
    refused = cli("sweep", files[0], "--space", files[1], "--storage", "postgresql://me:secret@127.0.0.1:9/none")
    assert "secret" not in refused.err
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        refused = cli("sweep", files[0], "--space", files[1])
        assert refused.code == 2
        assert "is for one process" in refused.err
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused = cli("sweep", files[0], "--space", files[1])
    assert refused.code == 2
    assert "pip install 'lorafit[sweep]'" in refused.err


def test_a_study_of_another_recipe_or_space_is_refused(
    files: tuple[Path, Path], cli: Callable[..., Said], tmp_path: Path
) -> None:
    sweep_ = ("sweep", files[0], "--space", files[1], "--trials", 1)
    assert cli(*sweep_).code == 0
    other = cli(*sweep_, "-s", "training.batch_size=4")
    assert other.code == 2
    assert "a search over another recipe (it differs in training.batch_size)" in other.err
    assert cli(*sweep_, "-s", "training.threads=2").code == 0  # changes no result
    files[1].write_text("adapter.rank = [1, 2]\n")
    other = cli(*sweep_)
    assert other.code == 2
    assert "over another space (it differs in adapter.rank, adapter.targets, " in other.err
    database = tmp_path / "others.db"
    study = optuna.create_study(storage=f"sqlite:///{database}", study_name="tiny")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    other = cli(*sweep_, "--storage", f"sqlite:///{database}")
    assert other.code == 2
    assert "holds a study 'tiny' that is not lorafit's" in other.err


def test_a_poor_trial_is_stopped_early_and_the_base_is_no_reason(files: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = recipes.changed(recipes.load(files[0]), {"training.epochs": 3})
    study = database.opened(recipe, space.load(files[1], recipe), tmp_path / "out", "")
    for _ in range(5):
        trial = study.claim(9)
        assert trial is not None
        for epoch, score in enumerate((0.5, 0.8, 0.9)):
            study.report(trial, epoch, score)
        study.tell(trial, 0.9, loss=0.1)
    poor = study.claim(9)
    assert poor is not None
    study.report(poor, 0, 0.0)
    with pytest.raises(studies.Pruned):
        study.report(poor, 1, 0.6)


def test_the_threads_of_a_trial_are_its_share_beside_other_processes(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorafit import runtime

    recipe = recipes.changed(recipes.load(files[0]), {"training.threads": 0})
    study = database.opened(recipe, space.load(files[1], recipe), tmp_path / "out", "")
    monkeypatch.setattr(runtime, "usable_cores", lambda: 8)
    shares = []
    for _ in range(3):
        assert study.claim(9) is not None
        shares.append(study.threads_a_trial())
    assert shares == [0, 4, 2]


def test_best_is_the_highest_score_then_the_lowest_loss() -> None:
    def trial(number: int, score: float, loss: float, state: Any = "finished") -> Trial:
        return Trial(number, {}, state, score, Path(), "", facts={"loss": loss})

    trials = [trial(0, 0.8, 0.1), trial(1, 0.9, 0.3), trial(2, 0.9, 0.2), trial(3, 0.95, 0.1, "stopped early")]
    assert best_of(trials) == trials[2]
    assert best_of(trials[3:]) is None


def test_the_table_has_a_row_a_trial_with_what_it_cost() -> None:
    trials = [
        Trial(0, {"adapter.rank": 4}, "finished", 0.9, Path("a"), "", facts={"seconds": 2.0, "loss": 0.3}),
        Trial(1, {"adapter.rank": 4}, "finished", 0.9, Path("a"), "", facts={"seconds": 0.0, "same_as": 0}),
        Trial(2, {"adapter.rank": 8}, "failed", np.nan, Path("b"), "", reason="no"),
    ]
    rows = outcome.table(trials, "accuracy")
    assert list(rows["trial"]) == [1, 2, 3]
    assert rows["same_as"].tolist()[1] == 1
    assert rows["reason"].tolist() == ["", "", "no"]
    assert rows["validation_accuracy"].tolist()[:2] == [0.9, 0.9]


def test_a_space_takes_any_key_and_keeps_values_as_toml_has_them(files: tuple[Path, Path]) -> None:
    recipe = recipes.load(files[0])
    found = space.load(files[1], recipe)
    assert found.changes(
        {
            "adapter.rank": "4",
            "adapter.targets": '["query", "value"]',
            "training.learning_rate": 0.01,
            "training.epochs": 2,
        }
    ) == {
        "adapter.rank": 4,
        "adapter.targets": ["query", "value"],
        "training.learning_rate": 0.01,
        "training.epochs": 2,
    }
    with pytest.raises(RecipeError):
        space.load(files[1].with_name("other.toml"), recipe)


def test_the_space_that_is_shipped_fits_the_demo() -> None:
    place = Path(__file__).parents[1] / "recipes"
    assert space.load(place / "spaces" / "demo.toml", recipes.load(place / "demo.toml")).keys
