"""Answers to texts: a text is asked about once, however often it comes, and its answer kept."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from lorafit import tasks
from lorafit.data import Text, parts
from lorafit.predict import Classifier

TEXTS_AT_ONCE = 4096  # tens of batches, so that little is padded; CHARACTERS_AT_ONCE bounds what a kill loses
CHARACTERS_AT_ONCE = 400_000
_PROBABILITY = np.dtype("<f8")


class Answered(NamedTuple):
    """The columns to add to a part, a row a text, and how many texts were asked about for it."""

    columns: pa.RecordBatch
    asked: int


@dataclass(frozen=True)
class _Waiting:
    """A part that was read: its texts by key, the answers that are known, and the slices that are still asked about."""

    keys: list[bytes]
    known: dict[bytes, bytes]
    asked: frozenset[bytes]
    slices: deque[list[bytes]]


class Book(Protocol):
    """Where answers are kept, as bytes under their texts' keys."""

    def known(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the answers that were given to those of the texts that had one."""

    def remember(self, answers: dict[bytes, bytes]) -> None:
        """Keep answers."""


def added_schema(classifier: Classifier, prefix: str) -> pa.Schema:
    """Return names and types of the columns that are added, `prefix` before each name."""
    several = classifier.task == "multi_label"
    given = ("predicted_labels", pa.list_(pa.string())) if several else ("predicted_label", pa.string())
    probabilities = [(f"{label}_prob", pa.float64()) for label in classifier.labels]
    noted = [("different_base", pa.string())] if classifier.different_base else []
    return pa.schema([(prefix + name, kind) for name, kind in (given, *probabilities, *noted)])


class Answers:
    """What a classifier answers, as the columns that are added to a table."""

    def __init__(self, classifier: Classifier, base: bool, prefix: str, book: Book) -> None:
        self._classifier, self._base, self._book = classifier, base, book
        self._schema = added_schema(classifier, prefix)

    @property
    def columns(self) -> list[str]:
        """The names of what is added."""
        names: list[str] = self._schema.names
        return names

    def to_each(self, parts: Iterable[Sequence[Text]], advance: Callable[[int], None]) -> Iterator[Answered]:
        """Yield the answers to each part's texts, in turn; `advance` is told how many texts were asked about.

        Up to three parts are read ahead, so that a runtime that works on several batches at a time never waits. Which
        texts are asked about together does not depend on where a kill came.
        """
        unread = iter(parts)
        while (part := next(unread, None)) is not None:
            yield from self._in_one_go(chain([part], unread), advance)

    def _in_one_go(self, parts: Iterable[Sequence[Text]], advance: Callable[[int], None]) -> Iterator[Answered]:
        """Answer up to a part that asks nothing; to read on behind such, with others waiting, might hold the file."""
        waiting: deque[_Waiting] = deque()

        def slices() -> Iterator[list[Text]]:
            for texts in parts:
                keys = [_key(text) for text in texts]
                by_key = dict(zip(keys, texts, strict=True))
                part = self._look_up(keys, by_key, waiting)
                waiting.append(part)
                for some in tuple(part.slices):
                    yield [by_key[key] for key in some]
                if not part.asked:
                    return

        for rows in self._classifier.probabilities_of_each(slices(), base=self._base):
            some = waiting[0].slices.popleft()
            new = {key: row.astype(_PROBABILITY).tobytes() for key, row in zip(some, rows, strict=True)}
            self._book.remember(new)
            waiting[0].known.update(new)
            advance(len(some))
            if not waiting[0].slices:
                yield self._answered(waiting.popleft())
        yield from map(self._answered, waiting)

    def _look_up(self, keys: list[bytes], by_key: dict[bytes, Text], before: Iterable[_Waiting]) -> _Waiting:
        known = self._book.known(sorted(by_key))
        asked = [key for key in by_key if key not in known and not any(key in part.asked for part in before)]
        lengths = {key: sum(map(len, parts(by_key[key]))) for key in asked}
        slices = _slices(sorted(asked, key=lengths.__getitem__, reverse=True), lengths)
        return _Waiting(keys, known, frozenset(asked), deque(slices))

    def _answered(self, part: _Waiting) -> Answered:
        known = part.known | self._book.known(sorted(set(part.keys) - part.known.keys()))  # asked by one before
        rows = b"".join(map(known.__getitem__, part.keys))
        found = np.frombuffer(rows, _PROBABILITY).reshape(len(part.keys), len(self._classifier.labels))
        return Answered(self._columns(found), len(part.asked))

    def _columns(self, found: np.ndarray) -> pa.RecordBatch:
        thresholds = None if self._base else self._classifier.thresholds  # they were fitted to the adapter's answers
        decided = tasks.decide(found, self._classifier.task, thresholds)
        labels = np.array(self._classifier.labels, dtype=object)
        given = [labels[row.astype(bool)].tolist() for row in decided] if decided.ndim == 2 else labels[decided]
        noted = [[self._classifier.different_base] * len(found)] if self._classifier.different_base else []
        cells = [given, *np.ascontiguousarray(found.T), *noted]
        columns = [pa.array(column, kind) for column, kind in zip(cells, self._schema.types, strict=True)]
        return pa.record_batch(columns, schema=self._schema)


def _slices(keys: Sequence[bytes], lengths: dict[bytes, int]) -> Iterator[list[bytes]]:
    """Cut from the front, so that what is left after a kill is cut as it would have been."""
    some: list[bytes] = []
    characters = 0
    for key in keys:
        if len(some) == TEXTS_AT_ONCE or (some and characters + lengths[key] > CHARACTERS_AT_ONCE):
            yield some
            some, characters = [], 0
        some.append(key)
        characters += lengths[key]
    if some:
        yield some


def _key(text: Text) -> bytes:
    """Return 16 bytes that stand for a text, or for a pair; where its first text ends is hashed too."""
    pieces = [part.encode() for part in parts(text)]
    found = hashlib.blake2b(b"%d:" % len(pieces[0]), digest_size=16)
    for piece in pieces:
        found.update(piece)
    return found.digest()
