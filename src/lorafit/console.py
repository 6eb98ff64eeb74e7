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
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lorafit.errors import LorafitWarning

_stderr = Console(stderr=True, highlight=False, soft_wrap=True)


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

    Nothing is drawn when silenced or when standard error is not a terminal.

    >>> with bar("tokenizing", total=2) as advance:
    ...     advance(2)
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    hidden = _stderr.quiet or not _stderr.is_terminal
    with Progress(*columns, console=_stderr, transient=True, disable=hidden) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)


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
