"""What lorafit says while it works: sentences, warnings and progress bars, all on standard error.

Results (tables, predictions, recipes) go to standard output and are the command line's to print.
"""

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
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lorafit.errors import LorafitWarning

_stderr = Console(stderr=True, highlight=False, soft_wrap=True)
_outer_bar: Progress | None = None  # a terminal has room for one live display


def silence() -> None:
    """Say nothing from now on but warnings and errors (``--quiet``)."""
    _stderr.quiet = True


def say(sentence: str) -> None:
    """Print one sentence for the person who waits."""
    _stderr.print(escape(sentence))


def complain(kind: str, sentence: str, style: str) -> None:
    """Print ``kind: sentence`` even when silenced: warnings and errors are never kept back."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[{style}]{kind}:[/] {escape(sentence)}")


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with an estimate of the time left; yields ``advance(n)``.

    A bar within a bar (validation within training) is a second line. Nothing is drawn when silenced or when standard
    error is not a terminal.

    >>> with bar("tokenizing", total=2) as advance:
    ...     advance(2)
    """
    global _outer_bar
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
def byte_bar(description: str) -> Iterator[Callable[[float, float | None], None]]:
    """Show a progress bar for a download; yields ``report(bytes_so_far, bytes_in_all)``."""
    with _bars(DownloadColumn()) as progress:
        task = progress.add_task(description, total=None)
        yield lambda so_far, in_all: progress.update(task, completed=so_far, total=in_all)


def _bars(count: ProgressColumn) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn())
    hidden = _stderr.quiet or not _stderr.is_terminal
    return Progress(
        *columns, TextColumn("left"), TimeRemainingColumn(), console=_stderr, transient=True, disable=hidden
    )


@contextmanager
def our_words_only() -> Iterator[None]:
    """Keep Python warnings of the libraries below off the terminal, and show ours as one line each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", LorafitWarning)
        warnings.showwarning = _show_warning
        yield


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    complain("Warning", str(message), "yellow")
