"""What happens at the end of an epoch: the best weights so far are kept."""

from dataclasses import dataclass, field

import torch

from lorafit import adapter
from lorafit.checkpoints import State


@dataclass
class Best:
    """The best weights so far: by a validation score, then by lower loss. Checkpoints hold them."""

    by: str  # "accuracy" or "f1"
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    epoch: int = 0  # from 1; 0 before the first has ended

    def offer(self, model: torch.nn.Module, scores: dict[str, float], epoch: int) -> None:
        """Keep these weights if they are better than what is kept."""
        if not self.scores or self._merit(scores) > self._merit(self.scores):
            self.weights, self.scores, self.epoch = adapter.trained_weights(model), scores, epoch

    def restore(self, model: torch.nn.Module) -> None:
        """Put the best weights back into the model."""
        model.load_state_dict(self.weights, strict=False)

    def state(self) -> State:
        """Return what a checkpoint keeps of it."""
        return State(self.weights, {"scores": self.scores, "epoch": self.epoch})

    def _merit(self, scores: dict[str, float]) -> tuple[float, float]:
        return scores[self.by], -scores["loss"]
