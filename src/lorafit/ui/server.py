"""The page's own server: on loopback, or behind a password."""

import asyncio
import hmac
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

# Read by Gradio when it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorafit import console
from lorafit.errors import LorafitError
from lorafit.listening import is_loopback, listen, url_of
from lorafit.ui import jobs, page, uploads
from lorafit.ui.uploads import INCOMING

_SHORTEST_PASSWORD = 8
_SECONDS_AFTER_A_WRONG_ONE = 1.0
_SECONDS_TO_CLOSE = 2
_UNREADABLE, _WRONG = 422, 400
_ELSEWHERE = re.compile(r"/proxy=|/file=\s*https?:", re.IGNORECASE)
# Nothing comes from elsewhere, whatever Gradio or a text on the page would like to fetch.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'self'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password_file: Path | None = None,
    max_upload_mb: int = 200,
) -> None:
    """Show the page until Ctrl-C; trainings that are under way then go on.

    Args:
        host: the address to listen on.
        port: 0 takes a free one; the sentence printed says which.
        password_file: its first line is asked for; without one only this machine may be listened on.
        max_upload_mb: the largest file that is taken in.

    Raises:
        LorafitError: an address that can't be taken, or that is open to all.
    """
    password = _read_password(password_file) if password_file is not None else None
    if password is None and not is_loopback(host):
        raise LorafitError(
            f"{host} can be reached from other machines, and there is no password: anybody could train and read "
            "texts. Set --password-file FILE."
        )
    uploads.make_room()
    os.environ["GRADIO_TEMP_DIR"] = str(INCOMING.resolve())
    with listen(host, port) as listener:
        app = build(password, max_upload_mb, names=None if password else ("127.0.0.1", "localhost", "[::1]", host))
        # An open page keeps a connection, whose end uvicorn would log as an error; Gradio prints those of the page.
        config = uvicorn.Config(
            app, log_level="critical", server_header=False, timeout_graceful_shutdown=_SECONDS_TO_CLOSE
        )
        console.say(f"The page is at {url_of(listener)}; Ctrl-C ends it, and trainings go on.")
        console.silence()  # what several visitors ask for has no place on one terminal; warnings have
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            jobs.break_estimates_off()


def build(password: str | None, max_upload_mb: int, names: Sequence[str] | None) -> FastAPI:
    """Return the application: the page, and what stands before it.

    Args:
        password: what is asked for, if anything is.
        max_upload_mb: the largest file that is taken in.
        names: the host names that lead here, and no other, such as one that somebody lets point to this machine.
    """
    app = FastAPI(openapi_url=None)
    app.add_middleware(_Gate)
    if names is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(names))
    one_at_a_time = asyncio.Lock()

    async def is_known(_: str, given: str) -> bool:
        async with one_at_a_time:  # or thousands could be tried at once
            if hmac.compare_digest(given.encode(), (password or "").encode()):
                return True
            await asyncio.sleep(_SECONDS_AFTER_A_WRONG_ONE)
            return False

    made = page.build()
    made.has_launched = True  # before that Gradio hands out any file that an event names; mounting does not set it
    gr.mount_gradio_app(
        app,
        made,
        path="",
        auth=is_known if password else None,
        auth_message="Write any name, and the password that lorafit ui was started with.",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=f"{max_upload_mb}mb",
        ssr_mode=False,
        pwa=False,
        theme=page.THEME,
        head=page.HEAD,
    )
    return app


class _Gate:
    """An ASGI application before the application: other sites' pages ask nothing, and each answer has our headers.

    Gradio also hands out what lies at an address elsewhere, as if it were ours; here nobody asks it to.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a refusal, or hand the request on."""
        headers = Headers(scope=scope) if scope["type"] in ("http", "websocket") else Headers()
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return await PlainTextResponse("This page answers itself only.", 403)(scope, receive, send)
        if _ELSEWHERE.search(scope.get("path", "")):
            return await PlainTextResponse("This page hands out its own files only.", 403)(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if scope["path"] == "/login" and message["status"] == _UNREADABLE:
                    message["status"] = _WRONG  # without a name; of any other answer the form says nothing
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        return await self._app(scope, receive, with_headers)


def _read_password(file: Path) -> str:
    try:
        password = file.read_text(encoding="utf-8").split("\n")[0].strip()
    except OSError as error:
        raise LorafitError(f"{file} can't be read: {(error.strerror or str(error)).lower()}.") from None
    except UnicodeDecodeError:
        raise LorafitError(f"{file} holds no password: it is not UTF-8.") from None
    if len(password) < _SHORTEST_PASSWORD:
        raise LorafitError(f"{file}: the password in its first line has fewer than {_SHORTEST_PASSWORD} characters.")
    return password
