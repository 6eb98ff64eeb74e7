"""What lorafit says while it works: sentences, warnings and progress bars, all on standard error.

Results (tables, predictions, recipes) go to standard output and are the command line's to print.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from lorafit.errors import LorafitWarning

_stderr = Console(stderr=True, highlight=False, soft_wrap=True)
_is_talking = True
_listener: "Listener | None" = None
_outer_bar: Progress | None = None  # a terminal has room for one live display
SECONDS_BETWEEN_SENTENCES = 60

Listener = Callable[[str, str, str], None]  # kind, sentence, style; what is merely said has no kind


def silence() -> None:
    """Say nothing from now on but warnings and errors (``--quiet``)."""
    _stderr.quiet = True


@contextmanager
def without_sentences() -> Iterator[None]:
    """Keep back what is said within, but for warnings and errors; bars are drawn."""
    global _is_talking
    before, _is_talking = _is_talking, False
    try:
        yield
    finally:
        _is_talking = before


def hand_to(listener: Listener) -> None:
    """Give what is said to somebody else from now on, such as the process that started this one."""
    global _listener
    _listener = listener


def say(sentence: str) -> None:
    """Print one sentence for the person who waits."""
    if _listener is not None and _is_talking and not _stderr.quiet:
        _listener("", sentence, "")
    elif _is_talking:
        _stderr.print(escape(sentence))


def complain(kind: str, sentence: str, style: str) -> None:
    """Print ``kind: sentence`` even when silenced: warnings and errors are never kept back."""
    if _listener is not None:
        _listener(kind, sentence, style)
        return
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[{style}]{kind}:[/] {escape(sentence)}")


@contextmanager
def bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with an estimate of the time left, where the total is known; yields ``advance(n)``.

    A bar within a bar (validation within training) is a second line. Nothing is drawn when silenced or when standard
    error is not a terminal.

    >>> with bar("tokenizing", total=2) as advance:
    ...     advance(2)
    """
    global _outer_bar
    if _nobody_looks():  # and drawing nothing takes longer than reading a short text
        yield lambda _: None
        return
    if _outer_bar is not None:
        task = _outer_bar.add_task(description, total=total)
        inner = _outer_bar
        yield lambda count: inner.advance(task, count)
        inner.remove_task(task)
        return
    with _bars(MofNCompleteColumn()) as progress:
        _outer_bar = progress
        try:
            task = progress.add_task(description, total=total)
            yield lambda count: progress.advance(task, count)
        finally:
            _outer_bar = None


@contextmanager
def row_bar(total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show how many rows of a file are done, how many a second, and the time left; yields ``advance(n)``.

    Where standard error is not a terminal, such as in a log, it is a sentence a minute.

    >>> with row_bar(total=1_000_000) as advance:
    ...     advance(8192)
    """
    global _outer_bar
    sentences = _Sentences(total, done)
    with _bars(MofNCompleteColumn(), _RateColumn()) as progress:
        task = progress.add_task("Rows", total=total, completed=done)

        def advance(count: int) -> None:
            progress.advance(task, count)
            sentences.advance(count)

        _outer_bar = progress
        try:
            yield advance
        finally:
            _outer_bar = None


class _RateColumn(ProgressColumn):
    """Rows a second, of the last half minute."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} a second")


class _Sentences:
    """Progress for a log."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done, self._before = total, done, done
        self._start = self._last = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if _stderr.is_terminal or now - self._last < SECONDS_BETWEEN_SENTENCES:
            return
        self._last = now
        rate = (self._done - self._before) / (now - self._start)
        left = duration((self._total - self._done) / max(rate, 1e-9))
        say(f"{self._done:,} of {self._total:,} rows, {rate:,.0f} a second, {left} left.")


def duration(seconds: float) -> str:
    """Return a time to wait in words.

    >>> duration(6180)
    '1.7 h'
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


@contextmanager
def byte_bar(description: str) -> Iterator[Callable[[float, float | None], None]]:
    """Show a progress bar for a download; yields ``report(bytes_so_far, bytes_in_all)``."""
    with _bars(DownloadColumn()) as progress:
        task = progress.add_task(description, total=None)
        yield lambda so_far, in_all: progress.update(task, completed=so_far, total=in_all)


def _bars(*count: ProgressColumn) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), *count, TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, *left, console=_stderr, transient=True, disable=_nobody_looks())


def _nobody_looks() -> bool:
    return _stderr.quiet or not _stderr.is_terminal


@contextmanager
def our_words_only(*, of_warnings: bool = True) -> Iterator[None]:
    """Keep Python warnings of the libraries below off the terminal, and show ours as one line each, or not at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if of_warnings:
            warnings.simplefilter("always", LorafitWarning)
        warnings.showwarning = _show_warning
        yield


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    complain("Warning", str(message), "yellow")
