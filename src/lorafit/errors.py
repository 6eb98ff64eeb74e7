"""How lorafit says no: one sentence with what it found, what it needs and what to do.

LorafitError            everything below; the command line prints it and leaves with exit code 2
├── RecipeError         a recipe, or an override of one
├── DataError           texts, labels, columns, splits
├── EncoderError        the pretrained encoder or its tokenizer
├── HubError            the Hub does not have it, or can't be reached
├── RunError            a run folder
├── BundleError         an adapter directory
└── StorageError        a disk that is full or not writable

LorafitWarning          training goes on, but somebody should look
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class LorafitError(Exception):
    """Anything that lorafit refuses; its text is one clear sentence or two.

    Names in it may be somebody else's: it stays on one line, and moves no terminal's cursor.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


class RecipeError(LorafitError):
    """A recipe or an override that can't be used: names the key and the fault."""


class DataError(LorafitError):
    """Texts, labels, columns or splits that can't be used: names file, column and row."""


class EncoderError(LorafitError):
    """An encoder or tokenizer that can't be used."""


class HubError(LorafitError):
    """The Hub does not have what was asked for, or can't be reached."""


class RunError(LorafitError):
    """A run folder that is missing, unfinished, or belongs to another recipe."""


class BundleError(LorafitError):
    """An adapter directory that can't be used."""


class StorageError(LorafitError):
    """A disk that is full, or a place that can't be written."""


class LorafitWarning(UserWarning):
    """Training goes on, but somebody should look."""


def printable(text: str) -> str:
    """Return a text without line breaks and other control characters.

    >>> printable("two\\nlines")
    'two?lines'
    """
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "?", text)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a hint such as ``" Did you mean 'rank'?"``, or an empty string.

    >>> nearest("rnk", ["rank", "alpha"])
    " Did you mean 'rank'?"
    """
    close = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
