"""What the service takes on at most, and from whom; checked before a body is read or parsed."""

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorafit.errors import LorafitError
from lorafit.serve.refusals import refusal

OPEN_PATHS = {"/health", "/ready"}  # for probes, which have no key
_SHORTEST_KEY = 16
_DRAINED = 8  # bodies of the largest size that are read and thrown away, so that their sender reads the answer


@dataclass(frozen=True)
class Limits:
    """What is answered with a refusal beyond."""

    body_bytes: int = 1_000_000
    """Of a request: 413."""
    texts: int = 256
    """In a request: 413."""
    tokens: int = 8192
    """That are read of a text, in all its windows: 413."""
    queue_texts: int = 2048
    """Taken in and not answered yet: 429."""
    seconds: float = 30.0
    """For an answer: 504; for a body to arrive: 408."""


class Keys:
    """API keys, of which only hashes are kept.

    >>> Keys(["a-long-enough-secret"]).knows("Bearer a-long-enough-secret")
    True
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._hashes = [_hash(key) for key in keys]

    @classmethod
    def read(cls, file: Path) -> "Keys":
        """Return the keys in a file: one a line; what begins with # is a comment.

        Raises:
            LorafitError: it can't be read, holds none, or one that is too short.
        """
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise LorafitError(f"{file} can't be read: {(error.strerror or str(error)).lower()}.") from None
        except UnicodeDecodeError:
            raise LorafitError(f"{file} holds no API keys: it is not UTF-8.") from None
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise LorafitError(f"{file} holds no API key. Write one a line, such as that of: openssl rand -hex 32")
        for key in keys:
            if len(key) < _SHORTEST_KEY:
                where = lines.index(key) + 1
                raise LorafitError(f"{file}: the API key in line {where} has fewer than {_SHORTEST_KEY} characters.")
        return cls(keys)

    def knows(self, authorization: str) -> bool:
        """Tell whether the header holds one of the keys; takes as long for a wrong one as for a right one."""
        kind, _, key = authorization.partition(" ")
        given = _hash(key.strip())
        found = [hmac.compare_digest(given, known) for known in self._hashes]
        return kind.lower() == "bearer" and any(found)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Gate:
    """An ASGI application before the application: keys, the size of a body, and how long it may take to arrive."""

    def __init__(self, app: ASGIApp, limits: Limits, keys: Keys | None) -> None:
        self._app, self._limits, self._keys = app, limits, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a refusal, or hand the request on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers, keys = Headers(scope=scope), None if scope["path"] in OPEN_PATHS else self._keys
        if keys is not None and not keys.knows(headers.get("authorization", "")):
            why = "This service needs a key: Authorization: Bearer KEY."
            return await refusal(401, why, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        body = _Body(receive, self._limits)
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limits.body_bytes:
            await body.drain()
            return await refusal(413, _too_large(self._limits), {"Connection": "close"})(scope, receive, send)
        return await self._app(scope, body.receive, send)


class _Body:
    """A request's body, counted and timed while it is read."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._bytes, self._whole = 0, False
        self._until = asyncio.get_running_loop().time() + limits.seconds

    async def receive(self) -> Message:
        """Return the next message of the request.

        Raises:
            HTTPException: too large, or too slow.
        """
        if self._whole:  # what comes now is that the client has gone
            return await self._receive()
        message = await self._next()
        if self._bytes > self._limits.body_bytes:
            await self.drain()
            raise HTTPException(413, _too_large(self._limits), {"Connection": "close"})
        return message

    async def drain(self) -> None:
        """Read on for a while, so that who sends too much gets to read why it was refused."""
        with suppress(HTTPException):  # the time is over
            while not self._whole and self._bytes < _DRAINED * self._limits.body_bytes:
                await self._next()

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            why = f"The body took longer than {self._limits.seconds:g} seconds to arrive."
            raise HTTPException(408, why, {"Connection": "close"}) from None
        self._bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        return message


def _too_large(limits: Limits) -> str:
    return f"The body is larger than {limits.body_bytes:,} bytes."
