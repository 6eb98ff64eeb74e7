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

from lorafit.data import SPLITS, Texts
from lorafit.errors import StorageError
from lorafit.files import storing
from lorafit.manifest import LongText
from lorafit.runtime import cache_dir
from lorafit.tokens import Tokens, encode

_FORMAT = 2


@dataclass(frozen=True)
class Split:
    """One split: its texts, label ids and token ids, and the file they lie in."""

    file: Path
    texts: list[str]
    label_ids: np.ndarray  # int64, one a text
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

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name, in the order of their use."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

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
        splits = {name: _read(folder / f"{name}.parquet", facts["cut"][name], facts["long_text"]) for name in SPLITS}
    except (OSError, ValueError, KeyError):  # not there, or damaged: it can be made again
        return None
    return Prepared(key, facts["labels"], **splits)


def make(key: str, parts: dict[str, Texts], tokenizer: Any, max_tokens: int, long_text: LongText = "head") -> Prepared:
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
            for name, part in parts.items():
                tokens = encode(part.texts, tokenizer, max_tokens, long_text)
                cut[name] = tokens.cut
                _write(unfinished / f"{name}.parquet", part, tokens)
            facts = {"labels": parts["train"].labels, "cut": cut, "long_text": long_text}
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
    columns = {
        "text": pa.array(part.texts, type=pa.large_string()),
        "label": pa.array([part.labels[label_id] for label_id in part.label_ids], type=pa.string()),
        "label_id": pa.array(part.label_ids, type=pa.int64()),
        "input_ids": _nested(tokens),
    }
    pq.write_table(pa.table(columns), file)


def _nested(tokens: Tokens) -> pa.LargeListArray:
    """Return a list of token ids for each text, or a list of such lists where texts have windows."""
    windows = pa.LargeListArray.from_arrays(pa.array(tokens.offsets), pa.array(tokens.ids))
    return windows if tokens.windows is None else pa.LargeListArray.from_arrays(pa.array(tokens.windows), windows)


def _read(file: Path, cut: int, long_text: LongText) -> Split:
    table = pq.read_table(file).combine_chunks()
    column, windows = table["input_ids"].chunk(0), None
    if long_text.startswith("windows"):
        windows, column = column.offsets.to_numpy(), column.values
    tokens = Tokens(column.values.to_numpy(), column.offsets.to_numpy(), cut, long_text, windows)
    return Split(file, table["text"].to_pylist(), table["label_id"].to_numpy(), tokens)
