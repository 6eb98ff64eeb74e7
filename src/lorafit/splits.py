"""Training, validation and test: stratified by label, a function of the seed, identical texts kept together."""

from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from lorafit.console import say
from lorafit.data import SPLITS, Text, Texts
from lorafit.errors import DataError

FEWEST_EXAMPLES = 5  # of a label, in all that is split


def split(
    pool: Texts,
    train_size: float,
    validation_size: float,
    test_size: float,
    *,
    seed: int = 0,
    own: Mapping[str, Texts] = MappingProxyType({}),
) -> dict[str, Texts]:
    """Return "train", "validation" and "test": stratified by label, seeded, identical texts kept together.

    Where texts have several labels, by iterative stratification (Sechidis et al. 2011).

    Args:
        pool: what is split; validation or test texts from a source of their own are not part of it.
        train_size: how many texts (int), or which share of what there is (float); so the other two.
        validation_size: see `train_size`; of "validation" in `own` how much is taken.
        test_size: the same for the test.
        seed: decides who goes where.
        own: texts of official splits, "validation" or "test" or both. What stands in two of them is left out of the
            earlier one: of the pool, or of validation.

    Raises:
        DataError: fewer texts than asked for, a class with fewer than five, or one that a split would not have.

    >>> pool = Texts([f"text {n}" for n in range(10)], np.array([0, 1] * 5), ["neg", "pos"])
    >>> {name: len(part) for name, part in split(pool, 6, 2, 2).items()}
    {'train': 6, 'validation': 2, 'test': 2}
    """
    apart = {name: texts.take(rows) for name, (texts, rows) in _apart(pool, own).items()}
    _refuse_nothing_left(apart)
    _refuse_rare_class(apart["train"])
    sizes = dict(zip(SPLITS, (train_size, validation_size, test_size), strict=True))
    parts: dict[str, Texts] = {}
    for home, texts in apart.items():
        if home != "train":
            _refuse_unlike(texts, apart["train"], home)
        dealt = [name for name in SPLITS if name == home or (home == "train" and name not in apart)]
        counts = dict(zip(dealt, _counts([sizes[name] for name in dealt], len(texts)), strict=True))
        parts |= _assigned(texts, counts, seed)
    return {name: parts[name] for name in SPLITS}


def overlaps(pool: Texts, own: Mapping[str, Texts]) -> dict[str, int]:
    """Return how many texts `split` leaves out of "train" and "validation": they stand in what comes after it, too.

    >>> a, b = Texts(["one", "two"], np.array([0, 1]), ["x", "y"]), Texts(["two"], np.array([1]), ["x", "y"])
    >>> overlaps(a, {"test": b})
    {'train': 1}
    """
    left_out = {name: len(texts) - len(rows) for name, (texts, rows) in _apart(pool, own).items()}
    return {name: count for name, count in left_out.items() if count}


def describe(left_out: dict[str, int]) -> str:
    """Return what `overlaps` counted as sentences; empty where it counted nothing."""
    named = {"train": ("training", "validation or test"), "validation": ("validation", "the test")}
    return " ".join(
        f"Texts of the {source} source that stand in {others} too: {count:,}. They are left out of {source}."
        for (source, others), count in ((named[name], count) for name, count in left_out.items())
    )


def _apart(pool: Texts, own: Mapping[str, Texts]) -> dict[str, tuple[Texts, list[int]]]:
    """Return what splits are taken from, "train" first, each with the rows whose text stands in no later one."""
    given = {"train": pool, **own}
    seen: set[Text] = set()
    apart = {}
    for name in reversed([name for name in SPLITS if name in given]):
        texts = given[name]
        apart[name] = (texts, [row for row, text in enumerate(texts.texts) if text not in seen])
        seen |= set(texts.texts)
    return dict(reversed(apart.items()))


def _refuse_nothing_left(apart: dict[str, Texts]) -> None:
    if not len(apart["train"]):
        own = [name for name in apart if name != "train"]
        raise DataError(
            f"Every training text stands in the {' or the '.join(own)} too: nothing is left to train on. Name another "
            f"{' and '.join(f'data.{name}_source' for name in own)}, or leave it out, and {' and '.join(own)} texts "
            "are split from data.source."
        )
    if not all(map(len, apart.values())):
        raise DataError(
            "Every validation text stands in the test too: nothing is left to choose the best epoch on. Name another "
            "data.validation_source, or leave it out, and validation texts are split from data.source."
        )


def _counts(sizes: list[float], available: int) -> list[int]:
    counts = [size if isinstance(size, int) else round(size * available) for size in sizes]
    excess = sum(counts) - available
    shares = all(isinstance(size, float) for size in sizes)
    if shares and 0 < excess < len(sizes):  # rounding; a sum of shares over 1 is an excess of its own
        counts[0] -= excess
    elif excess > 0:
        raise DataError(
            f"The splits ask for {sum(counts)} texts ({' + '.join(map(str, counts))}); there are {available}."
        )
    return counts


def _assigned(pool: Texts, sizes: dict[str, int], seed: int) -> dict[str, Texts]:
    """Deal groups of identical texts out to the splits, in a seeded random order."""
    groups: dict[Text, list[int]] = defaultdict(list)
    for row, text in enumerate(pool.texts):
        groups[text].append(row)
    ordered = list(groups.values())
    np.random.default_rng(seed).shuffle(ordered)
    deal = _by_rarest_label if pool.label_ids.ndim == 2 else _by_quota
    parts = {name: pool.take(sorted(rows)) for name, rows in deal(pool, sizes, ordered).items()}
    for name, part in parts.items():
        _refuse_missing_class(part, pool, name, sizes[name])
    short = sum(sizes.values()) - sum(map(len, parts.values()))
    if short:
        say(f"{short} texts fewer than asked for: identical texts stay together, and did not fit.")
    return parts


def _by_quota(pool: Texts, sizes: dict[str, int], groups: list[list[int]]) -> dict[str, list[int]]:
    """Fill each split's quota of each class."""
    quotas = _quotas(pool, sizes)
    taken: dict[str, list[int]] = {name: [] for name in sizes}
    for rows in groups:
        label_id = pool.label_ids[rows[0]]
        home = next((name for name in sizes if quotas[name][label_id] >= len(rows)), None)
        if home is not None:
            quotas[home][label_id] -= len(rows)
            taken[home] += rows
    return taken


def _by_rarest_label(pool: Texts, sizes: dict[str, int], groups: list[list[int]]) -> dict[str, list[int]]:
    """Deal out the texts of the label that fewest are left of, each to the part that lacks most of it, and so on.

    What no split asks for is a part of its own, which is left out.
    """
    room = np.array([*sizes.values(), len(pool) - sum(sizes.values())])
    having = np.stack([pool.label_ids[rows].sum(axis=0) for rows in groups])  # (groups, labels)
    lacking = np.outer(room / len(pool), having.sum(axis=0))  # (parts, labels)
    taken: list[list[int]] = [[] for _ in room]
    waiting = np.ones(len(groups), dtype=bool)
    while waiting.any():
        left = (having[waiting] > 0).sum(axis=0)
        label_id = int(np.where(left > 0, left, np.inf).argmin())
        of_label = waiting & (having[:, label_id] > 0) if left.any() else waiting.copy()  # at last those without any
        for group in np.flatnonzero(of_label):
            fits = room >= len(groups[group])
            home = max(range(len(room)), key=lambda part: (fits[part], lacking[part, label_id], room[part]))
            if fits[home]:
                taken[home] += groups[group]
                room[home] -= len(groups[group])
                lacking[home] -= having[group]
        waiting &= ~of_label
    return dict(zip(sizes, taken, strict=False))


def _quotas(pool: Texts, sizes: dict[str, int]) -> dict[str, dict[int, int]]:
    """Share each split's size out over the classes that are left, the largest remainders rounded up."""
    present, left = np.unique(pool.label_ids, return_counts=True)
    quotas = {}
    for name, size in sizes.items():
        exact = left * size / left.sum()
        quota = np.floor(exact).astype(int)
        for index in np.argsort(quota - exact, kind="stable")[: size - quota.sum()]:
            quota[index] += 1
        left = left - quota
        quotas[name] = dict(zip(present.tolist(), quota.tolist(), strict=True))
    _give_each_some(quotas)
    return quotas


def _give_each_some(quotas: dict[str, dict[int, int]]) -> None:
    """Give a split that would hold none of a rare class one, in exchange for one of its commonest."""
    for quota in quotas.values():
        for label_id in (label_id for label_id, size in quota.items() if size == 0):
            donor = max(quotas.values(), key=lambda other: other[label_id])
            commonest = max(quota, key=lambda label_id: quota[label_id])
            if donor[label_id] > 1 and quota[commonest] > 1:
                donor[label_id], quota[label_id] = donor[label_id] - 1, 1
                donor[commonest], quota[commonest] = donor[commonest] + 1, quota[commonest] - 1


def _refuse_rare_class(pool: Texts) -> None:
    examples = pool.examples()
    rare = np.flatnonzero(examples < FEWEST_EXAMPLES)
    if len(rare):
        more = f" (and {len(rare) - 1} more)" if len(rare) > 1 else ""
        raise DataError(
            f"Too few examples of {pool.labels[rare[0]]!r}{more}: there are {examples[rare[0]]}, at least "
            f"{FEWEST_EXAMPLES} are needed to train, validate and test. Give more, or leave the label out."
        )


def _refuse_unlike(own: Texts, pool: Texts, name: str) -> None:
    """Refuse validation or test texts of a source of their own that ask for something else than the training texts."""
    if own.label_ids.ndim != pool.label_ids.ndim:
        one, several = ("training", name) if own.label_ids.ndim == 2 else (name, "training")
        raise DataError(f"The {several} texts have lists of labels, and the {one} texts one label each.")
    missing = np.flatnonzero(own.examples() == 0)
    if len(missing):
        raise DataError(
            f"No {name} text has the label {pool.labels[missing[0]]!r}, which the training texts have. "
            "Give it some, or leave that label out of the training texts."
        )


def _refuse_missing_class(part: Texts, pool: Texts, name: str, size: int) -> None:
    missing = np.flatnonzero((part.examples() == 0) & (pool.examples() > 0))
    if len(missing):
        raise DataError(
            f"Too few examples of {pool.labels[missing[0]]!r}: {size} {name} texts would hold none. "
            f"Give more examples, or a larger data.{name}_size."
        )
