"""The page's own server: on loopback, or behind a password."""

import asyncio
import hmac
import os
from pathlib import Path

# Read by Gradio when it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.middleware.base import RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware

from lorafit import console
from lorafit.errors import LorafitError
from lorafit.files import storing
from lorafit.listening import is_loopback, listen, url_of
from lorafit.ui import page
from lorafit.ui.uploads import INCOMING

_SHORTEST_PASSWORD = 8
_SECONDS_AFTER_A_WRONG_ONE = 1.0
_SECONDS_TO_CLOSE = 2
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
    with storing(INCOMING):
        INCOMING.mkdir(parents=True, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(INCOMING.resolve())
    with listen(host, port) as listener:
        app = build(password, max_upload_mb, only_loopback=is_loopback(host))
        config = uvicorn.Config(
            app, log_level="warning", server_header=False, timeout_graceful_shutdown=_SECONDS_TO_CLOSE
        )
        console.say(f"The page is at {url_of(listener)}; Ctrl-C ends it, and trainings go on.")
        console.silence()  # what several visitors ask for has no place on one terminal; warnings have
        uvicorn.Server(config).run(sockets=[listener])


def build(password: str | None, max_upload_mb: int, *, only_loopback: bool) -> FastAPI:
    """Return the application: the page, and what every answer of it says to browsers."""
    app = FastAPI(openapi_url=None)
    if only_loopback:  # no other name leads here, not even one that somebody lets point to this machine
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])

    @app.middleware("http")
    async def with_headers(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers.update(_HEADERS)
        return response

    async def is_known(_: str, given: str) -> bool:
        if hmac.compare_digest(given.encode(), (password or "").encode()):
            return True
        await asyncio.sleep(_SECONDS_AFTER_A_WRONG_ONE)
        return False

    gr.mount_gradio_app(
        app,
        page.build(),
        path="",
        auth=is_known if password else None,
        auth_message="Any name will do; the password is the one that lorafit ui was started with.",
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
