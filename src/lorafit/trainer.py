"""The loop of a training: transformers' Trainer with our batches, our validation and our checkpoints."""

import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from peft.tuners.lora import LoraLayer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from lorafit import adapter, checkpoints, ranks, tasks
from lorafit.averaging import Average
from lorafit.batches import Batches
from lorafit.checkpoints import State
from lorafit.epochs import Best
from lorafit.guards import Guard
from lorafit.interrupts import Interruption
from lorafit.manifest import LongText
from lorafit.recipe import Training
from lorafit.runtime import Runtime
from lorafit.tokens import ask

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}

OnBatch = Callable[[], None]
Validate = Callable[[torch.nn.Module, OnBatch], dict[str, float]]
Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, eq=False)
class Share:
    """What of a batch one rank has; of a process that is alone it is all of it.

    Attributes:
        weight: by which its mean loss is multiplied, so that the mean over the ranks is that over the batch.
        tokens: of the whole batch.
        label_ids: of the whole batch.
    """

    weight: float
    tokens: int
    label_ids: torch.Tensor


class ClassifierTrainer(Trainer):
    """Trainer with our batches, our validation, our choice of the best epoch, our checkpoints, and our history.

    What it is given is explained at `training.fit`.
    """

    control: TrainerControl

    def __init__(
        self,
        settings: Training,
        *,
        batches: Batches,
        long_text: LongText,
        class_weights: torch.Tensor | None,
        guess: torch.Tensor,
        validate: Validate,
        log: Log,
        guard: Guard,
        advance: Callable[[int], None],
        interruption: Interruption,
        folder: Path | None,
        where: Runtime,
        seed: int,
        **trainer: Any,
    ) -> None:
        self._best, self._average = Best(settings.select_by), Average(settings.average)
        callbacks = [_Averaging(self._average), _Progress(advance, interruption)]
        super().__init__(args=_arguments(settings, folder, where, seed), callbacks=callbacks, **trainer)
        self.remove_callback(PrinterCallback)
        self._settings, self._batches, self._long_text = settings, batches, long_text
        self._class_weights, self._guess = class_weights, guess
        self._guess_loss = guess.new_zeros(())  # of the last step's texts
        self._validate, self._log, self._guard, self._interruption = validate, log, guard, interruption
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
        """Return what gives our batches."""
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # else an epoch's start draws from torch's own: twice, when it is resumed
        )
        # Each rank meets every batch whole, and takes its share of it: what accelerate would deal out is whole batches.
        prepared: DataLoader[int] = prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Make Trainer's own, with LoRA+ on top of it."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new and self._settings.lora_plus_ratio != 1:
            _speed_up_factor_b(optimizer, self.model, self._settings.lora_plus_ratio)
        return optimizer

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """Return the loss of the task; what transformers' heads compute by themselves knows no weights."""
        share: Share = inputs["share"]
        labels = share.label_ids.to(self._guess.device)
        self._guess_loss = tasks.loss(self._guess.expand(len(labels), -1), labels, self._class_weights)
        loss = loss_of(model, inputs, self._long_text, self._class_weights)
        return loss if share.weight == 1 else loss * share.weight

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the gradients; broken off after a signal if that takes long, for no weight has moved yet."""
        self._tokens_since_log += inputs["share"].tokens
        generators = checkpoints.of_generators()
        try:
            with self._may_break_off():
                loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        except (KeyboardInterrupt, SystemExit):
            checkpoints.restore_generators(generators)
            self._save_what_was_reached()
            raise
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write the step's line, then let Trainer tell its trackers."""
        if "loss" in logs:
            self._guard.look_at_step(self.model, self.state.global_step, logs, self._guess_loss.item())
            tokens, seconds = self._tokens_since_log, self._seconds_since_log()
            self._tokens_since_log = 0
            logs["tokens_per_second"] = tokens / seconds
            line = {"step": self.state.global_step, "epoch": self.state.epoch, "tokens": tokens, "seconds": seconds}
            self._log(line | logs)
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate, keep the weights when they are the best so far, and look whether something is wrong."""
        try:
            with self._average.in_place(self.model), self._may_break_off():
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

    def _may_break_off(self) -> AbstractContextManager[None]:
        """Let a signal in, where no other rank would wait for this one."""
        return self._interruption.breaking_off() if ranks.count() == 1 else nullcontext()

    def _patience_is_over(self) -> bool:
        return self._validated - self._best.epoch >= self._settings.early_stopping > 0

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
        generators = ranks.of_all(checkpoints.of_generators())
        if not ranks.is_first():
            return
        states = {
            "weights": State(adapter.trained_weights(self.model)),
            "best": self._best.state(),
            "average": self._average.state(),
            "optimizer": checkpoints.of_optimizer(self.optimizer, self.model),
            "schedule": State({}, self.lr_scheduler.state_dict()),
            "progress": State({}, {"validated": self._validated}),
            "guard": self._guard.state(),
        }
        states |= {_generators_of(rank): state for rank, state in enumerate(generators)}
        trainer = replace(self.state, log_history=[])  # our history has it; here it would grow with every step
        checkpoints.save(self._folder / self._checkpoint, states, trainer)

    @property
    def _checkpoint(self) -> str:
        return f"checkpoint-{self.state.global_step}"

    def _save_what_was_reached(self) -> None:
        if ranks.count() > 1:  # the others may be in the middle of a step, and would not come to it
            return
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
            own = _generators_of(ranks.rank())
            checkpoints.restore_generators(self._resumed[own if own in self._resumed else _generators_of(0)])


def _generators_of(rank: int) -> str:
    return f"generators-{rank}" if rank else "generators"


def loss_of(
    model: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    long_text: LongText,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean loss of a batch, a scalar."""
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
        average_tokens_across_devices=False,  # the shares' weights do that
        ddp_find_unused_parameters=False,  # each has its gradient at every step
        ddp_broadcast_buffers=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process would be wrapped in DataParallel
    return arguments


def let_signals_in(model: torch.nn.Module) -> None:
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
        if ranks.any_of(self._interruption.waits):  # all stop behind the same step
            self._interruption.note_if_new(signal.SIGTERM)
            control.should_save = True

    def on_save(self, *_: Any, **__: Any) -> None:
        self._interruption.let_out()
