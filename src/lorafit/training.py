"""Train adapter and head: a thin subclass of transformers' Trainer.

Ours are the order of the texts, the choice of the best epoch, and the guards; the loop, the optimizer, the schedule,
trackers and checkpoints are transformers'.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback

from lorafit import adapter, padfree
from lorafit.batches import Batches
from lorafit.console import bar
from lorafit.epochs import Best, Guard
from lorafit.errors import RecipeError
from lorafit.files import storing
from lorafit.recipe import Training
from lorafit.runtime import Runtime
from lorafit.tokens import Tokens, pad

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
CHECKPOINTS_KEPT = 2

Validate = Callable[[torch.nn.Module], dict[str, float]]
Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """What training is going to do, said before it starts."""

    steps: int
    tokens: int  # of all epochs, padding not counted
    estimated_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What training did. The model holds the best epoch's weights."""

    best_accuracy: float
    best_epoch: int
    steps: int
    epochs: int


def plan(
    model: PeftModel, tokens: Tokens, label_ids: np.ndarray, settings: Training, pad_id: int, where: Runtime
) -> Plan:
    """Return steps, tokens and an estimate of the time, from two texts of median length trained and thrown away."""
    steps = math.ceil(len(tokens) / settings.batch_size) * settings.epochs
    middle = np.argsort(tokens.lengths, kind="stable")[len(tokens) // 2 :][:2].tolist()
    batch = _collate(middle, tokens, label_ids, pad_id)
    model.to(where.device).train()
    seconds = []
    with (
        bar("Measuring the speed", total=3) as advance,
        torch.random.fork_rng(),
    ):  # dropout must not move the generators that training starts from
        for _ in range(3):
            start = time.perf_counter()
            with where.autocast():
                loss = model(**{key: value.to(where.device) for key, value in batch.items()}).loss
            loss.backward()
            if where.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            model.zero_grad()
            advance(1)
    all_tokens = int(tokens.lengths.sum()) * settings.epochs
    return Plan(steps, all_tokens, min(seconds) * all_tokens / int(batch["attention_mask"].sum()))


def fit(
    model: PeftModel,
    tokens: Tokens,
    label_ids: np.ndarray,
    settings: Training,
    *,
    validate: Validate,
    validation_label_ids: np.ndarray,
    log: Log,
    checkpoints: Path,
    pad_id: int,
    where: Runtime,
    seed: int = 0,
    resume: Path | None = None,
) -> Outcome:
    """Train the model's adapter and head in place; it ends with the weights of the best epoch.

    Args:
        model: from `adapter.attach`.
        tokens: the training texts.
        label_ids: their label ids.
        settings: the recipe's table ``[training]``.
        validate: gives "accuracy" and "loss" (and what else is worth keeping) of the model on the validation texts.
        validation_label_ids: their label ids; the guard learns from them what guessing would score.
        log: is given one line a step and one a validation.
        checkpoints: the folder for checkpoints and the best weights so far.
        pad_id: the tokenizer's padding id.
        where: device and precision.
        seed: decides the order of the texts, and dropout.
        resume: a checkpoint to go on from.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    guard = Guard(validation_label_ids, adapter.trained_weights(model))
    best = Best(checkpoints / "best", keep=resume is not None)
    batches = Batches(tokens.lengths, settings.batch_size, seed, by_length=not padfree.is_enabled(model))
    trainer = _Trainer(
        batches=batches,
        patience=settings.early_stopping,
        validate=validate,
        log=log,
        best=best,
        guard=guard,
        model=model,
        args=_arguments(settings, checkpoints, where, seed, resumed=resume is not None),
        train_dataset=_Rows(len(tokens)),
        eval_dataset=_Rows(len(validation_label_ids)),  # Trainer insists on one; `evaluate` below is what looks
        data_collator=lambda rows: _collate(rows, tokens, label_ids, pad_id),
    )
    trainer.remove_callback(PrinterCallback)
    with _interrupted_between_steps() as interrupted, bar("Training", total=len(batches) * settings.epochs) as advance:
        trainer.add_callback(_Progress(advance, interrupted))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    best.restore(model)
    return Outcome(best.accuracy, best.epoch, trainer.state.global_step, round(trainer.state.epoch or 0))


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


def last_checkpoint(checkpoints: Path) -> Path | None:
    """Return the newest checkpoint that was written whole, or None."""
    whole = [folder for folder in checkpoints.glob("checkpoint-*") if _is_whole(folder)]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether the file that Trainer writes last is there to its end."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


class _Rows(Dataset[int]):
    """Text numbers as a data set: what they stand for is looked up when a batch is made."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> int:
        return row


def _collate(rows: list[int], tokens: Tokens, label_ids: np.ndarray, pad_id: int) -> dict[str, torch.Tensor]:
    return pad(tokens, rows, pad_id) | {"labels": torch.from_numpy(label_ids[rows])}


def _arguments(settings: Training, checkpoints: Path, where: Runtime, seed: int, *, resumed: bool) -> TrainingArguments:
    every_epoch = settings.checkpoint_every == "epoch"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=_SCHEDULES[settings.schedule],
        warmup_steps=settings.warmup,  # below 1: a share of all steps
        weight_decay=settings.weight_decay,
        bf16=where.autocasts,
        use_cpu=where.device == "cpu",
        seed=seed,
        eval_strategy="epoch",
        eval_on_start=not resumed,  # with B at zero this is the base: the line that the accuracy starts from
        save_strategy="epoch" if every_epoch else "steps",
        save_steps=500 if every_epoch else settings.checkpoint_every,
        save_total_limit=CHECKPOINTS_KEPT,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=settings.report_to or "none",
        label_names=["labels"],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=where.device != "cpu",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process would be wrapped in DataParallel
    return arguments


class _Trainer(Trainer):
    """Trainer with our batches, our validation, our choice of the best epoch, and our history."""

    control: TrainerControl

    def __init__(
        self,
        *,
        batches: Batches,
        patience: int,
        validate: Validate,
        log: Log,
        best: Best,
        guard: Guard,
        **trainer: Any,
    ) -> None:
        super().__init__(**trainer)
        self._batches = batches
        self._patience = patience  # epochs without gain; 0 = for ever
        self._validate, self._log, self._best, self._guard = validate, log, best, guard
        self._tokens_since_log = 0
        self._last_log = time.perf_counter()

    def get_train_dataloader(self) -> DataLoader[int]:
        loader = DataLoader(self.train_dataset, batch_sampler=self._batches, collate_fn=self.data_collator)
        prepared: DataLoader[int] = self.accelerator.prepare(loader)
        return prepared

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self._tokens_since_log += int(inputs["attention_mask"].sum())
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the step's line, then let Trainer tell its trackers."""
        if "loss" in logs:
            tokens, seconds = self._tokens_since_log, self._seconds_since_log()
            self._tokens_since_log = 0
            logs["tokens_per_second"] = tokens / seconds
            line = {"step": self.state.global_step, "epoch": self.state.epoch, "tokens": tokens, "seconds": seconds}
            self._log(line | logs)
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate, keep the weights when they are the best so far, and look whether something is wrong."""
        scores = self._validate(self.model)
        epoch = round(self.state.epoch or 0)
        seconds = self._seconds_since_log()
        self._log({"step": self.state.global_step, "epoch": epoch, "seconds": seconds, "validation": scores})
        if epoch > 0:
            self._best.offer(self.model, scores["accuracy"], scores["loss"], epoch)
            self._guard.look(self.model, scores["accuracy"], epoch)
            if self._patience and epoch - self._best.epoch >= self._patience:
                self.control.should_training_stop = True
        metrics = {f"eval_{name}": value for name, value in scores.items()}
        super().log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _seconds_since_log(self) -> float:
        now = time.perf_counter()
        seconds, self._last_log = now - self._last_log, now
        return seconds

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with storing(Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)


@contextmanager
def _interrupted_between_steps() -> Iterator[threading.Event]:
    """Keep the first Ctrl-C for the end of the step or of it all, where no finalizer can swallow it.

    A second one is Python's.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield interrupted
        return

    def note(*_: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
        if interrupted.is_set():  # in the last validation, behind which no step comes
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)


class _Progress(TrainerCallback):
    """Moves our progress bar."""

    def __init__(self, advance: Callable[[int], None], interrupted: threading.Event) -> None:
        self._advance, self._interrupted = advance, interrupted

    def on_train_begin(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        self._advance(state.global_step)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._advance(1)
        if self._interrupted.is_set():
            raise KeyboardInterrupt
