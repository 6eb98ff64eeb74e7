"""Train adapter and head.

Ours are the order of the texts, the choice of the best epoch, the guards and the checkpoints; the loop, the optimizer,
the schedule and trackers are transformers'.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers.integrations import get_available_reporting_integrations

from lorafit import adapter, interrupts, padfree, ranks, tasks
from lorafit.batches import Batches, shares
from lorafit.console import bar
from lorafit.errors import RecipeError
from lorafit.guards import Guard
from lorafit.recipe import Training
from lorafit.runtime import Runtime
from lorafit.tokens import Tokens, pad
from lorafit.trainer import ClassifierTrainer, Log, Share, Validate, let_signals_in, loss_of

_TOKENS_MEASURED = 2048  # of a batch, whose time tells the speed; with few tokens it is the layers' own time


@dataclass(frozen=True)
class Plan:
    """What training is going to do, said before it starts."""

    steps: int
    tokens: int  # of all epochs, padding not counted
    estimated_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What training did. The model holds the best epoch's weights."""

    best: dict[str, float]
    """The best epoch's scores on the validation texts."""
    best_epoch: int
    steps: int
    epochs: int


def plan(
    model: PeftModel, tokens: Tokens, label_ids: np.ndarray, settings: Training, pad_id: int, where: Runtime
) -> Plan:
    """Return steps, tokens and an estimate of the time, from some texts of median length trained and thrown away."""
    steps = math.ceil(len(tokens) / settings.batch_size) * settings.epochs
    batch = _collate(_of_median_length(tokens, settings.batch_size), tokens, label_ids, pad_id)
    model.to(where.device).train()
    seconds = []
    with (
        bar("Measuring the speed", total=3) as advance,
        torch.random.fork_rng(),
    ):  # dropout must not move the generators that training starts from
        for _ in range(3):
            start = time.perf_counter()
            with where.autocast():
                loss = loss_of(model, {key: value.to(where.device) for key, value in batch.items()}, tokens.long_text)
            loss.backward()  # type: ignore[no-untyped-call]
            if where.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            model.zero_grad()
            advance(1)
    all_tokens = int(tokens.lengths.sum()) * settings.epochs
    measured = int(batch["attention_mask"].sum()) * ranks.count()
    return Plan(steps, all_tokens, min(seconds) * all_tokens / measured)


def fit(
    model: PeftModel,
    tokens: Tokens,
    label_ids: np.ndarray,
    settings: Training,
    *,
    validate: Validate,
    validation_label_ids: np.ndarray,
    log: Log,
    folder: Path | None,
    pad_id: int,
    where: Runtime,
    seed: int = 0,
    resume: Path | None = None,
) -> Outcome:
    """Train the model's adapter and head in place; it ends with the weights of the best epoch.

    Ctrl-C and SIGTERM take effect at the end of the step, after three seconds within it, or between two batches of a
    validation; behind a checkpoint.

    Args:
        model: from `adapter.attach`.
        tokens: the training texts.
        label_ids: their label ids.
        settings: the recipe's table ``[training]``.
        validate: gives the model's scores on the validation texts: "accuracy", "f1", "recall", "loss". It calls its
            second argument now and then, which raises an interruption that waits.
        validation_label_ids: their label ids; the guard learns from them what guessing would score.
        log: is given one line a step and one a validation.
        folder: for checkpoints; empty, or the one with `resume`. None: none are written.
        pad_id: the tokenizer's padding id.
        where: device and precision.
        seed: decides the order of the texts, and dropout.
        resume: a checkpoint to go on from.

    Raises:
        RunError: the checkpoint is damaged, or the loss is not a number any more.
        StorageError: a disk that is full or not writable.
        KeyboardInterrupt, SystemExit: Ctrl-C, or SIGTERM.
    """
    batches = Batches(tokens.lengths, settings.batch_size, seed, by_length=not padfree.is_enabled(model))
    guard = Guard(
        validation_label_ids, adapter.trained_weights(model), settings, epoch_steps=len(batches), folder=folder
    )
    class_weights, guess = _constants(settings, label_ids, model.config.num_labels)
    with interrupts.kept() as interruption, bar("Training", total=len(batches) * settings.epochs) as advance:
        trainer = ClassifierTrainer(
            settings,
            batches=batches,
            long_text=tokens.long_text,
            class_weights=None if class_weights is None else class_weights.to(where.device),
            guess=guess.to(where.device),
            validate=validate,
            log=log,
            guard=guard,
            advance=advance,
            interruption=interruption,
            folder=folder,
            where=where,
            seed=seed,
            model=model,
            train_dataset=_Rows(len(tokens)),
            eval_dataset=_Rows(len(validation_label_ids)),  # Trainer insists on one; its `evaluate` is what looks
            data_collator=lambda rows: _share(rows, tokens, label_ids, pad_id, class_weights),
        )
        if not padfree.is_enabled(model):
            let_signals_in(model)
        best = trainer.train_from(resume)
    best.restore(model)
    return Outcome(best.scores, best.epoch, trainer.state.global_step, trainer.epochs)


def refuse_missing_trackers(report_to: list[str]) -> None:
    """Refuse a tracker that transformers can't report to on this machine.

    Raises:
        RecipeError: names it, and those there are.
    """
    there = get_available_reporting_integrations()
    for tracker in report_to:
        if tracker not in there:
            raise RecipeError(
                f"training.report_to: {tracker} is not installed here, or transformers does not know it; "
                f"there {'is ' + ', '.join(there) if there else 'is none yet: pip install tensorboard, for example'}."
            )


def _of_median_length(tokens: Tokens, most: int) -> list[int]:
    """Return the rows of a batch as training has them, or of as many texts as the speed can be told from."""
    order = np.argsort(tokens.lengths, kind="stable")
    enough = max(2, _TOKENS_MEASURED // int(tokens.lengths[order[len(order) // 2]]))
    start = max(0, (len(order) - min(most, enough)) // 2)
    return [int(row) for row in order[start:][: min(most, enough)]]


class _Rows(Dataset[int]):
    """Text numbers as a data set: what they stand for is looked up when a batch is made."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> int:
        return row


def _share(
    rows: list[int], tokens: Tokens, label_ids: np.ndarray, pad_id: int, class_weights: torch.Tensor | None
) -> dict[str, Any]:
    """Return this rank's texts of a batch, and what share of it they are."""
    own = shares(rows, tokens.lengths, ranks.count())[ranks.rank()]
    weight = ranks.count() * _mass(label_ids[own], class_weights) / _mass(label_ids[rows], class_weights)
    share = Share(weight, int(tokens.lengths[rows].sum()), torch.from_numpy(label_ids[rows]))
    # Of fewer texts than ranks, some have one that counts nothing: gradients are exchanged by all or none.
    return _collate(own or rows[:1], tokens, label_ids, pad_id) | {"share": share}


def _mass(label_ids: np.ndarray, class_weights: torch.Tensor | None) -> float:
    """Return by what the sum of some texts' losses is divided to be their mean."""
    if class_weights is None or label_ids.ndim == 2:
        return float(len(label_ids))
    return float(class_weights.cpu()[label_ids].double().sum())


def _collate(rows: list[int], tokens: Tokens, label_ids: np.ndarray, pad_id: int) -> dict[str, torch.Tensor]:
    return pad(tokens, rows, pad_id) | {"labels": torch.from_numpy(label_ids[rows])}


def _constants(settings: Training, label_ids: np.ndarray, labels: int) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return the weights of the loss, if it has any, and the best guess under it, (labels) each."""
    if settings.class_weights == "none":
        return None, torch.from_numpy(tasks.guess(label_ids, labels))
    weights = tasks.class_weights(label_ids, labels)
    return torch.from_numpy(weights), torch.from_numpy(tasks.guess(label_ids, labels, weights))
