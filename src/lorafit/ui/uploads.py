"""Uploaded files, kept in the project's folder under names of their own."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from lorafit import tables
from lorafit.files import sha256_of, storing

FOLDER = Path("uploads")
INCOMING = FOLDER / ".incoming"  # where Gradio writes them first, and what is offered for download
SECONDS_KEPT = 24 * 3600  # there


def keep(arrived: Path) -> tuple[Path, pd.DataFrame]:
    """Return where an uploaded data file is kept now, and its table; a file that is there already is not kept twice.

    Raises:
        DataError: it can't be read as a table; nothing is kept then.
        StorageError: a disk that is full or not writable.
    """
    kept, is_new = _place(arrived)
    try:
        return kept, tables.read(kept)
    except BaseException:
        if is_new:
            kept.unlink(missing_ok=True)
        raise


def make_room() -> None:
    """Make the folder that files arrive in, and remove what an earlier page left there.

    Raises:
        StorageError: a disk that is not writable.
    """
    with storing(INCOMING):
        INCOMING.mkdir(parents=True, exist_ok=True)
        for left in INCOMING.iterdir():
            if time.time() - left.stat().st_mtime < SECONDS_KEPT:
                continue
            if left.is_file():  # an upload that was broken off
                left.unlink(missing_ok=True)
            else:
                shutil.rmtree(left, ignore_errors=True)


def offered(name: str) -> Path:
    """Return a folder for files to download, which is there for a day.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    folder = INCOMING / name
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def is_kept(file: Path) -> bool:
    """Tell whether a name that a browser gave is that of a file kept here."""
    return file.parent == FOLDER and file.is_file()


def _place(arrived: Path) -> tuple[Path, bool]:
    content = sha256_of(arrived)
    for place in _names(arrived.name):
        if place.is_file() and sha256_of(place) == content:
            return place, False
        with storing(place):
            FOLDER.mkdir(exist_ok=True)
            try:
                with place.open("xb") as kept, arrived.open("rb") as file:  # never in another's place
                    shutil.copyfileobj(file, kept)
            except FileExistsError:
                continue
            except BaseException:
                place.unlink(missing_ok=True)
                raise
        return place, True
    raise AssertionError("names do not end")


def _names(name: str) -> Iterator[Path]:
    wanted = FOLDER / name
    yield wanted
    number = 1
    while True:
        number += 1
        yield wanted.with_stem(f"{wanted.stem}-{number}")
