"""Training, validation and test: stratified by label, a function of the seed, identical texts kept together."""

from collections import defaultdict

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
    test: Texts | None = None,
) -> dict[str, Texts]:
    """Return "train", "validation" and "test": stratified by label, seeded, identical texts kept together.

    Where texts have several labels, by iterative stratification (Sechidis et al. 2011).

    Args:
        pool: what is split; a test of its own is not part of it.
        train_size: how many texts (int), or which share of what there is (float); so the other two.
        validation_size: see `train_size`.
        test_size: see `train_size`; with `test` given, how much of that is taken.
        seed: decides who goes where.
        test: texts of an official test split; texts of `pool` that stand there too are left out of the pool.

    Raises:
        DataError: fewer texts than asked for, a class with fewer than five, or one that a split would not have.

    >>> pool = Texts([f"text {n}" for n in range(10)], np.array([0, 1] * 5), ["neg", "pos"])
    >>> {name: len(part) for name, part in split(pool, 6, 2, 2).items()}
    {'train': 6, 'validation': 2, 'test': 2}
    """
    if test is None:
        _refuse_rare_class(pool)
        sizes = dict(zip(SPLITS, _counts([train_size, validation_size, test_size], len(pool)), strict=True))
        return _assigned(pool, sizes, seed)
    seen = set(test.texts)
    apart = [row for row, text in enumerate(pool.texts) if text not in seen]
    if len(apart) < len(pool):
        say(f"{len(pool) - len(apart)} texts also stand in the test; they are left out of training.")
    if not apart:
        raise DataError(
            "Every training text stands in the test too: nothing is left to train on. Name another data.test_source, "
            "or leave it out, and the test is split from data.source."
        )
    pool = pool.take(apart)
    _refuse_rare_class(pool)
    _refuse_unlike(test, pool)
    sizes = dict(zip(SPLITS, _counts([train_size, validation_size], len(pool)), strict=False))
    parts = _assigned(pool, sizes, seed)
    return parts | _assigned(test, {"test": _counts([test_size], len(test))[0]}, seed)


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


def _refuse_unlike(test: Texts, pool: Texts) -> None:
    """Refuse a test of its own that asks for something else than the training texts."""
    if test.label_ids.ndim != pool.label_ids.ndim:
        one, several = ("training", "test") if test.label_ids.ndim == 2 else ("test", "training")
        raise DataError(f"The {several} texts have lists of labels, and the {one} texts one label each.")
    missing = np.flatnonzero(test.examples() == 0)
    if len(missing):
        raise DataError(
            f"The test has no text with the label {pool.labels[missing[0]]!r}, which the training texts have. "
            "Give it some, or leave that label out of the training texts."
        )


def _refuse_missing_class(part: Texts, pool: Texts, name: str, size: int) -> None:
    missing = np.flatnonzero((part.examples() == 0) & (pool.examples() > 0))
    if len(missing):
        raise DataError(
            f"Too few examples of {pool.labels[missing[0]]!r}: {size} {name} texts would hold none. "
            f"Give more examples, or a larger data.{name}_size."
        )
