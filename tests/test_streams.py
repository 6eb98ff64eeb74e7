"""Tables go in and out part by part, and nothing in them changes."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorafit import streams, tables
from lorafit.errors import DataError
from lorafit.streams import compression, sources

KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
THEIRS = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
COMPRESSED = tuple(kind + codec for kind in KINDS[:3] for codec in compression.CODECS)
# Of every plane that holds characters, and what cells of CSV stumble over.
PIECES = ["a", "é", "ж", "漢", "🎬", "\U00020000", "\U000e0041", "\u2028", "\x85", "\x0b", "\x00", "\ufeff", "  ", "\t",
          ",", '"', '""', "\n", "\r", "\r\n", "'", "\\", "NA", "null", "1.10", "=1+1"]  # fmt: skip
ODD_COLUMNS = ["", "two words", "größe", "a,b", 'a"b', "line\nbreak", "pos", "text", " text", "NA"]


def odd_table(seed: int, rows: int = 60) -> list[dict[str, str]]:
    """Return rows of text under odd names."""
    chance = random.Random(seed)
    return [
        {name: "".join(chance.choices(PIECES, k=chance.randint(0, 6))) for name in ODD_COLUMNS} for _ in range(rows)
    ]


def copy(source: Path, target: Path) -> None:
    """Write a table anew with a column added, part by part, as a prediction does."""
    table = streams.opened(source)
    names, schema = dict.fromkeys(table.columns), table.schema
    for part in table.parts():
        names |= dict.fromkeys(name for row in part.objects() for name in row)
        schema = pa.unify_schemas([schema, part.schema()], promote_options="permissive")
    sink = streams.sink(streams.form_of(target), list(names), schema, table.codec)
    added = pa.schema([("number", pa.int64())])
    content = sink.head(added.names)
    for part in table.parts():
        numbers = pa.array(range(part.first, part.first + len(part)))
        content += sink.part(part, pa.record_batch([numbers], schema=added))
    if isinstance(sink, streams.ArrowSink):
        appended = target.with_suffix(".arrow")
        appended.write_bytes(content)
        sink.to_parquet(appended, target)
    else:
        target.write_bytes(content)


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [row for part in streams.opened(file).parts() for row in part.objects()]


def write_odd(file: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows as others do: with Python's own csv and json, or Arrow."""
    form = streams.form_of(file)
    if form.kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    written = io.StringIO(newline="")
    if form.kind == ".jsonl":
        written.write("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table = csv.DictWriter(written, list(rows[0]), delimiter=sources.SEPARATORS[form.kind], quoting=csv.QUOTE_ALL)
        table.writeheader()
        table.writerows(rows)
    file.write_bytes(compression.compressed(written.getvalue().encode(), form.codec))
    return file


@pytest.mark.parametrize("into", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_odd_columns_and_text_of_every_plane_survive_every_format(
    kind: str, into: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ROWS_A_PART", 7)
    seed = random.SystemRandom().randrange(10_000)
    rows = odd_table(seed)
    copy(write_odd(tmp_path / f"in{kind}", rows), tmp_path / f"out{into}")
    numbered = [row | {"number": number} for number, row in enumerate(rows)]
    if into in sources.SEPARATORS:
        numbered = [{name: str(cell) for name, cell in row.items()} for row in numbered]
    assert rows_of(tmp_path / f"out{into}") == numbered, f"seed {seed}"


@pytest.mark.parametrize("into", COMPRESSED)
def test_compressed_files_go_in_and_out_and_others_read_what_we_wrote(
    into: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ROWS_A_PART", 7)  # so that there are many members
    rows = odd_table(1)
    copy(write_odd(tmp_path / f"in{into}", rows), tmp_path / f"out{into}")
    numbers = [row["number"] for row in rows_of(tmp_path / f"out{into}")]
    assert [int(number) for number in numbers] == list(range(60))
    content = (tmp_path / f"out{into}").read_bytes()
    kind, codec = into[: into.rindex(".")], Path(f"out{into}").suffix
    if codec in THEIRS:
        copy(tmp_path / f"in{into}", tmp_path / f"plain{kind}")
        assert THEIRS[codec](content) == (tmp_path / f"plain{kind}").read_bytes()
    copy(tmp_path / f"in{into}", tmp_path / f"again{into}")
    assert (tmp_path / f"again{into}").read_bytes() == content


def test_a_cell_of_a_megabyte_and_more_is_one_cell(tmp_path: Path) -> None:
    rows = [{"text": "a long line, \r\n" * 200_000, "id": "1"}, {"text": "short", "id": "2"}]
    for kind in KINDS:
        copy(write_odd(tmp_path / f"in{kind}", rows), tmp_path / f"out{kind}.csv")
        assert [row["text"] for row in rows_of(tmp_path / f"out{kind}.csv")] == [row["text"] for row in rows]


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_breaks_of_any_system_and_a_byte_order_mark_are_no_part_of_the_cells(
    line_break: str, mark: str, tmp_path: Path
) -> None:
    lines = ["text,id", '"a ""b""",1', "", "c,2", "", ""]
    (tmp_path / "in.csv").write_text(mark + line_break.join(lines), encoding="utf-8", newline="")
    assert rows_of(tmp_path / "in.csv") == [{"text": 'a "b"', "id": "1"}, {"text": "c", "id": "2"}]
    (tmp_path / "in.jsonl").write_text(mark + line_break.join(['{"a": 1}', "", '{"a": 2}']), "utf-8", newline="")
    assert rows_of(tmp_path / "in.jsonl") == [{"a": 1}, {"a": 2}]


def test_a_blank_line_is_an_empty_cell_where_there_is_one_column(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text\na\n\nb\n")
    assert [row["text"] for row in rows_of(tmp_path / "one.csv")] == ["a", "", "b"]


def test_a_line_of_json_keeps_its_digits_order_and_escapes(tmp_path: Path) -> None:
    lines = [
        '{"b": 12345678901234567890123, "a": 3.14159265358979323846, "c": 1.10}',
        '{"a": null, "z": {"y": [1, "two", {}]}, "half": "\\ud83d", "inf": 1e999, "n": NaN}',
        '{"a": "mixed types", "b": [true]}',
        '{"b": 0}  ',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    copy_without_schema(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    written = (tmp_path / "out.jsonl").read_text().splitlines()
    assert written == [f'{line.strip()[:-1]}, "number": {number}}}' for number, line in enumerate(lines)]


def copy_without_schema(source: Path, target: Path) -> None:
    """Write a table anew as JSONL or CSV, for which its columns need no types."""
    table = streams.opened(source)
    sink = streams.sink(streams.form_of(target), ["a", "b"], table.schema)
    added = pa.schema([("number", pa.int64())])
    parts = (sink.part(part, pa.record_batch([pa.array(range(len(part)))], schema=added)) for part in table.parts())
    target.write_bytes(sink.head(["number"]) + b"".join(parts))


def test_json_in_a_cell_of_csv_is_json_and_what_is_missing_is_empty(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"a": [1, "ü"], "b": true}\n{"b": 1.5}\n{"a": "1", "b": null}\n')
    copy_without_schema(tmp_path / "in.jsonl", tmp_path / "out.csv")
    cells = [[row["a"], row["b"]] for row in rows_of(tmp_path / "out.csv")]
    assert cells == [['[1, "ü"]', "true"], ["", "1.5"], ["1", ""]]


def test_a_number_of_json_keeps_its_digits_in_a_cell_of_csv(tmp_path: Path) -> None:
    numbers = ["3.14159265358979323846", "1.10", "12345678901234567890123", "1e5", "-0.0"]
    (tmp_path / "in.jsonl").write_text("".join(f'{{"a": {number}}}\n' for number in numbers))
    copy_without_schema(tmp_path / "in.jsonl", tmp_path / "out.csv")
    assert [row["a"] for row in rows_of(tmp_path / "out.csv")] == numbers


def typed_table() -> pa.Table:
    """Return a column of every kind that people keep in Parquet, with a null in each."""
    zone = pa.timestamp("ns", "Europe/Berlin")
    columns = {
        "when": pa.array([1, None, 1_700_000_000_123_456_789], zone),
        "day": pa.array([date(2024, 1, 2), None, date(1, 1, 1)], pa.date32()),
        "time": pa.array([1, None, 86_399_999_999_999], pa.time64("ns")),
        "span": pa.array([timedelta(seconds=1), None, timedelta(days=400)], pa.duration("us")),
        "price": pa.array([Decimal("1.10"), None, Decimal("-" + "9" * 36 + ".99")], pa.decimal128(38, 2)),
        "kind": pa.array(["a", None, "b"]).dictionary_encode(),
        "large": pa.array(["x", None, "y"], pa.large_string()),
        "nested": pa.array([{"list": [1, None], "map": [("k", 1.5)]}, None, {"list": [], "map": []}],
                           pa.struct([("list", pa.list_(pa.int8())), ("map", pa.map_(pa.string(), pa.float32()))])),
        "bytes": pa.array([b"\xff", None, b""]),
        "flag": pa.array([True, None, False]),
        "big": pa.array([2**63, None, 2**64 - 1], pa.uint64()),
        "half": pa.array([1.5, None, float("nan")], pa.float16()),
        "nothing": pa.nulls(3),
        "text": pa.array(["one", None, "three"], pa.string()),
    }  # fmt: skip
    fields = [pa.field(name, column.type, metadata={"note": name}) for name, column in columns.items()]
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, {"owner": "somebody"}))


@pytest.mark.parametrize("codec", ["zstd", "gzip", "none", "snappy"])
def test_parquet_keeps_types_metadata_order_and_compression(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ROWS_A_PART", 2)
    table = typed_table()
    pq.write_table(table, tmp_path / "in.parquet", compression=codec)
    copy(tmp_path / "in.parquet", tmp_path / "out.parquet")
    back = pq.read_table(tmp_path / "out.parquet")
    assert back.schema.names == [*table.schema.names, "number"]
    assert back.drop_columns("number").schema.equals(pq.read_schema(tmp_path / "in.parquet"), check_metadata=True)
    for name in set(table.schema.names) - {"half"}:
        assert back[name].to_pylist() == table[name].to_pylist()
    assert str(back["half"].to_pylist()) == "[1.5, None, nan]"
    of_column = pq.ParquetFile(tmp_path / "out.parquet").metadata.row_group(0).column(0)
    assert of_column.compression == {"none": "UNCOMPRESSED"}.get(codec, codec.upper())


def test_a_frame_of_pandas_comes_back_as_it_was_with_an_index_too(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "n": [1, 2]}, index=pd.Index(["x", "y"], name="key"))
    frame.to_parquet(tmp_path / "in.parquet")
    copy(tmp_path / "in.parquet", tmp_path / "out.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet").drop(columns="number"), frame)


def test_types_of_parquet_are_said_in_json_by_their_standards(tmp_path: Path) -> None:
    pq.write_table(typed_table(), tmp_path / "in.parquet")
    first, _, last = rows_of(tmp_path / "in.parquet")
    assert last["when"] == "2023-11-14T23:13:20.123456789+01:00"
    assert (first["day"], first["time"], first["span"]) == ("2024-01-02", "00:00:00.000000001", "P0DT0H0M1S")
    assert (first["price"], first["nested"]) == ("1.10", {"list": [1, None], "map": [["k", 1.5]]})
    assert (last["half"], last["big"], first["kind"], first["nothing"]) == (None, 2**64 - 1, "a", None)


def test_parts_are_bounded_in_rows_and_in_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHARACTERS_A_PART", 1000)
    rows = [{"text": "x" * 90}] * 100
    for kind in KINDS:
        write_odd(tmp_path / f"in{kind}", rows)
        sizes = [len(part) for part in streams.opened(tmp_path / f"in{kind}").parts()]
        assert sum(sizes) == 100
        assert 8 <= max(sizes) <= 12
    monkeypatch.setattr(sources, "ROWS_A_PART", 3)
    assert {len(part) for part in streams.opened(tmp_path / "in.csv").parts()} == {3, 1}


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (b"text,id\na,1\nb\nc,3,4\nd,5\n", ["", "it has 1 cells, and the header 2", "it has 3 cells", ""]),
        (b'text,id\n"a"b,1\nc,2\n', ["its quotes do not fit", ""]),
    ],
)
def test_a_malformed_row_is_told_from_the_others(content: bytes, faults: list[str], tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(content)
    (part,) = streams.opened(tmp_path / "in.csv").parts()
    assert len(part.faults()) == len(faults)
    for found, expected in zip(part.faults(), faults, strict=True):
        assert bool(found) == bool(expected)
        assert found.startswith(expected)


def test_what_stood_in_a_malformed_row_is_kept(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b'text,id\nb\n"a"b,"1\n')
    (part,) = streams.opened(tmp_path / "in.csv").parts()
    assert [json.loads(content) for content in part.contents()] == [["b"], '"a"b,"1\n']
    (tmp_path / "in.jsonl").write_bytes(b'{"a": \n[1]\n{"a": "\\ud83d"}\n' + b"[" * 100_000 + b"\n")
    (part,) = streams.opened(tmp_path / "in.jsonl").parts()
    assert [json.loads(content) for content in part.contents()][:3] == ['{"a":', "[1]", {"a": "\ud83d"}]
    assert part.faults()[1] == 'it is no object such as {"text": ...}'
    assert "it is not JSON that can be read" in part.faults()[3]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


PLAIN = "text\n" + "".join(f"row {number}\n" for number in range(1000))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.csv", b"", "is empty"),
        ("blank.csv", b"\n\n", "is empty"),
        ("latin.csv", "text\ncafé\n".encode("latin1"), "is not UTF-8 (byte 8: 0xe9). Convert it first"),
        ("e.csv.xz", lzma.compress(b"\xe9"), "example: xz -dc e.csv.xz | iconv -f LATIN1 -t UTF-8 > utf8.csv"),
        ("late.csv.gz", gzip.compress(b"text\n" + b"a\n" * 2_000_000 + b"\xff\n"), "is not UTF-8 (byte 4000005: 0xff)"),
        ("latin.jsonl", '{"text": "café"}'.encode("latin1"), "is not UTF-8 (byte 13: 0xe9)"),
        ("half.csv", b"text\ncaf\xc3", "is not UTF-8 (byte 8: 0xc3)"),
        ("double.csv", b"a,b,a\n1,2,3\n", "has two columns 'a'"),
        ("quote.csv", b'text,id\n1,2\n"never closed,1\n3,4\n', "a quote is opened after line 2 and never closed"),
        ("header.csv", b'"text,id\n', "never closed"),
        ("cut.csv.gz", cut(gzip.compress(PLAIN.encode())), "can't be read as CSV.GZ"),
        ("cut.tsv.bz2", cut(bz2.compress(PLAIN.encode())), "can't be read as TSV.BZ2"),
        ("cut.csv.xz", cut(lzma.compress(PLAIN.encode())), "can't be read as CSV.XZ"),
        ("cut.csv.zst", cut(compression.compressed(PLAIN.encode(), ".zst")), "can't be read as CSV.ZST"),
        ("late.csv.bz2", bz2.compress(b"text\na\n") + b"X" + bz2.compress(b"b\n")[1:], "can't be read as CSV.BZ2"),
        ("late.csv.xz", lzma.compress(b"text\na\n") + b"X" + lzma.compress(b"b\n")[1:], "can't be read as CSV.XZ"),
        ("no.csv.gz", PLAIN.encode(), "can't be read as CSV.GZ: Not a gzipped file"),
        ("no.csv.zst", PLAIN.encode(), "can't be read as CSV.ZST"),
        ("broken.parquet", b"PAR1 but no more", "can't be read as PARQUET"),
        ("notes.docx", b"", "unknown format; lorafit reads and writes .csv, .tsv, .jsonl, .parquet"),
        ("in.parquet.gz", b"", "unknown format"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole_is_refused_in_one_sentence(
    name: str, content: bytes, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        list(streams.opened(tmp_path / name).parts())
    assert sentence in str(error.value)


def test_zeros_between_and_behind_the_members_of_xz_are_no_part_of_it(tmp_path: Path) -> None:
    members = [lzma.compress(b"text\na\n"), b"\0" * 200_000, lzma.compress(b"b\n" * 300_000), b"\0" * 8]
    (tmp_path / "in.csv.xz").write_bytes(b"".join(members))
    assert len(rows_of(tmp_path / "in.csv.xz")) == 300_001


def test_a_quote_that_is_never_closed_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LONGEST_CELL", 200_000)
    (tmp_path / "in.csv").write_text('text\n"' + "a line\n" * 100_000 + '"\n')
    with pytest.raises(DataError, match="never closed"):
        list(streams.opened(tmp_path / "in.csv").parts())


def test_parquet_that_is_cut_short_or_damaged_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(5000)]}), tmp_path / "in.parquet")
    content = (tmp_path / "in.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(cut(content))
    with pytest.raises(DataError, match="can't be read as PARQUET"):
        streams.opened(tmp_path / "cut.parquet")
    (tmp_path / "bad.parquet").write_bytes(content[:100] + b"\0" * 4000 + content[4100:])
    with pytest.raises(DataError, match="can't be read as PARQUET"):
        list(streams.opened(tmp_path / "bad.parquet").parts())


@pytest.mark.parametrize(
    "lines", ['{"a": 1}\n{"a": "x"}', '{"a": [1]}\n{"a": {"b": 1}}', '{"a": 123456789012345678901234}']
)
def test_what_a_parquet_column_cannot_hold_is_refused_by_the_columns_name(lines: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(lines)
    with pytest.raises(DataError, match="Column 'a' does not fit a Parquet column"):
        copy(tmp_path / "in.jsonl", tmp_path / "out.parquet")


def test_dates_with_a_zone_are_what_they_were() -> None:
    from lorafit.streams.rows import plain

    assert plain({"at": datetime(2024, 1, 2, tzinfo=UTC)}) == {"at": "2024-01-02T00:00:00+00:00"}


def odd_parquet(name: str) -> pa.Table:
    """Return a column that Arrow reads and Python or JSON can't have."""
    columns = {
        "far": pa.array([3_000_000, 5], pa.date32()),
        "farther": pa.array([10**18, 5], pa.timestamp("us")),
        "spans": pa.array([2**62, 5], pa.duration("s")),
        "within": pa.array([[3_000_000], None], pa.list_(pa.date32())),
        "nanoseconds": pa.array([[1], None], pa.list_(pa.time64("ns"))),
        "doubled": pa.StructArray.from_arrays([pa.array([1, 2]), pa.array([2, 3])], ["a", "a"]),
    }
    return pa.table({"text": ["a film", "b"], name: columns[name]})


@pytest.mark.parametrize("name", ["far", "farther", "spans", "within", "nanoseconds", "doubled"])
def test_what_text_cannot_say_of_parquet_is_refused_by_the_columns_name(name: str, tmp_path: Path) -> None:
    pq.write_table(odd_parquet(name), tmp_path / "in.parquet")
    with pytest.raises(DataError, match=f"Column '{name}', of .*, can't be read as text"):
        copy(tmp_path / "in.parquet", tmp_path / "out.csv")


def test_parquet_with_bytes_for_text_is_refused_by_the_columns_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "b": pa.array([b"\xff"]).view(pa.string())}), tmp_path / "in.parquet")
    with pytest.raises(DataError, match=r"column 'b' is damaged \(Invalid UTF8"):
        rows_of(tmp_path / "in.parquet")


def test_a_file_that_nobody_can_look_at_is_one_sentence(tmp_path: Path) -> None:
    for read in (streams.opened, tables.read):
        with pytest.raises(DataError, match=r"can't be read: file name too long"):
            read(tmp_path / f"{'x' * 300}.csv")
