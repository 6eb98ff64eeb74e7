"""Near duplicates among many texts: those that share most of their runs of five words.

Likeness is the Jaccard index of two texts' sets of five-word shingles (Broder 1997, "On the resemblance and containment
of documents"): 1 for texts that differ in case, tags and punctuation only; a word changed within a text of 230 leaves
0.96, five words scattered over it leave 0.8. MinHash signatures, cut into bands, name the pairs to look at (Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3); each of those is then compared exactly.

It is numpy and not datasketch, which would need as many lines: shingles stay numbers, which takes half the time, and a
thousand texts from one template cost two thousand comparisons, not half a million.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lorafit.console import bar
from lorafit.data import strip_tags

THRESHOLD = 0.8
_SHINGLE_WORDS = 5
# A pair of likeness s shares a band with probability 1 - (1 - s**5)**20: 0.9996 at 0.8, 0.47 at 0.5, 0.006 at 0.2.
_BANDS, _BAND_HASHES = 20, 5
_WORD = re.compile(r"\w+")
_MIXER = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits evenly mixed: 2**64 over the golden ratio


@dataclass(frozen=True)
class NearDuplicates:
    """The pairs of texts that are alike, and the groups that they join."""

    pairs: np.ndarray  # int64, (pairs, 2): places of texts, the lower first
    likeness: np.ndarray  # float64, (pairs): the exact Jaccard index
    groups: list[list[int]]  # places of texts, two or more in a group, in the order of the texts


def find(texts: Sequence[str], threshold: float = THRESHOLD) -> NearDuplicates:
    """Return the texts whose likeness reaches `threshold`: as pairs, of many alike enough of them to join all.

    Words are runs of letters and digits, case and tags aside. A text of up to five words is like those with the same
    words only, one without words is like none. The same texts give the same answer. A hundred thousand reviews of 230
    words take less than a minute and 2 GB (results/duplicates.json).

    Args:
        texts: any number.
        threshold: a Jaccard index; below about 0.7 pairs begin to be missed.

    >>> find(["A fine film, all in all.", "a fine film - all in all", "a poor one"]).groups
    [[0, 1]]
    """
    shingles = _shingles(texts)
    candidates = _candidates(_signatures(shingles))
    likeness = np.array([_likeness(shingles[one], shingles[other]) for one, other in candidates.tolist()])
    alike = likeness >= threshold
    pairs = candidates[alike]
    return NearDuplicates(pairs, likeness[alike], _groups(pairs, len(texts)))


def _shingles(texts: Sequence[str]) -> list[np.ndarray]:
    """Return each text's set of shingles as sorted hashes of 64 bits: sums of random numbers, one a word and place."""
    numbers: defaultdict[str, int] = defaultdict(lambda: len(numbers), {"": 0})
    words = []
    for text in texts:
        found = _WORD.findall(strip_tags(text).casefold())
        padding = [""] * (_SHINGLE_WORDS - len(found)) if found else []
        words.append(np.array([numbers[word] for word in found + padding], dtype=np.uint32))
    hashes = np.random.default_rng(0).integers(2**64, size=len(numbers), dtype=np.uint64)
    places = _MIXER ** np.arange(_SHINGLE_WORDS, dtype=np.uint64)
    return [_hashed(hashes[text], places) for text in words]


def _hashed(words: np.ndarray, places: np.ndarray) -> np.ndarray:
    if not len(words):
        return words
    return np.unique(np.lib.stride_tricks.sliding_window_view(words, _SHINGLE_WORDS) @ places)


def _signatures(shingles: list[np.ndarray]) -> np.ndarray:
    """Return each text's MinHash signature, uint32, (texts, hashes): two agree in one hash with their likeness.

    The shingles' hashes are random already; times an odd number modulo 2**32 they are in another random order.
    """
    orders = np.random.default_rng(1).integers(2**32, size=_BANDS * _BAND_HASHES, dtype=np.uint32) | np.uint32(1)
    signatures = np.empty((len(shingles), len(orders)), dtype=np.uint32)
    largest = np.iinfo(np.uint32).max
    with bar("Comparing", total=len(shingles)) as advance:
        for place, hashes in enumerate(shingles):
            high = (hashes >> np.uint64(32)).astype(np.uint32)
            signatures[place] = (orders[:, None] * high).min(axis=1, initial=largest)
            advance(1)
    return signatures


def _candidates(signatures: np.ndarray) -> np.ndarray:
    """Return the pairs that share a band, int64, (pairs, 2): with the band's first text, and with the one before.

    All pairs of a band would be a square; those left out are joined through the two, or found in another band.
    """
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for band in np.split(signatures, _BANDS, axis=1):
        _, bucket = np.unique(band, axis=0, return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        new = np.diff(bucket[order], prepend=-1) > 0
        first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        later = np.flatnonzero(~new)
        pairs += [np.column_stack([order[before], order[later]]) for before in (first[later], later - 1)]
    return np.unique(np.concatenate(pairs), axis=0)


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / max(len(one) + len(other) - common, 1)


def _groups(pairs: np.ndarray, texts: int) -> list[list[int]]:
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(texts, texts))
    _, group_of = connected_components(links, directed=False)
    members = defaultdict(list)
    for text in np.unique(pairs).tolist():
        members[group_of[text]].append(text)
    return list(members.values())
