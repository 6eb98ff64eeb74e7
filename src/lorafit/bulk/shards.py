"""A folder of Parquet answered shard by shard, each by one process of many; what is killed goes on.

OUTPUT/
  part-00000.parquet           a shard's rows with the answers behind their columns
  _rejected/part-00000.jsonl   those of its rows that have no usable text
  _lorafit.json                the job: the input's files, the columns, who answers, how many rows a shard has
  _tried/part-00000            a byte for each process that has begun with a shard that is not done
  .lock                        held by the process that hands out the shards

The job alone says which rows make up a shard. Its files are put in their places whole, the rejected rows first, and it
counts as done once its part is there: however often and by whomever it is tried, no row is lost or doubled.
"""

import hashlib
import os
import re
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from lorafit import streams
from lorafit.bulk.answers import Answers
from lorafit.bulk.ledger import locked
from lorafit.bulk.look import Rule, refuse_missing
from lorafit.bulk.rows import answered
from lorafit.errors import DataError, StorageError
from lorafit.files import is_unfinished, remove_unfinished, storing, write_atomically, write_text
from lorafit.predict import Classifier
from lorafit.streams import ArrowSink, ParquetSource

JOB, REJECTED, _TRIED, _LOCK = "_lorafit.json", "_rejected", "_tried", ".lock"
_PART = re.compile(r"part-\d{5,}\.parquet")
LEAST_ROWS_A_SHARD = 512  # of reviews some seconds of a core
MOST_ROWS_A_SHARD = 131_072  # about an hour, which a kill costs
_SHARDS_A_WORKER = 16  # so that those who are done first do not wait long for the last
_MOST_TRIES = 10  # of a shard, after which it is the shard's fault that its processes die
_LOOKS_AT_ONCE = 16  # at heads of files, perhaps over a network


class Kept(BaseModel):
    """What is kept as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Input(Kept):
    """A file of the input: its name in the folder, its size, and the SHA-256 of what Parquet says of it at its end."""

    name: str
    bytes: int
    rows: int
    footer_sha256: str


class Job(Kept):
    """All that decides what is written; `facts` are named as a refusal names them.

    `precision` is "fp32", "bf16", or "auto" for an export, and the same on every machine and in every call.
    """

    files: list[Input]
    rows_a_shard: int
    text_column: str
    pair_column: str
    prefix: str
    base: bool
    strict: bool
    precision: str
    facts: dict[str, str]

    @property
    def rows(self) -> int:
        """Of all files."""
        return sum(file.rows for file in self.files)

    @cached_property
    def _ends(self) -> list[int]:
        """For each file how many shards there are up to its end: no shard holds rows of two files."""
        return list(accumulate(-(-file.rows // self.rows_a_shard) for file in self.files))

    @cached_property
    def _digits(self) -> int:
        """In the names of parts, so that their order is that of the rows."""
        return max(5, len(str(self.shards - 1)))

    @property
    def shards(self) -> int:
        """How many there are."""
        return self._ends[-1]

    def shard(self, number: int) -> "Shard":
        """Return one of them, from 0."""
        place = bisect_right(self._ends, number)
        first = (number - (self._ends[place - 1] if place else 0)) * self.rows_a_shard
        file = self.files[place]
        return Shard(f"part-{number:0{self._digits}}", file.name, first, min(self.rows_a_shard, file.rows - first))

    def differs_in(self, other: "Job") -> list[str]:
        """Return the names of what another job has otherwise; not how it is cut, which the first call settles."""
        ours, theirs = self._named(), other._named()
        return [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]

    def _named(self) -> dict[str, Any]:
        columns = (self.text_column, self.pair_column)
        own = {"the input's files": self.files, "the columns": columns, "the prefix": self.prefix, "--base": self.base}
        return own | self.facts


class Shard(NamedTuple):
    """Rows of one file behind its first ones, and the name under which their answers are kept."""

    name: str
    file: str
    first: int
    rows: int


class Counts(NamedTuple):
    """What became of some rows; `repeated` are those of `answered` whose text had come before in their shard."""

    answered: int
    rejected: int
    repeated: int

    def and_also(self, more: "Counts") -> "Counts":
        """Return the sum of both."""
        return Counts(*map(sum, zip(self, more, strict=True)))


@dataclass(frozen=True)
class Look:
    """What was found in a folder: its files, and the columns and types that all of them have."""

    files: list[Input]
    schema: pa.Schema


def look_at(folder: Path, columns: Sequence[str]) -> Look:
    """Read the ends of all Parquet files in a folder and below, where Parquet says what is in them.

    Names that begin with "_" or "." are left out, as others who read such folders do.

    Raises:
        DataError: no folder, no rows, a file of another format, what can't be read, linked folders, folders that stand
            for a column's values, files with different columns, a missing column, or one of something else than text.

    >>> sum(file.rows for file in look_at(Path("reviews"), ["text"]).files)
    25000
    """
    files = sorted(_files_below(folder))
    strange = next((file for file in files if file.suffix.lower() != ".parquet"), None)
    if strange is not None:
        raise DataError(f"{strange} is no Parquet file; on Ray only those are read. Turn it into one, or move it away.")
    by_value = next((part for file in files for part in file.relative_to(folder).parts[:-1] if "=" in part), None)
    if by_value is not None:
        raise DataError(f"{folder} keeps a column in its folders' names ({by_value}), which would be lost. Name one.")
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        heads = list(pool.map(lambda file: _head(file, folder), files))
    if not sum(found.rows for found, _ in heads):
        raise DataError(f"{folder} holds no rows in Parquet files.")
    _, schema = heads[0]
    for found, own in heads:
        if not own.equals(schema):
            raise DataError(f"{folder}: {found.name} has other columns or types than {heads[0][0].name}.")
    refuse_missing(list(columns), schema.names, folder)
    for name in columns:
        if not _holds_text(schema.field(name).type):
            raise DataError(f"{folder}: column {name!r} is of {schema.field(name).type}, which is no text.")
    return Look([found for found, _ in heads], schema)


def rows_a_shard(rows: int, workers: int) -> int:
    """Return how many rows each of so many workers should take at a time.

    >>> rows_a_shard(1_000_000, workers=2), rows_a_shard(1_000, workers=2)
    (31250, 512)
    """
    return min(max(-(-rows // (_SHARDS_A_WORKER * workers)), LEAST_ROWS_A_SHARD), MOST_ROWS_A_SHARD)


def refuse_places(source: Path, target: Path) -> None:
    """Refuse an output folder in which a job can't be.

    Raises:
        DataError: the input, or a folder in it.
        StorageError: a file, or a folder that holds something else.
    """
    with storing(target):
        if target.exists() and not target.is_dir():
            raise StorageError(f"{target} is a file; on Ray, --output is a folder.")
        if target.resolve().is_relative_to(source.resolve()):
            raise DataError(f"{target} is in the input, {source}. Name another output.")
        names = os.listdir(target) if target.is_dir() else []  # noqa: PTH208 - names alone, of perhaps millions
    begun = JOB in names
    strange = next((name for name in names if not _is_ours(target / name, begun)), None)
    if strange is not None:
        raise StorageError(f"{target} holds {strange!r}, which is not ours. Name another output, or move that away.")


def begun(target: Path) -> Job | None:
    """Return the job that was begun in a folder, or None.

    Raises:
        StorageError: it can't be read.
    """
    file = target / JOB
    try:
        return Job.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{file} can't be read: {error.strerror}.") from None
    except (ValidationError, UnicodeDecodeError):
        raise StorageError(f"{file} is damaged. Start anew with --overwrite, or name another output.") from None


@contextmanager
def held(target: Path) -> Iterator[None]:
    """Make the output folder, and keep others from handing out its shards meanwhile; an empty one is gone afterwards.

    Raises:
        StorageError: another process holds it, or it can't be made.
    """
    with storing(target):
        target.mkdir(parents=True, exist_ok=True)
    with locked(target, target):
        yield


def begin(target: Path, job: Job, *, overwrite: bool) -> Job:
    """Return the job as it was begun in the output folder, be it now; the folder is held.

    Args:
        target: the output.
        job: what is asked for.
        overwrite: what stands there of another job is removed.

    Raises:
        StorageError: another job was begun there, by the names of what differs.
    """
    before = None if overwrite else begun(target)
    differing = before.differs_in(job) if before else []
    if differing:
        raise StorageError(
            f"{target} holds the work of another job: {' and '.join(differing)} differ. "
            "Start anew with --overwrite, or repeat the command that began it."
        )
    if before is None:
        _remove_parts(target)
        write_text(target / JOB, job.model_dump_json(indent=1) + "\n")
    for folder in filter(Path.is_dir, (target, target / REJECTED)):
        remove_unfinished(folder)
    shutil.rmtree(target / _TRIED, ignore_errors=True)
    return before.model_copy(update={"strict": job.strict}) if before else job


def undone(target: Path, job: Job) -> list[int]:
    """Return the numbers of the shards whose part is not there."""
    there = set(os.listdir(target))  # noqa: PTH208
    return [number for number in range(job.shards) if _part(target, job.shard(number)).name not in there]


def is_done(target: Path, job: Job, number: int) -> bool:
    """Tell whether a shard's part is there."""
    return _part(target, job.shard(number)).is_file()


def counted(target: Path, job: Job, numbers: Iterable[int]) -> Counts:
    """Return what became of the rows of shards that are done; nothing is known of texts that came twice.

    Raises:
        StorageError: a part is not there, or damaged.
    """
    shards = [job.shard(number) for number in numbers]
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        kept = sum(pool.map(lambda shard: _rows_of_part(_part(target, shard)), shards))
    return Counts(kept, sum(shard.rows for shard in shards) - kept, 0)


class Scorer:
    """What answers shards of a job, one after another.

    >>> Scorer(Classifier.load("runs/demo"), job, Path("reviews"), Path("scored")).score(job.shard(0))
    Counts(answered=510, rejected=2, repeated=0)
    """

    def __init__(self, classifier: Classifier, job: Job, source: Path, target: Path) -> None:
        self._classifier, self._job, self._source, self._target = classifier, job, source, target
        self._bytes = {file.name: file.bytes for file in job.files}
        columns = [name for name in (job.text_column, job.pair_column) if name]
        form = streams.form_of(Path("part.parquet"))
        self._rule = Rule(columns, form, target / REJECTED, job.strict, classifier.strips_tags)

    def score(self, shard: Shard) -> Counts:
        """Write a shard's part, and its rejected rows if there are any.

        Raises:
            DataError: the file can't be read, has changed, has a row without a usable text where the job is strict, or
                has cost ten processes.
            StorageError: a disk that is full or not writable.
        """
        file = self._source / shard.file
        self._refuse_deadly(shard)
        table = ParquetSource(file)
        if file.stat().st_size != self._bytes[shard.file] or (table.rows or 0) < shard.first + shard.rows:
            raise _changed(file)
        memory = _Memory()
        answers = Answers(self._classifier, self._job.base, self._job.prefix, memory)
        sink = ArrowSink(table.schema, table.codec)
        rejects, kept, read = bytearray(), 0, 0
        with storing(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as scratch:
            written = Path(scratch) / "part.arrows"
            with written.open("wb") as stream:
                for some in answered(table.parts_of(shard.first, shard.rows), self._rule, answers):
                    self._rule.refuse_if_strict(file, some.part, some.reasons)
                    stream.write(sink.part(some.kept, some.added))
                    rejects += some.rejects(some.part.first, shard.file)
                    kept, read = kept + len(some.kept), read + len(some.part)
            if read != shard.rows:
                raise _changed(file)
            if rejects:
                write_atomically(self._target / REJECTED / f"{shard.name}.jsonl", _writing(bytes(rejects)))
            write_atomically(_part(self._target, shard), lambda place: sink.to_parquet(written, place))
        (self._target / _TRIED / shard.name).unlink(missing_ok=True)
        return Counts(kept, shard.rows - kept, kept - len(memory))

    def _refuse_deadly(self, shard: Shard) -> None:
        """Note that a shard is tried; refuse one that has cost too many processes.

        Raises:
            DataError: always that.
        """
        tried = self._target / _TRIED / shard.name
        with storing(tried):
            tried.parent.mkdir(exist_ok=True)
            with tried.open("ab") as stream:
                stream.write(b".")
                count = stream.tell()
        if count > _MOST_TRIES:
            rows = f"rows {shard.first + 1:,} to {shard.first + shard.rows:,}"
            died = f"{_MOST_TRIES} processes died of them, perhaps for want of memory"
            raise DataError(f"{self._source / shard.file}, {rows}: {died}.")


def _changed(file: Path) -> DataError:
    return DataError(f"{file} has changed while it was read. Start anew with --overwrite.")


class _Memory(dict[bytes, bytes]):
    """The answers of one shard."""

    def known(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the answers that were given to those of the texts that had one."""
        return {key: self[key] for key in keys if key in self}

    def remember(self, answers: dict[bytes, bytes]) -> None:
        """Keep answers."""
        self.update(answers)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and below.

    Raises:
        DataError: no folder, one that can't be read, or a link to one, for who knows where that ends.
    """

    def refuse(error: OSError) -> None:
        if Path(error.filename) == folder and isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise DataError(f"{folder} is no folder. On Ray, --input and --output are folders of Parquet files.")
        raise DataError(f"{error.filename} can't be read: {error.strerror}.")

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] not in "_."]
        linked = next((path for path in (Path(root) / name for name in folders) if path.is_symlink()), None)
        if linked is not None:
            raise DataError(f"{linked} is a link to a folder. Name that folder, or put it into its place.")
        yield from (Path(root) / name for name in files if name[0] not in "_.")


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _head(file: Path, folder: Path) -> tuple[Input, pa.Schema]:
    table = streams.opened(file)
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(size - 8)
            length = int.from_bytes(stream.read(4), "little")
            stream.seek(size - 8 - length)
            sha256 = hashlib.sha256(stream.read(length)).hexdigest()
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}.") from None
    rows = table.rows or 0
    return Input(name=file.relative_to(folder).as_posix(), bytes=size, rows=rows, footer_sha256=sha256), table.schema


def _part(target: Path, shard: Shard) -> Path:
    return target / f"{shard.name}.parquet"


def _rows_of_part(file: Path) -> int:
    try:
        with storing(file):
            return int(pq.read_metadata(file).num_rows)
    except pa.ArrowException:
        raise StorageError(f"{file} is damaged. Remove it and repeat the command, which makes it anew.") from None


def _is_ours(path: Path, begun: bool) -> bool:
    if not begun:
        return path.name == _LOCK or is_unfinished(path)
    return path.name in (JOB, REJECTED, _TRIED, _LOCK) or bool(_PART.fullmatch(path.name)) or is_unfinished(path)


def _remove_parts(target: Path) -> None:
    """Remove what another job has left, but for the job: what is killed here leaves less of that one, and no other."""
    with storing(target):
        for file in (*target.glob("part-*.parquet"), *target.glob(f"{REJECTED}/part-*.jsonl")):
            file.unlink()


def _writing(content: bytes) -> Callable[[Path], Any]:
    return lambda place: place.write_bytes(content)
