"""Uploaded files, kept in the project's folder under names of their own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from lorafit import tables
from lorafit.errors import DataError
from lorafit.files import sha256_of, storing

FOLDER = Path("uploads")
INCOMING = FOLDER / ".incoming"  # where Gradio writes them first


def keep(arrived: Path) -> tuple[Path, pd.DataFrame]:
    """Return where an uploaded data file is kept now, and its table; a file that is there already is not kept twice.

    Raises:
        DataError: it can't be read as a table; nothing is kept then.
        StorageError: a disk that is full or not writable.
    """
    kept, is_new = _place(arrived)
    try:
        return kept, tables.read(kept)
    except DataError:
        if is_new:
            kept.unlink(missing_ok=True)
        raise


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
        return place, True
    raise AssertionError("names do not end")


def _names(name: str) -> Iterator[Path]:
    wanted = FOLDER / name
    yield wanted
    number = 1
    while True:
        number += 1
        yield wanted.with_stem(f"{wanted.stem}-{number}")
