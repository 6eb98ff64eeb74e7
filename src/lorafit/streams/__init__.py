"""Tables read and written part by part, in constant memory: CSV, TSV, JSONL, be they compressed, and Parquet.

Nothing is made of a row but what its format says: a CSV cell is text, a JSON line keeps its digits and its order, a
Parquet column its type. What the other format can't hold is refused, never bent in silence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from lorafit.streams.form import Form, form_of
from lorafit.streams.rows import ArrowPart, Part, TextPart
from lorafit.streams.sinks import ArrowSink, Sink, TextSink
from lorafit.streams.sources import ParquetSource, Source, TextSource
from lorafit.tables import refuse_missing

__all__ = [
    "ArrowPart",
    "ArrowSink",
    "Form",
    "ParquetSource",
    "Part",
    "Sink",
    "Source",
    "TextPart",
    "TextSink",
    "form_of",
    "in_flat_memory",
    "opened",
    "sink",
]


def opened(file: Path) -> Source:
    """Return the table in a file, of which nothing but the head has been read.

    Raises:
        DataError: no such file, an unknown format, a broken head, or two columns of one name.

    >>> sum(len(part) for part in opened(Path("reviews.csv.gz")).parts())
    25000
    """
    form = form_of(file)
    refuse_missing(file)
    return ParquetSource(file) if form.kind == ".parquet" else TextSource(file, form)


@contextmanager
def in_flat_memory() -> Iterator[None]:
    """Let Arrow take memory from the system: its own allocator keeps a little more of it with every part."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def sink(form: Form, columns: list[str], schema: pa.Schema, codec: str = "snappy") -> Sink:
    """Return what turns parts into the bytes of a file.

    Args:
        form: of the file.
        columns: those of the rows, for CSV and TSV.
        schema: theirs, for Parquet.
        codec: Parquet's compression.
    """
    return ArrowSink(schema, codec) if form.kind == ".parquet" else TextSink(form, columns)
