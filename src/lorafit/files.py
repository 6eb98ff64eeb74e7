"""Files written whole or not at all, what goes wrong then, and what identifies a file."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from lorafit.errors import LorafitError, StorageError

# Writers below us (safetensors, torch) turn an OSError into an exception of their own; their texts keep the reason.
_DISK_FULL_SIGNS = (
    "No space left on device",
    "os error 28",
    "iostream error",
    "inline_container",
    "PytorchStreamWriter",
)
_REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENAMETOOLONG,
}
_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while `path` is written into a `StorageError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _disk_full(path) from error
        if error.errno in {errno.ENOTDIR, errno.EEXIST}:
            raise StorageError(f"{path} can't be a folder: a file stands there or on the way to it.") from error
        if error.errno in _REFUSED:
            raise StorageError(f"{path} can't be written: {(error.strerror or str(error)).lower()}.") from error
        raise
    except LorafitError:
        raise
    except Exception as error:
        if any(sign in str(error) for sign in _DISK_FULL_SIGNS):
            raise _disk_full(path) from error
        raise


def _disk_full(path: Path) -> StorageError:
    return StorageError(f"The disk is full: {path} could not be written. Free some space, then run it again.")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a neighbour of `path`, then rename it: a reader sees the old file or the new one, never half.

    Once it returns, the file survives a loss of power too.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    unfinished = _neighbour(path)
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(unfinished)
            flush(unfinished)
            unfinished.replace(path)
            flush(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty, hidden neighbour of `folder` to fill; it takes that place when all went well, and is gone if not.

    After that the folder survives a loss of power too.

    Args:
        folder: where nothing stands yet, unless
        replace: what stands there gives way.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    unfinished, aside = _neighbour(folder), _neighbour(folder)
    with storing(folder):
        try:
            unfinished.mkdir(parents=True)
            yield unfinished
            for written in (*unfinished.rglob("*"), unfinished):
                flush(written)
            if replace and folder.exists():
                folder.rename(aside)
            unfinished.rename(folder)
            flush(folder.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Remove what processes that were killed left half written in a folder, of one name or of all; nobody may be
    writing there.
    """
    for left in (path for path in folder.iterdir() if is_unfinished(path) and path.name.startswith(f".{name}")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def is_unfinished(path: Path) -> bool:
    """Tell whether a file or folder is one that we were still writing, by its name."""
    return re.fullmatch(r"\..+\.[0-9a-f]{12}", path.name) is not None


def _neighbour(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex[:12]}")


def flush(path: Path) -> None:
    """Wait until the disk holds a file, or the names in a folder."""
    if path.is_dir() and os.name == "nt":  # where a folder can't be opened
        return
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
