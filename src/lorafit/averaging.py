"""The mean of the weights over the last steps, with which the epochs that end there are validated, and kept.

Near the end the weights wander about a place that is seldom worse than where they happen to stop, and less sure of
itself where it errs. The mean costs no time (Izmailov et al. 2018, arXiv:1803.05407); `training.average` says how far
back from the planned end it reaches. Each epoch's end is validated with the mean so far, one before the first of those
steps with the run's own weights, and the best epoch stays, whichever it had: so the mean need not be what is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim.swa_utils import get_swa_multi_avg_fn

from lorafit import adapter
from lorafit.checkpoints import State


class Average:
    """The mean of a model's trained weights over the last steps of a training.

    Args:
        share: of all steps, those whose weights are averaged; 0 = none.

    >>> average = Average(0.5)
    >>> average.add(model, step=60, steps=100)
    >>> with average.in_place(model):
    ...     scores = validate(model)
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._weights: dict[str, torch.Tensor] = {}
        self._count = 0
        self._update = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]

    def add(self, model: torch.nn.Module, step: int, steps: int) -> None:
        """Take the weights after `step` of `steps` into the mean, if that is among the last."""
        if step <= steps - round(self._share * steps):
            return
        weights = adapter.trained_weights(model)
        if self._count:
            means = [self._weights[name].to(weight.device) for name, weight in weights.items()]
            self._update(means, list(weights.values()), self._count)
            weights = dict(zip(weights, means, strict=True))
        self._weights = weights
        self._count += 1

    @contextmanager
    def in_place(self, model: torch.nn.Module) -> Iterator[None]:
        """Let the model hold the mean, if there is one yet, and its own weights again afterwards."""
        if not self._count:
            yield
            return
        own = adapter.trained_weights(model)
        try:
            model.load_state_dict(self._weights, strict=False)
            yield
        finally:
            model.load_state_dict(own, strict=False)

    def state(self) -> State:
        """Return what a checkpoint keeps of it."""
        return State(self._weights, {"count": self._count})

    def remember(self, state: State) -> None:
        """Go on from a checkpoint."""
        self._weights, self._count = state.tensors, state.facts["count"]
