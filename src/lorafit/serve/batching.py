"""Texts of many requests -> batches by tokens -> answers, fair to small requests.

Each text gets the virtual time at which it would be answered if all requests that wait were served at the same pace,
token by token, and the earliest goes first: a request of one text passes one of a thousand, and neither waits for ever
(Demers, Keshav and Shenker 1989, "Analysis and simulation of a fair queueing algorithm").
"""

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lorafit.predict import TOKENS_PER_BATCH
from lorafit.serve.engines import Engine, Item
from lorafit.serve.mixing import Weights
from lorafit.tokens import Tokens

SECONDS_TO_GATHER = 0.002  # that a text waits for others where nothing is under way
_LOOK_AHEAD = 256  # texts among which those of like length are sought, where padding costs
_NEWEST_COUNTS = 0.1  # weight of the last batch in the rate


@dataclass(eq=False)
class Request:
    """Texts that are answered together; `answer` holds their logits, (texts, labels), once all are there."""

    engine: Engine
    weights: Weights | None
    tokens: Tokens
    answer: "Future[np.ndarray]"
    found: list[np.ndarray | None]
    left: int


class _Waiting(NamedTuple):
    """A text that waits; the earliest virtual time first, then the first that came."""

    virtual: int
    number: int
    since: float
    length: int  # in tokens
    request: Request
    text: int


@dataclass(frozen=True)
class Batch:
    """What was answered at once, for those who count: see `Batcher`."""

    texts: int
    tokens: int
    adapters: int
    seconds_waited: float


class Batcher:
    """A thread that answers texts in batches; all engines take turns on it, for they share the processor.

    Args:
        on_batch: is told of each batch, on that thread.

    >>> batcher = Batcher()
    >>> logits = batcher.submit(shared, weights, tokens).answer.result()
    """

    def __init__(self, on_batch: Callable[[Batch], None] = lambda _: None) -> None:
        self._on_batch = on_batch
        self._queues: dict[Engine, list[_Waiting]] = {}
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._virtual = self._texts = self._tokens = 0
        self._tokens_per_second = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="lorafit-batches", daemon=True)
        self._thread.start()

    @property
    def waiting_texts(self) -> int:
        """How many texts wait."""
        return self._texts

    @property
    def waiting_tokens(self) -> int:
        """How many tokens they have."""
        return self._tokens

    def submit(self, engine: Engine, weights: Weights | None, tokens: Tokens) -> Request:
        """Take texts in; their logits come as the result of `answer`."""
        texts = len(tokens)
        request = Request(engine, weights, tokens, Future(), [None] * texts, texts)
        with self._changed:
            queue, now = self._queues.setdefault(engine, []), time.monotonic()
            virtual = self._virtual
            for text, length in enumerate(tokens.lengths.tolist()):
                virtual += length
                heapq.heappush(queue, _Waiting(virtual, next(self._numbers), now, length, request, text))
            self._texts += texts
            self._tokens += virtual - self._virtual
            self._changed.notify()
        return request

    def give_up(self, request: Request) -> None:
        """Take those texts of a request out that are not under way yet: nobody waits for them."""
        request.answer.cancel()
        self._take_out(request)

    def _take_out(self, request: Request) -> None:
        with self._changed:
            queue = self._queues.get(request.engine, [])
            mine = [waiting for waiting in queue if waiting.request is request]
            if mine:
                self._queues[request.engine] = [waiting for waiting in queue if waiting.request is not request]
                heapq.heapify(self._queues[request.engine])
                self._count_out(mine)

    def seconds_left(self) -> float:
        """Return about how long the texts that wait will take, from the rate of the last batches."""
        return self._tokens / self._tokens_per_second if self._tokens_per_second else 1.0

    def close(self) -> None:
        """Answer what was taken in, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (engine := self._next_engine()) is not None:
            under_way: deque[tuple[list[_Waiting], float]] = deque()
            try:
                for answers in engine.run(self._batches(engine, under_way)):
                    batch, start = under_way.popleft()
                    self._hand_out(batch, answers, start)
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait have to hear of it
                for request in {waiting.request for batch, _ in under_way for waiting in batch}:
                    self._fail(request, error)

    def _fail(self, request: Request, error: Exception) -> None:
        if request.answer.set_running_or_notify_cancel():
            request.answer.set_exception(error)
        self._take_out(request)

    def _next_engine(self) -> Engine | None:
        """Wait for work, and for a moment for more of it; return the engine whose turn it is, None at the end."""
        with self._changed:
            while not self._texts:
                if self._stopping:
                    return None
                self._changed.wait()
            oldest = min(waiting.since for queue in self._queues.values() for waiting in queue[:1])
            while self._tokens < TOKENS_PER_BATCH and not self._stopping:
                left = oldest + SECONDS_TO_GATHER - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return self._first()

    def _first(self) -> Engine | None:
        queues = {engine: queue for engine, queue in self._queues.items() if queue}
        return min(queues, key=lambda engine: queues[engine][0][:2]) if queues else None

    def _batches(self, engine: Engine, under_way: "deque[tuple[list[_Waiting], float]]") -> Iterator[Sequence[Item]]:
        """Yield batches while it is this engine's turn, and note when each began."""
        while True:
            with self._changed:
                if self._first() is not engine:
                    return
                batch = _like_the_first(self._queues[engine]) if engine.pads else _first_in_line(self._queues[engine])
                if not self._queues[engine]:
                    del self._queues[engine]
                self._virtual = max(self._virtual, max(waiting.virtual for waiting in batch))
                self._count_out(batch)
            under_way.append((batch, time.monotonic()))
            yield [Item(w.request.weights, w.request.tokens, w.text) for w in batch]

    def _count_out(self, batch: Sequence[_Waiting]) -> None:
        self._texts -= len(batch)
        self._tokens -= sum(waiting.length for waiting in batch)

    def _hand_out(self, batch: list[_Waiting], answers: list[np.ndarray], start: float) -> None:
        tokens = sum(waiting.length for waiting in batch)
        rate = tokens / max(time.monotonic() - start, 1e-6)
        self._tokens_per_second += (rate - self._tokens_per_second) * (_NEWEST_COUNTS if self._tokens_per_second else 1)
        for waiting, answer in zip(batch, answers, strict=True):
            request = waiting.request
            request.found[waiting.text] = answer
            request.left -= 1
            if not request.left and request.answer.set_running_or_notify_cancel():
                request.answer.set_result(np.stack([found for found in request.found if found is not None]))
        adapters = len({id(waiting.request.weights) for waiting in batch})
        self._on_batch(Batch(len(batch), tokens, adapters, start - min(waiting.since for waiting in batch)))


def _first_in_line(queue: list[_Waiting]) -> list[_Waiting]:
    """Take the texts whose time has come, as many as make a batch."""
    batch = [heapq.heappop(queue)]
    tokens = batch[0].length
    while queue and tokens + queue[0].length <= TOKENS_PER_BATCH:
        batch.append(heapq.heappop(queue))
        tokens += batch[-1].length
    return batch


def _like_the_first(queue: list[_Waiting]) -> list[_Waiting]:
    """Take the text whose time has come, and of those next in line the ones that are most like it in length."""
    first = heapq.heappop(queue)
    near = [heapq.heappop(queue) for _ in range(min(_LOOK_AHEAD, len(queue)))]
    near.sort(key=lambda waiting: (abs(waiting.length - first.length), waiting[:2]))
    batch, longest = [first], first.length
    for place, waiting in enumerate(near):
        longest = max(longest, waiting.length)
        if longest * (len(batch) + 1) > TOKENS_PER_BATCH:
            for left_over in near[place:]:
                heapq.heappush(queue, left_over)
            break
        batch.append(waiting)
    return batch
