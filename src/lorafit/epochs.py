"""What happens at the end of an epoch: the best weights so far are kept, and the guards look."""

import math
from dataclasses import dataclass, field
from warnings import warn

import numpy as np
import torch

from lorafit import adapter
from lorafit.checkpoints import State
from lorafit.errors import LorafitWarning

SMALLEST_MOVE = 1e-6  # a weight that learns moves by about the learning rate at every step


@dataclass
class Best:
    """The best weights so far: by validation accuracy, then by lower loss. Checkpoints hold them."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    epoch: int = 0  # from 1; 0 before the first has ended

    def offer(self, model: torch.nn.Module, scores: dict[str, float], epoch: int) -> None:
        """Keep these weights if they are better than what is kept."""
        if not self.scores or _merit(scores) > _merit(self.scores):
            self.weights, self.scores, self.epoch = adapter.trained_weights(model), scores, epoch

    def restore(self, model: torch.nn.Module) -> None:
        """Put the best weights back into the model."""
        model.load_state_dict(self.weights, strict=False)

    def state(self) -> State:
        """Return what a checkpoint keeps of it."""
        return State(self.weights, {"scores": self.scores, "epoch": self.epoch})


def _merit(scores: dict[str, float]) -> tuple[float, float]:
    return scores["accuracy"], -scores["loss"]


class Guard:
    """Speaks up at the end of an epoch when training does not do what training should."""

    def __init__(self, label_ids: np.ndarray, start: dict[str, torch.Tensor]) -> None:
        texts = len(label_ids)
        chance = np.unique(label_ids, axis=0, return_counts=True)[1].max() / texts
        # Two standard errors above always guessing the commonest class: less is within luck.
        self._chance = chance + 2 * math.sqrt(chance * (1 - chance) / texts)
        self._start = start

    def look(self, model: torch.nn.Module, accuracy: float, epoch: int) -> None:
        """Warn if accuracy is still at chance, or if no trainable weight has moved."""
        now = adapter.trained_weights(model)
        moved = max(float((now[name] - self._start[name].to(now[name])).abs().max()) for name in now)
        if moved < SMALLEST_MOVE:
            warn(
                f"After epoch {epoch} no trainable weight has moved. Is training.learning_rate too small?",
                LorafitWarning,
                stacklevel=2,
            )
        elif accuracy <= self._chance:
            warn(
                f"After epoch {epoch} validation accuracy is {accuracy:.3f}, no better than guessing the commonest "
                "label. LoRA often needs a higher training.learning_rate (about 1e-3); check the labels too.",
                LorafitWarning,
                stacklevel=2,
            )
