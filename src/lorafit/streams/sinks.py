"""Tables written part by part: each part becomes bytes that can be appended to those before."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lorafit.streams.compression import compressed
from lorafit.streams.form import Form
from lorafit.streams.rows import Number, Part, as_json, unfit
from lorafit.streams.sources import SEPARATORS

ROWS_A_ROW_GROUP = 65_536
BYTES_A_ROW_GROUP = 32_000_000  # in memory


class TextSink:
    """CSV, TSV or JSONL, be it compressed: parts behind each other are the file."""

    def __init__(self, form: Form, columns: list[str]) -> None:
        self.form, self.columns = form, columns

    def head(self, added: list[str]) -> bytes:
        """Return what stands before all rows."""
        if self.form.kind not in SEPARATORS:
            return b""
        return self._packed(_separated([[*self.columns, *added]], SEPARATORS[self.form.kind]))

    def part(self, part: Part, added: pa.RecordBatch) -> bytes:
        """Return rows with the columns added to them."""
        if self.form.kind in SEPARATORS:
            return self._packed(_separated(self._cells(part, added), SEPARATORS[self.form.kind]))
        lines = zip(part.lines(), added.to_pylist(), strict=True)
        return self._packed("".join(f"{line[:-1]}, {as_json(more)[1:]}\n" for line, more in lines))

    def _cells(self, part: Part, added: pa.RecordBatch) -> Iterator[list[str]]:
        behind = zip(*(column.to_pylist() for column in added.columns), strict=True)
        for cells, more in zip(part.objects(), behind, strict=True):
            yield [_cell(cells.get(name)) for name in self.columns] + [_cell(value) for value in more]

    def _packed(self, text: str) -> bytes:
        return compressed(text.encode(), self.form.codec) if text else b""


class ArrowSink:
    """What becomes a Parquet file: parts behind each other are streams of Arrow's, which `to_parquet` reads."""

    def __init__(self, schema: pa.Schema, codec: str) -> None:
        self.schema, self.codec = schema, codec

    def head(self, added: list[str]) -> bytes:  # noqa: ARG002
        """Return what stands before all rows: nothing."""
        return b""

    def part(self, part: Part, added: pa.RecordBatch) -> bytes:
        """Return rows with the columns added to them.

        Raises:
            DataError: a cell does not fit its column.
        """
        rows = part.arrow(self.schema)
        schema = pa.schema([*self.schema, *added.schema], self.schema.metadata)
        written = pa.BufferOutputStream()
        with pa.ipc.new_stream(written, schema) as stream:
            stream.write_batch(pa.RecordBatch.from_arrays([*rows.columns, *added.columns], schema=schema))
        return bytes(written.getvalue())

    def to_parquet(self, written: Path, target: Path) -> None:
        """Write the Parquet file of what was appended to `written`."""
        with pa.OSFile(str(written)) as file:
            tables = _tables(file)
            first = next(tables)
            with pq.ParquetWriter(target, first.schema, compression=_codec(self.codec)) as parquet:
                for group in _groups(first, tables):
                    parquet.write_table(group)


Sink = TextSink | ArrowSink


def refuse_what_parquet_cannot_hold(schema: pa.Schema) -> None:
    """Refuse types that Parquet does not have.

    Raises:
        DataError: names the first column of such a type.
    """
    for field in schema:
        try:
            alone = pa.schema([field])
            with pq.ParquetWriter(pa.BufferOutputStream(), alone) as parquet:
                parquet.write_table(alone.empty_table())
            with pa.ipc.new_stream(pa.BufferOutputStream(), alone) as stream:  # in which parts are kept
                stream.write_batch(pa.RecordBatch.from_pylist([], alone))
        except (pa.ArrowException, NotImplementedError) as error:
            raise unfit(field.name, str(error)) from None


def holds_bytes(kind: pa.DataType) -> bool:
    """Tell whether a type is, or has within it, bytes that are no text.

    >>> holds_bytes(pa.list_(pa.binary()))
    True
    """
    if isinstance(kind, pa.DictionaryType):
        return holds_bytes(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return False
    within = [kind.field(place).type for place in range(kind.num_fields)]
    is_bytes: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_fixed_size_binary,
        pa.types.is_binary_view,
    )
    return any(test(kind) for test in is_bytes) or any(map(holds_bytes, within))


def _tables(file: pa.OSFile) -> Iterator[pa.Table]:
    while file.tell() < file.size():
        with pa.ipc.open_stream(file) as stream:
            yield stream.read_all()


def _groups(first: pa.Table, others: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield row groups of about `ROWS_A_ROW_GROUP`, fewer where they are large."""
    waiting = [first]
    for table in others:
        rows, size = (sum(sizes) for sizes in zip(*((one.num_rows, one.nbytes) for one in waiting), strict=True))
        if rows >= ROWS_A_ROW_GROUP or size >= BYTES_A_ROW_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
        waiting.append(table)
    yield pa.concat_tables(waiting)


def _codec(name: str) -> str:
    if name == "uncompressed":
        return "none"
    return name if pa.Codec.is_available(name) else "snappy"


def _separated(rows: Iterable[list[str]], separator: str) -> str:
    written = io.StringIO()
    bare = csv.writer(written, delimiter=separator, lineterminator="\n")
    quoted = csv.writer(written, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for cells in rows:
        # Before 3.13 the csv module leaves "\r" bare, which readers take for the end of a row.
        (quoted if any("\r" in cell for cell in cells) else bare).writerow(cells)
    return written.getvalue()


def _cell(value: Any) -> str:
    """Return a cell of CSV: text and the digits of a number as they are, nothing for what is missing, else JSON."""
    if isinstance(value, Number):
        return value.said
    if type(value) in (int, float):  # at a fifth of the time that JSON takes; NaN is "nan"
        return repr(value)
    return value if isinstance(value, str) else "" if value is None else as_json(value)
