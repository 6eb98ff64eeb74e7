"""Rows that stand one behind another: a part of a table, as its format has them and as others want them."""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from lorafit.errors import DataError
from lorafit.tables import HALF_CHARACTER


class Number(float):
    """A float of JSON, and as what it stood there: "1.10"."""

    __slots__ = ("said",)
    said: str

    def __new__(cls, said: str) -> "Number":
        """Return it from its digits."""
        number = super().__new__(cls, said)
        number.said = said
        return number


class Row(NamedTuple):
    """A row of a text format: its cells by column, and what stood there where JSON said it, or where it is no row."""

    cells: dict[str, Any]
    fault: str = ""
    raw: Any = None


@dataclass(frozen=True)
class TextPart:
    """Rows of CSV, TSV or JSONL; `first` is how many stand before them."""

    first: int
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[Any]:
        """Return the cells of a column; None: missing."""
        return [row.cells.get(name) for row in self.rows]

    def faults(self) -> list[str]:
        """Return why each row is none, "" where it is one."""
        return [row.fault for row in self.rows]

    def half_characters(self) -> list[bool]:
        """Tell of each row whether it holds a lone surrogate, which JSON alone can say."""
        return [isinstance(row.raw, str) and "\\u" in row.raw and _has_half_character(row.cells) for row in self.rows]

    def take(self, places: Sequence[int]) -> "TextPart":
        """Return the rows at these places."""
        return TextPart(self.first, [self.rows[place] for place in places])

    def objects(self) -> list[dict[str, Any]]:
        """Return each row as an object that JSON can hold."""
        return [row.cells for row in self.rows]

    def lines(self) -> list[str]:
        """Return each row as a line of JSON; one that was a line already keeps its digits, order and escapes."""
        return [row.raw if isinstance(row.raw, str) else as_json(row.cells) for row in self.rows]

    def contents(self) -> list[str]:
        """Return all that stood in each row as JSON, be it no row."""
        found = [as_json(row.raw) if row.fault else "" for row in self.rows]
        return [broken or line for broken, line in zip(found, self.lines(), strict=True)]

    def schema(self) -> pa.Schema:
        """Return the types of the cells, as Parquet would have them.

        Raises:
            DataError: a column holds values of several types.
        """
        names = list(dict.fromkeys(name for row in self.rows for name in row.cells))
        return pa.schema([pa.field(name, _array(name, self.column(name)).type) for name in names])

    def arrow(self, schema: pa.Schema) -> pa.RecordBatch:
        """Return the rows as Arrow has them.

        Raises:
            DataError: a cell does not fit its column.
        """
        arrays = [_array(field.name, self.column(field.name), field.type) for field in schema]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


@dataclass(frozen=True)
class ArrowPart:
    """Rows of Parquet; `first` is how many stand before them."""

    first: int
    batch: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def column(self, name: str) -> list[Any]:
        """Return the cells of a column; None: missing."""
        return as_python(name, self.batch.column(name))

    def faults(self) -> list[str]:
        """Return why each row is none: it always is one."""
        return [""] * len(self)

    def half_characters(self) -> list[bool]:
        """Tell of each row whether it holds a lone surrogate: it never does."""
        return [False] * len(self)

    def take(self, places: Sequence[int]) -> "ArrowPart":
        """Return the rows at these places."""
        everything = len(places) == len(self)
        return self if everything else ArrowPart(self.first, self.batch.take(pa.array(places, pa.int64())))

    def objects(self) -> list[dict[str, Any]]:
        """Return each row as an object that JSON can hold: dates in ISO 8601, decimals as text, bytes in base64.

        Raises:
            DataError: a column holds what has no such form.
        """
        names = self.batch.schema.names
        pairs = zip(names, self.batch.columns, strict=True)
        columns = [[plain(cell) for cell in as_python(name, column)] for name, column in pairs]
        return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]

    def lines(self) -> list[str]:
        """Return each row as a line of JSON."""
        return [as_json(cells) for cells in self.objects()]

    def contents(self) -> list[str]:
        """Return all that stood in each row as JSON."""
        return self.lines()

    def schema(self) -> pa.Schema:
        """Return the types of the columns."""
        return self.batch.schema

    def arrow(self, schema: pa.Schema) -> pa.RecordBatch:  # noqa: ARG002
        """Return the rows as they are."""
        return self.batch


Part = TextPart | ArrowPart


def as_json(value: Any) -> str:
    """Return a value as one line of JSON.

    >>> as_json({"text": "naïve"})
    '{"text": "naïve"}'
    """
    return json.dumps(value, ensure_ascii=False)


def as_python(name: str, column: pa.Array) -> list[Any]:
    """Return the cells of a column as Python's values; nanoseconds of a time of day, which Python lacks, as text.

    Raises:
        DataError: dates that Python does not have, objects with two fields of one name, nanoseconds within lists.
    """
    if column.type == pa.time64("ns"):
        column = column.cast(pa.string())
    if "time64[ns]" in str(column.type):
        raise _unsayable(name, column, "nanoseconds would be lost")
    try:
        cells: list[Any] = column.to_pylist()
    except (OverflowError, ValueError) as error:
        raise _unsayable(name, column, str(error)) from None
    return cells


def _unsayable(name: str, column: pa.Array, reason: str) -> DataError:
    return DataError(f"Column {name!r}, of {column.type}, can't be read as text ({reason}). Parquet can hold it.")


def plain(cell: Any) -> Any:
    """Return a cell as JSON can hold it; NaN and the infinities, which it has no word for, are null.

    >>> plain([datetime(2024, 1, 2), float("nan")])
    ['2024-01-02T00:00:00', None]
    """
    match cell:
        case None | str() | int():
            return cell
        case float():
            return cell if math.isfinite(cell) else None
        case bytes():
            return base64.b64encode(cell).decode()
        case list() | tuple():
            return [plain(item) for item in cell]
        case dict():
            return {str(name): plain(item) for name, item in cell.items()}
        case datetime() | date() | time():
            return cell.isoformat()
        case timedelta():
            return pd.Timedelta(cell).isoformat()
        case _:  # decimals, and what extensions of Arrow make
            return str(cell)


def _array(name: str, cells: list[Any], kind: pa.DataType | None = None) -> pa.Array:
    try:
        return pa.array(cells, kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise unfit(name, str(error)) from None


def unfit(name: str, reason: str) -> DataError:
    """Return the refusal of a column that Parquet can't hold."""
    said = reason.splitlines()[0].strip().rstrip(".")
    return DataError(f"Column {name!r} does not fit a Parquet column ({said}). A JSONL file can hold it.")


def _has_half_character(cells: dict[str, Any]) -> bool:
    return HALF_CHARACTER.search(as_json(cells)) is not None
