"""A search is carried out on Ray: by the same study as without, whatever dies."""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from lorafit import recipe as recipes
from lorafit.cluster import connection, searching
from lorafit.errors import RecipeError
from lorafit.sweep import space
from tests.conftest import STARTED, Said

SPACE = "adapter.rank = [1, 2, 4]\n[training]\nlearning_rate = { from = 1e-3, to = 3e-2, log = true }\n"


@pytest.fixture
def files(tiny_recipe: Callable[..., Any], tmp_path: Path) -> tuple[Path, Path]:
    """A recipe whose trials last some seconds, and a space."""
    recipe, space_file = tmp_path / "tiny.toml", tmp_path / "space.toml"
    recipe.write_text(recipes.to_toml(tiny_recipe(training={"epochs": 40, "checkpoint_every": 20})))
    space_file.write_text(SPACE)
    return recipe, space_file


def sweep(files: tuple[Path, Path], out: Path, trials: int) -> subprocess.Popen[bytes]:
    words = ["sweep", files[0], "--space", files[1], "--trials", trials, "--out", out, "--ray", "--workers", 2]
    with out.with_suffix(".log").open("ab") as log:
        command = [sys.executable, "-m", "lorafit", *map(str, words)]
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def wait_until(found: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.mark.soak
def test_on_ray_a_killed_trial_and_a_killed_search_lose_nothing(
    files: tuple[Path, Path], cli: Callable[..., Said], tmp_path: Path
) -> None:
    """First a trial's process dies, then the command; it is gone on with without Ray."""
    out, log = tmp_path / "sw", tmp_path / "sw.log"
    process = sweep(files, out, 6)
    STARTED.append(process)

    def trains(number: int) -> bool:
        return any((out / "trials" / f"{number:04d}").glob("checkpoints/checkpoint-*"))

    wait_until(lambda: trains(0) or trains(1), process, log)
    of_ray = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in of_ray if "ImplicitFunc" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    wait_until(lambda: trains(3), process, log)
    process.kill()
    process.wait()
    for child in of_ray:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    found = cli("sweep", files[0], "--space", files[1], "--trials", 6, "--out", out)
    assert found.code == 0, found.err
    assert "Going on from" in found.err
    rows = pd.read_csv(out / "trials.csv")
    assert list(rows["trial"]) == [1, 2, 3, 4, 5, 6]
    assert set(rows["state"]) <= {"finished", "stopped early"}
    assert (out / "best.toml").is_file()


@pytest.mark.slow
def test_on_ray_a_search_says_what_its_trials_say_and_ends_as_any(
    files: tuple[Path, Path], cli: Callable[..., Said], tmp_path: Path
) -> None:
    found = cli(
        "sweep",
        files[0],
        "--space",
        files[1],
        "--trials",
        2,
        "--out",
        tmp_path / "sw",
        "--ray",
        "-s",
        "training.epochs=2",
    )
    assert found.code == 0, found.err
    assert "Trial 2 of 2: adapter.rank = " in found.err
    assert "The best of 2: trial " in found.err
    assert "Improvement, 95% interval" in found.out
    assert len(pd.read_csv(tmp_path / "sw" / "trials.csv")) == 2
    assert (tmp_path / "sw" / "report.html").is_file()
    assert not list((tmp_path / "sw" / ".ray").iterdir())


def test_several_machines_need_a_database_that_all_of_them_reach(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load(files[0])
    monkeypatch.setattr(searching, "connected", lambda _: nullcontext())
    monkeypatch.setattr(searching, "cores_of_nodes", lambda: [2, 2])
    with pytest.raises(RecipeError, match="The cluster has 2 machines, and SQLite is for one"):
        searching.sweep(recipe, space.load(files[1], recipe), 2, tmp_path / "sw")
    assert connection.described([2, 2], 2, 2) == "2 workers of 2 cores each, on 2 nodes with 4 cores"


def test_workers_of_a_search_go_with_ray(files: tuple[Path, Path], cli: Callable[..., Said]) -> None:
    refused = cli("sweep", files[0], "--space", files[1], "--workers", 2)
    assert refused.code == 2
    assert "--workers goes with --ray" in refused.err
