"""Which texts make up a batch, and in which order the batches come."""

import heapq
import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_BATCHES_SORTED_TOGETHER = 32


def shares(rows: Sequence[int], lengths: np.ndarray, count: int) -> list[list[int]]:
    """Return some texts dealt out to `count` ranks, so that each has about as many tokens; each keeps their order.

    The longest is dealt first, each to whom has fewest tokens so far (Graham 1969): no rank has more than a third above
    the best there is.

    Args:
        rows: the texts' numbers.
        lengths: tokens of each text, by its number.
        count: of ranks.

    >>> shares([0, 1, 2], np.array([5, 3, 2]), 2)
    [[0], [1, 2]]
    """
    dealt: list[list[int]] = [[] for _ in range(count)]
    fewest = [(0, rank) for rank in range(count)]
    for place in sorted(range(len(rows)), key=lambda place: -int(lengths[rows[place]])):
        tokens, rank = fewest[0]
        dealt[rank].append(place)
        heapq.heapreplace(fewest, (tokens + int(lengths[rows[place]]), rank))
    return [[rows[place] for place in sorted(places)] for places in dealt]


class Batches(Sampler[list[int]]):
    """Batches of shuffled texts, in an order that is a pure function of (seed, epoch, lengths).

    A resumed run meets the very batches that it would have met.

    Args:
        lengths: tokens of each text.
        batch_size: texts a batch.
        seed: decides the order.
        by_length: put texts of like length together, for encoders that compute padding: 32 batches' worth of texts are
            sorted by length and cut into batches, whose order is shuffled again.

    >>> sorted(sum(Batches(np.array([3, 1, 2]), batch_size=2), []))
    [0, 1, 2]
    """

    drop_last = False

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int = 0, *, by_length: bool = False) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.by_length = by_length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; accelerate calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        rows = random.permutation(len(self.lengths))
        if self.by_length:
            together = self.batch_size * _BATCHES_SORTED_TOGETHER
            parts = [rows[start : start + together] for start in range(0, len(rows), together)]
            rows = np.concatenate([part[np.argsort(-self.lengths[part], kind="stable")] for part in parts])
        batches = [rows[start : start + self.batch_size].tolist() for start in range(0, len(rows), self.batch_size)]
        yield from (batches[place] for place in random.permutation(len(batches)))
