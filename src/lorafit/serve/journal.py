"""What the service says of itself: a JSON object a line on standard error, never a text; figures for Prometheus."""

import json
import logging
import sys
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from traceback import extract_tb
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorafit.serve.batching import Batch
from lorafit.serve.refusals import CLIENT_GONE

_log = logging.getLogger("lorafit.serve")
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TOKENS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_LONGEST_ID = 128
_noted: ContextVar[dict[str, Any]] = ContextVar("noted")


def begin() -> None:
    """Write what is said from now on, uvicorn's words too, as JSON to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_AsJson())
    for name in ("lorafit.serve", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def say(event: str, **fields: Any) -> None:
    """Write a line of its own about something that happened.

    >>> say("adapter in service", adapter="demo")
    """
    _log.info(event, extra={"fields": fields})


def note(**fields: Any) -> None:
    """Add to the line about the request that is being answered; never a text."""
    _noted.get({}).update(fields)


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # Not its message, which may quote a text.
            content["error"] = record.exc_info[0].__name__
            content["at"] = [f"{at.filename}:{at.lineno} {at.name}" for at in extract_tb(record.exc_info[2])]
        return json.dumps(content, ensure_ascii=False)


class Figures:
    """What Prometheus asks for."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "lorafit_requests", "Answers, by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "lorafit_request_seconds",
            "From a request's head to its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.texts = Counter("lorafit_texts", "Texts answered.", ["adapter"], registry=registry)
        self.tokens = Counter("lorafit_tokens", "Tokens of the texts answered.", ["adapter"], registry=registry)
        self._batch_tokens = Histogram("lorafit_batch_tokens", "Tokens in a batch.", buckets=_TOKENS, registry=registry)
        self._batch_adapters = Histogram(
            "lorafit_batch_adapters", "Adapters in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self._waited = Histogram(
            "lorafit_wait_seconds", "How long a batch's first text waited for it.", buckets=_SECONDS, registry=registry
        )
        self.waiting = Gauge("lorafit_waiting_texts", "Texts taken in and not answered yet.", registry=registry)
        self.adapters = Gauge("lorafit_adapters", "Adapters in service.", registry=registry)

    def count_batch(self, batch: Batch) -> None:
        """Count a batch that was answered."""
        self._batch_tokens.observe(batch.tokens)
        self._batch_adapters.observe(batch.adapters)
        self._waited.observe(batch.seconds_waited)

    def forget(self, adapter: str) -> None:
        """Drop the figures of an adapter that was taken out."""
        for counter in (self.texts, self.tokens):
            counter.remove(adapter)

    def exposition(self) -> tuple[bytes, str]:
        """Return all of it as Prometheus reads it, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class Journal:
    """An ASGI application around the application: a line and figures of each request, and its id in the answer.

    Where `is_stopping` says so, the answer also says that the connection ends.
    """

    def __init__(self, app: ASGIApp, figures: Figures, is_stopping: Callable[[], bool]) -> None:
        self._app, self._figures, self._is_stopping = app, figures, is_stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and write down how."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, request_id, status = time.perf_counter(), _request_id(scope), CLIENT_GONE
        fields: dict[str, Any] = {}
        token = _noted.set(fields)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"connection", b"close")] if self._is_stopping() else []
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode()), *more]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            _noted.reset(token)
            seconds = time.perf_counter() - start
            route = scope.get("route")
            path = getattr(route, "path", "other")  # never what was asked for: anybody may invent paths
            self._figures.requests.labels(path, str(status)).inc()
            self._figures.seconds.labels(path).observe(seconds)
            if path not in ("/health", "/ready", "/metrics"):
                about = {"id": request_id, "method": scope["method"], "path": path, "status": status}
                say("request", **about, seconds=round(seconds, 4), **fields)
        return None


def _request_id(scope: Scope) -> str:
    """Return the id that a proxy or client gave, if it is fit to be written, or a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    plain = given.isascii() and given.replace("-", "").replace("_", "").isalnum()
    return given if plain and len(given) <= _LONGEST_ID else uuid.uuid4().hex
