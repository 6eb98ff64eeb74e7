"""A folder is answered shard by shard: whoever does which, and however often, every row comes out once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorafit import Classifier, bulk
from lorafit.bulk import shards
from lorafit.bulk.shards import Counts, Job, Scorer, Shard
from lorafit.errors import DataError, StorageError
from lorafit.streams import ParquetSource
from tests.conftest import texts_and_labels

pytestmark = pytest.mark.usefixtures("proved_in_this_process")
EACH_FILE = (130, 1, 70, 0)


@pytest.fixture(scope="module")
def classifier(trained: Path) -> Classifier:
    return Classifier.load(trained, precision="fp32", threads=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of four files, of which one has several row groups and one no row; every eleventh row has no text."""
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    texts, _ = texts_and_labels(sum(EACH_FILE), 3)
    texts = [" " if number % 11 == 5 else text for number, text in enumerate(texts)]
    table = pa.table({"id": range(len(texts)), "text": texts})
    begin = 0
    for place, count in enumerate(EACH_FILE):
        name = f"more/{place}.parquet" if place else "0.parquet"
        pq.write_table(table.slice(begin, count), folder / name, row_group_size=32)
        begin += count
    (folder / "_SUCCESS").touch()
    return folder


def job_of(source: Path, rows_a_shard: int = 50, **facts: str) -> Job:
    return Job(
        files=shards.look_at(source, ["text"]).files,
        rows_a_shard=rows_a_shard,
        text_column="text",
        pair_column="",
        prefix="",
        base=False,
        strict=False,
        precision="fp32",
        facts=facts,
    )


def test_rows_behind_others_are_read_without_what_stands_around_them(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"row": range(100)}), file, row_group_size=30)
    table = ParquetSource(file)
    for first, rows in ((0, 100), (0, 30), (29, 2), (30, 30), (59, 41), (99, 1), (45, 0)):
        parts = list(table.parts_of(first, rows))
        assert [row for part in parts for row in part.column("row")] == list(range(first, first + rows))
        assert [part.first for part in parts][:1] == [first][: len(parts)]


def test_the_job_says_which_rows_make_up_a_shard(source: Path) -> None:
    job = job_of(source)
    assert [file.name for file in job.files] == ["0.parquet", "more/1.parquet", "more/2.parquet", "more/3.parquet"]
    assert [job.shard(number)[1:] for number in range(job.shards)] == [
        ("0.parquet", 0, 50),
        ("0.parquet", 50, 50),
        ("0.parquet", 100, 30),
        ("more/1.parquet", 0, 1),
        ("more/2.parquet", 0, 50),
        ("more/2.parquet", 50, 20),
    ]
    assert job.shard(0) == Shard("part-00000", "0.parquet", 0, 50)
    of_many = {"rows_a_shard": 1, "files": [job.files[0].model_copy(update={"rows": 200_000})]}
    many = Job(**(dict(job) | of_many))
    assert (many.shard(7).name, many.shard(150_000).name) == ("part-000007", "part-150000")  # in the rows' order
    assert shards.rows_a_shard(10**12, 100_000) == shards.MOST_ROWS_A_SHARD


def test_shards_hold_what_one_file_would(classifier: Classifier, source: Path, tmp_path: Path) -> None:
    """Done in any order, and some twice: as one file is answered, row by row."""
    job, target = job_of(source), tmp_path / "out"
    scorer = Scorer(classifier, job, source, target)
    with shards.held(target):
        shards.begin(target, job, overwrite=False)
        counts = [scorer.score(job.shard(number)) for number in (5, 0, 2, 1, 0, 4, 3)]
    assert shards.undone(target, job) == []
    whole = tmp_path / "whole.parquet"
    pd.concat([pq.read_table(source / file.name).to_pandas() for file in job.files]).to_parquet(whole)
    found = bulk.score(lambda: classifier, whole, tmp_path / "whole.out.parquet")
    assert shards.counted(target, job, range(job.shards)) == Counts(found.rows, found.rejected, 0)
    assert counts[1] == counts[4]
    expected = pd.read_parquet(tmp_path / "whole.out.parquet").reset_index(drop=True)
    scored = pd.read_parquet(target)  # which leaves out what begins with "_"
    assert scored[["id", "text", "predicted_label"]].equals(expected[["id", "text", "predicted_label"]])
    np.testing.assert_allclose(scored["pos_prob"], expected["pos_prob"], atol=1e-5)
    lines = [line for file in sorted((target / "_rejected").iterdir()) for line in file.read_text().splitlines()]
    rejected = [json.loads(line) for line in lines]
    assert [record["content"]["id"] for record in rejected] == [n for n in range(sum(EACH_FILE)) if n % 11 == 5]
    assert rejected[-1] == {
        "file": "more/2.parquet",
        "row": 192 - 131 + 1,
        "reason": "its 'text' is empty; there is nothing to classify",
        "content": {"id": 192, "text": " "},
    }


def test_a_shard_without_a_usable_row_is_done_too(classifier: Classifier, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    pq.write_table(pa.table({"text": ["", None, " "]}), source / "a.parquet")
    job = job_of(source)
    with shards.held(target):
        shards.begin(target, job, overwrite=False)
        assert Scorer(classifier, job, source, target).score(job.shard(0)) == Counts(0, 3, 0)
    assert shards.undone(target, job) == []
    assert list(pd.read_parquet(target)) == ["text", "predicted_label", "neg_prob", "pos_prob"]


def test_what_was_done_stays_and_other_jobs_are_refused(classifier: Classifier, source: Path, tmp_path: Path) -> None:
    job, target = job_of(source, who="a"), tmp_path / "out"
    with shards.held(target):
        shards.begin(target, job, overwrite=False)
        Scorer(classifier, job, source, target).score(job.shard(3))
        with pytest.raises(StorageError, match="being written by another process"):
            held_by_another(target)
    (target / ".part-00001.parquet.0123456789ab").touch()  # of a worker that was killed
    cut_otherwise = job_of(source, rows_a_shard=7, who="a").model_copy(update={"strict": True})
    begun = shards.begin(target, cut_otherwise, overwrite=False)
    assert begun == job.model_copy(update={"strict": True})  # cut as it was begun, and strict as asked now
    assert shards.undone(target, begun) == [0, 1, 2, 4, 5]
    assert not list(target.glob(".part*"))
    with pytest.raises(StorageError, match="another job: who differ"):
        shards.begin(target, job_of(source, who="b"), overwrite=False)
    anew = shards.begin(target, job_of(source, who="b"), overwrite=True)
    assert len(shards.undone(target, anew)) == anew.shards
    (target / shards.JOB).write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        shards.begun(target)


def held_by_another(target: Path) -> None:
    """Hold the output in another process; its refusal is raised here."""
    code = "import sys, pathlib; from lorafit.bulk import shards\nwith shards.held(pathlib.Path(sys.argv[1])): pass"
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True)
    if done.returncode:
        raise StorageError(done.stderr.splitlines()[-1])


def test_an_output_in_which_nothing_was_begun_is_gone(tmp_path: Path) -> None:
    with shards.held(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_with_a_folder_is_said_before_anything_is_loaded(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no folder\. On Ray"):
        shards.look_at(source / "0.parquet", ["text"])
    with pytest.raises(DataError, match="has no column 'review'"):
        shards.look_at(source, ["review"])
    for name, said in (("notes.csv", "is no Parquet file"), ("broken.parquet", "can't be read as PARQUET")):
        (source / name).write_text("text\na")
        with pytest.raises(DataError, match=said):
            shards.look_at(source, ["text"])
        (source / name).unlink()
    pq.write_table(pa.table({"text": ["a"]}), source / "other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet has other columns or types than 0\.parquet"):
        shards.look_at(source, ["text"])
    (source / "other.parquet").unlink()
    by_year = source / "year=2024"
    by_year.mkdir()
    pq.write_table(pa.table({"id": [1], "text": ["a"]}), by_year / "a.parquet")
    with pytest.raises(DataError, match="column in its folders' names"):
        shards.look_at(source, ["text"])
    with pytest.raises(DataError, match="column 'id' is of int64, which is no text"):
        shards.look_at(source / "more", ["id"])
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more").symlink_to(source / "more")
    with pytest.raises(DataError, match="is a link to a folder"):
        shards.look_at(tmp_path / "linked", ["text"])
    with pytest.raises(DataError, match="nowhere is no folder"):
        shards.look_at(tmp_path / "nowhere", ["text"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no rows"):
        shards.look_at(empty, ["text"])


def test_an_output_with_foreign_files_is_refused(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    shards.refuse_places(source, target)
    with pytest.raises(DataError, match="is in the input"):
        shards.refuse_places(source, source / "scored")
    target.mkdir()
    shards.refuse_places(source, target)
    (target / "part-00000.parquet").touch()  # of Spark, perhaps: nothing says that it is ours
    with pytest.raises(StorageError, match=r"holds 'part-00000\.parquet', which is not ours"):
        shards.refuse_places(source, target)
    (target / "part-00000.parquet").unlink()
    shards.begin(target, job_of(source), overwrite=False)
    shards.refuse_places(source, target)
    (target / "notes.txt").touch()
    with pytest.raises(StorageError, match=r"holds 'notes\.txt', which is not ours"):
        shards.refuse_places(source, target)
    with pytest.raises(StorageError, match="is a file"):
        shards.refuse_places(source, target / "notes.txt")


def test_strict_stops_at_the_first_row_without_a_text(classifier: Classifier, source: Path, tmp_path: Path) -> None:
    job = job_of(source).model_copy(update={"strict": True})
    shards.begin(tmp_path / "out", job, overwrite=False)
    with pytest.raises(DataError, match=r"0\.parquet, row 6: its 'text' is empty"):
        Scorer(classifier, job, source, tmp_path / "out").score(job.shard(0))
    assert not list((tmp_path).glob("out/part*"))


def test_an_input_that_changes_meanwhile_is_noticed(classifier: Classifier, source: Path, tmp_path: Path) -> None:
    job = job_of(source)
    shards.begin(tmp_path / "out", job, overwrite=False)
    pq.write_table(pa.table({"id": [1], "text": ["a"]}), source / "0.parquet")
    with pytest.raises(DataError, match="has changed while it was read"):
        Scorer(classifier, job, source, tmp_path / "out").score(job.shard(1))
    before, now = job, job_of(source)
    assert now.differs_in(before) == ["the input's files"]
    (source / "0.parquet").unlink()
    with pytest.raises(DataError, match=r"0\.parquet can't be read"):
        Scorer(classifier, job, source, tmp_path / "out").score(job.shard(1))


def test_a_shard_of_which_processes_die_is_given_up(
    classifier: Classifier, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, target = job_of(source), tmp_path / "out"
    shards.begin(target, job, overwrite=False)
    scorer = Scorer(classifier, job, source, target)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "ParquetSource", lambda _: (_ for _ in ()).throw(SystemExit))  # as a kill would end it
        for _ in range(10):
            with pytest.raises(SystemExit):
                scorer.score(job.shard(2))
        with pytest.raises(DataError, match=r"0\.parquet, rows 101 to 130: 10 processes died of them"):
            scorer.score(job.shard(2))
    begun = shards.begin(target, job, overwrite=False)  # somebody has given it more memory
    assert Scorer(classifier, begun, source, target).score(job.shard(2)).rejected == 3
    assert not list((target / "_tried").iterdir())
