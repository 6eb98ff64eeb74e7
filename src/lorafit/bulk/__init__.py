"""A whole file answered, row by row in constant memory; what is killed goes on to the very same bytes.

The input is looked at whole before anything is loaded. Then part after part is read, answered, and appended to the work
folder's files; at the end these take their places. Rows without a usable text stand in a file of their own.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from lorafit import console, runtime, streams
from lorafit.bulk import ledger
from lorafit.bulk.answers import Answers
from lorafit.bulk.ledger import Ledger
from lorafit.bulk.look import Rule, look_at, refuse_clash, refuse_misfit
from lorafit.bulk.rows import answered
from lorafit.data import Text
from lorafit.errors import DataError, StorageError
from lorafit.files import sha256_of, storing
from lorafit.predict import Classifier
from lorafit.streams import ArrowSink, Part, Sink, Source

PRODUCTS_KEPT = 16  # with 32 memory grows by a tenth until they are all seen
_PROBES = ("A film to remember.", "Two hours that I will not get back, " * 40, "No.")


@dataclass(frozen=True)
class Scored:
    """What became of a file.

    Attributes:
        rows: in the output.
        rejected: in `rejected_file`, which is there only if there are any.
        repeated: of the output's rows those whose text had come before.
        seconds: from start to end of this process's part of it.
        resumed_after: the rows that an earlier, interrupted process had done.
    """

    rows: int
    rejected: int
    repeated: int
    seconds: float
    resumed_after: int

    @property
    def rows_per_second(self) -> float:
        """Rows read a second, by this process."""
        return (self.rows + self.rejected - self.resumed_after) / max(self.seconds, 1e-9)


def score(
    load: Callable[[], Classifier],
    source: Path,
    target: Path,
    *,
    text_column: str = "text",
    pair_column: str = "",
    base: bool = False,
    prefix: str = "",
    strict: bool = False,
    overwrite: bool = False,
) -> Scored:
    """Write the table in `source` to `target` with `predicted_label` and one `<label>_prob` a label behind its columns.

    Where a text may have several labels, `predicted_labels` is there in place of `predicted_label`: a list, which CSV
    and TSV have as JSON. On a base that the adapter was not trained on, `different_base` is its SHA-256. Rows without a
    usable text go to `rejected_file(target)`. The same call again goes on where one was interrupted.

    Args:
        load: gives the classifier; it is called once the whole input has been looked at.
        source: CSV, TSV or JSONL, be it compressed, or Parquet.
        target: the same formats, by its ending.
        text_column: the column with the texts.
        pair_column: the column with each text's second one, for an adapter that reads pairs.
        base: ask the encoder with its untrained head.
        prefix: stands before the name of each added column.
        strict: refuse a file with rows that have no usable text, before any work.
        overwrite: replace what stands at `target`, and forget the work of another command on it.

    Raises:
        DataError: no such column, a file that can't be read as a whole, no usable row, pairs that the adapter does not
            read, single texts where it reads pairs, or a column of a name that the answers need.
        StorageError: the target can't be written, is there already, or is being written by another process.

    >>> load = lambda: Classifier.load("runs/demo")
    >>> score(load, Path("reviews.parquet"), Path("scored.csv.gz"), text_column="review").rows
    25000
    """
    start = time.monotonic()
    columns = [text_column, pair_column] if pair_column else [text_column]
    table = streams.opened(source)
    before = _state(source)
    _refuse_places(source, target, overwrite)
    rule = Rule(columns, streams.form_of(target), rejected_file(target), strict)
    with streams.in_flat_memory(), ledger.held(target, rejected_file(target)) as book:
        look = look_at(table, rule)
        runtime.keep_few_shapes(PRODUCTS_KEPT)
        classifier = load()
        if classifier.strips_tags:
            rule = replace(rule, strips_tags=True)
            look = look_at(table, rule)
        answers = Answers(classifier, base, prefix, book)
        refuse_misfit(classifier, source, pair_column)
        refuse_clash(answers.columns, look.columns, source, prefix)
        job = _job(classifier, source, columns, prefix, base)
        if _state(source) != before:
            raise DataError(f"{source} has changed while it was looked at. Run it again.")
        book.begin(job, overwrite=overwrite)
        sink = streams.sink(rule.form, look.columns, look.schema, table.codec)
        resumed_after = book.progress.rows
        with _naming_the_way_on(book, look.rows):
            _write(table, rule, sink, answers, book, look.rows)
        if _state(source) != before or book.progress.rows != look.rows:
            book.forget()  # nobody knows which rows are of which state
            raise DataError(f"{source} has changed while it was read; what was written is forgotten. Run it again.")
        finish = sink.to_parquet if isinstance(sink, ArrowSink) else None
        book.publish(finish, overwrite=overwrite)
        done = book.progress
        kept = done.rows - done.rejected
        return Scored(kept, done.rejected, kept - book.answers, time.monotonic() - start, resumed_after)


def rejected_file(target: Path) -> Path:
    """Return where the rows without a usable text go.

    >>> rejected_file(Path("scored.csv"))
    PosixPath('scored.csv.rejected.jsonl')
    """
    return target.with_name(f"{target.name}.rejected.jsonl")


def _write(table: Source, rule: Rule, sink: Sink, answers: Answers, book: Ledger, rows: int) -> None:
    """Write all rows behind those that are written already."""
    if book.progress.complete:
        return
    done = book.progress.rows
    if done:
        console.say(f"Going on after row {done:,} of {rows:,}.")
    if not book.progress.output.length:
        book.append(sink.head(answers.columns))
    with console.row_bar(rows, done) as advance:
        for some in answered(_unwritten(table, done), rule, answers, advance):
            output = sink.part(some.kept, some.added) if len(some.kept) else b""
            advance(len(some.part) - some.asked)
            rejects = some.rejects(book.progress.rows)
            book.append(output, rejects, len(some.part), len(some.part) - len(some.kept))


def _unwritten(table: Source, done: int) -> Iterator[Part]:
    """Yield the rows behind those that are written."""
    for part in table.parts():
        here = max(0, done - part.first)  # of its rows those that are written already
        if here < len(part):
            yield part.take(range(here, len(part))) if here else part


def _job(classifier: Classifier, source: Path, columns: list[str], prefix: str, base: bool) -> dict[str, str]:
    """Return all that decides what is written, each fact under the name that a refusal gives it.

    Who answers is known by what it answers: adapter, base, precision and backend all show in the digits.
    """
    probes: list[Text] = [(text, text) for text in _PROBES] if classifier.text_pair else list(_PROBES)
    answers = classifier.probabilities(probes, base=base)
    return {
        "the input's contents": sha256_of(source),
        "the input's format": str(streams.form_of(source)),
        "the columns": json.dumps(columns),
        "the prefix": prefix,
        "the labels": json.dumps([classifier.labels, classifier.task, base or classifier.thresholds]),
        "the classifier's answers": hashlib.sha256(answers.tobytes()).hexdigest(),
        "the base": str(classifier.different_base),
        "the threads": str(torch.get_num_threads()),
        "lorafit's versions": version("lorafit"),
    }


@contextmanager
def _naming_the_way_on(book: Ledger, rows: int) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        done = f"{book.progress.rows:,} of {rows:,} rows are written"
        console.complain("Interrupted", f"{done}; the same command goes on from there.", "yellow")
        raise


def _state(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return -1, -1  # it is gone, which is a change too
    return found.st_size, found.st_mtime_ns


def _refuse_places(source: Path, target: Path, overwrite: bool) -> None:
    """Refuse an output that can't be written, before any work.

    Raises:
        DataError: an unknown format, or the input.
        StorageError: a folder of that name, no folder to write it into, or a file that stands there.
    """
    streams.form_of(target)
    with storing(target):
        if target.is_dir():
            raise StorageError(f"{target} is a folder; name a file.")
        if not os.access(target.absolute().parent, os.W_OK):
            raise StorageError(f"There is no folder {target.absolute().parent} that can be written.")
        for file in (target, rejected_file(target)):
            if file.exists() and file.samefile(source):
                raise DataError(f"{file} would be written over the input. Name another output.")
            if file.exists() and not overwrite and not ledger.work_folder(target).exists():
                raise ledger.in_the_way(file)
