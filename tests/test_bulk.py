"""A file of any size is answered row by row; a kill changes no byte; what can't be answered is kept apart."""

import gzip
import io
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lorafit import Classifier, bulk, bundle, console, export, manifest
from lorafit.bulk import answers, ledger
from lorafit.errors import DataError, StorageError
from lorafit.streams import sources
from lorafit.tokens import Tokens
from tests.conftest import Said, mount_small_disk, texts_and_labels
from tests.test_streams import odd_table, rows_of, write_odd

pytestmark = pytest.mark.usefixtures("proved_in_this_process")
Cli = Callable[..., Said]
KINDS = (".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.zst", ".tsv.xz", ".csv.bz2")


@pytest.fixture(scope="module")
def classifier(trained: Path) -> Classifier:
    return Classifier.load(trained, precision="fp32", threads=1)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ROWS_A_PART", 16)
    monkeypatch.setattr(answers, "TEXTS_AT_ONCE", 5)


def some_rows(count: int, seed: int = 5) -> list[dict[str, str]]:
    """Return rows under odd names, each tenth text twice and each eleventh none."""
    texts, _ = texts_and_labels(count, seed)
    rows = odd_table(seed, count)
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        row["text"] = " " if number % 11 == 5 else texts[number // 2] if number % 10 == 9 else text
    return rows


def never_loaded() -> Classifier:
    raise AssertionError("the input is refused before anything is loaded")


def texts_asked(classifier: Classifier, patch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each text is added that a classifier is asked about from now on."""
    asked: list[str] = []
    read = classifier._read

    def counted(texts: Any) -> Tokens:
        asked.extend(texts)
        return read(texts)

    patch.setattr(classifier, "_read", counted)
    return asked


def lines_of(file: Path) -> list[str]:
    """Return lines as JSONL has them: str.splitlines would cut within texts too."""
    return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def left_over(folder: Path) -> list[str]:
    """Return the names of what should not be there behind a finished job."""
    return [file.name for file in folder.iterdir() if ".partial" in file.name or file.name.startswith(".")]


@pytest.mark.parametrize("into", KINDS)
@pytest.mark.parametrize("kind", [".csv", ".jsonl.gz", ".parquet"])
def test_every_row_keeps_its_columns_and_place_and_gets_its_answer_behind_them(
    kind: str, into: str, classifier: Classifier, small_parts: None, tmp_path: Path
) -> None:
    rows = some_rows(60)
    source, target = write_odd(tmp_path / f"in{kind}", rows), tmp_path / f"out{into}"
    found = bulk.score(lambda: classifier, source, target)
    written = rows_of(target)
    kept = [row for row in rows if row["text"].strip()]
    assert [{name: row[name] for name in kept[0]} for row in written] == kept
    assert list(written[0]) == [*kept[0], "predicted_label", "neg_prob", "pos_prob"]
    expected = classifier.predict([row["text"] for row in kept])
    assert [row["predicted_label"] for row in written] == [answer["label"] for answer in expected]
    probabilities = [[float(row["neg_prob"]), float(row["pos_prob"])] for row in written]
    np.testing.assert_allclose(
        probabilities, [[answer["neg_prob"], answer["pos_prob"]] for answer in expected], atol=1e-5
    )
    rejected = [json.loads(line) for line in lines_of(bulk.rejected_file(target))]
    assert [record["row"] for record in rejected] == [number + 1 for number in range(60) if number % 11 == 5]
    assert rejected[0]["content"] == rows[5]
    assert rejected[0]["reason"] == "its 'text' is empty; there is nothing to classify"
    texts = [row["text"] for row in kept]
    assert (found.rows, found.rejected, found.repeated) == (len(kept), 60 - len(kept), len(texts) - len(set(texts)))
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_text_is_scored_once_however_often_and_far_apart_it_comes(
    trained: Path, small_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Of an engine that works on several batches at a time a text may come again while it is under way."""
    texts, _ = texts_and_labels(30)
    rows = [{"text": text} for text in [*texts[:20], *texts * 4]]
    exported = export.export(trained, backend, tmp_path / "export").folder if backend == "openvino" else None
    classifier = Classifier.load(trained, backend=exported)
    asked = texts_asked(classifier, monkeypatch)
    found = bulk.score(lambda: classifier, write_odd(tmp_path / "in.csv", rows), tmp_path / "out.csv")
    assert sorted(text for text in asked if text in texts) == sorted(texts)
    assert (found.rows, found.repeated) == (140, 110)
    given: dict[str, set[str]] = {}
    for row in rows_of(tmp_path / "out.csv"):
        given.setdefault(row["text"], set()).add(row["pos_prob"])
    expected = Classifier.load(trained, precision="fp32").probabilities(texts)[:, 1]
    for text, probability in zip(texts, expected, strict=True):
        assert [float(one) for one in given[text]] == pytest.approx([probability], abs=0.01)


def test_what_is_no_text_goes_to_the_rejected_file_with_its_number_reason_and_content(
    cli: Cli, trained: Path, tmp_path: Path
) -> None:
    lines = [
        '{"text": "a good film", "n": 1}',
        '{"n": 2}',
        '{"text": null}',
        '{"text": ""}',
        '{"text": " \\u2003\\n"}',
        '{"text": 5}',
        '{"text": ["a"]}',
        '{"text": "so \\ud83d", "n": 1.10}',
        '{"text": ',
        "[1]",
        "",
        '{"text": "bad", "other": "\\udc00"}',
    ]
    Path("in.jsonl").write_text("\n".join(lines))
    said = cli("predict", trained, "--input", "in.jsonl", "--output", "out.jsonl")
    assert said.code == 0, said.err
    assert said.out.startswith("Wrote 2 rows to out.jsonl in ")
    assert said.out.endswith("; rejected: 9, in out.jsonl.rejected.jsonl.\n")
    assert [json.loads(line)["text"] for line in lines_of(Path("out.jsonl"))] == ["a good film", "bad"]
    assert '"other": "\\udc00", "predicted_label"' in Path("out.jsonl").read_text()
    raw = lines_of(Path("out.jsonl.rejected.jsonl"))
    records = [json.loads(line) for line in raw]
    assert [record["row"] for record in records] == list(range(2, 11))
    assert '"content": {"text": "so \\ud83d", "n": 1.10}}' in raw[6]
    for record, part in zip(
        records,
        ("missing", "missing", "empty", "empty", "type int", "type list", "half a character", "not JSON", "no object"),
        strict=True,
    ):
        assert part in record["reason"]
    said = cli("predict", trained, "--input", "in.jsonl", "--output", "out.csv")
    assert (said.code, len(rows_of(Path("out.csv")))) == (0, 1)
    last = json.loads(lines_of(Path("out.csv.rejected.jsonl"))[-1])
    assert (last["row"], "half a character, a lone surrogate, which CSV can't" in last["reason"]) == (11, True)


def test_strict_stops_at_the_first_row_without_a_text_before_any_work(cli: Cli, tmp_path: Path) -> None:
    Path("in.csv").write_text("text,id\na film,1\n   ,2\nanother\n")
    said = cli("predict", "nowhere", "--input", "in.csv", "--output", "out.csv", "--strict")
    assert said.code == 2
    assert "in.csv, row 2: its 'text' is empty; there is nothing to classify. Without --strict such rows" in said.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.csv"]


def test_a_text_of_tags_alone_is_none_where_tags_are_stripped(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))
    bundle.seal(copy, manifest.read(copy).model_copy(update={"html": "strip"}))
    stripping = Classifier.load(copy, precision="fp32")
    source = write_odd(tmp_path / "in.csv", [{"text": "good<br />film"}, {"text": "<br />"}])
    with pytest.raises(DataError, match=r"row 2: its 'text' is empty"):
        bulk.score(lambda: stripping, source, tmp_path / "out.csv", strict=True)
    assert bulk.score(lambda: stripping, source, tmp_path / "out.csv").rejected == 1


# Bad input: each is one sentence, exit code 2, and nothing is left.


@pytest.mark.parametrize(
    ("name", "content", "options", "sentence"),
    [
        ("in.csv", b"review\na\n", (), "in.csv has no column 'text'; its columns are review."),
        (
            "in.csv",
            b"review\na\n",
            ("--text-column", "reviews"),
            "has no column 'reviews'; its columns are review.",
        ),
        ("in.jsonl", b'{"review": "a"}\n', (), "in.jsonl has no column 'text'; its columns are review"),
        ("in.csv", b"text\n", (), "in.csv holds no rows"),
        ("in.csv", b"text\n \n \n", (), "in.csv has no row that can be answered; row 1: its 'text' is empty"),
        ("in.csv", b"text\ncaf\xe9\n", (), "in.csv is not UTF-8 (byte 8: 0xe9)"),
        ("in.csv.gz", gzip.compress(b"text\n" + os.urandom(999).hex().encode())[:-300], (), "can't be read as CSV.GZ"),
        ("in.parquet", b"PAR1 and no more", (), "in.parquet can't be read as PARQUET"),
        ("in.xlsx", b"", (), "in.xlsx has an unknown format; lorafit reads and writes .csv"),
        ("in.csv", b"text\na\n", ("--output", "out.doc"), "out.doc has an unknown format"),
        ("in.csv", b"text\na\n", ("--output", "no/out.csv"), "There is no folder"),
        ("in.csv", b"text\na\n", ("--output", "folder.csv"), "folder.csv is a folder; name a file"),
        ("in.csv", b"text\na\n", ("--output", "in.csv"), "in.csv would be written over the input"),
        ("in.csv", b"text\na\n", ("--output", "link.csv"), "link.csv would be written over the input"),
        ("in.csv", b"text\na\n", ("--output", "old.csv"), "old.csv is there already. Replace it with --overwrite"),
        (
            "in.csv",
            b"text,pos_prob\na,1\n",
            (),
            "has a column 'pos_prob' already, which the answers would",
        ),
        ("in.csv", b"text,x_predicted_label\na,1\n", ("--prefix", "x_"), "'x_predicted_label' already"),
        ("in.csv", b"text\na\n", ("--json",), "--input needs --output, and neither texts nor --json beside it"),
        ("in.csv", b"text,b\na,1\n", ("--pair-column", "b"), "this adapter reads single texts"),
        ("in.jsonl", b'{"text": "a"}\n{"text": "b", "x": {}}', ("--output", "o.parquet"), "Column 'x' does not fit"),
        ("in.jsonl", b'{"text": "a", "x": 1}\n{"text": "b", "x": "c"}', ("--output", "o.parquet"), "Column 'x'"),
        ("in.jsonl", b'{"text": "a", "x": %s1%s}' % (b"[" * 70, b"]" * 70), ("--output", "o.parquet"), "Column 'x'"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    name: str, content: bytes, options: tuple[str, ...], sentence: str, cli: Cli, trained: Path, tmp_path: Path
) -> None:
    Path(name).write_bytes(content)
    Path("folder.csv").mkdir()
    Path("link.csv").symlink_to("in.csv")
    Path("old.csv").write_text("old")
    before = sorted(file.name for file in tmp_path.iterdir())
    said = cli("predict", trained, "--input", name, "--output", "out.csv", *options)
    assert said.code == 2
    assert sentence in said.err
    assert (said.err.count("Error:"), said.err.count("\n"), "Traceback" in said.err) == (1, 1, False)
    assert sorted(file.name for file in tmp_path.iterdir()) == before
    assert Path("old.csv").read_text() == "old"


def test_bytes_in_a_parquet_column_are_refused_for_formats_of_text(classifier: Classifier, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a film"], "image": [b"\xff"]}), tmp_path / "in.parquet")
    with pytest.raises(DataError, match="column 'image' holds bytes, which JSONL can't"):
        bulk.score(lambda: classifier, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert bulk.score(lambda: classifier, tmp_path / "in.parquet", tmp_path / "out.parquet").rows == 1


@pytest.mark.parametrize(
    ("column", "into", "sentence"),
    [
        (pa.array([3_000_000], pa.date32()), ".csv", "can't be read as text"),
        (pa.array([b"\xff"]).view(pa.string()), ".jsonl", "is damaged"),
        (pa.array([b"\xff"]).view(pa.string()), ".parquet", "is damaged"),
    ],
)
def test_a_cell_of_parquet_that_cannot_be_said_is_refused_before_any_work(
    column: pa.Array, into: str, sentence: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": ["a film"], "odd": column}), tmp_path / "in.parquet")
    with pytest.raises(DataError, match=sentence):
        bulk.score(never_loaded, tmp_path / "in.parquet", tmp_path / f"out{into}")
    assert left_over(tmp_path) == []


def test_numbers_that_floats_of_other_rows_would_bend_are_refused_before_any_work(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ROWS_A_PART", 1)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    rows = ['{"text": "a", "x": 9007199254740993}\n', '{"text": "b", "x": 1.5}\n']
    for order in (rows, rows[::-1]):
        source.write_text("".join(order))
        with pytest.raises(DataError, match="Column 'x' does not fit a Parquet column"):
            bulk.score(never_loaded, source, target)
    source.write_text('{"text": "a", "x": 9007199254740992}\n{"text": "b", "x": 1.5}\n')
    bulk.score(lambda: classifier, source, target)
    assert [row["x"] for row in rows_of(target)] == [2.0**53, 1.5]


def test_a_place_that_nobody_can_look_at_is_one_sentence(tmp_path: Path) -> None:
    source = write_odd(tmp_path / "in.csv", [{"text": "a"}])
    for name in (f"{'x' * 300}.csv", f"{'x' * 245}.csv"):
        with pytest.raises(StorageError, match=r"can't be written: file name too long"):
            bulk.score(never_loaded, source, tmp_path / name)


def test_a_prefix_stands_before_every_added_name(cli: Cli, trained: Path) -> None:
    Path("in.csv").write_text("text,predicted_label\na good film,x\n")
    assert cli("predict", trained, "--input", "in.csv", "--output", "out.csv", "--prefix", "our_").code == 0
    assert list(rows_of(Path("out.csv"))[0]) == [
        "text", "predicted_label", "our_predicted_label", "our_neg_prob", "our_pos_prob",
    ]  # fmt: skip


def test_overwrite_replaces_output_and_rejected_rows_of_before(cli: Cli, trained: Path) -> None:
    Path("in.csv").write_text("text\na good film\n \nb\n")
    assert cli("predict", trained, "--input", "in.csv", "--output", "out.csv").code == 0
    Path("in.csv").write_text("text\nall is well\n")
    assert "out.csv is there already" in cli("predict", trained, "--input", "in.csv", "--output", "out.csv").err
    assert cli("predict", trained, "--input", "in.csv", "--output", "out.csv", "--overwrite").code == 0
    assert len(rows_of(Path("out.csv"))) == 1
    assert not Path("out.csv.rejected.jsonl").exists()


def test_options_of_a_file_are_refused_without_one(cli: Cli, trained: Path) -> None:
    for option in (("--strict",), ("--prefix", "x"), ("--overwrite",), ("--output", "o.csv")):
        said = cli("predict", trained, "a text", *option)
        assert (said.code, "--overwrite go with --input" in said.err) == (2, True)


# Interruptions.


class StopError(Exception):
    """Stands for a kill in this process: nothing of ours catches it."""


def stop_at(
    patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, error: type[BaseException] = StopError
) -> None:
    """Raise at a call of a function, in place of it."""
    function, calls = getattr(owner, name), iter(range(10_000))

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise error
        return function(*arguments, **options)

    patch.setattr(owner, name, counted)


def interrupted(classifier: Classifier, source: Path, target: Path, error: type[BaseException] = StopError) -> None:
    """Score a file's first 32 rows."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, ledger.Ledger, "append", 3, error)
        with pytest.raises(error):
            bulk.score(lambda: classifier, source, target)


@pytest.mark.parametrize("into", [".csv", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (ledger.Ledger, "remember", (0, 3, 7)),
        (ledger.Ledger, "append", (0, 1, 3)),
        (ledger, "_append", (1, 2, 3, 6)),
        (ledger.Ledger, "_note", (0, 1, 4, 5)),
        (ledger, "write_atomically", (0,)),
        (Path, "replace", (0, 1, 2)),
        (ledger, "flush", (0,)),
        (ledger, "_sweep", (0,)),
    ],
)
def test_stopped_at_any_step_it_goes_on_to_the_same_bytes(
    owner: Any,
    name: str,
    calls: tuple[int, ...],
    into: str,
    classifier: Classifier,
    small_parts: None,
    tmp_path: Path,
) -> None:
    source = write_odd(tmp_path / "in.jsonl", some_rows(60))
    whole, target = tmp_path / f"whole{into}", tmp_path / f"out{into}"
    bulk.score(lambda: classifier, source, whole)
    for call in calls:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ledger, "_SECONDS_BETWEEN_COMMITS", -1)
            stop_at(patch, owner, name, call)
            try:
                bulk.score(lambda: classifier, source, target)
            except StopError:
                pass
            else:
                assert (into, name) in {(".csv", "write_atomically"), (".jsonl.gz", "write_atomically")}
        if not (target.exists() and not ledger.work_folder(target).exists()):
            bulk.score(lambda: classifier, source, target)
        assert target.read_bytes() == whole.read_bytes()
        assert bulk.rejected_file(target).read_bytes() == bulk.rejected_file(whole).read_bytes()
        assert left_over(tmp_path) == []
        target.unlink()
        bulk.rejected_file(target).unlink()


def test_the_same_command_says_that_it_goes_on_and_asks_nothing_twice(
    classifier: Classifier,
    small_parts: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rows = some_rows(60)
    source, target = write_odd(tmp_path / "in.csv", rows), tmp_path / "out.csv"
    monkeypatch.setattr(ledger, "_SECONDS_BETWEEN_COMMITS", -1)  # what a second loses is left out of account
    asked = texts_asked(classifier, monkeypatch)
    interrupted(classifier, source, target, KeyboardInterrupt)
    assert "Interrupted: 32 of 60 rows are written; the same command goes on from there." in capfd.readouterr().err
    found = bulk.score(lambda: classifier, source, target)
    assert found.resumed_after == 32
    assert "Going on after row 32 of 60." in capfd.readouterr().err
    texts = {row["text"] for row in rows if row["text"].strip()}
    assert sorted(text for text in asked if text in texts) == sorted(texts)


def test_the_work_of_another_job_is_refused_by_what_differs(
    classifier: Classifier, small_parts: None, tmp_path: Path
) -> None:
    source, target = write_odd(tmp_path / "in.csv", some_rows(60)), tmp_path / "out.csv"
    interrupted(classifier, source, target)
    with pytest.raises(StorageError, match=r"holds the work of another job: .*the classifier's answers differ\. Start"):
        bulk.score(lambda: classifier, source, target, base=True)
    with pytest.raises(StorageError, match="the columns and the prefix differ"):
        bulk.score(lambda: classifier, source, target, prefix="x", text_column="größe")
    write_odd(source, some_rows(60, seed=6))
    with pytest.raises(StorageError, match="the input's contents differ"):
        bulk.score(lambda: classifier, source, target)
    assert bulk.score(lambda: classifier, source, target, overwrite=True).resumed_after == 0
    again = bulk.score(lambda: classifier, source, tmp_path / "again.csv")
    assert again.rows == 55
    assert (tmp_path / "again.csv").read_bytes() == target.read_bytes()


def test_an_output_that_was_finished_and_moved_away_is_not_said_to_be_written(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_odd(tmp_path / "in.csv", some_rows(20)), tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        stop_at(patch, ledger, "_sweep", 0)
        with pytest.raises(StopError):
            bulk.score(lambda: classifier, source, target)
    target.rename(tmp_path / "moved.csv")
    bulk.rejected_file(target).unlink()
    for _ in range(2):
        with pytest.raises(
            StorageError, match=r"was finished, and is not there any more\. Start anew with --overwrite"
        ):
            bulk.score(lambda: classifier, source, target)
    bulk.score(lambda: classifier, source, target, overwrite=True)
    assert target.read_bytes() == (tmp_path / "moved.csv").read_bytes()


def test_two_processes_never_write_one_output(classifier: Classifier, tmp_path: Path) -> None:
    source, target = write_odd(tmp_path / "in.csv", some_rows(60)), tmp_path / "out.csv"
    with (
        ledger.held(target, bulk.rejected_file(target)),
        pytest.raises(StorageError, match=r"out\.csv is being written by another process"),
    ):
        bulk.score(lambda: classifier, source, target)
    assert bulk.score(lambda: classifier, source, target).rows == 55


@pytest.mark.skipif(os.name == "nt", reason="removes no file that is open")
def test_the_work_folder_goes_before_its_lock_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rmtree = tmp_path / "out.csv", shutil.rmtree
    removed: list[Path] = []

    def refused_to_others(folder: Path, **options: Any) -> None:
        with (
            pytest.raises(StorageError, match="by another process"),
            ledger.locked(folder, target),
        ):
            pass
        removed.append(folder)
        rmtree(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", refused_to_others)
    with ledger.held(target, bulk.rejected_file(target)):
        pass
    assert removed == [ledger.work_folder(target)]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_came_in_between_is_not_written_over(
    classifier: Classifier, small_parts: None, tmp_path: Path
) -> None:
    source, target = write_odd(tmp_path / "in.csv", some_rows(60)), tmp_path / "out.csv"
    interrupted(classifier, source, target)
    target.write_text("somebody else's")
    with pytest.raises(StorageError, match="is there already"):
        bulk.score(lambda: classifier, source, target)
    assert target.read_text() == "somebody else's"
    assert bulk.score(lambda: classifier, source, target, overwrite=True).resumed_after == 32


def test_a_folder_that_is_not_ours_stays(classifier: Classifier, tmp_path: Path) -> None:
    source, target = write_odd(tmp_path / "in.csv", some_rows(12)), tmp_path / "out.csv"
    ledger.work_folder(target).mkdir()
    (ledger.work_folder(target) / "thesis.doc").write_text("years")
    with pytest.raises(StorageError, match=r"holds 'thesis.doc', which is not ours"):
        bulk.score(lambda: classifier, source, target, overwrite=True)
    assert (ledger.work_folder(target) / "thesis.doc").read_text() == "years"


@pytest.mark.parametrize("name", ["output", "rejected", "ledger.sqlite"])
@pytest.mark.parametrize("damage", ["shorter", "other"])
def test_damaged_work_is_one_sentence_and_overwrite_starts_anew(
    name: str, damage: str, classifier: Classifier, small_parts: None, tmp_path: Path
) -> None:
    source, target = write_odd(tmp_path / "in.csv", some_rows(60)), tmp_path / "out.csv"
    interrupted(classifier, source, target)
    file = ledger.work_folder(target) / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage == "shorter" else b"x" * len(content))
    with pytest.raises(StorageError, match=r"damaged .*Start anew with --overwrite"):
        bulk.score(lambda: classifier, source, target)
    assert bulk.score(lambda: classifier, source, target, overwrite=True).resumed_after == 0


def test_an_input_that_changes_meanwhile_is_refused_and_the_same_command_starts_anew(
    classifier: Classifier, small_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_odd(tmp_path / "in.jsonl", some_rows(60)), tmp_path / "out.csv"

    def load() -> Classifier:
        source.write_text(source.read_text() + '{"text": "more", "new": 1}\n')
        return classifier

    with pytest.raises(DataError, match=r"has changed while it was looked at\. Run it again"):
        bulk.score(load, source, target)
    found = bulk.score(lambda: classifier, source, target, overwrite=True)
    assert list(rows_of(target)[0])[-4:] == ["new", "predicted_label", "neg_prob", "pos_prob"]
    assert found.rows == 56

    append = ledger.Ledger.append

    def changing(*arguments: Any) -> None:
        append(*arguments)
        os.utime(source, (1, 1))

    with monkeypatch.context() as patch:
        patch.setattr(ledger.Ledger, "append", changing)
        with pytest.raises(DataError, match=r"has changed while it was read; .*Run it again"):
            bulk.score(lambda: classifier, source, tmp_path / "again.csv")
    assert left_over(tmp_path) == []
    bulk.score(lambda: classifier, source, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == target.read_bytes()


def test_keys_of_rejected_lines_are_no_columns(classifier: Classifier, tmp_path: Path) -> None:
    lines = ['{"text": "a film", "n": 1}', '{"text": " ", "pos_prob": 1}', '{"text": "b", "\\ud83d": 1}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    assert bulk.score(lambda: classifier, tmp_path / "in.jsonl", tmp_path / "out.csv").rejected == 2
    assert list(rows_of(tmp_path / "out.csv")[0]) == ["text", "n", "predicted_label", "neg_prob", "pos_prob"]


def test_a_full_disk_is_one_sentence_and_the_work_is_kept(
    classifier: Classifier, small_parts: None, tmp_path: Path
) -> None:
    if not mount_small_disk(tmp_path / "disk", 100):
        pytest.skip("needs to mount a small disk")
    try:
        source, target = write_odd(tmp_path / "in.csv", some_rows(400)), tmp_path / "disk" / "out.csv"
        with pytest.raises(StorageError, match="The disk is full"):
            bulk.score(lambda: classifier, source, target)
        subprocess.run(["mount", "-o", "remount,size=20m", tmp_path / "disk"], check=True)
        assert bulk.score(lambda: classifier, source, target).rows > 300
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_an_answer_that_cannot_be_kept_is_one_sentence(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    with ledger.held(target, bulk.rejected_file(target)) as book:
        book.begin({"a": "1"}, overwrite=False)
        other = sqlite3.connect(":memory:")
        other.execute("CREATE TABLE answers (text BLOB PRIMARY KEY, answer BLOB NOT NULL)")
        other.execute("PRAGMA max_page_count = 4")
        book._opened, opened = other, book._opened
        with pytest.raises(StorageError, match="The disk is full"):
            book.remember({bytes([number]): b"x" * 4000 for number in range(20)})
        other.execute("PRAGMA query_only = 1")
        with pytest.raises(StorageError, match="can't be written"):
            book.remember({b"a": b""})
        other.close()
        book._opened = opened


# A process of its own, and kills.

_DRIVER = """
import sys
from lorafit import cli
from lorafit.bulk import answers
from lorafit.streams import sources
sources.ROWS_A_PART, answers.TEXTS_AT_ONCE = 50, 10
sys.argv = ["lorafit", *sys.argv[1:]]
cli.main()
"""


def start(folder: Path, run: Path, source: Path, target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _DRIVER, "predict", run, "--input", source, "--output", target]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*map(str, command)], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def size_of(file: Path) -> int:
    """Return how many bytes a file has that another process may rename at any time."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize(
    ("kills", "count", "into"),
    [
        pytest.param(3, 3000, ".csv.gz", marks=pytest.mark.slow),
        pytest.param(20, 10_000, ".parquet", marks=pytest.mark.soak),
        pytest.param(20, 10_000, ".jsonl", marks=pytest.mark.soak),
    ],
)
def test_killed_at_random_moments_the_output_is_that_of_an_uninterrupted_run(
    kills: int, count: int, into: str, trained: Path, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(1000)
    chance = random.Random(seed)
    source = write_odd(tmp_path / "in.jsonl", some_rows(count))
    whole, target = tmp_path / f"whole{into}", tmp_path / f"out{into}"
    start_time = time.monotonic()
    process = start(tmp_path, trained, source, whole)
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    seconds = time.monotonic() - start_time
    output = ledger.work_folder(target) / "output"

    def compare_and_clear(said: tuple[str, str]) -> None:
        """Look at an output that is whole; a kill may have come just behind that, and the next run finds it there."""
        assert process.returncode == 0 or "is there already" in said[1], said
        for file, expected in ((target, whole), (bulk.rejected_file(target), bulk.rejected_file(whole))):
            assert file.read_bytes() == expected.read_bytes(), f"seed {seed}"
            file.unlink()

    done = 0
    for kill in itertools.count():
        assert time.monotonic() - start_time < 30 * kills, f"only {done} kills; seed {seed}"
        process = start(tmp_path, trained, source, target)
        if done == kills:
            break
        if kill % 2:  # at any time of look, load and begin, and of what follows
            time.sleep(chance.uniform(0, 1.2 * seconds))
        else:  # while it writes, so that it comes further each time
            before = size_of(output)
            while process.poll() is None and size_of(output) <= before:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.05))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            done += 1
            process.communicate()
        else:
            compare_and_clear(process.communicate())
    compare_and_clear(process.communicate(timeout=300))


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_names_the_way_on(trained: Path, tmp_path: Path) -> None:
    source = write_odd(tmp_path / "in.csv", some_rows(3000))
    process = start(tmp_path, trained, source, tmp_path / "out.csv")
    while not (ledger.work_folder(tmp_path / "out.csv") / "output").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 3,000 rows are written; the same command goes on from there." in said


_PEAK = """
import resource, sys
from pathlib import Path
from lorafit import bulk, Classifier
load = lambda: Classifier.load(sys.argv[1], precision="fp32", threads=1)
bulk.score(load, Path(sys.argv[2]), Path(sys.argv[3]))
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own count of memory")
@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_million_rows_take_no_more_memory_than_ten_thousand(kind: str, trained: Path, tmp_path: Path) -> None:
    peaks = {}
    for count in (10_000, 1_000_000):
        file = tmp_path / f"{count}{kind}"
        table = pa.table({"id": range(count), "text": [f"a good film {number}" for number in range(count)]})
        if kind == ".csv":
            arrow_csv.write_csv(table, file)
        else:
            pq.write_table(table, file, row_group_size=count)
        command = [sys.executable, "-c", _PEAK, trained, file, tmp_path / f"out-{count}{kind}"]
        said = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
        peaks[count] = int(said.stdout.split()[-1])
    assert peaks[1_000_000] < 1.05 * peaks[10_000], peaks


def test_a_bar_within_the_rows_is_a_line_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(console, "_stderr", terminal)
    with console.row_bar(10), console.bar("Classifying", total=4) as advance:
        advance(3)
        live = console._outer_bar
        assert live is not None
        assert [(task.description, task.completed) for task in live.tasks] == [("Rows", 0), ("Classifying", 3)]
    assert console._outer_bar is None


def test_a_log_has_a_sentence_a_minute_and_quiet_has_none(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 30.0, 61.0, 100.0, 130.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    with console.row_bar(1_000_000, 100_000) as advance:
        for _ in range(4):
            advance(6100)
    assert capfd.readouterr().err == (
        "112,200 of 1,000,000 rows, 200 a second, 74 min left.\n124,400 of 1,000,000 rows, 188 a second, 78 min left.\n"
    )
