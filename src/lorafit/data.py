"""Texts and labels from a source, checked; and the splits.

A source is explicit: ``bundled:imdb``, ``bundled:rotten-tomatoes``, ``hub:NAME[@REVISION]``, or the path of a file.
Nothing falls back in silence to another source.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lorafit import bundled, hub, tables
from lorafit.console import say
from lorafit.errors import DataError, HubError, LorafitError, nearest
from lorafit.files import sha256_of, storing

SPLITS = ("train", "validation", "test")
_HUB_FILES = [
    "README.md",
    "*.parquet",
    "*.csv",
    "*.tsv",
    "*.json",
    "*.jsonl",
    "*.jsonl.gz",
    "*.csv.gz",
    "*.txt",
]
TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_ROWS_NAMED = 5
LONGEST_LABEL = 1000  # characters
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Source:
    """A table as it was found: its rows, a name for errors, what identifies its content, and the label names that it
    declares itself, by column."""

    table: pd.DataFrame
    place: str
    fingerprint: str
    label_names: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Texts:
    """Texts and their label ids; `labels` are the names in the order of the ids."""

    texts: list[str]
    label_ids: list[int]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> "Texts":
        """Return the texts of these rows, in this order."""
        return Texts([self.texts[row] for row in rows], [self.label_ids[row] for row in rows], self.labels)


def open_source(name: str, *, split: str = "train", refresh: bool = False) -> Source:
    """Return the table behind a source's name.

    Args:
        name: "bundled:NAME", "hub:NAME[@REVISION]", or a path.
        split: which split of a Hub data set.
        refresh: ask the Hub even for what is cached.

    Raises:
        DataError: no such source, or one that can't be read.
        HubError: the Hub does not have it, or can't be reached.
    """
    if name.startswith("bundled:"):
        return _open_bundled(name)
    if name.startswith("hub:"):
        return _open_hub(name, split, refresh)
    file = Path(name)
    if not file.exists() and not tables.is_table(file):
        raise DataError(f"There is no file {name}. A data set of the Hub is written hub:{name}, ours is bundled:imdb.")
    return Source(tables.read(file), name, sha256_of(file))


def clean(
    source: Source,
    *,
    text: str = "text",
    label: str = "label",
    labels: Sequence[str] = (),
    on_empty: str = "refuse",
    html: str = "keep",
) -> Texts:
    """Return a source's texts and label ids, checked.

    Args:
        source: from `open_source`.
        text: the column with the texts.
        label: the column with the labels, strings or integers.
        labels: label names in the order of their ids; empty: the source's own, or those found, sorted.
        on_empty: "refuse" or "drop" rows whose text is empty or missing.
        html: "keep", or "strip" tags such as ``<br />``.

    Raises:
        DataError: a missing column, numbers as text, empty texts, or a label outside the declared ones.
    """
    texts = tables.column(source.table, text, source.place)
    values = tables.column(source.table, label, source.place)
    _refuse_numbers(texts, text, source.place)
    if html == "strip":
        texts = [strip_tags(cell) if isinstance(cell, str) else cell for cell in texts]
    empty = [row for row, cell in enumerate(texts) if not isinstance(cell, str) or not cell.strip()]
    if empty and on_empty == "refuse":
        raise DataError(
            f"{source.place}: {len(empty)} of {len(texts)} rows have no text ({name_rows(empty)}). "
            'Mend them, or leave them out with data.on_empty = "drop".'
        )
    if empty:
        say(f"{source.place}: {len(empty)} rows without a text left out.")
    dropped = set(empty)
    kept = [row for row in range(len(texts)) if row not in dropped]
    if not kept:
        raise DataError(f"{source.place}: every row's text is empty.")
    names, ids = _label_ids(values, kept, list(labels) or source.label_names.get(label, []), source.place, label)
    return Texts([texts[row] for row in kept], ids, names)


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

    Args:
        pool: what is split; a test of its own is not part of it.
        train_size: how many texts (int), or which share of what there is (float); so the other two.
        validation_size: see `train_size`.
        test_size: see `train_size`; with `test` given, how much of that is taken.
        seed: decides who goes where.
        test: texts of an official test split; texts of `pool` that stand there too are left out of the pool.

    Raises:
        DataError: fewer texts than asked for, or a class that would be missing from a split.

    >>> pool = Texts([f"text {n}" for n in range(10)], [0, 1] * 5, ["neg", "pos"])
    >>> {name: len(part) for name, part in split(pool, 6, 2, 2).items()}
    {'train': 6, 'validation': 2, 'test': 2}
    """
    if test is None:
        sizes = dict(zip(SPLITS, _counts([train_size, validation_size, test_size], len(pool)), strict=True))
        return _assigned(pool, sizes, seed)
    seen = set(test.texts)
    apart = [row for row, text in enumerate(pool.texts) if text not in seen]
    if len(apart) < len(pool):
        say(f"{len(pool) - len(apart)} texts also stand in the test; they are left out of training.")
    pool = pool.take(apart)
    sizes = dict(zip(SPLITS, _counts([train_size, validation_size], len(pool)), strict=False))
    parts = _assigned(pool, sizes, seed)
    return parts | _assigned(test, {"test": _counts([test_size], len(test))[0]}, seed)


def strip_tags(text: str) -> str:
    """Return the text with tags such as ``<br />`` replaced by a space; "1 < 2" stays."""
    return TAG.sub(" ", text)


def name_rows(rows: list[int]) -> str:
    """Return "rows 2, 5, ... and 3 more" for row numbers from 0; row 1 is the first after the header."""
    named = ", ".join(str(row + 1) for row in rows[:_ROWS_NAMED])
    more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {named}{more}, counted after the header"


def _open_bundled(name: str) -> Source:
    reviews = bundled.reviews(name.removeprefix("bundled:"))
    table = tables.read(reviews.file)
    part = table[table["source"] == reviews.source].reset_index(drop=True)
    return Source(part, name, f"{reviews.sha256}:{reviews.source}", {"label": list(reviews.labels)})


def _open_hub(name: str, split_name: str, refresh: bool) -> Source:
    import datasets

    def has_data(folder: Path) -> bool:
        return any(file.suffix in {".parquet", ".csv", ".tsv", ".json", ".jsonl", ".gz"} for file in folder.rglob("*"))

    found = hub.snapshot(name.removeprefix("hub:"), "dataset", _HUB_FILES, complete=has_data, refresh=refresh)
    datasets.disable_progress_bars()
    try:
        with storing(Path(datasets.config.HF_DATASETS_CACHE)):
            parts = datasets.load_dataset(str(found.folder))
    except LorafitError:
        raise
    except Exception as error:
        raise HubError(f"{name} can't be read as one table with splits: {_first_line(error)}") from error
    if split_name not in parts:
        raise DataError(
            f"{name} has no split {split_name!r}; its splits are {', '.join(parts)}.{nearest(split_name, list(parts))}"
        )
    part = parts[split_name]
    features = part.features.items()
    label_names = {name: list(kind.names) for name, kind in features if isinstance(kind, datasets.ClassLabel)}
    return Source(part.to_pandas(), f"{name}, split {split_name}", f"{found.revision}:{split_name}", label_names)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _refuse_numbers(texts: list[Any], column: str, place: str) -> None:
    present = [cell for cell in texts if cell is not None and cell != ""]
    if present and all(tables.is_number(cell) for cell in present):
        raise DataError(f"{place}: column {column!r} holds numbers (such as {present[0]}), not texts. Set data.text.")
    other = next((row for row, cell in enumerate(texts) if cell is not None and not isinstance(cell, str)), None)
    if other is not None:
        kind = type(texts[other]).__name__
        raise DataError(f"{place}: row {other + 1} of column {column!r} holds a value of type {kind}, not a text.")


def _label_ids(
    values: list[Any], kept: list[int], declared: list[str], place: str, column: str
) -> tuple[list[str], list[int]]:
    cells = {row: _label_name(values[row]) for row in kept}
    missing = [row for row, name in cells.items() if name == ""]
    if missing:
        raise DataError(f"{place}: {len(missing)} rows have no label in column {column!r} ({name_rows(missing)}).")
    names = declared or _sorted_names(set(cells.values()))
    unshown = [name for name in names if len(name) > LONGEST_LABEL or _CONTROL.search(name)]
    if unshown:
        raise DataError(
            f"{place}: the label {unshown[0][:40]!r} in column {column!r} can't be a name: it has a line break or "
            f"another control character, or more than {LONGEST_LABEL} characters."
        )
    ids = {name: number for number, name in enumerate(names)}
    if declared and not any(name.lstrip("-").isdigit() for name in declared):
        ids |= {str(number): number for number in range(len(declared))}  # integers stand for names, by their order
    strange = [row for row, name in cells.items() if name not in ids]
    if strange:
        found = cells[strange[0]]
        raise DataError(
            f"{place}: {len(strange)} labels are outside data.labels = {declared}: {found!r} in row {strange[0] + 1}"
            + (f", {name_rows(strange[1:])}" if len(strange) > 1 else "")
            + f".{nearest(found, declared)}"
        )
    found_ids = [ids[name] for name in cells.values()]
    if len(set(found_ids)) < 2:
        raise DataError(f"{place}: every row has the label {names[found_ids[0]]!r}; a classifier needs two classes.")
    return names, found_ids


def _label_name(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():  # pandas turns integers beside a missing value into floats
        return str(int(value))
    return str(value).strip()


def _sorted_names(names: set[str]) -> list[str]:
    numbers = all(name.lstrip("-").isdigit() for name in names)
    return sorted(names, key=int) if numbers else sorted(names)


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
    """Fill each split's quota of each class with groups of identical texts, in a seeded random order."""
    quotas = _quotas(pool, sizes)
    groups: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(pool.texts):
        groups[text].append(row)
    ordered = list(groups.values())
    np.random.default_rng(seed).shuffle(ordered)
    taken: dict[str, list[int]] = {name: [] for name in sizes}
    for rows in ordered:
        label_id = pool.label_ids[rows[0]]
        home = next((name for name in sizes if quotas[name][label_id] >= len(rows)), None)
        if home is not None:
            quotas[home][label_id] -= len(rows)
            taken[home] += rows
    parts = {name: pool.take(sorted(rows)) for name, rows in taken.items()}
    for name, part in parts.items():
        _refuse_missing_class(part, pool, name, sizes[name])
    short = sum(sizes.values()) - sum(map(len, parts.values()))
    if short:
        say(f"{short} texts fewer than asked for: identical texts stay together, and did not fit.")
    return parts


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
    return quotas


def _refuse_missing_class(part: Texts, pool: Texts, name: str, size: int) -> None:
    missing = set(pool.label_ids) - set(part.label_ids)
    if missing:
        raise DataError(
            f"Too few examples of {pool.labels[min(missing)]!r}: {size} {name} texts would hold none. "
            f"Give more examples, or a larger data.{name}_size."
        )
