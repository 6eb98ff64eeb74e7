"""Checkpoints: everything that training goes on from after a step, as safetensors and JSON.

checkpoints/checkpoint-STEP/
  state.safetensors     adapter and head, now, in the best epoch, and the mean so far; the optimizer's moments; torch's
                        generators
  state.json            the optimizer's settings, the schedule, the other generators, the best epoch and its scores, the
                        last epoch that was validated, the steps in the mean, what the guard has seen and said
  trainer_state.json    transformers' own record of step and epoch, where its Trainer looks for it
  sha256.json           the SHA-256 of the other three
"""

import json
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerState

from lorafit.errors import RunError
from lorafit.files import new_folder, remove_unfinished, sha256_of

CHECKPOINTS_KEPT = 2
TENSORS, _FACTS, _TRAINER, _SUMS = "state.safetensors", "state.json", "trainer_state.json", "sha256.json"


@dataclass(frozen=True)
class State:
    """What one part of a training, such as the optimizer, goes on from: tensors by name, and what JSON holds."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, states: Mapping[str, State], trainer: TrainerState) -> None:
    """Write a checkpoint, whole or not at all, and remove all but the last two.

    Args:
        folder: checkpoints/checkpoint-STEP.
        states: by the name of the part.
        trainer: transformers' own.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    with new_folder(folder) as unfinished:
        _write(unfinished, states, trainer)
    remove_unfinished(folder.parent)
    for old in _oldest_first(folder.parent)[:-CHECKPOINTS_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> tuple[dict[str, State], TrainerState]:
    """Return the states in a checkpoint by their names, and transformers' own; nothing is unpickled.

    Raises:
        RunError: the checkpoint is not what was written.
    """
    _refuse_damaged(folder)
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    states = {part: State({}, values) for part, values in facts.items()}
    for key, tensor in load_file(folder / TENSORS).items():
        part, _, name = key.partition("/")
        states[part].tensors[name] = tensor
    return states, TrainerState.load_from_json(str(folder / _TRAINER))


def last(checkpoints: Path) -> Path | None:
    """Return the newest checkpoint in a folder, or None."""
    return next(reversed(_oldest_first(checkpoints)), None)


def of_optimizer(optimizer: Any, model: torch.nn.Module) -> State:
    """Return an optimizer's moments by parameter ("exp_avg/NAME"), and its groups' settings."""
    state, names = optimizer.state_dict(), _names(optimizer, model)
    moments = {f"{kind}/{names[place]}": value for place, of in state["state"].items() for kind, value in of.items()}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    return State(moments, {"groups": groups})


def restore_optimizer(state: State, optimizer: Any, model: torch.nn.Module) -> None:
    """Put moments and settings back into a fresh optimizer of the same model."""
    places = {name: place for place, name in enumerate(_names(optimizer, model))}
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in state.tensors.items():
        kind, _, name = key.partition("/")
        moments.setdefault(places[name], {})[kind] = tensor
    fresh = optimizer.state_dict()["param_groups"]
    groups = [new | old for new, old in zip(fresh, state.facts["groups"], strict=True)]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def of_generators() -> State:
    """Return where the random generators of torch, Python and numpy stand."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    kind, words, *rest = np.random.get_state()
    return State(tensors, {"python": random.getstate(), "numpy": [kind, np.asarray(words).tolist(), *rest]})


def restore_generators(state: State) -> None:
    """Put the random generators back to where they stood."""
    torch.set_rng_state(state.tensors["cpu"])
    if "cuda" in state.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(state.tensors["cuda"])
    version, words, gauss = state.facts["python"]
    random.setstate((version, tuple(words), gauss))
    kind, words, *rest = state.facts["numpy"]
    np.random.set_state((kind, np.array(words, dtype=np.uint32), *rest))


def _write(folder: Path, states: Mapping[str, State], trainer: TrainerState) -> None:
    tensors = {f"{part}/{name}": value for part, state in states.items() for name, value in state.tensors.items()}
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, folder / TENSORS)
    (folder / _FACTS).write_text(json.dumps({part: state.facts for part, state in states.items()}), encoding="utf-8")
    trainer.save_to_json(str(folder / _TRAINER))
    sums = {name: sha256_of(folder / name) for name in (TENSORS, _FACTS, _TRAINER)}
    (folder / _SUMS).write_text(json.dumps(sums), encoding="utf-8")


def _refuse_damaged(folder: Path) -> None:
    try:
        sums = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        damaged = [name for name in (TENSORS, _FACTS, _TRAINER) if sha256_of(folder / name) != sums[name]]
    except (OSError, ValueError, LookupError, TypeError):
        damaged = [_SUMS]
    if damaged:
        older = [other.name for other in _oldest_first(folder.parent) if other != folder]
        raise RunError(
            f"The checkpoint {folder} is damaged: {damaged[0]} is not what was written. "
            f"Remove that folder, and training goes on from {older[-1] if older else 'its beginning'}."
        )


def _oldest_first(checkpoints: Path) -> list[Path]:
    ours = [folder for folder in checkpoints.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", folder.name)]
    return sorted(ours, key=lambda folder: int(folder.name.rpartition("-")[2]))


def _names(optimizer: Any, model: torch.nn.Module) -> list[str]:
    """Return the names of the parameters, in the order in which the optimizer numbers them."""
    by_parameter = {parameter: name for name, parameter in model.named_parameters()}
    return [by_parameter[parameter] for group in optimizer.param_groups for parameter in group["params"]]
