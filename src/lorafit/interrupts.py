"""Ctrl-C and SIGTERM, kept for a moment at which nothing is lost."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_TO_WAIT = 3.0  # for the end of a step, before it is broken off
_SECONDS_BETWEEN_TRIES = 0.2  # to break it off: an exception may be lost in a finalizer
_HAS_TIMER = hasattr(signal, "setitimer")


class Interruption:
    """The first Ctrl-C or SIGTERM of a while, if one came."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._may_break = False

    def note(self, number: int) -> None:
        """Keep a signal for later."""
        self._signal = number

    def note_if_new(self, number: int) -> None:
        """Keep another rank's signal, unless this process has had one itself."""
        if self._signal is None:
            self._signal = number

    @contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Let what happens inside be broken off where it takes too long after a signal; on Windows it never is."""
        self._may_break = True
        try:
            yield
        finally:
            self._may_break = False

    def try_to_break_off(self) -> None:
        """Let the signal out if that is allowed just now."""
        if self._may_break:
            self.let_out()

    @property
    def waits(self) -> bool:
        """Whether one came."""
        return self._signal is not None

    def let_out(self) -> None:
        """Do nothing if none came.

        Raises:
            KeyboardInterrupt: for Ctrl-C.
            SystemExit: for SIGTERM, with its exit code, 143.
        """
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is not None:
            sys.exit(128 + self._signal)


@contextmanager
def kept() -> Iterator[Interruption]:
    """Keep the first Ctrl-C or SIGTERM until `let_out` is called, or to the end of it all.

    Raised where it comes, it could be swallowed by a finalizer, or leave a step half done. A second one is Python's.

    >>> with kept() as interruption:
    ...     for step in steps:
    ...         step()
    ...         interruption.let_out()
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield interruption
        return

    def note(number: int, _: Any) -> None:
        interruption.note(number)
        signal.signal(number, before[signal.Signals(number)])
        if _HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_WAIT, _SECONDS_BETWEEN_TRIES)

    # A job that a script started in the background ignores Ctrl-C, and goes on doing so.
    heard = [number for number in _SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, note) for number in heard}
    if _HAS_TIMER:
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda *_: interruption.try_to_break_off())
    try:
        yield interruption
    finally:
        if _HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    interruption.let_out()


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Let SIGTERM leave as Ctrl-C does, through every `finally`, with exit code 143."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
