"""Tables read part by part. Which rows make up a part is a function of the file alone."""

import codecs
import csv
import io
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from lorafit.errors import DataError
from lorafit.streams import compression
from lorafit.streams.form import Form
from lorafit.streams.rows import ArrowPart, Number, Part, Row, TextPart
from lorafit.tables import not_utf8

ROWS_A_PART = 8192
CHARACTERS_A_PART = 16_000_000
LONGEST_CELL = 1 << 27  # in characters: a quote that is never closed is found here, if the file does not end before
SEPARATORS = {".csv": ",", ".tsv": "\t"}
_BLOCK_BYTES = 1 << 20
_ROWS_WEIGHED = 64


class TextSource:
    """A CSV, TSV or JSONL file. `columns` are those of its header, of text; JSONL has none, each row has its own."""

    def __init__(self, file: Path, form: Form) -> None:
        self.file, self.form = file, form
        self.columns: list[str] = []
        self.rows: int | None = None  # unknown before all of it is read
        self.codec = "snappy"  # of a Parquet file that is made of it
        if form.kind in SEPARATORS:
            with self._reading() as lines:
                self.columns = _header(_records(lines, SEPARATORS[form.kind], file), file)
        self.schema = pa.schema([(name, pa.string()) for name in self.columns])

    def parts(self) -> Iterator[Part]:
        """Yield all rows, in parts of at most `ROWS_A_PART` rows and about `CHARACTERS_A_PART` characters.

        Raises:
            DataError: bytes that are not UTF-8, a file cut short, or a quote that is never closed.
        """
        with self._reading() as lines:
            rows: list[Row] = []
            first = characters = 0
            for row, length in self._rows(lines):
                rows.append(row)
                characters += length
                if len(rows) >= ROWS_A_PART or characters >= CHARACTERS_A_PART:
                    yield TextPart(first, rows)
                    first, characters, rows = first + len(rows), 0, []
            if rows:
                yield TextPart(first, rows)

    def _rows(self, lines: TextIO) -> Iterator[tuple[Row, int]]:
        if self.form.kind not in SEPARATORS:
            return _json_rows(lines)
        records = _records(lines, SEPARATORS[self.form.kind], self.file)
        return _cells_by_column(records, _header(records, self.file))

    @contextmanager
    def _reading(self) -> Iterator[TextIO]:
        with _refusing(self.file, self.form), compression.opened(self.file, self.form.codec) as stream:
            try:
                # Line breaks stay as they are: they may stand in a cell.
                yield io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
            except UnicodeDecodeError:
                place, value = _first_bad_byte(self.file, self.form.codec)
                raise not_utf8(self.file, f"byte {place}: 0x{value:02x}") from None


class ParquetSource:
    """A Parquet file; its columns keep Arrow's types and metadata."""

    def __init__(self, file: Path) -> None:
        self.file, self.form = file, Form(".parquet")
        with self._reading() as parquet:
            facts = parquet.metadata
            self.columns: list[str] = parquet.schema_arrow.names
            self.schema: pa.Schema = parquet.schema_arrow
            self.rows: int | None = facts.num_rows
            groups = [facts.row_group(place) for place in range(facts.num_row_groups)]
        self.codec = groups[0].column(0).compression.lower() if groups and self.columns else "snappy"
        self._rows_a_group = [group.num_rows for group in groups]
        self._mean_bytes_a_row = sum(group.total_byte_size for group in groups) / max(facts.num_rows, 1)
        _refuse_double(self.columns, file)

    def parts(self) -> Iterator[Part]:
        """Yield all rows, in parts that are bounded as those of a text are.

        Raises:
            DataError: a damaged file, or text in it that is not UTF-8.
        """
        return self.parts_of(0, sum(self._rows_a_group))

    def parts_of(self, first: int, rows: int) -> Iterator[Part]:
        """Yield so many rows behind the first ones as `parts` does, without reading row groups that hold none of them.

        Raises:
            DataError: a damaged file, or text in it that is not UTF-8.
        """
        ends = list(accumulate(self._rows_a_group))
        groups = range(bisect_right(ends, first), min(bisect_left(ends, first + rows) + 1, len(ends)))
        before = ends[groups.start - 1] if groups.start else 0
        with self._reading() as parquet:
            weights = (_bytes_a_row(parquet, place) for place in groups)
            largest = max((1.0, self._mean_bytes_a_row, *weights))
            rows_a_part = min(ROWS_A_PART, max(1, int(CHARACTERS_A_PART / largest)))
            for batch in parquet.iter_batches(rows_a_part, row_groups=list(groups), use_threads=False):
                begin = max(first, before)
                here = batch.slice(begin - before, max(first + rows - begin, 0))
                if here.num_rows:
                    _refuse_damaged(here, self.file)
                    yield ArrowPart(begin, here)
                before += batch.num_rows
                if before >= first + rows:
                    return

    @contextmanager
    def _reading(self) -> Iterator[pq.ParquetFile]:
        # With a buffer, and not fetched ahead, a row group that is as large as the file does not come into memory.
        with (
            _refusing(self.file, self.form),
            pq.ParquetFile(self.file, buffer_size=_BLOCK_BYTES, pre_buffer=False) as parquet,
        ):
            yield parquet


Source = TextSource | ParquetSource


@contextmanager
def _refusing(file: Path, form: Form) -> Iterator[None]:
    """Turn what goes wrong while a file is read into one sentence.

    Raises:
        DataError: always that.
    """
    try:
        yield
    except PermissionError:
        raise DataError(f"{file} can't be read: permission denied.") from None
    except (*compression.FAULTS, pa.ArrowException, csv.Error) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")
        raise DataError(f"{file} can't be read as {form}: {said}. Is it whole?") from error


def _first_bad_byte(file: Path, codec: str) -> tuple[int, int]:
    """Return place and value of the first byte that is not UTF-8: a reader's own error counts from a block's start."""
    place, waiting = 0, b""
    with compression.opened(file, codec) as stream:
        while True:
            block = stream.read(_BLOCK_BYTES)
            waiting += block
            try:
                done = codecs.utf_8_decode(waiting, "strict", not block)[1]
            except UnicodeDecodeError as error:
                return place + error.start, waiting[error.start]
            place, waiting = place + done, waiting[done:]


def _records(lines: Iterable[str], separator: str, file: Path) -> Iterator[tuple[list[str] | Row, int]]:
    """Yield the cells of each record, or what is no record, and how many characters it took."""
    read: list[str] = []  # the lines of this record

    def remembered() -> Iterator[str]:
        for line in lines:
            read.append(line)
            yield line

    csv.field_size_limit(LONGEST_CELL)  # Python's own, 131,072, is a long text
    reader = csv.reader(remembered(), delimiter=separator, strict=True)
    while True:
        before = reader.line_num
        try:
            cells: list[str] | Row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            said = str(error)
            if "unexpected end" in said or "field limit" in said:
                raise DataError(f"{file}: a quote is opened after line {before} and never closed.") from None
            cells = Row({}, f"its quotes do not fit ({said})", "".join(read))
        yield cells, sum(map(len, read))
        read.clear()


def _header(records: Iterator[tuple[list[str] | Row, int]], file: Path) -> list[str]:
    header = next((cells for cells, _ in records if cells), None)
    if header is None:
        raise DataError(f"{file} is empty.")
    if isinstance(header, Row):
        raise DataError(f"{file} has no header that can be read: {header.fault}.")
    _refuse_double(header, file)
    return header


def _refuse_double(columns: list[str], file: Path) -> None:
    double = next((name for name in columns if columns.count(name) > 1), None)
    if double is not None:
        raise DataError(f"{file} has two columns {double!r}. Rename one of them.")


def _bytes_a_row(parquet: pq.ParquetFile, group: int) -> float:
    """Return what the first rows of a row group take in memory: its own size counts a text that comes again once."""
    first = next(parquet.iter_batches(_ROWS_WEIGHED, row_groups=[group], use_threads=False), None)
    return first.nbytes / first.num_rows if first else 0.0


def _refuse_damaged(batch: pa.RecordBatch, file: Path) -> None:
    """Refuse what Arrow reads unseen, such as text that is not UTF-8."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise DataError(f"{file}: column {name!r} is damaged ({str(error).rstrip('.')}).") from None


def _cells_by_column(records: Iterable[tuple[list[str] | Row, int]], columns: list[str]) -> Iterator[tuple[Row, int]]:
    """Yield the rows behind a header. A blank line is none, unless an empty cell of the only column looks so."""
    count = len(columns)
    for cells, length in records:
        if isinstance(cells, Row):
            yield cells, length
        elif len(cells) == count:
            yield Row(dict(zip(columns, cells, strict=True))), length
        elif cells:
            fault = f"it has {len(cells)} cells, and the header {count}"
            yield Row({}, fault, cells), length
        elif count == 1:
            yield Row({columns[0]: ""}), length


def _json_rows(lines: Iterable[str]) -> Iterator[tuple[Row, int]]:
    for line in lines:
        said = line.strip()
        if said:
            yield _json_row(said), len(line)


def _json_row(line: str) -> Row:
    try:
        cells = json.loads(line, parse_float=Number)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits too
        return Row({}, f"it is not JSON that can be read ({error})", line)
    if not isinstance(cells, dict):
        return Row({}, 'it is no object such as {"text": ...}', line)
    return Row(cells, "", line)
