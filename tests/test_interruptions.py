"""Whatever interrupts a training, it goes on to the very same weights; two processes never write one run."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lorafit import checkpoints, checks, encoders, files, interrupts, pipeline, predict, proof, recipe, runs, tokens
from lorafit.errors import StorageError
from tests.conftest import Said, mount_small_disk, texts_and_labels
from tests.test_cli import recipe_file
from tests.test_training import FP32, attached

pytestmark = pytest.mark.usefixtures("proved_in_this_process")
Cli = Callable[..., Said]
Build = Callable[..., Any]
WITH_DROPOUT = {"adapter": {"dropout": 0.1}, "training": {"threads": 1}}


def weights(run: Path) -> bytes:
    return (run / "adapter" / checks.WEIGHTS).read_bytes()


def steps(run: runs.Run) -> list[int]:
    return [line["step"] for line in run.history if "loss" in line]


class Process:
    """`lorafit` in a process of its own."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        command = [sys.executable, "-m", "lorafit", *map(str, arguments)]
        self._process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until the condition holds; returns False if the process has ended before."""
        deadline = time.monotonic() + 120
        while not condition():
            if not self.runs:
                return False
            assert time.monotonic() < deadline
        return True

    @property
    def id(self) -> int:
        return self._process.pid

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self, seconds: float = 120) -> tuple[int, str]:
        """Return exit code and standard error."""
        _, said = self._process.communicate(timeout=seconds)
        return self._process.returncode, said


def size(file: Path) -> int:
    try:  # not asked whether it is there: a training that starts over may take it away in between
        return file.stat().st_size
    except FileNotFoundError:
        return 0


class KilledError(Exception):
    """Stands for a kill in this process: nothing of ours catches it."""


def interrupt_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Raise Ctrl-C while the step's line is written, behind which the next step comes."""
    log = runs.Run.log

    def log_and_raise(run: runs.Run, line: dict[str, Any]) -> None:
        log(run, line)
        if line["step"] == step:
            signal.raise_signal(signal.SIGINT)

    patch.setattr(runs.Run, "log", log_and_raise)


def interrupt_validation(patch: pytest.MonkeyPatch, epoch: int) -> None:
    """Raise Ctrl-C when the validation of an epoch begins; that of the base is 0."""
    logits, seen = predict.logits, iter(range(1000))

    def raise_and_validate(*arguments: Any) -> np.ndarray:
        if next(seen) == epoch:
            signal.raise_signal(signal.SIGINT)
        return logits(*arguments)

    patch.setattr(predict, "logits", raise_and_validate)


def validations(run: runs.Run) -> list[dict[str, float]]:
    return [line["validation"] for line in run.validations]


def same(one: runs.Run, other: runs.Run) -> bool:
    """Tell whether two runs ended with the same weights, by the same way."""
    epochs = [run.record["best_epoch"] for run in (one, other)]
    return weights(one.path) == weights(other.path) and validations(one) == validations(other) and len(set(epochs)) == 1


def kill_again_and_again(count: int, made: recipe.Recipe, folder: Path, seed: int) -> runs.Run:
    """Train, kill, go on, kill: at random moments, and every other time while a checkpoint is being written."""
    chance = random.Random(seed)
    run = runs.Run(folder / "runs" / made.name)
    history = run.path / "history.jsonl"
    for number in range(count):
        arguments = ("--resume", run.path) if (run.path / "run.json").exists() else (recipe_file(folder, made),)
        process = Process(folder, "train", *arguments)
        before = size(history)
        assert process.wait_for(lambda before=before: size(history) not in (0, before)), process.end()
        time.sleep(chance.uniform(0, 0.4))
        if number % 2:
            strays = set(run.checkpoints.glob(".*"))
            process.wait_for(lambda strays=strays: not strays.issuperset(run.checkpoints.glob(".*")))
        assert process.runs, "training was over before it could be killed; make it longer"
        process.send(signal.SIGKILL)
        process.end()
    return pipeline.resume(run.path)


@pytest.mark.filterwarnings("ignore:After epoch")  # so many epochs over so few texts get worse now and then
@pytest.mark.parametrize(
    ("kills", "epochs"),
    [pytest.param(2, 12, marks=pytest.mark.slow), pytest.param(20, 60, marks=pytest.mark.soak)],
)
def test_a_run_that_is_killed_at_random_moments_ends_with_the_very_same_weights(
    kills: int, epochs: int, tiny_recipe: Build, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(1000)
    made = tiny_recipe(adapter={"dropout": 0.1}, training={"epochs": epochs, "checkpoint_every": 2, "threads": 1})
    whole = pipeline.train(made, tmp_path / "whole")
    resumed = kill_again_and_again(kills, made, tmp_path, seed)
    assert same(resumed, whole), f"seed {seed}"
    assert sorted(set(steps(resumed))) == steps(whole), f"seed {seed}"


@pytest.mark.filterwarnings("ignore:After epoch")  # so many epochs over so few texts get worse now and then
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_process_ends_within_five_seconds_and_repeats_no_step(
    number: int, code: int, tiny_recipe: Build, tmp_path: Path
) -> None:
    made = tiny_recipe(adapter={"dropout": 0.1}, training={"epochs": 20, "threads": 1})
    process = Process(tmp_path, "train", recipe_file(tmp_path, made))
    run = runs.Run(tmp_path / "runs" / "tiny")
    assert process.wait_for(lambda: size(run.path / "history.jsonl") > 5000)
    start = time.monotonic()
    process.send(number)
    left, said = process.end()
    assert time.monotonic() - start < 5
    assert left == code
    assert said.splitlines()[-1] == "Interrupted: go on with: lorafit train --resume runs/tiny"
    assert "Traceback" not in said
    last = checkpoints.last(run.checkpoints)
    assert last is not None
    assert last.name == f"checkpoint-{steps(run)[-1]}"
    resumed = pipeline.resume(run.path)
    assert steps(resumed) == list(range(1, 301))
    assert weights(run.path) == weights(pipeline.train(made, tmp_path / "whole").path)


@pytest.fixture(scope="module")
def whole(tiny_recipe: Build, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """The run of `WITH_DROPOUT` that nothing interrupted; how often it wrote checkpoints makes no difference."""
    return pipeline.train(tiny_recipe(**WITH_DROPOUT), tmp_path_factory.mktemp("whole") / "run")


def cut_short(made: recipe.Recipe, path: Path, interruption: Callable[[pytest.MonkeyPatch], None]) -> runs.Run:
    """Train, or go on, until the interruption comes."""
    with pytest.MonkeyPatch.context() as patch:
        interruption(patch)
        with pytest.raises((KeyboardInterrupt, KilledError)):
            pipeline.resume(path) if path.exists() else pipeline.train(made, path)
    return runs.Run(path)


@pytest.mark.parametrize("step", [15, 22, 45])  # an epoch's last, one in the middle, the very last
def test_the_step_that_ctrl_c_came_in_is_kept_and_no_step_is_repeated(
    step: int, whole: runs.Run, tiny_recipe: Build, tmp_path: Path
) -> None:
    run = cut_short(tiny_recipe(**WITH_DROPOUT), tmp_path / "cut", lambda patch: interrupt_at(patch, step - 1))
    assert steps(run)[-1] == step
    resumed = pipeline.resume(run.path)
    assert same(resumed, whole)
    assert steps(resumed) == steps(whole)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that signals, which this system lacks")
@pytest.mark.parametrize("step", [15, 21])  # before the first one of the second epoch, and in its middle
def test_a_step_that_takes_long_is_broken_off_and_done_again(
    step: int, whole: runs.Run, tiny_recipe: Build, tmp_path: Path
) -> None:
    """As on a large encoder in fp32, whose step takes ten seconds: Ctrl-C may take five."""
    compute, since = transformers.Trainer.training_step, []

    def compute_slowly(trainer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = compute(trainer, *args, **kwargs)  # dropout has drawn its numbers
        if trainer.state.global_step == step:
            since.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return loss

    made = tiny_recipe(adapter={"dropout": 0.1}, training={"threads": 1, "checkpoint_every": 10})
    run = cut_short(
        made,
        tmp_path / "cut",
        lambda patch: patch.setattr(transformers.Trainer, "training_step", compute_slowly),
    )
    assert time.monotonic() - since[0] < 5
    assert checkpoints.last(run.checkpoints) == run.checkpoints / f"checkpoint-{step}"
    resumed = pipeline.resume(run.path)
    assert same(resumed, whole)
    assert steps(resumed) == steps(whole)


# With 15, a checkpoint stands there before the validation of its epoch.
@pytest.mark.parametrize(("epoch", "every"), [(0, "epoch"), (1, 15), (2, "epoch")])
def test_a_validation_that_was_broken_off_comes_first_when_the_run_goes_on(
    epoch: int, every: str | int, whole: runs.Run, tiny_recipe: Build, tmp_path: Path
) -> None:
    made = tiny_recipe(**WITH_DROPOUT)
    made = made.model_copy(update={"training": made.training.model_copy(update={"checkpoint_every": every})})
    run = cut_short(made, tmp_path / "cut", lambda patch: interrupt_validation(patch, epoch))
    assert len(validations(run)) == epoch
    if epoch:
        cut_short(made, run.path, lambda patch: interrupt_validation(patch, 0))  # the very same one, once more
    resumed = pipeline.resume(run.path)
    assert same(resumed, whole)
    assert steps(resumed) == steps(whole)


@pytest.mark.filterwarnings("ignore::lorafit.errors.LorafitWarning")
@pytest.mark.parametrize("patience", [0, 1])
def test_a_run_that_was_killed_after_its_last_step_takes_no_more(
    patience: int, tiny_recipe: Build, tmp_path: Path
) -> None:
    """With patience, the last step is one at which early stopping came."""
    epochs = 20 if patience else 2
    made = tiny_recipe(training={"epochs": epochs, "early_stopping": patience, "threads": 1})
    whole = pipeline.train(made, tmp_path / "whole")
    assert (whole.record["epochs"] < epochs) == bool(patience)

    def die(*_: Any, **__: Any) -> None:
        raise KilledError

    interruptions: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
        "saving": lambda patch: patch.setattr(proof, "save", die),
        "validating": lambda patch: interrupt_validation(patch, whole.record["epochs"]),
    }
    for name, interruption in interruptions.items():
        assert not cut_short(made, tmp_path / name, interruption).finished
        resumed = pipeline.resume(tmp_path / name)
        assert same(resumed, whole)
        assert steps(resumed) == steps(whole)
        assert resumed.record["epochs"] == whole.record["epochs"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_outside_of_the_training_names_the_command_that_goes_on(
    number: int, code: int, cli: Cli, whole: runs.Run, tiny_recipe: Build, tmp_path: Path
) -> None:
    """While the adapter is saved, and while the encoder is loaded."""

    def interrupt(*_: Any, **__: Any) -> None:
        signal.raise_signal(number)

    file = recipe_file(tmp_path, tiny_recipe(**WITH_DROPOUT))
    for arguments, module, name in (([file], proof, "save"), (["--resume", "runs/tiny"], encoders, "load")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, interrupt)
            said = cli("train", *arguments)
        assert said.code == code
        assert said.err.splitlines()[-1] == "Interrupted: go on with: lorafit train --resume runs/tiny"
    assert cli("train", "--resume", "runs/tiny").code == 0
    assert same(runs.Run(Path("runs/tiny")), whole)


def test_overwriting_that_was_killed_never_mixes_two_runs(
    whole: runs.Run, tiny_recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: runs.Run) -> None:
        raise KilledError

    old = pipeline.train(tiny_recipe(seed=1, training={"epochs": 1, "threads": 1}), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "start_over", die)
        with pytest.raises(KilledError):
            pipeline.train(tiny_recipe(**WITH_DROPOUT), old.path, overwrite=True)
    resumed = pipeline.resume(old.path)
    assert same(resumed, whole)
    assert steps(resumed) == steps(whole)


def test_a_prediction_is_broken_off_between_two_batches(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "TOKENS_PER_BATCH", 64)
    model, tokenizer = attached(tiny)
    batches = []

    def stop_at_the_second() -> None:
        batches.append(1)
        if len(batches) == 2:
            raise KeyboardInterrupt

    encoded = tokens.encode(texts_and_labels(32)[0], tokenizer, 64)
    with pytest.raises(KeyboardInterrupt):
        predict.logits(model.train(), encoded, tokenizer.pad_token_id, FP32, on_batch=stop_at_the_second)
    assert len(batches) == 2
    assert model.training


def test_a_second_ctrl_c_is_pythons_own() -> None:
    def twice() -> None:
        with interrupts.kept() as interruption:
            signal.raise_signal(signal.SIGINT)
            assert interruption.waits
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second one should have ended this")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        twice()
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_that_nobody_let_out_is_let_out_at_the_end() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, interrupts.kept():
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_full_disk_costs_the_steps_since_the_last_checkpoint(
    whole: runs.Run, tiny_recipe: Build, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    if not mount_small_disk(disk, kilobytes=180):
        pytest.skip("needs the right to mount a small tmpfs")
    made = tiny_recipe(adapter={"dropout": 0.1}, training={"checkpoint_every": 4, "threads": 1})
    try:
        with pytest.raises(StorageError, match="The disk is full"):
            pipeline.train(made, disk / "run")
        run = runs.Run(disk / "run")
        kept = checkpoints.last(run.checkpoints)
        assert kept is not None
        assert not list(run.checkpoints.glob(".*"))
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        resumed = pipeline.resume(run.path)
        assert same(resumed, whole)
        assert sorted(set(steps(resumed))) == list(range(1, 46))
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # a traceback may hold a file open


@pytest.mark.parametrize("code", ["EFBIG", "EIO", "EISDIR", "ENOENT", "ENAMETOOLONG", "EROFS"])
def test_a_disk_that_refuses_is_one_sentence(code: str) -> None:
    number = getattr(errno, code)
    with (
        pytest.raises(StorageError, match=rf"out can't be written: {os.strerror(number).lower()}\."),
        files.storing(Path("out")),
    ):
        raise OSError(number, os.strerror(number))


def test_a_damaged_checkpoint_is_refused_and_nothing_is_overwritten(
    cli: Cli, tiny_recipe: Build, tmp_path: Path
) -> None:
    run = pipeline.train(tiny_recipe(training={"threads": 1}), tmp_path / "run")
    run.update(state=runs.TRAINING)
    (run.checkpoints / "checkpoint-45" / "state.safetensors").write_bytes(b"what a disk may make of it")
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    said = cli("train", "--resume", run.path)
    assert said.code == 2
    assert said.err.splitlines()[-1] == (
        f"Error: The checkpoint {run.checkpoints / 'checkpoint-45'} is damaged: state.safetensors is not what was "
        "written. Remove that folder, and training goes on from checkpoint-30."
    )
    after = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    assert after == before
    shutil.rmtree(run.checkpoints / "checkpoint-45")
    assert cli("train", "--resume", run.path).code == 0
    assert steps(run) == [*range(1, 46), *range(31, 46)]


def test_another_recipe_is_not_resumed(cli: Cli, tiny_recipe: Build, tmp_path: Path) -> None:
    made = tiny_recipe(training={"epochs": 1})
    run = pipeline.train(made, tmp_path / "run")
    file = recipe_file(tmp_path, made)
    assert cli("train", file, "--resume", run.path).code == 0
    assert cli("train", "--resume", run.path, "-s", "training.epochs=1").code == 0
    for changed in ([file], []):
        said = cli("train", *changed, "--resume", run.path, "-s", "adapter.rank=2")
        assert (said.code, "they differ in adapter.rank. Change that back" in said.err) == (2, True)
    for flag in ("--small", "--overwrite", "--dry-run"):
        said = cli("train", "--resume", run.path, flag)
        assert (said.code, "--resume goes on with a run as it was started" in said.err) == (2, True)
    edited = run.path / "recipe.toml"
    edited.write_text(edited.read_text().replace("rank = 8", "rank = 9"))
    said = cli("train", "--resume", run.path)
    assert (said.code, "another recipe.toml; they differ in adapter.rank." in said.err) == (2, True)


@pytest.mark.slow
def test_a_run_that_another_process_writes_is_left_alone(cli: Cli, tiny_recipe: Build, tmp_path: Path) -> None:
    file = recipe_file(tmp_path, tiny_recipe(training={"epochs": 5000, "threads": 1}))
    process = Process(tmp_path, "train", file)
    run = runs.Run(tmp_path / "runs" / "tiny")
    assert process.wait_for(lambda: size(run.path / "history.jsonl") > 0)
    for arguments in (["--resume", "runs/tiny"], [file], [file, "--overwrite"]):
        said = cli("train", *arguments)
        assert said.code == 2
        assert f"runs/tiny is being written by process {process.id} on " in said.err
    assert process.runs
    process.send(signal.SIGKILL)
    process.end()
    with run.locked():  # the system let go of it
        pass


def test_a_job_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    """As one that a script has started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.kept() as interruption:
            signal.raise_signal(signal.SIGINT)
            assert not interruption.waits
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
