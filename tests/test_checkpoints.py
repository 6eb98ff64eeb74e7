"""A checkpoint is written whole, read back exactly, and never trusted when it is not what was written."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerState

from lorafit import checkpoints
from lorafit.checkpoints import State
from lorafit.errors import RunError


def save(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    states = {"weights": State({"a.b": torch.arange(3.0)}), "best": State({}, {"accuracy": 0.1 + 0.2})}
    checkpoints.save(path, states, TrainerState(global_step=step))
    return path


def test_a_checkpoint_reads_back_as_it_was(tmp_path: Path) -> None:
    states, trainer = checkpoints.load(save(tmp_path, 7))
    assert torch.equal(states["weights"].tensors["a.b"], torch.arange(3.0))
    assert states["best"] == State({}, {"accuracy": 0.1 + 0.2})
    assert trainer.global_step == 7


def test_the_last_two_stay_and_what_killed_processes_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-8.0123456789ab").mkdir()
    for step in (8, 9, 10, 11):
        save(tmp_path, step)
    assert {folder.name for folder in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-11"}
    assert checkpoints.last(tmp_path) == tmp_path / "checkpoint-11"
    assert checkpoints.last(tmp_path / "none") is None


def test_a_checkpoint_holds_safetensors_and_json_only(trained: Path) -> None:
    """And nothing else of Trainer's stands beside it."""
    files = [file for file in (trained / "checkpoints").rglob("*") if file.is_file()]
    assert len(files) == 4 * checkpoints.CHECKPOINTS_KEPT
    for file in files:
        assert file.suffix in {".safetensors", ".json"}
        if file.suffix == ".json":
            json.loads(file.read_text())


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "trainer_state.json", "sha256.json"])
def test_one_changed_bit_anywhere_is_seen(name: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refused = "checkpoint-2 is damaged: .*is not what was written. Remove that folder, .* goes on from checkpoint-1"
    for change in (lambda: None, file.unlink):
        change()
        with pytest.raises(RunError, match=refused):
            checkpoints.load(file.parent)


def test_random_generators_go_on_from_where_they_stood(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    path = tmp_path / "checkpoint-1"
    checkpoints.save(path, {"generators": checkpoints.of_generators()}, TrainerState())
    drawn = draw()
    assert draw() != drawn
    checkpoints.restore_generators(checkpoints.load(path)[0]["generators"])
    assert draw() == drawn


def test_an_optimizer_goes_on_with_its_moments(tmp_path: Path) -> None:
    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()

    def make(rate: float) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.AdamW([{"params": [model.bias]}, {"params": [model.weight]}], lr=rate)

    model, optimizer = make(0.1)
    step(model, optimizer)
    path = tmp_path / "checkpoint-1"
    checkpoints.save(path, {"optimizer": checkpoints.of_optimizer(optimizer, model)}, TrainerState())
    again, fresh = make(0.2)
    again.load_state_dict(model.state_dict())
    again.zero_grad()
    checkpoints.restore_optimizer(checkpoints.load(path)[0]["optimizer"], fresh, again)
    for module in (model, again):
        module.zero_grad()
    step(model, optimizer)
    step(again, fresh)
    assert torch.equal(model.weight, again.weight)
    assert torch.equal(model.bias, again.bias)


def test_a_checkpoint_that_somebody_put_aside_is_left_alone(tmp_path: Path) -> None:
    for name in ("checkpoint-4", "checkpoint-8.bad", "checkpoint-12-old"):
        (tmp_path / name).mkdir()
    assert checkpoints.last(tmp_path) == tmp_path / "checkpoint-4"
