"""Train adapter and head: a thin subclass of transformers' Trainer.

Ours are the order of the texts, the choice of the best epoch, the guards and the checkpoints; the loop, the optimizer,
the schedule and trackers are transformers'.
"""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback

from lorafit import adapter, checkpoints, interrupts, padfree, tasks
from lorafit.averaging import Average
from lorafit.batches import Batches
from lorafit.checkpoints import State
from lorafit.console import bar
from lorafit.epochs import Best
from lorafit.errors import RecipeError
from lorafit.guards import Guard
from lorafit.interrupts import Interruption
from lorafit.manifest import LongText
from lorafit.recipe import Training
from lorafit.runtime import Runtime
from lorafit.tokens import Tokens, ask, pad

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}

OnBatch = Callable[[], None]
Validate = Callable[[torch.nn.Module, OnBatch], dict[str, float]]
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

    best: dict[str, float]
    """The best epoch's scores on the validation texts."""
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
                loss = _loss(model, {key: value.to(where.device) for key, value in batch.items()}, tokens.long_text)
            loss.backward()  # type: ignore[no-untyped-call]
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
        validation_label_ids,
        adapter.trained_weights(model),
        learning_rate=settings.learning_rate,
        stops_early=settings.early_stopping > 0,
        folder=folder,
    )
    average = Average(settings.average)
    with interrupts.kept() as interruption, bar("Training", total=len(batches) * settings.epochs) as advance:
        trainer = _Trainer(
            batches=batches,
            long_text=tokens.long_text,
            best=Best(settings.select_by),
            average=average,
            patience=settings.early_stopping,
            lora_plus_ratio=settings.lora_plus_ratio,
            class_weights=_class_weights(settings, label_ids, model, where),
            validate=validate,
            log=log,
            guard=guard,
            interruption=interruption,
            model=model,
            folder=folder,
            args=_arguments(settings, folder, where, seed),
            train_dataset=_Rows(len(tokens)),
            eval_dataset=_Rows(len(validation_label_ids)),  # Trainer insists on one; `evaluate` below is what looks
            data_collator=lambda rows: _collate(rows, tokens, label_ids, pad_id),
            callbacks=[_Averaging(average), _Progress(advance, interruption)],
        )
        trainer.remove_callback(PrinterCallback)
        if not padfree.is_enabled(model):
            _let_signals_in(model)
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


def _loss(
    model: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    long_text: LongText,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    return tasks.loss(ask(model, batch, long_text), batch["labels"], class_weights)


def _arguments(settings: Training, folder: Path | None, where: Runtime, seed: int) -> TrainingArguments:
    every_epoch = settings.checkpoint_every == "epoch"
    arguments = TrainingArguments(
        output_dir=str(folder or tempfile.gettempdir()),  # Trainer insists on one, and makes it
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
        save_strategy="epoch" if every_epoch else "steps",
        save_steps=500 if every_epoch else settings.checkpoint_every,
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
    """Trainer with our batches, our validation, our choice of the best epoch, our checkpoints, and our history."""

    control: TrainerControl

    def __init__(
        self,
        *,
        batches: Batches,
        long_text: LongText,
        best: Best,
        average: Average,
        patience: int,
        lora_plus_ratio: float,
        class_weights: torch.Tensor | None,
        validate: Validate,
        log: Log,
        guard: Guard,
        interruption: Interruption,
        folder: Path | None,
        **trainer: Any,
    ) -> None:
        super().__init__(**trainer)
        self._batches, self._long_text = batches, long_text
        self._patience = patience  # epochs without gain; 0 = for ever
        self._lora_plus_ratio = lora_plus_ratio
        self._class_weights = class_weights
        self._validate, self._log, self._guard, self._interruption = validate, log, guard, interruption
        self._best, self._average = best, average
        self._folder = folder
        self._validated = -1  # the last epoch that was; 0 is the base's
        self._resumed: dict[str, State] = {}
        self._tokens_since_log = 0
        self._last_log = time.perf_counter()

    @property
    def epochs(self) -> int:
        """Epochs that have ended."""
        return int(self.state.global_step) // len(self._batches)

    def train_from(self, checkpoint: Path | None) -> Best:
        """Train from the beginning or from a checkpoint; returns the best weights there were."""
        if checkpoint is not None:
            self._restore(checkpoint)
        if self._validated < self.epochs:  # the base, from which the accuracy starts; or one that was broken off
            self.evaluate()
        if not self._patience_is_over():
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return self._best

    def get_train_dataloader(self) -> DataLoader[int]:
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # else an epoch's start draws from torch's own: twice, when it is resumed
        )
        prepared: DataLoader[int] = self.accelerator.prepare(loader)
        return prepared

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new and self._lora_plus_ratio != 1:
            _speed_up_factor_b(optimizer, self.model, self._lora_plus_ratio)
        return optimizer

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """Return the loss of the task; what transformers' heads compute by themselves knows no weights."""
        return _loss(model, inputs, self._long_text, self._class_weights)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the gradients; broken off after a signal if that takes long, for no weight has moved yet."""
        self._tokens_since_log += int(inputs["attention_mask"].sum())
        generators = checkpoints.of_generators()
        try:
            with self._interruption.breaking_off():
                loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        except (KeyboardInterrupt, SystemExit):
            checkpoints.restore_generators(generators)
            self._save_what_was_reached()
            raise
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the step's line, then let Trainer tell its trackers."""
        if "loss" in logs:
            self._guard.look_at_step(self.state.global_step, logs)
            tokens, seconds = self._tokens_since_log, self._seconds_since_log()
            self._tokens_since_log = 0
            logs["tokens_per_second"] = tokens / seconds
            line = {"step": self.state.global_step, "epoch": self.state.epoch, "tokens": tokens, "seconds": seconds}
            self._log(line | logs)
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate, keep the weights when they are the best so far, and look whether something is wrong."""
        try:
            with self._average.in_place(self.model), self._interruption.breaking_off():
                scores = self._validate(self.model, self._interruption.let_out)
        except (KeyboardInterrupt, SystemExit):
            self._save_what_was_reached()
            raise
        epoch = self._validated = self.epochs
        seconds = self._seconds_since_log()
        self._log({"step": self.state.global_step, "epoch": epoch, "seconds": seconds, "validation": scores})
        if epoch > 0:
            with self._average.in_place(self.model):
                self._best.offer(self.model, scores, epoch)
                self._guard.look(self.model, scores, epoch)
            if self._patience_is_over():
                self.control.should_training_stop = True
        metrics = {f"eval_{name}": value for name, value in scores.items()}
        if self.is_in_train:  # trackers open where Trainer begins; told before, they choose a place of their own
            super().log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _patience_is_over(self) -> bool:
        return self._validated - self._best.epoch >= self._patience > 0

    def _seconds_since_log(self) -> float:
        now = time.perf_counter()
        seconds, self._last_log = now - self._last_log, now
        return seconds

    def _restore(self, checkpoint: Path) -> None:
        """Take what a validation needs too; the rest waits until Trainer has made it."""
        self._resumed, self.state = checkpoints.load(checkpoint)
        self.model.load_state_dict(self._resumed["weights"].tensors, strict=False)
        self._best = Best(self._best.by, self._resumed["best"].tensors, **self._resumed["best"].facts)
        self._validated = self._resumed["progress"].facts["validated"]
        if "guard" in self._resumed:  # an earlier version kept none
            self._guard.remember(self._resumed["guard"])
        if "average" in self._resumed:  # nor this
            self._average.remember(self._resumed["average"])

    # The methods below replace Trainer's own format: pickles, written where they stay.

    def _save_checkpoint(self, *_: Any, **__: Any) -> None:
        if self._folder is None:
            return
        states = {
            "weights": State(adapter.trained_weights(self.model)),
            "best": self._best.state(),
            "average": self._average.state(),
            "optimizer": checkpoints.of_optimizer(self.optimizer, self.model),
            "schedule": State({}, self.lr_scheduler.state_dict()),
            "generators": checkpoints.of_generators(),
            "progress": State({}, {"validated": self._validated}),
            "guard": self._guard.state(),
        }
        trainer = replace(self.state, log_history=[])  # our history has it; here it would grow with every step
        checkpoints.save(self._folder / self._checkpoint, states, trainer)

    @property
    def _checkpoint(self) -> str:
        return f"checkpoint-{self.state.global_step}"

    def _save_what_was_reached(self) -> None:
        if self._folder is not None and self.state.global_step > 0 and not (self._folder / self._checkpoint).exists():
            self._save_checkpoint()

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """Do nothing: `_restore` has put the weights back."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.restore_optimizer(self._resumed["optimizer"], self.optimizer, self.model)
            self.lr_scheduler.load_state_dict(self._resumed["schedule"].facts)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.restore_generators(self._resumed["generators"])


def _class_weights(settings: Training, label_ids: np.ndarray, model: PeftModel, where: Runtime) -> torch.Tensor | None:
    if settings.class_weights == "none":
        return None
    return torch.from_numpy(tasks.class_weights(label_ids, model.config.num_labels)).to(where.device)


def _let_signals_in(model: torch.nn.Module) -> None:
    """Let Python have its turn at each adapted layer of a backward pass, which else is one call that no signal enters.

    padfree's own layers are written in Python there.
    """

    def give_a_turn(_layer: torch.nn.Module, _args: Any, answer: torch.Tensor) -> None:
        if answer.requires_grad:
            answer.register_hook(lambda _: None)  # type: ignore[no-untyped-call]

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.register_forward_hook(give_a_turn)


def _speed_up_factor_b(optimizer: torch.optim.Optimizer, model: torch.nn.Module, ratio: float) -> None:
    """Give LoRA's factors B a group with `ratio` times the rate.

    PEFT's own LoRA+ optimizer would do the same to every vector, such as the head's bias and whole LayerNorms, of which
    the paper says nothing.
    """
    ups = {weight for name, weight in model.named_parameters() if "lora_B" in name}
    for group in list(optimizer.param_groups):
        fast = [weight for weight in group["params"] if weight in ups]
        if fast:
            group["params"] = [weight for weight in group["params"] if weight not in ups]
            optimizer.add_param_group(group | {"params": fast, "lr": group["lr"] * ratio})


class _Averaging(TrainerCallback):
    """Takes the weights after each step into their mean, before they are validated or saved."""

    def __init__(self, average: Average) -> None:
        self._average = average

    def on_step_end(self, _args: Any, state: Any, _control: Any, *, model: torch.nn.Module, **_: Any) -> None:
        self._average.add(model, state.global_step, state.max_steps)


class _Progress(TrainerCallback):
    """Moves our progress bar, and lets an interruption out behind a checkpoint."""

    def __init__(self, advance: Callable[[int], None], interruption: Interruption) -> None:
        self._advance, self._interruption = advance, interruption

    def on_train_begin(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        self._advance(state.global_step)

    def on_step_end(self, _args: Any, _state: Any, control: TrainerControl, **_: Any) -> None:
        self._advance(1)
        control.should_save = control.should_save or self._interruption.waits

    def on_save(self, *_: Any, **__: Any) -> None:
        self._interruption.let_out()
