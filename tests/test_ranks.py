"""Several processes train what one does: the same steps, the same adapter; one that dies costs what came after the last
checkpoint.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from lorafit import pipeline, ranks, runs
from lorafit import recipe as recipes
from lorafit.batches import Batches, shares
from lorafit.tokens import Tokens
from tests.conftest import STARTED, Said, write_table

ROOT = Path(__file__).parents[1]


def launch(*arguments: object, processes: int = 2, restarts: int = 0, log: Path) -> subprocess.Popen[bytes]:
    """Start so many ranks of a module or script under torchrun."""
    runner = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, "--max-restarts", restarts]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with log.open("wb") as said:
        command = [sys.executable, *map(str, [*runner, *arguments])]
        STARTED.append(subprocess.Popen(command, stdout=said, stderr=said, env=environment))
    return STARTED[-1]


def several_labels(folder: Path, count: int) -> Path:
    import pandas as pd

    from tests.conftest import texts_and_labels

    texts, labels = texts_and_labels(count)
    rows = pd.DataFrame({"text": texts, "good": labels, "even": [len(text) % 2 for text in texts]})
    write_table(rows, folder / "several.csv")
    return folder / "several.csv"


def test_a_batch_is_dealt_out_by_tokens_whole_and_once() -> None:
    chance = np.random.default_rng(0)
    lengths = chance.integers(3, 512, 200)
    for rows in Batches(lengths, 16, seed=1):
        for count in (1, 2, 3, 5):
            dealt = shares(rows, lengths, count)
            assert sorted(row for some in dealt for row in some) == sorted(rows)
            tokens = [int(lengths[some].sum()) for some in dealt]
            assert max(tokens) <= 4 / 3 * max(sum(tokens) / count, max(lengths[rows]))
    assert shares([4], lengths, 3) == [[4], [], []]
    assert shares([0, 1, 2], np.array([5, 3, 2]), 1) == [[0, 1, 2]]


def test_texts_that_are_taken_keep_their_windows_and_their_policy() -> None:
    tokens = Tokens(np.arange(10, dtype=np.int32), np.array([0, 3, 5, 9, 10]), 1, "windows:max", np.array([0, 2, 3, 4]))
    some = tokens.take([2, 0])
    assert [some[0].tolist(), some[1].tolist()] == [[9], [0, 1, 2, 3, 4]]
    assert some.long_text == "windows:max"
    assert some.windows_of([0, 1]) == [[0], [1, 2]]


def test_a_process_that_is_alone_is_rank_0_and_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")  # of somebody else's, without a count
    assert (ranks.rank(), ranks.count(), ranks.local_count(), ranks.is_first()) == (0, 1, 1, True)
    ranks.begin()
    with ranks.first_here_first():
        assert ranks.of_first("a") == "a"
        assert ranks.of_all("a") == ["a"]
        assert ranks.any_of(True)
    ranks.end()
    assert not torch.distributed.is_initialized()


@dataclass(frozen=True)
class Trained:
    """What two ranks have trained: recipe files, with a run beside each."""

    files: list[Path]
    long: Path


@pytest.fixture(scope="module")
def trained_by_two(tiny_recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Recipes of 20 steps, and a longer one, with dropout, whose draws differ from rank to rank."""
    folder = tmp_path_factory.mktemp("two")
    few = {"train_size": 113, "validation_size": 41}
    steps = {"epochs": 1, "batch_size": 6, "learning_rate": 1e-3}
    several = {"source": str(several_labels(folder, 200)), "label": ["good", "even"]}
    variants: dict[str, dict[str, Any]] = {
        "plain": {"data": few | {"train_size": 115}, "training": steps},
        # The last batch has one text, of which the second rank has none.
        "weighted": {"data": few, "training": steps | {"class_weights": "balanced", "batch_size": 8}},
        "several": {"data": few | several, "training": steps | {"class_weights": "balanced"}},
        "windows": {
            "data": few | {"max_tokens": 12, "long_text": "windows:mean"},
            "adapter": {"layers": "top:1", "targets": "all-linear"},
            "training": steps | {"cache_prefix": True},
        },
        "averaged": {"data": few, "training": steps | {"average": 0.5, "lora_plus_ratio": 4.0}},
        "long": {
            "adapter": {"dropout": 0.2},
            "training": {"epochs": 6, "batch_size": 4, "learning_rate": 2e-3, "checkpoint_every": 20},
        },
    }
    files = [folder / f"{name}.toml" for name in variants]
    for file, tables in zip(files, variants.values(), strict=True):
        file.write_text(recipes.to_toml(tiny_recipe(name=file.stem, **tables)))
    process = launch(ROOT / "tests" / "train_all.py", *files, log=folder / "log")
    assert process.wait(timeout=300) == 0, (folder / "log").read_text()
    return Trained(files[:-1], files[-1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::lorafit.errors.LorafitWarning")  # that 20 steps teach little
def test_two_ranks_learn_what_one_learns(trained_by_two: Trained, tmp_path: Path, proved_in_this_process: None) -> None:
    """At the same batches, after 20 steps."""
    for file in trained_by_two.files:
        one = pipeline.train(recipes.load(file), tmp_path / file.stem)
        two = runs.open_run(file.with_suffix(""))
        apart = [load_file(run.adapter / "adapter_model.safetensors") for run in (one, two)]
        for name, weight in apart[0].items():
            # The temperature is folded into the head, and is fitted to 1e-3.
            limit = 1e-3 * float(weight.abs().max()) if "classifier" in name else 1e-5
            assert float((weight - apart[1][name]).abs().max()) < limit, (file.stem, name)
        lines = [[line for line in run.history if "loss" in line] for run in (one, two)]
        assert len(lines[0]) == len(lines[1])
        assert len(lines[0]) in (15, 19, 20)
        for line, other in zip(*lines, strict=True):
            assert line["tokens"] == other["tokens"]
            assert line["loss"] == pytest.approx(other["loss"], abs=2e-5)
        scores = [[line["validation"]["accuracy"] for line in run.validations] for run in (one, two)]
        assert scores[0] == scores[1]


def weights_of(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def steps_kept(run: Path) -> int:
    """Return the step of the last checkpoint, 0 for none."""
    return max((int(folder.name.rpartition("-")[2]) for folder in run.glob("checkpoints/checkpoint-*")), default=0)


def wait_for_checkpoint(run: Path, process: subprocess.Popen[bytes], after: int = 0) -> bool:
    """Wait until there is one behind a step; returns whether the process still runs."""
    deadline = time.monotonic() + 120
    while steps_kept(run) <= after and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process.poll() is None


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if "lorafit" in " ".join(child.cmdline())]


def train(out: Path, *more: object, restarts: int = 0) -> subprocess.Popen[bytes]:
    """Start `lorafit train` as two ranks; what they say is in a file beside the run."""
    return launch("-m", "lorafit", "train", *more, restarts=restarts, log=out.with_suffix(".log"))


@pytest.mark.soak
def test_when_a_worker_dies_training_goes_on_from_the_last_checkpoint(trained_by_two: Trained, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = train(out, trained_by_two.long, "--out", out, restarts=1)
    assert wait_for_checkpoint(out, process)
    ranks_of(process)[1].kill()
    assert process.wait(timeout=200) == 0, out.with_suffix(".log").read_text()
    assert "Going on from" in out.with_suffix(".log").read_text()
    assert weights_of(out) == weights_of(trained_by_two.long.with_suffix(""))


@pytest.mark.slow
def test_on_ray_a_dead_worker_costs_nothing_either(trained_by_two: Trained, tmp_path: Path) -> None:
    """The same two ranks, and so the very same adapter as under torchrun."""
    out, log = tmp_path / "ray", tmp_path / "log"
    command = [sys.executable, "-m", "lorafit", "train", trained_by_two.long, "--out", out, "--ray", "--workers", "2"]
    with log.open("wb") as said:
        process = subprocess.Popen([*map(str, command)], stdout=said, stderr=said)
    STARTED.append(process)
    assert wait_for_checkpoint(out, process)
    of_ray = [child for child in psutil.Process(process.pid).children(recursive=True) if child.is_running()]
    workers = [child for child in of_ray if "RayTrainWorker" in child.name() + " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    assert process.wait(timeout=300) == 0, log.read_text()
    said_by_driver = log.read_text()
    assert "Lost: worker" in said_by_driver
    assert "Going on from" in said_by_driver
    assert "RayTrainWorker" not in said_by_driver
    assert weights_of(out) == weights_of(trained_by_two.long.with_suffix(""))
    assert not list(tmp_path.glob(".*.ray"))


@pytest.mark.soak
def test_ranks_that_are_stopped_end_behind_one_step_and_go_on(trained_by_two: Trained, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    process = train(out, trained_by_two.long, "--out", out)
    assert wait_for_checkpoint(out, process)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert not runs.open_run(out).finished
    assert f"go on with: lorafit train --resume {out}" in out.with_suffix(".log").read_text()
    resumed = train(tmp_path / "resumed", "--resume", out)
    assert resumed.wait(timeout=200) == 0, (tmp_path / "resumed.log").read_text()
    assert weights_of(out) == weights_of(trained_by_two.long.with_suffix(""))


@pytest.mark.soak
def test_workers_killed_at_random_end_with_the_same_adapter(trained_by_two: Trained, tmp_path: Path) -> None:
    chance, kills, out = random.Random(0), 0, tmp_path / "killed"
    process = train(out, trained_by_two.long, "--out", out, restarts=5)
    for _ in range(5):
        if not wait_for_checkpoint(out, process, steps_kept(out)):
            break
        time.sleep(chance.uniform(0, 0.3))
        workers = ranks_of(process)
        if workers:
            chance.choice(workers).kill()
            kills += 1
    assert process.wait(timeout=200) == 0, out.with_suffix(".log").read_text()
    assert kills >= 3
    assert weights_of(out) == weights_of(trained_by_two.long.with_suffix(""))


def test_bad_input_is_said_once_by_the_first_rank_of_a_machine(
    cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    for local, said in (("0", "There is no recipe nowhere.toml"), ("1", "")):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", local)
        monkeypatch.setenv("LOCAL_RANK", local)
        refused = cli("train", "nowhere.toml")
        assert refused.code == 2
        assert said in refused.err
        assert bool(said) == bool(refused.err)


def test_seeds_are_not_for_several_ranks(
    tiny_recipe: Callable[..., Any], cli: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.toml").write_text(recipes.to_toml(tiny_recipe()))
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = cli("train", tmp_path / "tiny.toml", "--seeds", 2)
    assert refused.code == 2
    assert "--seeds evaluates run after run" in refused.err
