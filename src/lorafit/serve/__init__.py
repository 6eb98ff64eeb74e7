"""HTTP service: many adapters on one encoder, on an ordinary CPU.

    lorafit serve runs/demo topics=runs/topics --default demo

Needs the extra `serve`. What the routes are stands in `app`, how texts of many requests become batches in `batching`,
and how one batch serves many adapters in `mixing`.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import uvicorn

from lorafit import encoders, runtime
from lorafit.errors import LorafitError
from lorafit.listening import is_loopback, listen, url_of
from lorafit.serve import journal
from lorafit.serve.adapters import Adapters
from lorafit.serve.app import build
from lorafit.serve.limits import Keys, Limits
from lorafit.serve.service import Service

__all__ = ["Limits", "serve"]

_PRODUCTS_KEPT = 256  # requests of one text come in many sizes, and preparing a product takes as long as the text
_SECONDS_BETWEEN_THREADS = 0.0005  # Python's own 0.005 would keep a batch waiting for whoever parses a request
_SECONDS_KEPT_OPEN = 75  # an idle connection: longer than proxies do, so that they close it and lose no request
_SECONDS_TO_LEAVE = 1.0  # after the signal: who asks is answered, and told that the connection ends
_SECONDS_TO_CLOSE = 5  # after the last answer, for connections


def serve(
    bundles: Mapping[str, Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    default: str | None = None,
    adapters_dir: Path | None = None,
    api_key_file: Path | None = None,
    without_key: bool = False,
    backend: Path | None = None,
    known_encoders: tuple[str, ...] = (),
    precision: str = "auto",
    threads: int = 0,
    limits: Limits | None = None,
) -> None:
    """Answer HTTP requests until SIGTERM or Ctrl-C; then finish what was taken in, and return.

    Args:
        bundles: run folders, adapter folders or exports, by the names they are asked by.
        host: the address to listen on.
        port: 0 takes a free one; the first line of the log says which.
        default: the name that answers where none is given.
        adapters_dir: adapters may be loaded from below this folder on request.
        api_key_file: API keys, one a line.
        without_key: listen on an address that others reach, and ask for no key.
        backend: an export of the only bundle, to run on.
        known_encoders: where encoders lie that bundles belong to and that can't be found.
        precision: "fp32", "bf16" or "auto".
        threads: CPU threads; 0 = all cores.
        limits: what is taken on at most.

    Raises:
        LorafitError: a bundle that can't be loaded, an address that can't be taken, or that is open to all.
    """
    journal.begin()
    _refuse_unsafe(host, api_key_file, without_key)
    if backend is not None and len(bundles) != 1:
        raise LorafitError("--backend serves a single bundle; serve exports of several by naming them in their place.")
    if default is not None and default not in bundles:
        raise LorafitError(f"--default {default}: there is no adapter of that name among {', '.join(bundles)}.")
    if adapters_dir is not None and not adapters_dir.is_dir():
        raise LorafitError(f"There is no folder {adapters_dir} to load adapters from.")
    keys = Keys.read(api_key_file) if api_key_file is not None else None
    runtime.keep_few_shapes(_PRODUCTS_KEPT)
    with listen(host, port) as listener:
        for name in known_encoders:
            encoders.locate(name)
        with ThreadPoolExecutor(1) as passing:  # it may measure; see service._in_passing_thread
            where = passing.submit(runtime.choose, precision, threads).result()
        service = Service(Adapters(where, default), limits or Limits(), adapters_dir)
        try:
            asyncio.run(_load(service, bundles, backend))
        except BaseException:
            service.close()
            raise
        _run(service, keys, listener)


async def _load(service: Service, bundles: Mapping[str, Path], backend: Path | None) -> None:
    for name, path in bundles.items():
        await service.load(name, path, backend, merged=len(bundles) == 1)


def _run(service: Service, keys: Keys | None, listener: socket.socket) -> None:
    sys.setswitchinterval(_SECONDS_BETWEEN_THREADS)
    config = uvicorn.Config(
        build(service, keys),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_SECONDS_KEPT_OPEN,
        timeout_graceful_shutdown=int(service.limits.seconds) + _SECONDS_TO_CLOSE,
    )
    journal.say("listening", url=url_of(listener), adapters=len(service.adapters))
    _Server(config, service).run(sockets=[listener])
    journal.say("stopped")


class _Server(uvicorn.Server):
    """uvicorn's, which lets connections leave before it closes them, and leaves without the signal that stopped it."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service, self._stop_at = service, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second Ctrl-C stops at once."""
        self._service.stopping = True
        self._stop_at = self._stop_at or time.monotonic() + _SECONDS_TO_LEAVE
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # to stop is what it was told, and no failure

    async def on_tick(self, counter: int) -> bool:
        """Tell whether it is time to close connections: idle ones at once, others after their answer."""
        return await super().on_tick(counter) and (self.force_exit or time.monotonic() >= self._stop_at)


def _refuse_unsafe(host: str, api_key_file: Path | None, without_key: bool) -> None:
    if api_key_file is not None and without_key:
        raise LorafitError("--api-key-file and --without-key exclude each other.")
    if not (is_loopback(host) or api_key_file or without_key):
        raise LorafitError(
            f"{host} can be reached from other machines, and there is no key: anybody could ask. "
            "Set --api-key-file FILE, or --without-key if something before it checks who asks."
        )
