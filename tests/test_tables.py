"""Data files are read as what they are, and a broken one is named."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorafit import tables
from lorafit.errors import DataError
from tests.conftest import write_table


@pytest.mark.parametrize("suffix", tables.SUFFIXES)
def test_what_is_written_is_read_again(suffix: str, tmp_path: Path) -> None:
    texts = ['a "quoted", one', "two\nlines", "\ttab", "émoji 🎬 \U00020000", "NA", "null"]
    table = pd.DataFrame({"text": texts, "label": [str(n) for n in range(6)]})
    write_table(table, tmp_path / f"table{suffix}")
    back = tables.read(tmp_path / f"table{suffix}")
    assert tables.column(back, "text", "") == texts
    assert tables.column(back, "label", "") == table["label"].tolist()


def test_a_missing_column_shows_those_there_are(tmp_path: Path) -> None:
    table = pd.DataFrame({"review": ["a"], "sentiment": ["b"]})
    with pytest.raises(
        DataError, match="f.csv has no column 'reviews'; its columns are review, sentiment. Did you mean"
    ):
        tables.column(table, "reviews", "f.csv")


def latin_parquet() -> bytes:
    """Return a file of Parquet whose text is not UTF-8."""
    written = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": pa.array([b"\xff"]).view(pa.string()), "label": ["a"]}), written)
    return bytes(written.getvalue())


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.csv", b"", "is empty"),
        ("header.csv", b"text,label\n", "holds no rows"),
        ("latin.csv", "text,label\ncafé,a\n".encode("latin1"), "is not UTF-8 (byte 14: 0xe9). Convert it first"),
        ("ragged.csv", b"text,label\na,b\nc,d,e,f\n", "line 3"),
        ("unquoted.csv", b"text,label\na, b,1\nc, d,0\n", "rows have more cells than the header"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "line 2"),
        ("digits.jsonl", b'{"text": "a"}\n{"text": ' + b"1" * 5000 + b"}\n", "line 2"),
        ("list.jsonl", b"[1, 2]\n", "line 1 holds no object"),
        ("latin.parquet", latin_parquet(), "can't be read as PARQUET"),
        ("broken.parquet", b"PAR1 but no more", "can't be read as PARQUET"),
        ("excel.csv", b"text;label\na;b\n", "has semicolons between its cells, as some spreadsheets write it."),
        ("half.jsonl", b'{"text": "a", "\\ud83d": 1}\n', "surrogates not allowed"),
        ("book.xlsx", b"PK", "unknown format; lorafit reads .csv, .tsv, .jsonl, .parquet. Save it as CSV UTF-8 there."),
        ("notes.docx", b"", "unknown format; lorafit reads .csv, .tsv, .jsonl, .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(
    name: str, content: bytes, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        tables.read(tmp_path / name)
    assert sentence in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        tables.read(tmp_path / "missing.csv")


def test_columns_are_found_by_name_and_by_content() -> None:
    imdb = pd.DataFrame({"review": ["a long one", "another"] * 5, "sentiment": ["positive", "negative"] * 5})
    assert tables.guess_columns(imdb, "") == tables.Columns("review", "sentiment")
    odd = pd.DataFrame({"id": range(10), "q": [f"some words {n}" for n in range(10)], "kind": ["x", "y"] * 5})
    assert tables.guess_columns(odd, "") == tables.Columns("q", "kind")
    with pytest.raises(DataError, match=r"no column looks like labels .* the columns are id, q"):
        tables.guess_columns(odd[["id", "q"]], "f.csv")
    with pytest.raises(DataError, match="no column looks like texts"):
        tables.guess_columns(odd[["id"]], "f.csv")


def test_lists_are_found_as_labels_and_written_as_json_where_cells_are_text(tmp_path: Path) -> None:
    table = pd.DataFrame({"q": [f"some words {n}" for n in range(10)], "kinds": [["x"], ["x", "ÿ"]] * 5})
    assert tables.guess_columns(table, "") == tables.Columns("q", "kinds")
    for suffix in tables.SUFFIXES:
        write_table(table, tmp_path / f"table{suffix}")
        back = tables.column(tables.read(tmp_path / f"table{suffix}"), "kinds", "")
        assert back[1] == (["x", "ÿ"] if suffix in (".jsonl", ".parquet") else '["x", "ÿ"]')
