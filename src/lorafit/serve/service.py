"""What the routes work with: texts taken in, tokenized, answered in batches; adapters that come and go."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
from fastapi import Request

from lorafit.data import Text
from lorafit.errors import LorafitError
from lorafit.serve import journal
from lorafit.serve.adapters import Adapter, Adapters
from lorafit.serve.batching import Batcher
from lorafit.serve.journal import Figures
from lorafit.serve.limits import Limits
from lorafit.serve.refusals import RefusalError
from lorafit.tokens import Tokens

Answer = TypeVar("Answer")
P = ParamSpec("P")


class Service:
    """What the routes work with.

    Args:
        adapters: those in service.
        limits: what is taken on at most.
        allowed: the folder from which adapters may be loaded on request; None: none may.
    """

    def __init__(self, adapters: Adapters, limits: Limits, allowed: Path | None = None) -> None:
        self.adapters, self.limits, self.figures = adapters, limits, Figures()
        self._allowed = allowed.resolve() if allowed else None
        self._batcher = Batcher(self.figures.count_batch)
        self.figures.waiting.set_function(lambda: self._taken_in)
        self._reading = ThreadPoolExecutor(1, "lorafit-tokens")  # a tokenizer serves one thread at a time
        self._taken_in = 0
        self.stopping = False

    async def ask(self, request: Request, adapter: Adapter, texts: list[Text], *, whole: bool = False) -> "Asked":
        """Return the logits of texts, (texts, labels), and of how many of them a part was not read.

        Args:
            request: whose sender may hang up.
            adapter: who answers.
            texts: any number.
            whole: refuse texts of which a part would not be read.

        Raises:
            RefusalError: a limit is passed, or the time is over.
            DataError: a text that can't be classified.
            HungUp: nobody waits for the answer any more.
        """
        journal.note(adapter=adapter.name, texts=len(texts))
        self._refuse_many(len(texts))
        with self._taking_in(len(texts)):
            asked = await _until_hung_up(request, self._ask(adapter, texts, whole), self.limits.seconds)
        journal.note(tokens=asked.tokens)
        if adapter.name in self.adapters:  # else its figures are forgotten already
            self.figures.texts.labels(adapter.name).inc(len(texts))
            self.figures.tokens.labels(adapter.name).inc(asked.tokens)
        return asked

    async def _ask(self, adapter: Adapter, texts: list[Text], whole: bool) -> "Asked":
        tokens = await self._read(adapter, texts)
        longest = int(tokens.lengths.argmax())
        if tokens.lengths[longest] > self.limits.tokens:
            has = f"Text {longest + 1} has {int(tokens.lengths[longest]):,} tokens"
            raise RefusalError(413, f"{has}; at most {self.limits.tokens:,} are read of one.")
        if whole and tokens.cut:
            most = adapter.reader.manifest.max_tokens
            over = f"{tokens.cut:,} of {len(texts):,} texts are over the {most:,} tokens that are read"
            raise RefusalError(413, f"{over}, and truncate is false.")
        return Asked(await self._answer(adapter, tokens), int(tokens.lengths.sum()), tokens.cut)

    async def _read(self, adapter: Adapter, texts: list[Text]) -> Tokens:
        return await asyncio.get_running_loop().run_in_executor(self._reading, adapter.encode, texts)

    async def _answer(self, adapter: Adapter, tokens: Tokens) -> np.ndarray:
        waiting = self._batcher.submit(adapter.engine, adapter.weights, tokens)
        try:
            return await asyncio.wrap_future(waiting.answer)
        except asyncio.CancelledError:
            self._batcher.give_up(waiting)
            raise

    async def load(self, name: str, path: Path, backend: Path | None = None, *, merged: bool = False) -> bool:
        """Take an adapter into service once it has answered a text; return whether it takes another one's place.

        One that was merged into the encoder that this one shares is loaded anew, to share it too.

        Args:
            name: what it will be called.
            path: a run folder, an adapter folder or an export.
            backend: an export of it to run on.
            merged: see `Adapters.load`.

        Raises:
            LorafitError: it can't be loaded.
        """
        adapter = await self._load(name, path, backend, merged)
        for other in self.adapters.merged_beside(adapter):
            with suppress(LorafitError):  # its files have gone or changed: it stays as it is
                again = await self._load(other.name, other.folder, None, False)
                # Unless it was taken out or replaced meanwhile.
                if again.sha256 == other.sha256 and other in self.adapters.merged_beside(adapter):
                    self._put(again)
        return self._put(adapter)

    def _put(self, adapter: Adapter) -> bool:
        replaced = self.adapters.put(adapter)
        self.figures.adapters.set(len(self.adapters))
        journal.say(
            "adapter in service",
            adapter=adapter.name,
            sha256=adapter.sha256,
            labels=len(adapter.reader.manifest.labels),
            backend=adapter.backend,
            merged=adapter.is_merged,
            alone=adapter.alone,
            replaced=replaced,
        )
        return replaced

    async def _load(self, name: str, path: Path, backend: Path | None, merged: bool) -> Adapter:
        adapter = await _in_passing_thread(self.adapters.load, name, path, backend, merged=merged)
        first: Text = ("a text", "another") if adapter.reader.manifest.text_pair else "a text"
        logits = await self._answer(adapter, await self._read(adapter, [first]))
        if not np.isfinite(logits).all():
            raise LorafitError(f"{path} answers with something that is no number.")
        return adapter

    def remove(self, name: str) -> None:
        """Take an adapter out of service.

        Raises:
            RefusalError: there is none of this name.
        """
        self.adapters.remove(name)
        self.figures.adapters.set(len(self.adapters))
        self.figures.forget(name)
        journal.say("adapter out of service", adapter=name)

    def refuse_change(self) -> Path:
        """Return the folder from which adapters may be loaded on request.

        Raises:
            RefusalError: there is none, and adapters neither come nor go.
        """
        if self._allowed is None:
            raise RefusalError(403, "The adapters of this service stay: it was started without --adapters-dir.")
        return self._allowed

    def place(self, path: str) -> Path:
        """Return where a bundle lies that may be loaded on request.

        Raises:
            RefusalError: it lies elsewhere.
        """
        allowed = self.refuse_change()
        try:
            found = (allowed / path).resolve()
        except (OSError, ValueError, RuntimeError):  # too long a name, a null byte, links in a circle
            found = Path("/")
        if not found.is_relative_to(allowed):
            raise RefusalError(403, "This service loads adapters from below its own folder only.")
        return found

    def close(self) -> None:
        """Answer what was taken in, and end."""
        self._batcher.close()
        self._reading.shutdown()

    def _refuse_many(self, texts: int) -> None:
        if texts > self.limits.texts:
            raise RefusalError(
                413, f"The request holds {texts:,} texts; at most {self.limits.texts:,} are taken at once."
            )
        if self._taken_in and self._taken_in + texts > self.limits.queue_texts:
            seconds = max(1, round(self._batcher.seconds_left()))
            raise RefusalError(
                429,
                f"{self._taken_in:,} texts wait already, and at most {self.limits.queue_texts:,} may. "
                f"Try again in {seconds} s.",
                {"Retry-After": str(seconds)},
            )

    @contextmanager
    def _taking_in(self, texts: int) -> Iterator[None]:
        self._taken_in += texts
        try:
            yield
        finally:
            self._taken_in -= texts


async def _in_passing_thread(function: Callable[P, Answer], *arguments: P.args, **named: P.kwargs) -> Answer:
    """Return what a function gives in a thread that ends with it.

    A thread that has multiplied once keeps OpenMP's workers. With more of them than there are cores, those of the
    thread that computes sleep between two layers, and waking them takes half as long again as a short text does.
    """
    passing = ThreadPoolExecutor(1, "lorafit-adapters")
    try:
        return await asyncio.get_running_loop().run_in_executor(passing, partial(function, *arguments, **named))
    finally:
        passing.shutdown(wait=False)


class Asked(NamedTuple):
    """The answer to texts: logits, (texts, labels), the tokens read, and of how many texts a part was not read."""

    logits: np.ndarray
    tokens: int
    cut_texts: int


class HungUp(Exception):  # noqa: N818 - it is no error
    """The client has gone."""


async def _until_hung_up(request: Request, work: Awaitable[Answer], seconds: float) -> Answer:
    """Return what `work` gives, or break it off.

    Raises:
        RefusalError: 504, the time is over.
        HungUp: the client has gone.
    """
    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        done, _ = await asyncio.wait({answer, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if answer in done:
            return answer.result()
        if gone in done:
            raise HungUp
        raise RefusalError(504, f"The answer took longer than {seconds:g} seconds.")
    finally:
        for task in (answer, gone):
            task.cancel()
