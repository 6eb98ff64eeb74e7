"""Rows in, and out again answered or rejected: what a file has in common with a shard of a folder."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa

from lorafit.bulk.answers import Answers
from lorafit.bulk.look import Rule, usable_places
from lorafit.data import Text
from lorafit.streams import Part


class AnsweredPart(NamedTuple):
    """A part, why each of its rows is not answered, the rest, what is added to it, how many texts were asked about."""

    part: Part
    reasons: list[str]
    kept: Part
    added: pa.RecordBatch
    asked: int

    def rejects(self, before: int, file: str = "") -> bytes:
        """Return the rows that are not answered as lines of JSON, with number, reason, and all that they hold.

        Args:
            before: how many rows stand before this part.
            file: is named in each line.
        """
        named = f'"file": {json.dumps(file)}, ' if file else ""
        places = [place for place, reason in enumerate(self.reasons) if reason]
        contents = self.part.take(places).contents()
        said = [json.dumps(self.reasons[place]) for place in places]
        lines = (
            f'{{{named}"row": {before + place + 1}, "reason": {reason}, "content": {content}}}\n'
            for place, reason, content in zip(places, said, contents, strict=True)
        )
        return "".join(lines).encode()


def answered(
    parts: Iterable[Part], rule: Rule, answers: Answers, advance: Callable[[int], None] = lambda _: None
) -> Iterator[AnsweredPart]:
    """Yield the parts with their answers, in turn; `advance` is told how many texts were asked about."""
    read: deque[tuple[Part, list[str], Part]] = deque()

    def texts() -> Iterator[list[Text]]:
        for part in parts:
            reasons = rule.reasons(part)
            read.append((part, reasons, part.take(usable_places(reasons))))
            yield _texts(read[-1][2], rule.columns)

    for added, asked in answers.to_each(texts(), advance):
        yield AnsweredPart(*read.popleft(), added, asked)


def _texts(part: Part, columns: list[str]) -> list[Text]:
    first, *second = (part.column(name) for name in columns)
    return list(zip(first, second[0], strict=True)) if second else first
