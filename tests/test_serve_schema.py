"""Whatever the service's own OpenAPI allows, and much that it does not, is answered as the OpenAPI says."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.python import asgi
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.types import ASGIApp, Receive, Send
from untrained import write_bundle

from lorafit import encoders
from lorafit.runtime import Runtime
from lorafit.serve.adapters import Adapters
from lorafit.serve.app import Service, build
from lorafit.serve.limits import Limits

CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance, content_type_conformance]
WITHOUT_PARAMETERS = ["/adapters", "/health", "/ready", "/metrics"]
SHARES = {("POST", "/predict"): 0.7, ("PUT", "/adapters/{name}"): 0.2, ("DELETE", "/adapters/{name}"): 0.1}


@dataclass
class Counting:
    """The whole application; counts the requests that reach it, by method and status."""

    app: ASGIApp
    seen: Counter[tuple[str, int]] = field(default_factory=Counter)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        async def note(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.seen[scope["method"], message["status"]] += 1
            await send(message)

        await self.app(scope, receive, note)


@pytest.fixture
def counting(tiny: Path, tmp_path: Path) -> Iterator[Counting]:
    """Each test has its own: schemathesis ends the application after each."""
    folder, threads = tmp_path, torch.get_num_threads()
    files = encoders.locate(str(tiny))
    adapters = Adapters(Runtime("cpu", "fp32", 1, "for the test"), default="first")
    torch.set_num_threads(1)
    service = Service(adapters, Limits(body_bytes=100_000, texts=20), folder / "allowed")
    write_bundle(folder / "allowed" / "third", files, ["no", "yes"])
    for number, (name, pair) in enumerate({"first": False, "0": True}.items()):
        path = write_bundle(folder / name, files, ["no", "perhaps", "yes"], seed=number, text_pair=pair)
        adapters.put(adapters.load(name, path))
    yield Counting(build(service, None))
    asgi.shutdown_lifespans()
    service.close()
    torch.set_num_threads(threads)


def ask_much(counting: Counting, requests: int) -> Counter[tuple[str, int]]:
    """Send at least so many requests, half of them as the OpenAPI allows; return how many were answered how."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", counting, config=SchemathesisConfig())
    counting.seen.clear()
    for path in WITHOUT_PARAMETERS:
        ask(schema[path]["GET"], GenerationMode.POSITIVE, 1)
    for (method, path), share in SHARES.items():
        wanted, rounds = counting.seen.total() + share * requests, itertools.count()
        while counting.seen.total() < wanted and (number := next(rounds)) < 20:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                ask(schema[path][method], mode, math.ceil(share * requests / 2), number)
    return counting.seen


def ask(operation: Any, mode: GenerationMode, examples: int, number: int = 0) -> None:
    """Send requests of one kind; the same ones each time."""

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    send()


def test_five_hundred_requests_are_answered_as_the_openapi_says(counting: Counting) -> None:
    seen = ask_much(counting, 500)
    assert seen.total() >= 500
    assert max(status for _, status in seen) < 500
    assert seen["POST", 200] > 10
    assert seen["POST", 422] > 10


@pytest.mark.soak
def test_five_thousand_requests_are_answered_as_the_openapi_says(counting: Counting) -> None:
    seen = ask_much(counting, 5000)
    assert seen.total() >= 5000
    assert max(status for _, status in seen) < 500
