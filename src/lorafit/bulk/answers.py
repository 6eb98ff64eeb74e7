"""Answers to texts: a text is asked about once in a file, however often it comes, and its answer kept on disk."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from lorafit import tasks
from lorafit.bulk.ledger import Ledger
from lorafit.data import Text, parts
from lorafit.predict import Classifier

TEXTS_AT_ONCE = (
    4096  # tens of batches, so that the ends of calls cost little; CHARACTERS_AT_ONCE bounds what a kill loses
)
CHARACTERS_AT_ONCE = 400_000
_PROBABILITY = np.dtype("<f8")


class Answers:
    """What a classifier answers, as the columns that are added to a table."""

    def __init__(self, classifier: Classifier, base: bool, prefix: str, book: Ledger) -> None:
        self._classifier, self._base, self._book = classifier, base, book
        self.asked = 0  # texts, by this process
        several = classifier.task == "multi_label"
        given = ("predicted_labels", pa.list_(pa.string())) if several else ("predicted_label", pa.string())
        probabilities = [(f"{label}_prob", pa.float64()) for label in classifier.labels]
        noted = [("different_base", pa.string())] if classifier.different_base else []
        self._schema = pa.schema([(prefix + name, kind) for name, kind in (given, *probabilities, *noted)])

    @property
    def columns(self) -> list[str]:
        """The names of what is added."""
        names: list[str] = self._schema.names
        return names

    def to(self, texts: Sequence[Text], advance: Callable[[int], None]) -> pa.RecordBatch:
        """Return the columns to add, a row a text; `advance` is told how many texts were asked about."""
        found = self._probabilities(texts, advance)
        thresholds = None if self._base else self._classifier.thresholds  # they were fitted to the adapter's answers
        decided = tasks.decide(found, self._classifier.task, thresholds)
        labels = np.array(self._classifier.labels, dtype=object)
        given = [labels[row.astype(bool)].tolist() for row in decided] if decided.ndim == 2 else labels[decided]
        noted = [[self._classifier.different_base] * len(texts)] if self._classifier.different_base else []
        cells = [given, *np.ascontiguousarray(found.T), *noted]
        columns = [pa.array(column, kind) for column, kind in zip(cells, self._schema.types, strict=True)]
        return pa.record_batch(columns, schema=self._schema)

    def _probabilities(self, texts: Sequence[Text], advance: Callable[[int], None]) -> np.ndarray:
        """Return (texts, labels). Which texts are asked about together does not depend on where a kill came."""
        keys = [_key(text) for text in texts]
        distinct = dict(zip(keys, texts, strict=True))
        known = self._book.known(sorted(distinct))
        unknown = [key for key in distinct if key not in known]
        lengths = {key: sum(map(len, parts(distinct[key]))) for key in unknown}
        for some in _slices(sorted(unknown, key=lengths.__getitem__, reverse=True), lengths):
            rows = self._classifier.probabilities([distinct[key] for key in some], base=self._base)
            new = {key: row.astype(_PROBABILITY).tobytes() for key, row in zip(some, rows, strict=True)}
            self._book.remember(new)
            known |= new
            self.asked += len(some)
            advance(len(some))
        return np.frombuffer(b"".join(map(known.__getitem__, keys)), _PROBABILITY).reshape(len(keys), -1)


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
