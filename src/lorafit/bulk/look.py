"""The first look through a whole input, before anything is loaded: what is wrong with it is said at once."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from lorafit import console
from lorafit.data import fault
from lorafit.errors import DataError, nearest
from lorafit.predict import Classifier
from lorafit.streams import Form, Part, Source, sinks


@dataclass(frozen=True)
class Rule:
    """Which rows are answered: those with a text in each of `columns`, all of which `form`, the output's, can hold.

    `rejected` is named where a row that is not makes the file refused (`strict`).
    """

    columns: list[str]
    form: Form
    rejected: Path
    strict: bool = False
    strips_tags: bool = False

    def reasons(self, part: Part) -> list[str]:
        """Return why each row is not answered, "" where it is."""
        reasons = part.faults()
        for name in self.columns:
            faults = [fault(cell, strips_tags=self.strips_tags) for cell in part.column(name)]
            reasons = [reason or (why and f"its {name!r} {why}") for reason, why in zip(reasons, faults, strict=True)]
        if self.form.kind != ".jsonl":
            halves = part.half_characters()
            said = f"it holds half a character, a lone surrogate, which {self.form} can't"
            reasons = [reason or (said if half else "") for reason, half in zip(reasons, halves, strict=True)]
        return reasons

    def refuse_if_strict(self, file: Path, part: Part, reasons: list[str]) -> None:
        """Refuse rows that are not answered, where the rule is strict.

        Raises:
            DataError: names the first.
        """
        if self.strict and any(reasons):
            raise DataError(f"{file}, {_first(part, reasons)}. Without --strict such rows go to {self.rejected}.")


@dataclass(frozen=True)
class Look:
    """What was found: the number of rows, and columns and types of those that are answered."""

    rows: int
    columns: list[str]
    schema: pa.Schema


def look_at(table: Source, rule: Rule) -> Look:
    """Read the whole input once.

    Raises:
        DataError: a missing column, a file that can't be read or that the output can't hold, no row that is answered;
            where the rule is strict, the first that is not.
    """
    if table.columns:
        refuse_missing(rule.columns, table.columns, table.file)
    _refuse_bytes(table, rule.form)
    seen, columns, schema = dict.fromkeys(table.columns), dict.fromkeys(table.columns), table.schema
    rows, first_unusable = 0, ""
    usable, mixed = 0, False
    with console.bar("Looking at the input", total=table.rows) as advance:
        for part in table.parts():
            reasons = rule.reasons(part)
            rule.refuse_if_strict(table.file, part, reasons)
            first_unusable = first_unusable or _first(part, reasons)
            if rule.form.kind != ".parquet" or not table.columns:
                seen |= _keys(part)  # which reads all cells, so that one that can't be said is found here
            if not table.columns:
                kept = part.take(usable_places(reasons))
                columns |= _keys(kept)
            if not table.columns and rule.form.kind == ".parquet":
                here = kept.schema()
                before, schema = schema, _joined(schema, here, table.file)
                mixed = mixed or any(schema.field(field.name).type != field.type for field in (*before, *here))
            rows, usable = rows + len(part), usable + reasons.count("")
            advance(len(part))
    if not rows:
        raise DataError(f"{table.file} holds no rows.")
    refuse_missing(rule.columns, list(seen), table.file)
    if not usable:
        raise nothing_usable(table.file, first_unusable)
    if rule.form.kind == ".parquet":
        sinks.refuse_what_parquet_cannot_hold(schema)
        if mixed:
            _refuse_unfit(table, rule, schema)
    return Look(rows, list(columns), schema)


def usable_places(reasons: list[str]) -> list[int]:
    """Return the places of the rows that are answered."""
    return [place for place, reason in enumerate(reasons) if not reason]


def nothing_usable(file: Path, first: str) -> DataError:
    """Return the refusal of a file none of whose rows can be answered."""
    return DataError(f"{file} has no row that can be answered; {first}.")


def _keys(part: Part) -> dict[str, None]:
    return dict.fromkeys(name for cells in part.objects() for name in cells)


def _first(part: Part, reasons: list[str]) -> str:
    return next((f"row {part.first + place + 1}: {reason}" for place, reason in enumerate(reasons) if reason), "")


def _joined(before: pa.Schema, here: pa.Schema, file: Path) -> pa.Schema:
    """Return the types that hold what came before and what is here."""
    try:
        return pa.unify_schemas([before, here], promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{file}: {str(error).splitlines()[0]}. A JSONL file can hold such a column.") from None


def _refuse_unfit(table: Source, rule: Rule, schema: pa.Schema) -> None:
    """Refuse cells that do not fit a type that other parts have widened, such as 2**53 + 1 in a column of floats."""
    for part in table.parts():
        part.take(usable_places(rule.reasons(part))).arrow(schema)


def refuse_misfit(classifier: Classifier, source: Path, pair_column: str) -> None:
    """Refuse pairs for an adapter that reads single texts, and the other way round.

    Raises:
        DataError: always that.
    """
    if classifier.text_pair != bool(pair_column):
        reads = "single texts" if pair_column else "pairs: name the second text's column too, with --pair-column"
        raise DataError(f"{source}: this adapter reads {reads}.")


def refuse_clash(added: list[str], columns: list[str], source: Path, prefix: str) -> None:
    """Refuse a table that has a column of a name that the answers need.

    Raises:
        DataError: always that.
    """
    clash = next((name for name in added if name in columns), None)
    if clash is not None:
        other = "another prefix" if prefix else "--prefix NAME, which stands before each added column"
        raise DataError(f"{source} has a column {clash!r} already, which the answers would replace. Give {other}.")


def refuse_missing(wanted: list[str], columns: list[str], file: Path) -> None:
    """Refuse a table without a column that was named.

    Raises:
        DataError: always that.
    """
    for name in wanted:
        if name not in columns:
            there = f"its columns are {', '.join(columns)}" if columns else "its rows have none"
            raise DataError(f"{file} has no column {name!r}; {there}.{nearest(name, columns)}")


def _refuse_bytes(table: Source, form: Form) -> None:
    if form.kind != ".parquet":
        for field in table.schema:
            if sinks.holds_bytes(field.type):
                raise DataError(f"{table.file}: column {field.name!r} holds bytes, which {form} can't. Write Parquet.")
