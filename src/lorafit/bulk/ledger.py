"""The work folder of a bulk prediction: what is written, how far it came, each answer; a kill loses little of it.

OUTPUT.partial/
  ledger.sqlite      what the job is, how many bytes of the files below count, and the answer to each text
  output             what was written, part behind part; bytes behind those that count are a kill's, and cut off
  rejected           the rows that are not in it, as JSONL
  whole              the output as it will be published, once it is complete
  .lock              held by the process that writes
"""

import json
import os
import shutil
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from lorafit.errors import StorageError
from lorafit.files import flush, is_unfinished, storing, write_atomically

_LOCK, _BOOK = ".lock", "ledger.sqlite"
_OUTPUT, _REJECTED, _WHOLE = "output", "rejected", "whole"
_OURS = (_LOCK, _BOOK, f"{_BOOK}-wal", f"{_BOOK}-journal", _OUTPUT, _REJECTED, _WHOLE)
_CRC_BLOCK_BYTES = 1 << 20
_SECONDS_BETWEEN_COMMITS = 1.0  # each writes whole pages of a table in the order of hashes
_TABLES = """
CREATE TABLE IF NOT EXISTS job (facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS progress (state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (text BLOB PRIMARY KEY, answer BLOB NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Written:
    """How many bytes of a file count (`length`), and their CRC-32."""

    length: int = 0
    crc32: int = 0

    def then(self, content: bytes) -> "Written":
        """Return what it is with more behind it."""
        return Written(self.length + len(content), zlib.crc32(content, self.crc32))


@dataclass(frozen=True)
class Progress:
    """How far a job came: rows read and rows rejected, the bytes of both files, and whether that is all."""

    rows: int = 0
    rejected: int = 0
    output: Written = Written()
    rejects: Written = Written()
    complete: bool = False


class Ledger:
    """The work folder of one output, held by this process alone; `begin` comes first."""

    def __init__(self, target: Path, rejected: Path) -> None:
        self.target, self.rejected, self.folder = target, rejected, work_folder(target)
        self.progress = Progress()
        self._opened: sqlite3.Connection | None = None
        self._committed = 0.0

    def begin(self, job: dict[str, str], *, overwrite: bool) -> None:
        """Go on with a job, or begin it.

        Args:
            job: all that decides what is written.
            overwrite: forget what another job left here, or what is damaged.

        Raises:
            StorageError: another job was begun here, by the names of the facts that differ; its work is damaged; or
                a file that is not ours stands in the place of the output.
        """
        try:
            differing = self._go_on(job)
        except _DamagedError:
            if not overwrite:
                raise
            differing = ["what was written"]
        if differing and not overwrite:
            raise StorageError(
                f"{self.folder} holds the work of another job: {' and '.join(differing)} differ. "
                "Start anew with --overwrite, or repeat the command that began it."
            )
        if differing:
            self.forget()
            self._go_on(job)
        if not overwrite:
            self._refuse_others()

    def _go_on(self, job: dict[str, str]) -> list[str]:
        """Return the names of the facts in which the job that was begun here differs; without one this one begins."""
        self._opened = _opened(self.folder)
        with self._keeping():
            begun = self._book.execute("SELECT facts FROM job").fetchone()
            state = self._book.execute("SELECT state FROM progress").fetchone()
        if begun is None:
            for name in (_OUTPUT, _REJECTED, _WHOLE):  # of a job that was being forgotten
                (self.folder / name).unlink(missing_ok=True)
            with self._keeping():
                self._book.execute("INSERT INTO job VALUES (?)", [json.dumps(job)])
            return []
        before = json.loads(begun[0])
        differing = [name for name in {**before, **job} if before.get(name) != job.get(name)]
        if not differing:
            self.progress = Progress() if state is None else _progress(json.loads(state[0]))
            self._cut_off()
            if self.published and not self.target.exists():
                self.progress = Progress()
                said = f"{self.target} was finished, and is not there any more"
                raise _DamagedError(f"{said}. Start anew with --overwrite, or remove {self.folder}.")
        return differing

    def forget(self) -> None:
        """Remove all that was written and answered."""
        self.close()
        _sweep(self.folder)
        self.progress = Progress()

    def close(self) -> None:
        """Let go of the book."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @property
    def _book(self) -> sqlite3.Connection:
        if self._opened is None:
            raise ValueError("begin comes first")
        return self._opened

    @property
    def published(self) -> bool:
        """Whether the output stands in its place, and only this folder is left to remove."""
        return self.progress.complete and not any((self.folder / name).exists() for name in (_OUTPUT, _WHOLE))

    def known(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the answers that were given to those of the texts that had one."""
        asking = "SELECT answer FROM answers WHERE text = ?"
        with self._keeping():
            found = ((key, self._book.execute(asking, [key]).fetchone()) for key in keys)
            return {key: row[0] for key, row in found if row is not None}

    def remember(self, answers: dict[bytes, bytes]) -> None:
        """Keep answers: a kill loses those of the last second, and once a part is written behind them none is lost."""
        with _in_our_words(self.folder / _BOOK):
            self._book.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", sorted(answers.items()))
            if time.monotonic() - self._committed > _SECONDS_BETWEEN_COMMITS:
                self._book.commit()
                self._committed = time.monotonic()

    @property
    def answers(self) -> int:
        """How many texts were given an answer."""
        with self._keeping():
            return int(self._book.execute("SELECT count(*) FROM answers").fetchone()[0])

    def append(self, output: bytes, rejects: bytes = b"", rows: int = 0, rejected: int = 0) -> None:
        """Write a part: all of it counts, or after a kill nothing.

        Raises:
            StorageError: a disk that is full or not writable; what was written before is kept.
        """
        with storing(self.folder):
            _append(self.folder / _OUTPUT, output)
            _append(self.folder / _REJECTED, rejects)
        done = self.progress
        self._note(
            replace(
                done,
                rows=done.rows + rows,
                rejected=done.rejected + rejected,
                output=done.output.then(output),
                rejects=done.rejects.then(rejects),
            )
        )

    def publish(self, finish: Callable[[Path, Path], None] | None, *, overwrite: bool) -> None:
        """Put output and rejected rows in their places; killed on the way, it goes on when called again.

        Args:
            finish: makes the file of what was appended; None: it is that file.
            overwrite: what stands there gives way.

        Raises:
            StorageError: something stands there, or a disk that is full or not writable.
        """
        self._note(replace(self.progress, complete=True))
        output, whole, rejects = (self.folder / name for name in (_OUTPUT, _WHOLE, _REJECTED))
        with storing(self.target):
            if output.exists():
                if finish is None:
                    output.replace(whole)
                else:
                    write_atomically(whole, lambda unfinished: finish(output, unfinished))
                    output.unlink()
            if whole.exists():
                if not overwrite:
                    self._refuse_others()
                if self.progress.rejected and rejects.exists():
                    rejects.replace(self.rejected)
                elif not self.progress.rejected:
                    self.rejected.unlink(missing_ok=True)
                whole.replace(self.target)
            flush(self.target.parent)

    def _refuse_others(self) -> None:
        """Refuse what stands in the place of a file that is still to be put there."""
        if self.target.exists() and not self.published:
            raise in_the_way(self.target)
        moved = self.progress.complete and not (self.folder / _REJECTED).exists()
        if self.rejected.exists() and not moved:
            raise in_the_way(self.rejected)

    def _note(self, progress: Progress) -> None:
        state = json.dumps(progress, default=vars)
        with self._keeping():
            self._book.execute("DELETE FROM progress")
            self._book.execute("INSERT INTO progress VALUES (?)", [state])
        with self._keeping():
            self._book.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the disk has it now, and the answers too
        self.progress = progress

    def _cut_off(self) -> None:
        """Take away what a kill left behind the bytes that count.

        Raises:
            StorageError: fewer are there, or others.
        """
        done = self.progress
        for name, counts in ((_OUTPUT, done.output), (_REJECTED, done.rejects)):
            file = self.folder / name
            if done.complete and not file.exists():  # published
                continue
            with storing(file):
                file.touch()
                if _crc32(file, counts.length) != counts:
                    raise _damaged(file, "it is not what was written")
                os.truncate(file, counts.length)

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        with _in_our_words(self.folder / _BOOK), self._book:
            yield


class _DamagedError(StorageError):
    """Work that is not as it was written."""


def work_folder(target: Path) -> Path:
    """Return the folder in which an output is made.

    >>> work_folder(Path("scored.csv"))
    PosixPath('scored.csv.partial')
    """
    return target.with_name(f"{target.name}.partial")


def in_the_way(file: Path) -> StorageError:
    """Return the refusal to write over a file."""
    return StorageError(f"{file} is there already. Replace it with --overwrite, or name another output.")


@contextmanager
def held(target: Path, rejected: Path) -> Iterator[Ledger]:
    """Yield the ledger of an output; once that is published, or where nothing was begun, its folder is gone afterwards.

    Raises:
        StorageError: another process writes it, what stands there is not ours, or a disk that can't be written.
    """
    folder = work_folder(target)
    with storing(folder):
        folder.mkdir(exist_ok=True)
        strange = next((file.name for file in folder.iterdir() if not _is_ours(file)), None)
    if strange is not None:
        raise StorageError(f"{folder} holds {strange!r}, which is not ours. Move that folder, or name another output.")
    ledger = Ledger(target, rejected)
    with locked(folder, target):
        try:
            yield ledger
        finally:
            ledger.close()
            if ledger.published:
                _sweep(folder)


@contextmanager
def locked(folder: Path, target: Path) -> Iterator[None]:
    """Keep others from a folder meanwhile; it is gone afterwards where nothing else is in it.

    Raises:
        StorageError: another process is at it, which writes `target`.
    """
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        with storing(folder):
            lock.acquire()
    except Timeout:
        raise StorageError(f"{target} is being written by another process. Wait for it, or stop it.") from None
    try:
        yield
    finally:
        if os.name == "nt":  # where a file that is open can't be removed
            lock.release()
        if folder.is_dir() and all(file.name == _LOCK for file in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _opened(folder: Path) -> sqlite3.Connection:
    file = folder / _BOOK
    for left in filter(is_unfinished, folder.iterdir()):
        left.unlink()
    with _in_our_words(file):
        book = sqlite3.connect(file)
    try:
        with _in_our_words(file):
            book.execute("PRAGMA locking_mode = EXCLUSIVE")  # so that the log needs no shared memory
            book.execute("PRAGMA journal_mode = WAL")
            book.execute("PRAGMA synchronous = NORMAL")
            book.executescript(_TABLES)
    except BaseException:
        book.close()
        raise
    return book


@contextmanager
def _in_our_words(file: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, and a full disk's and a damaged file's into what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise StorageError(
                f"The disk is full: {file} could not be written. Free some space, then run it again."
            ) from error
        raise StorageError(f"{file} can't be written: {error}.") from error
    except sqlite3.DatabaseError as error:
        raise _damaged(file, str(error)) from error


def _damaged(file: Path, reason: str) -> _DamagedError:
    return _DamagedError(f"{file} is damaged ({reason}). Start anew with --overwrite, or remove {file.parent}.")


def _progress(state: dict[str, object]) -> Progress:
    found = Progress(**state)  # type: ignore[arg-type]
    return replace(found, output=Written(**state["output"]), rejects=Written(**state["rejects"]))  # type: ignore[arg-type]


def _append(file: Path, content: bytes) -> None:
    with file.open("ab") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _crc32(file: Path, count: int) -> Written:
    """Return what the first `count` bytes of a file are, or all that there are."""
    found = Written()
    with file.open("rb") as stream:
        while block := stream.read(min(_CRC_BLOCK_BYTES, count - found.length)):
            found = found.then(block)
    return found


def _is_ours(file: Path) -> bool:
    return file.name in _OURS or is_unfinished(file)


def _sweep(folder: Path) -> None:
    """Remove all but the lock; the book first, for without it the rest counts for nothing."""
    with storing(folder):
        for name in (_BOOK, *_OURS):
            if name != _LOCK:
                (folder / name).unlink(missing_ok=True)
