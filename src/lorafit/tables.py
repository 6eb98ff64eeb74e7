"""CSV, TSV, JSONL and Parquet: read into columns of plain values.

A CSV cell is text and nothing else: "NA" and "null" are words, an empty cell is an empty text. JSONL and Parquet
keep their own types, so a missing value there is None.
"""

import json
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lorafit.errors import DataError, nearest

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
MOST_LABELS = 150
HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")  # a lone surrogate: JSON can say it, UTF-8 and tokenizers can't
_SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_ROWS_NAMED = 5
_UNPACK = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_TEXT_NAMES = ("text", "review", "sentence", "content", "comment", "message", "body")
_LABEL_NAMES = ("label", "labels", "sentiment", "class", "category", "target", "y")


@dataclass(frozen=True)
class Columns:
    """The columns in which texts and labels stand."""

    text: str
    label: str


def is_table(path: Path | str) -> bool:
    """Tell whether the name is that of a data file."""
    return Path(path).suffix.lower() in SUFFIXES


def read(file: Path) -> pd.DataFrame:
    """Return the table in a data file, one row a text.

    Raises:
        DataError: no such file, an unknown format, no rows, bytes that are not UTF-8, or a broken file.
    """
    suffix = _suffix(file)
    refuse_missing(file)
    try:
        table = _READERS[suffix](file)
    except UnicodeDecodeError:
        raise not_utf8(file, _bad_byte(file)) from None
    except PermissionError:
        raise DataError(f"{file} can't be read: permission denied.") from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{file} is empty.") from None
    except pd.errors.ParserWarning:
        raise DataError(f"{file}: rows have more cells than the header. Is a text with a comma not quoted?") from None
    except (pd.errors.ParserError, pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} can't be read as {suffix[1:].upper()}: {str(error).strip()}.") from error
    if table.empty:
        raise DataError(f"{file} holds no rows.")
    names = [str(name) for name in table.columns]
    if suffix == ".csv" and len(names) == 1 and ";" in names[0]:
        raise DataError(f"{file} has semicolons between its cells, as some spreadsheets write it. Save it with commas.")
    return table


def column(table: pd.DataFrame, name: str, place: str) -> list[Any]:
    """Return one column as plain Python values; missing ones are None, lists are lists.

    Raises:
        DataError: there is no such column; the text shows those there are.
    """
    if name not in table.columns:
        names = [str(column) for column in table.columns]
        raise DataError(f"{place} has no column {name!r}; its columns are {', '.join(names)}.{nearest(name, names)}")
    values = table[name].astype(object)
    plain: list[Any] = values.where(values.notna(), None).tolist()
    return [cell.tolist() if isinstance(cell, np.ndarray) else cell for cell in plain]


def name_rows(rows: list[int]) -> str:
    """Return "rows 2, 5, ... and 3 more" for row numbers from 0; row 1 is the first after the header."""
    named = ", ".join(str(row + 1) for row in rows[:_ROWS_NAMED])
    more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {named}{more}, counted after the header"


def guess_columns(table: pd.DataFrame, place: str) -> Columns:
    """Find the columns with texts and labels: by their usual names first, then by what they hold.

    Raises:
        DataError: no column looks like texts, or none like labels.
    """
    values = {str(name): column(table, str(name), place) for name in table.columns}
    texts = [name for name, cells in values.items() if _looks_like_text(cells)]
    if not texts:
        raise DataError(f"{place}: no column looks like texts. Name it with --text-column; {_what_there_is(values)}.")
    text = _best(texts, _TEXT_NAMES, key=lambda name: _mean_length(values[name]))
    labels = [name for name, cells in values.items() if name != text and _looks_like_labels(cells)]
    if not labels:
        raise DataError(
            f"{place}: no column looks like labels (2 to {MOST_LABELS} repeated values). "
            f"Name it with --label-column; {_what_there_is(values)}."
        )
    return Columns(text, _best(labels, _LABEL_NAMES, key=lambda name: -len(_distinct(values[name]))))


def is_number(value: Any) -> bool:
    """Tell whether a cell holds a number, be it as text."""
    if isinstance(value, bool) or value is None:
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def refuse_missing(file: Path) -> None:
    """Refuse a file that is not there, or that nobody can look at.

    Raises:
        DataError: always that.
    """
    try:
        there = file.is_file()
    except OSError as error:  # on the way is a folder that is not ours to enter, or the name is too long
        raise DataError(f"{file} can't be read: {(error.strerror or str(error)).lower()}.") from None
    if not there:
        raise DataError(f"There is no file {file}.")


def not_utf8(file: Path, place: str) -> DataError:
    """Return the refusal of a file that is not UTF-8, with a way to convert it."""
    suffix = file.suffix.lower()
    convert = f"iconv -f LATIN1 -t UTF-8 {file.name} > utf8{file.suffix}"
    if suffix in _UNPACK:
        plain = Path(file.stem)
        convert = f"{_UNPACK[suffix]} -dc {file.name} | iconv -f LATIN1 -t UTF-8 > utf8{plain.suffix}"
    spreadsheet = "save it as CSV UTF-8 from your spreadsheet, or " if suffix == ".csv" else ""
    return DataError(f"{file} is not UTF-8 ({place}). Convert it first: {spreadsheet}for example: {convert}")


def _bad_byte(file: Path) -> str:
    """Name the byte by its place in the file: a reader's own error counts from the start of a chunk."""
    content = file.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start}: 0x{content[error.start]:02x}"
    return "in one of its cells"


def _suffix(file: Path) -> str:
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        hint = " Save it as CSV UTF-8 there." if suffix in _SPREADSHEETS else ""
        raise DataError(f"{file} has an unknown format; lorafit reads {', '.join(SUFFIXES)}.{hint}")
    return suffix


_warnings_are_ours = threading.Lock()  # what to do with them is one setting for all threads


def _read_separated(separator: str) -> Callable[[Path], pd.DataFrame]:
    def read_file(file: Path) -> pd.DataFrame:
        with _warnings_are_ours, warnings.catch_warnings():
            # Rows with more cells than the header would lose the last ones, or turn the first into an index.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table: pd.DataFrame = pd.read_csv(
                file, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False
            )
        return table

    return read_file


def _read_jsonl(file: Path) -> pd.DataFrame:
    rows = []
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # a number of 5,000 digits too
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f'line {number} holds no object such as {{"text": ..., "label": ...}}')
            rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def _read_parquet(file: Path) -> pd.DataFrame:
    pq.read_table(file).validate(full=True)  # pandas meets text that is not UTF-8 only where it is used
    return pd.read_parquet(file)


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_separated(","),
    ".tsv": _read_separated("\t"),
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _best(names: list[str], usual: tuple[str, ...], key: Callable[[str], float]) -> str:
    known = [name for wanted in usual for name in names if name.lower() == wanted]
    return known[0] if known else max(names, key=key)


def _looks_like_text(cells: list[Any]) -> bool:
    strings = [cell for cell in cells if isinstance(cell, str)]
    mostly_strings = len(strings) > len(cells) / 2
    return mostly_strings and len(set(strings)) > 1 and not all(is_number(cell) for cell in strings)


def _looks_like_labels(cells: list[Any]) -> bool:
    return 2 <= len(_distinct(cells)) <= min(MOST_LABELS, max(2, len(cells) // 2))


def _distinct(cells: list[Any]) -> set[Any]:
    """Return the values that cells hold, those of lists among them; none of a column with lists or objects within."""
    try:
        return {item for cell in cells for item in (cell if isinstance(cell, list) else [cell])} - {None, ""}
    except TypeError:
        return set()


def _mean_length(cells: list[Any]) -> float:
    return sum(len(str(cell)) for cell in cells) / max(len(cells), 1)


def _what_there_is(values: dict[str, list[Any]]) -> str:
    return f"the columns are {', '.join(values)}"
