"""Texts and labels from a source, checked.

A source is explicit: ``bundled:imdb``, ``bundled:rotten-tomatoes``, ``hub:NAME[@REVISION]``, or the path of a file.
Nothing falls back in silence to another source.
"""

import hashlib
import json
import re
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
from lorafit.labels import read as read_labels
from lorafit.tables import name_rows

Text = str | tuple[str, str]  # a text, or a pair of them that is classified together
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


@dataclass(frozen=True)
class Source:
    """A table as it was found: its rows, a name for errors, what identifies its content, and the label names that it
    declares itself, by column; the cells of those columns hold names, whatever numbers stood for them."""

    table: pd.DataFrame
    place: str
    fingerprint: str
    label_names: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts and their label ids; `labels` are the names in the order of the ids."""

    texts: list[Text]
    label_ids: np.ndarray  # int64: (texts), or of several labels a text (texts, labels) of 0 and 1
    labels: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> "Texts":
        """Return the texts of these rows, in this order."""
        return Texts([self.texts[row] for row in rows], self.label_ids[np.array(rows, dtype=np.int64)], self.labels)

    def examples(self) -> np.ndarray:
        """Return how many texts have each label, (labels)."""
        if self.label_ids.ndim == 2:
            return np.asarray(self.label_ids.sum(axis=0))
        return np.bincount(self.label_ids, minlength=len(self.labels))


def fingerprint_of(texts: Sequence[Text], labels: Sequence[str], label_ids: np.ndarray) -> str:
    """Return a SHA-256 over texts, labels and label ids in their order: where it is the same, so are they."""
    content = json.dumps([list(texts), list(labels), label_ids.tolist()])
    return hashlib.sha256(content.encode()).hexdigest()


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
    text_pair: str = "",
    label: str | Sequence[str] = "label",
    label_separator: str = "",
    labels: Sequence[str] = (),
    known: Sequence[str] = (),
    on_empty: str = "refuse",
    html: str = "keep",
) -> Texts:
    """Return a source's texts and label ids, checked.

    Args:
        source: from `open_source`.
        text: the column with the texts.
        text_pair: the column with each text's second one; empty: texts are not pairs.
        label: the column with the labels, strings or integers; or several columns of 0 and 1, one a label.
        label_separator: what stands between the labels of one text; "json": they are a JSON list.
        labels: label names in the order of their ids, for which the cells may have integers.
        known: the names there may be where `labels` is empty: those of the training texts, for their test. Without
            them they are the source's own, or those found, sorted.
        on_empty: "refuse" or "drop" rows whose text is empty or missing.
        html: "keep", or "strip" tags such as ``<br />``.

    Raises:
        DataError: a missing column, numbers as text, empty or damaged texts, or a label outside the known ones.
    """
    texts = _read_texts(source, text, "data.text", html)
    columns = [texts, _read_texts(source, text_pair, "data.text_pair", html)] if text_pair else [texts]
    empty = [row for row, cells in enumerate(zip(*columns, strict=True)) if not all(cells)]
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
    known = known or source.label_names.get(label if isinstance(label, str) else "", [])
    names, label_ids = read_labels(
        source.table, kept, label, separator=label_separator, declared=labels, known=known, place=source.place
    )
    whole: list[Text] = list(zip(*columns, strict=True)) if text_pair else list(texts)
    return Texts([whole[row] for row in kept], label_ids, names)


def strip_tags(text: str) -> str:
    """Return the text with tags such as ``<br />`` replaced by a space; "1 < 2" stays."""
    return TAG.sub(" ", text)


def fault(cell: object, *, strips_tags: bool = False) -> str:
    """Return why something is no text that can be classified, to go behind its name; "" where it is one.

    >>> fault(" ")
    'is empty; there is nothing to classify'
    """
    if not isinstance(cell, str):
        return "is missing" if cell is None else f"is of type {type(cell).__name__}, not a text"
    if not (strip_tags(cell) if strips_tags else cell).strip():
        return "is empty; there is nothing to classify"
    if not cell.isascii() and tables.HALF_CHARACTER.search(cell):
        return "holds half a character, a lone surrogate; it is damaged"
    return ""


def parts(text: Text) -> tuple[str, ...]:
    """Return the strings that a text is made of: one, or the two of a pair."""
    return (text,) if isinstance(text, str) else text


def pairs_of_lines(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return the two texts of each line, which has a tab between them.

    Raises:
        DataError: names the first line with no tab, or several.

    >>> pairs_of_lines(["A man sleeps.\\tSomeone is awake."])
    [('A man sleeps.', 'Someone is awake.')]
    """
    pairs = []
    for number, line in enumerate(lines, start=1):
        first, tab, second = line.partition("\t")
        if not tab or "\t" in second:
            raise DataError(f"This adapter reads pairs: line {number} needs one tab, between its two texts.")
        pairs.append((first, second))
    return pairs


def _open_bundled(name: str) -> Source:
    reviews = bundled.reviews(name.removeprefix("bundled:"))
    table = tables.read(reviews.file)
    part = table[table["source"] == reviews.source].reset_index(drop=True)
    return _with_names(part, name, f"{reviews.sha256}:{reviews.source}", {"label": list(reviews.labels)})


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
    kinds = {name: getattr(kind, "feature", kind) for name, kind in features}  # of a list: what is in it
    label_names = {name: list(kind.names) for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)}
    return _with_names(part.to_pandas(), f"{name}, split {split_name}", f"{found.revision}:{split_name}", label_names)


def _with_names(table: pd.DataFrame, place: str, fingerprint: str, label_names: dict[str, list[str]]) -> Source:
    """Return a source in whose cells the names stand for their numbers: another source may number them otherwise."""
    named = {
        column: pd.Series([_named(cell, names) for cell in tables.column(table, column, place)], table.index, object)
        for column, names in label_names.items()
    }
    return Source(table.assign(**named), place, fingerprint, label_names)


def _named(cell: Any, names: list[str]) -> Any:
    if isinstance(cell, list):
        return [_named(item, names) for item in cell]
    return None if pd.isna(cell) or int(cell) < 0 else names[int(cell)]  # data sets have -1 where no label is known


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _read_texts(source: Source, column: str, key: str, html: str) -> list[str]:
    """Return the texts of a column, "" for those that are missing or blank; `key` is the recipe's for the column."""
    cells = tables.column(source.table, column, source.place)
    _refuse_numbers(cells, column, key, source.place)
    _refuse_halves(cells, column, source.place)
    found = [strip_tags(cell) if cell is not None and html == "strip" else cell or "" for cell in cells]
    return [cell if cell.strip() else "" for cell in found]


def _refuse_halves(texts: list[Any], column: str, place: str) -> None:
    rows = [row for row, cell in enumerate(texts) if cell and tables.HALF_CHARACTER.search(cell)]
    if rows:
        raise DataError(
            f"{place}: {len(rows)} texts in column {column!r} hold half a character, a lone surrogate such as \\ud83d "
            f"({name_rows(rows)}). Mend them: a text cut within an emoji is the usual cause."
        )


def _refuse_numbers(texts: list[Any], column: str, key: str, place: str) -> None:
    present = [cell for cell in texts if cell is not None and cell != ""]
    if present and all(tables.is_number(cell) for cell in present):
        raise DataError(f"{place}: column {column!r} holds numbers (such as {present[0]}), not texts. Set {key}.")
    other = next((row for row, cell in enumerate(texts) if cell is not None and not isinstance(cell, str)), None)
    if other is not None:
        kind = type(texts[other]).__name__
        raise DataError(f"{place}: row {other + 1} of column {column!r} holds a value of type {kind}, not a text.")
