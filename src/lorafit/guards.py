"""What speaks up when training does not do what training should: each thing once a run, in a sentence or two."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from warnings import warn

import numpy as np
import torch

from lorafit import adapter, checkpoints
from lorafit.checkpoints import State
from lorafit.errors import LorafitWarning, RunError
from lorafit.recipe import Training

# Rates of AdamW for LoRA. bert-base on IMDB stays at chance (49.3%) with 2e-5, a usual rate of full fine-tuning, and
# reaches 92.8% with 1e-3; the bundled encoder is best at 1e-3 to 2e-3. So: a tenth of the one, ten times the other.
LOWEST_RATE, USUAL_RATE, HIGHEST_RATE = 1e-4, 1e-3, 2e-2
SMALLEST_MOVE = LOWEST_RATE / 10  # a weight that learns moves by about the learning rate at every step
STEPS_TO_MOVE = 20  # behind the warm-up
FEWEST_STEPS = 50  # whose losses are looked at together; or a quarter of an epoch, whichever is more
FALL = 0.05  # of the training loss from one such stretch to the next: it learns, though it be above a guess's still
PATIENCE = 3  # epochs in a row, of which none is an accident
RISE = 1.1  # of a validation loss, over those epochs: less does no harm


def look_at_rate(learning_rate: float, lora_plus_ratio: float = 1.0) -> None:
    """Warn if the rate is far from what LoRA needs; with LoRA+, that of the factors B.

    >>> look_at_rate(1e-3)
    """
    rate = learning_rate * lora_plus_ratio
    name = "training.learning_rate" + (" times lora_plus_ratio" if lora_plus_ratio != 1 else "")
    if rate < LOWEST_RATE:
        _warn(
            f"{name} is {rate:g}, a rate of full fine-tuning: below {LOWEST_RATE:g} LoRA learns little, and may stay "
            f"at chance. Try {USUAL_RATE:g}."
        )
    elif rate > HIGHEST_RATE:
        _warn(f"{name} is {rate:g}: above {HIGHEST_RATE:g} LoRA seldom learns, and often diverges. Try {USUAL_RATE:g}.")


def diverged(fault: str, learning_rate: float, folder: Path | None) -> RunError:
    """Return the error that ends a training whose numbers are none any more; it names the best weights that are kept.

    Args:
        fault: what was found.
        learning_rate: of the recipe.
        folder: of the checkpoints; None: there are none.
    """
    advice = f"Lower training.learning_rate (it is {learning_rate:g}) and train anew."
    last = checkpoints.last(folder) if folder else None
    best = checkpoints.load(last)[0]["best"].facts["epoch"] if last else 0
    if last is None or not best:
        return RunError(f"Training has diverged: {fault}. {advice}")
    return RunError(
        f"Training has diverged: {fault}. {advice} The best weights so far, of epoch {best}, are kept in "
        f"{last / checkpoints.TENSORS}: those under best/ fit the PEFT model's load_state_dict. --out trains into "
        "another folder; --overwrite would remove them."
    )


class _Epoch(NamedTuple):
    accuracy: float
    loss: float
    training_loss: float  # the mean over its steps


@dataclass
class _Losses:
    """Sums over steps: of the training loss, and of what guessing would have had on the same texts."""

    loss: float = 0.0
    guess: float = 0.0
    steps: int = 0

    def add(self, loss: float, guess: float) -> None:
        self.loss, self.guess, self.steps = self.loss + loss, self.guess + guess, self.steps + 1

    @property
    def mean(self) -> float:
        return self.loss / self.steps if self.steps else math.nan

    @property
    def mean_guess(self) -> float:
        return self.guess / self.steps


class Guard:
    """Looks at each step and at the end of each epoch.

    Args:
        label_ids: of the validation texts, (texts) or (texts, labels); what guessing would score is known from them.
        start: the weights before training.
        settings: the recipe's table ``[training]``.
        epoch_steps: steps of an epoch.
        folder: of the checkpoints; None: there are none.
    """

    def __init__(
        self,
        label_ids: np.ndarray,
        start: dict[str, torch.Tensor],
        settings: Training,
        *,
        epoch_steps: int,
        folder: Path | None,
    ) -> None:
        self._texts = len(label_ids)
        self._chance = _chance(label_ids)
        self._guess = "commonest label" if label_ids.ndim == 1 else "commonest set of labels"
        self._start, self._settings, self._folder = start, settings, folder
        self._warmup = math.ceil(settings.warmup * settings.epochs * epoch_steps)
        self._stretch_steps = max(FEWEST_STEPS, math.ceil(epoch_steps / 4))
        self._epoch, self._stretch, self._stretch_before = _Losses(), _Losses(), _Losses()
        self._epochs: list[_Epoch] = []
        self._said = set[str]()

    def state(self) -> State:
        """Return what a checkpoint keeps of it: what was seen, and what was said."""
        losses = [asdict(of) for of in (self._epoch, self._stretch, self._stretch_before)]
        return State({}, {"epochs": self._epochs, "losses": losses, "said": sorted(self._said)})

    def remember(self, state: State) -> None:
        """Go on from what a checkpoint kept."""
        self._epochs = [_Epoch(*epoch) for epoch in state.facts["epochs"]]
        if "losses" in state.facts:  # an earlier version kept none
            self._epoch, self._stretch, self._stretch_before = (_Losses(**of) for of in state.facts["losses"])
        self._said = set(state.facts["said"])

    def look_at_step(self, model: torch.nn.Module, step: int, logs: Mapping[str, float], guess: float) -> None:
        """Stop a training whose loss or gradient is not a number: its weights are none either, or soon.

        Warn if by now a trainable weight should have moved, or the training loss be lower than a guess's.

        Args:
            model: after the step.
            step: from 1.
            logs: the step's "loss" and "grad_norm".
            guess: the loss on the same texts of the answer that `tasks.guess` gives to all.

        Raises:
            RunError: says what is not a number.
        """
        for name, what in {"loss": "loss", "grad_norm": "gradient"}.items():
            if not math.isfinite(logs.get(name, 0.0)):
                rate = self._settings.learning_rate
                raise diverged(f"the {what} of step {step} is not a number", rate, self._folder)
        self._epoch.add(logs["loss"], guess)
        if step == self._warmup + STEPS_TO_MOVE:
            self._look_at_weights(model, f"After step {step}")
        if step > self._warmup:
            self._stretch.add(logs["loss"], guess)
        if self._stretch.steps == self._stretch_steps:
            self._look_at_stretch(step)

    def _look_at_stretch(self, step: int) -> None:
        before, last = self._stretch_before, self._stretch
        self._stretch_before, self._stretch = last, _Losses()
        if before.steps and last.mean >= max(last.mean_guess, (1 - FALL) * before.mean):
            self._once(
                "chance",
                f"After step {step} the training loss of the last {last.steps} steps is {last.mean:.3f}, no better "
                f"than guessing by how common each label is ({last.mean_guess:.3f}). {self._another_rate()}; check "
                "the labels too.",
            )

    def look(self, model: torch.nn.Module, scores: Mapping[str, float], epoch: int) -> None:
        """Warn if no trainable weight has moved, answers are still at chance, or validation gets worse and worse."""
        self._epochs.append(_Epoch(scores["accuracy"], scores["loss"], self._epoch.mean))
        self._epoch = _Losses()
        moved = self._look_at_weights(model, f"After epoch {epoch}")
        if moved and all(scores[name] <= limit for name, limit in self._chance.items()):
            self._once(
                "chance",
                f"After epoch {epoch} validation accuracy is {scores['accuracy']:.3f}, no better than guessing the "
                f"{self._guess}. {self._another_rate()}; check the labels too.",
            )
        if what := self._what_gets_worse():
            less = "fewer epochs" if self._settings.average else f"training.early_stopping = {PATIENCE}"
            self._once(
                "worse", f"After epoch {epoch} {what}. The best epoch's weights are kept; {less} would save the time."
            )

    def _look_at_weights(self, model: torch.nn.Module, when: str) -> bool:
        moved = self._moved(model) >= SMALLEST_MOVE
        if not moved:
            self._once("moves", f"{when} no trainable weight has moved. Is training.learning_rate too small?")
        return moved

    def _another_rate(self) -> str:
        rate = self._settings.learning_rate
        if rate < USUAL_RATE:
            return f"LoRA often needs a higher training.learning_rate (about {USUAL_RATE:g})"
        return f"Try another training.learning_rate (it is {rate:g})"

    def _moved(self, model: torch.nn.Module) -> float:
        now = adapter.trained_weights(model)
        return max(float((now[name] - self._start[name].to(now[name])).abs().max()) for name in now)

    def _what_gets_worse(self) -> str | None:
        before, last = self._epochs[:-PATIENCE], self._epochs[-PATIENCE:]
        if not before or self._settings.early_stopping:
            return None
        best = max(epoch.accuracy for epoch in before)
        if all(self._is_below(epoch.accuracy, best) for epoch in last):
            return f"validation accuracy has been clearly below its best, {best:.3f}, for {PATIENCE} epochs"
        pairs = list(pairwise([before[-1], *last]))
        learns_by_heart = all(old.loss < new.loss and old.training_loss > new.training_loss for old, new in pairs)
        gains = max(epoch.accuracy for epoch in last) > best
        if learns_by_heart and not gains and last[-1].loss > RISE * before[-1].loss:
            return (
                f"validation loss has risen for {PATIENCE} epochs, from {before[-1].loss:.3f} to {last[-1].loss:.3f}, "
                "while training loss fell"
            )
        return None

    def _is_below(self, accuracy: float, best: float) -> bool:
        """Tell whether two accuracies are two standard errors of their difference apart."""
        variance = (accuracy * (1 - accuracy) + best * (1 - best)) / self._texts
        return best - accuracy > 2 * math.sqrt(variance)

    def _once(self, kind: str, sentence: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            _warn(sentence)


def _chance(label_ids: np.ndarray) -> dict[str, float]:
    """Return the scores up to which nothing need have been learnt: those of a guess, and two standard errors of luck.

    Accuracy is that of always guessing the commonest, and no more than half-way from there to 1. Where labels are
    unbalanced that is much; of one label a text, macro recall tells: 1 / labels for any guess.
    """
    counts = np.unique(label_ids, axis=0, return_counts=True)[1]
    commonest, share = counts.max() / counts.sum(), 1 / len(counts)
    luck = 2 * math.sqrt(commonest * (1 - commonest) / counts.sum())
    accuracy = {"accuracy": commonest + min(luck, (1 - commonest) / 2)}
    if label_ids.ndim == 2:
        return accuracy
    return accuracy | {"recall": share + 2 * math.sqrt(share * (1 - share) * share * (1 / counts).mean())}


def _warn(sentence: str) -> None:
    warn(sentence, LorafitWarning, stacklevel=3)
