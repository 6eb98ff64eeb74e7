"""The prepared data of a recipe: three Parquet files with texts, labels and token ids, written once and read after.

The folder's name is a hash of all that decides its content, so a folder that is there is right.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lorafit import tasks
from lorafit.data import SPLITS, Text, Texts, parts
from lorafit.errors import StorageError
from lorafit.files import storing
from lorafit.manifest import LongText, Task
from lorafit.runtime import cache_dir
from lorafit.tokens import Tokens, encode

_FORMAT = 3


@dataclass(frozen=True)
class Split:
    """One split: its texts, label ids and token ids, and the file they lie in."""

    file: Path
    texts: list[Text]
    label_ids: np.ndarray  # int64: (texts), or of several labels a text (texts, labels) of 0 and 1
    tokens: Tokens

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Prepared:
    """A recipe's data, ready for the encoder."""

    key: str
    labels: list[str]
    train: Split
    validation: Split
    test: Split
    overlaps: dict[str, int]  # see `splits.overlaps`

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name, in the order of their use."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def task(self) -> Task:
        """One label a text, or several."""
        return tasks.task_of(self.train.label_ids)

    @property
    def text_pair(self) -> bool:
        """Whether texts are pairs."""
        return isinstance(self.train.texts[0], tuple)

    def __str__(self) -> str:
        counts = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        cut = sum(split.tokens.cut for split in self.splits.values())
        return f"{counts} texts; {cut / sum(map(len, self.splits.values())):.0%} are longer than the window and cut"


def key_of(decided_by: dict[str, Any]) -> str:
    """Return a short hash of everything that decides the prepared data."""
    text = json.dumps({"format": _FORMAT} | decided_by, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find(key: str) -> Prepared | None:
    """Return the prepared data with this key, or None when it was not made yet."""
    folder = _folder(key)
    try:
        facts = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
        splits = {name: _read(folder / f"{name}.parquet", facts, facts["cut"][name]) for name in SPLITS}
    except (OSError, ValueError, KeyError):  # not there, or damaged: it can be made again
        return None
    return Prepared(key, facts["labels"], **splits, overlaps=facts.get("overlaps", {}))  # an earlier version had none


def make(
    key: str,
    splits: dict[str, Texts],
    tokenizer: Any,
    max_tokens: int,
    long_text: LongText = "head",
    overlaps: dict[str, int] | None = None,
) -> Prepared:
    """Tokenize the splits and write them, whole or not at all; returns what `find` will return from now on.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    folder = _folder(key)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    with storing(folder):
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            cut = {}
            for name, part in splits.items():
                tokens = encode(part.texts, tokenizer, max_tokens, long_text)
                cut[name] = tokens.cut
                _write(unfinished / f"{name}.parquet", part, tokens)
            facts = {"labels": splits["train"].labels, "cut": cut, "long_text": long_text, "overlaps": overlaps or {}}
            (unfinished / "prepared.json").write_text(json.dumps(facts), encoding="utf-8")
            found = find(key)  # another process may have been faster; its files are the same
            if found is None:
                shutil.rmtree(folder, ignore_errors=True)
                unfinished.rename(folder)
                found = find(key)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    if found is None:
        raise StorageError(f"{folder} was written and can't be read again. Set LORAFIT_CACHE to another folder.")
    return found


def _folder(key: str) -> Path:
    return cache_dir() / "prepared" / key


def _write(file: Path, part: Texts, tokens: Tokens) -> None:
    columns = {"text": pa.array([parts(text)[0] for text in part.texts], type=pa.large_string())}
    if isinstance(part.texts[0], tuple):
        columns["text_pair"] = pa.array([parts(text)[1] for text in part.texts], type=pa.large_string())
    columns |= _label_columns(part) | {"input_ids": _nested(tokens)}
    if tokens.type_ids is not None:
        columns["token_type_ids"] = pa.LargeListArray.from_arrays(pa.array(tokens.offsets), pa.array(tokens.type_ids))
    pq.write_table(pa.table(columns), file)


def _label_columns(part: Texts) -> dict[str, pa.Array]:
    """Return each text's label and its id; of several labels a text, lists of those it has."""
    if part.label_ids.ndim == 1:
        names = [part.labels[label_id] for label_id in part.label_ids]
        return {"label": pa.array(names, type=pa.string()), "label_id": pa.array(part.label_ids, type=pa.int64())}
    given = [np.flatnonzero(row) for row in part.label_ids]
    lists = [[part.labels[label_id] for label_id in some] for some in given]
    return {
        "label": pa.array(lists, type=pa.list_(pa.string())),
        "label_id": pa.array(given, type=pa.list_(pa.int64())),
    }


def _nested(tokens: Tokens) -> pa.LargeListArray:
    """Return a list of token ids for each text, or a list of such lists where texts have windows."""
    windows = pa.LargeListArray.from_arrays(pa.array(tokens.offsets), pa.array(tokens.ids))
    return windows if tokens.windows is None else pa.LargeListArray.from_arrays(pa.array(tokens.windows), windows)


def _read(file: Path, facts: dict[str, Any], cut: int) -> Split:
    table = pq.read_table(file).combine_chunks()
    column, windows, long_text = table["input_ids"].chunk(0), None, facts["long_text"]
    if long_text.startswith("windows"):
        windows, column = column.offsets.to_numpy(), column.values
    there = table.column_names
    type_ids = table["token_type_ids"].chunk(0).values.to_numpy() if "token_type_ids" in there else None
    tokens = Tokens(column.values.to_numpy(), column.offsets.to_numpy(), cut, long_text, windows, type_ids)
    texts = table["text"].to_pylist()
    if "text_pair" in there:
        texts = list(zip(texts, table["text_pair"].to_pylist(), strict=True))
    return Split(file, texts, _label_ids(table["label_id"], len(facts["labels"])), tokens)


def _label_ids(column: pa.ChunkedArray, labels: int) -> np.ndarray:
    if not pa.types.is_list(column.type):
        return np.asarray(column.to_numpy())
    label_ids = np.zeros((len(column), labels), dtype=np.int64)
    for text, given in enumerate(column.to_pylist()):
        label_ids[text, given] = 1
    return label_ids
