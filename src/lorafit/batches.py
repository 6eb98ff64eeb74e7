"""Which texts make up a batch, and in which order the batches come."""

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

_BATCHES_SORTED_TOGETHER = 32


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of texts of like length, in an order that is a pure function of (seed, epoch, lengths).

    32 batches' worth of shuffled texts are sorted by length and cut into batches, whose order is shuffled again: little
    padding, and a resumed run meets the very batches that it would have met.

    >>> sorted(sum(LengthGroupedBatches(np.array([3, 1, 2]), batch_size=2), []))
    [0, 1, 2]
    """

    drop_last = False

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int = 0) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; accelerate calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        shuffled = random.permutation(len(self.lengths))
        together = self.batch_size * _BATCHES_SORTED_TOGETHER
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), together):
            some = shuffled[start : start + together]
            some = some[np.argsort(-self.lengths[some], kind="stable")]
            batches += [some[at : at + self.batch_size].tolist() for at in range(0, len(some), self.batch_size)]
        yield from (batches[place] for place in random.permutation(len(batches)))
