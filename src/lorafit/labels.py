"""Cells -> label names and label ids: one label a text; several, as a list or with separators; or a column a label."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from warnings import warn

import numpy as np
import pandas as pd

from lorafit import tables
from lorafit.errors import DataError, LorafitWarning, nearest
from lorafit.tables import name_rows

LONGEST_LABEL = 1000  # characters
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LIKELY_SEPARATORS = ("|", ";", ",")
_NEARLY_ALL = 0.9
_FLAGS = {"0": 0, "false": 0, "1": 1, "true": 1}


@dataclass(frozen=True)
class _Column:
    """The cells of a column by the number of their row, none of them empty; and what errors call them."""

    name: str
    place: str
    cells: dict[int, Any]

    def fault(self, row: int, sentence: str) -> DataError:
        """Return an error about one cell."""
        shown = repr(self.cells[row])
        return DataError(
            f"{self.place}: row {row + 1} of column {self.name!r} holds "
            f"{shown if len(shown) <= 80 else shown[:80] + '...'}, {sentence}."
        )


def read(
    table: pd.DataFrame,
    rows: Sequence[int],
    column: str | Sequence[str],
    *,
    separator: str = "",
    declared: Sequence[str] = (),
    known: Sequence[str] = (),
    place: str = "the table",
) -> tuple[list[str], np.ndarray]:
    """Return label names in the order of their ids, and label ids: (rows), or of several labels a text (rows, labels).

    A text may have several labels where a separator is given, where the cells are lists, and where each label has a
    column of its own. An empty list, or a row of zeros, is a text with none.

    Args:
        table: from `tables.read`.
        rows: which rows, by their numbers from 0.
        column: the column with the labels, strings or integers; or several, one a label, of 0 and 1 or false and true.
        separator: what stands between the labels of one text; "json": a cell is a JSON list.
        declared: the names there may be, in the order of their ids, for which the cells may have integers.
        known: the names there may be, where none are declared, for which no integer stands; empty: those found, sorted.
        place: names the table in errors.

    Raises:
        DataError: no such column, a cell that can't be read, a label that is missing or not among those there may be,
            or the same labels everywhere.

    >>> read(pd.DataFrame({"topics": ["art|war", "art"]}), [0, 1], "topics", separator="|")
    (['art', 'war'], array([[1, 1],
           [1, 0]]))
    """
    if not isinstance(column, str):
        _refuse_unfit_names(dict.fromkeys(column, place), "")
        flags = np.stack([_read_flags(_open(table, rows, name, place)) for name in column], axis=1)
        _refuse_alike(flags, list(column), place)
        return list(column), flags
    cells = _open(table, rows, column, place)
    several = bool(separator) or any(isinstance(cell, list) for cell in cells.cells.values())
    if several:
        given = {row: _several(cells, row, separator) for row in cells.cells}
    else:
        given = {row: [_name(cell)] for row, cell in cells.cells.items()}
    rows_of = {name: row for row in reversed(given) for name in given[row]}  # the first of each
    _refuse_unfit_names(dict.fromkeys(declared, place), separator)
    _refuse_unfit_names({name: f"{place}: row {row + 1}" for name, row in rows_of.items()}, separator)
    names = list(declared or known) or _sorted_names({name for some in given.values() for name in some})
    ids = _ids(names, bool(declared))
    _refuse_strange(given, ids, names, cells)
    if several:
        _refuse_flags(given, cells)
        return names, _as_matrix([[ids[name] for name in some] for some in given.values()], names, cells)
    label_ids = np.array([ids[some[0]] for some in given.values()], dtype=np.int64)
    if len(set(label_ids)) < 2:
        raise DataError(f"{place}: every row has the label {names[label_ids[0]]!r}; a classifier needs two classes.")
    if not declared:
        _suggest_separator(names, cells)
    return names, label_ids


def _open(table: pd.DataFrame, rows: Sequence[int], name: str, place: str) -> _Column:
    """Return the cells of a column, of which none is empty."""
    values = tables.column(table, name, place)
    missing = [row for row in rows if not isinstance(values[row], list) and _name(values[row]) == ""]
    if missing:
        raise DataError(
            f"{place}: {len(missing)} of {len(rows)} rows have no label in column {name!r} ({name_rows(missing)}). "
            "Fill them in, or take those rows out."
        )
    return _Column(name, place, {row: values[row] for row in rows})


def _name(value: Any) -> str:
    """Return what a cell calls a label; "" for what is none."""
    if value is None or isinstance(value, list | dict | np.ndarray):
        return ""
    if isinstance(value, float):  # pandas turns integers beside a missing value into floats
        return "" if not math.isfinite(value) else str(int(value) if value.is_integer() else value)
    return str(value).strip()


def _several(column: _Column, row: int, separator: str) -> list[str]:
    """Return the labels in one cell."""
    cell = column.cells[row]
    if isinstance(cell, str) and separator == "json":
        cell = _parsed(cell)
        if cell is None:
            raise column.fault(row, 'which is no JSON list of labels, such as ["a", "b"]')
    elif separator and not isinstance(cell, list):
        cell = [part for part in _name(cell).split(separator) if part.strip()]
        if not cell:
            raise column.fault(row, f"which has separators {separator!r} and no label")
    if not isinstance(cell, list):
        raise column.fault(row, "where others hold lists of labels")
    found = [_name(item) for item in cell]
    if "" in found:
        raise column.fault(row, "in which not everything is a label")
    return found


def _parsed(cell: str) -> list[Any] | None:
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _read_flags(column: _Column) -> np.ndarray:
    """Return the 0 and 1 in a label's own column."""
    found = []
    for row, cell in column.cells.items():
        flag = _FLAGS.get(_name(cell).lower())
        if flag is None:
            raise column.fault(row, "where a label's own column holds 0 or 1, or false or true")
        found.append(flag)
    return np.array(found, dtype=np.int64)


def _sorted_names(names: set[str]) -> list[str]:
    numbers = all(_INTEGER.fullmatch(name) for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)


def _refuse_unfit_names(places: dict[str, str], separator: str) -> None:
    """Refuse names that no bundle could hold or no cell could say; `places` are where they stand, by name."""
    for name, place in places.items():
        if len(name) > LONGEST_LABEL or _UNSHOWN.search(name):
            raise DataError(
                f"{place}: the label {name[:40]!r} can't be a name: it has a line break or another control character, "
                f"half a character (a lone surrogate), or more than {LONGEST_LABEL} characters."
            )
        if separator not in ("", "json") and separator in name:
            raise DataError(
                f"{place}: the label {name!r} has the separator {separator!r} in it, so it would be read as "
                "several. Set another data.label_separator, or rename it."
            )


def _ids(names: list[str], declared: bool) -> dict[str, int]:
    """Return the id of each name; integers stand for declared names, by their order."""
    ids = {name: number for number, name in enumerate(names)}
    if declared and not any(_INTEGER.fullmatch(name) for name in names):
        ids |= {str(number): number for number in range(len(names))}
    return ids


def _refuse_strange(given: dict[int, list[str]], ids: dict[str, int], names: list[str], column: _Column) -> None:
    strange = {row: name for row, some in given.items() for name in some if name not in ids}
    if strange:
        (row, found), *others = strange.items()
        is_number = _INTEGER.fullmatch(found) and not any(map(_INTEGER.fullmatch, names))
        raise DataError(
            f"{column.place}: {len(strange)} labels are none of those known from data.labels or from the training "
            f"texts, {names}: {found!r} in row {row + 1}"
            + (f", {name_rows([row for row, _ in others])}" if others else "")
            + f".{nearest(found, names)}"
            + (" Integers stand for names only in the order that data.labels gives." if is_number else "")
        )


def _as_matrix(given: list[list[int]], names: list[str], column: _Column) -> np.ndarray:
    if len(names) < 2:
        found = f"only the label {names[0]!r}" if names else "no label"
        raise DataError(f"{column.place}: column {column.name!r} holds {found}; a classifier needs two.")
    label_ids = np.zeros((len(given), len(names)), dtype=np.int64)
    for text, some in enumerate(given):
        label_ids[text, some] = 1
    _refuse_alike(label_ids, names, column.place)
    return label_ids


def _refuse_alike(label_ids: np.ndarray, names: list[str], place: str) -> None:
    if (label_ids == label_ids[0]).all():
        same = [names[label_id] for label_id in np.flatnonzero(label_ids[0])]
        raise DataError(f"{place}: every row has the very same labels, {same}; there is nothing to tell apart.")


def _refuse_flags(given: dict[int, list[str]], column: _Column) -> None:
    """Refuse lists of 0 and 1, a place a label, such as [0, 1, 0]: they would be read as the labels 0 and 1."""
    found = [frozenset(some) for some in given.values()]
    twice = any(len(some) < len(given[row]) for some, row in zip(found, given, strict=True))
    if frozenset().union(*found) == {"0", "1"} and (twice or len(set(found)) == 1):
        raise DataError(
            f"{column.place}: column {column.name!r} holds lists of 0 and 1, as if each place were a label. "
            'Lists hold the labels themselves; cells of 0 and 1 want a column for each label: data.label = ["a", "b"].'
        )


def _suggest_separator(names: list[str], column: _Column) -> None:
    """Warn when the labels look like several in one cell: nearly all hold a separator, or they share their parts."""
    for separator in _LIKELY_SEPARATORS:
        holding = [name for name in names if separator in name]
        parts = {part.strip() for name in names for part in name.split(separator)}
        if holding and (len(holding) >= _NEARLY_ALL * len(names) or len(parts) < len(names)):
            warn(
                f"{column.place}: labels such as {holding[0]!r} hold {separator!r}, and are taken as one label each. "
                f'If they are several, set data.label_separator = "{separator}".',
                LorafitWarning,
                stacklevel=2,
            )
            return
