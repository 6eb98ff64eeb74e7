"""Whatever the service's own OpenAPI allows, and much that it does not, is answered as the OpenAPI says."""

from collections import Counter
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from untrained import write_bundle

from lorafit import encoders
from lorafit.runtime import Runtime
from lorafit.serve.adapters import Adapters
from lorafit.serve.app import Service, build
from lorafit.serve.limits import App, Limits, Receive, Scope, Send

CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance, content_type_conformance]
OPERATIONS = [
    ("POST", "/predict"),
    ("GET", "/adapters"),
    ("PUT", "/adapters/{name}"),
    ("DELETE", "/adapters/{name}"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
]
SHARES = {"/predict": 7, "/adapters/{name}": 2}  # of the requests, where others have 1


@dataclass
class Counting:
    """The whole application; counts the requests that reach it, by method and status."""

    app: App
    seen: Counter[tuple[str, int]] = field(default_factory=Counter)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        async def note(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.seen[scope["method"], message["status"]] += 1
            await send(message)

        await self.app(scope, receive, note)


@pytest.fixture(scope="module")
def counting(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counting]:
    folder, threads = tmp_path_factory.mktemp("schema"), torch.get_num_threads()
    files = encoders.locate(str(tiny))
    adapters = Adapters(Runtime("cpu", "fp32", 1, "for the test"), default="first")
    torch.set_num_threads(1)
    service = Service(adapters, Limits(body_bytes=100_000, texts=20), folder / "allowed")
    write_bundle(folder / "allowed" / "third", files, ["no", "yes"])
    for number, (name, pair) in enumerate({"first": False, "0": True}.items()):
        path = write_bundle(folder / name, files, ["no", "perhaps", "yes"], seed=number, text_pair=pair)
        adapters.put(adapters.load(name, path))
    yield Counting(build(service, None))
    from schemathesis.python import asgi

    asgi.shutdown_lifespans()
    service.close()
    torch.set_num_threads(threads)


def ask_much(counting: Counting, requests: int) -> None:
    config = SchemathesisConfig.from_dict({"generation": {"mode": "all"}})
    schema = schemathesis.openapi.from_asgi("/openapi.json", counting, config=config)
    parts = sum(SHARES.get(path, 1) for _, path in OPERATIONS)
    for method, path in OPERATIONS:
        share = -(-requests * SHARES.get(path, 1) // parts)
        operation = schema[path][method]
        before = counting.seen.total()
        round_ = 0
        while counting.seen.total() - before < share and round_ < 40:
            mode = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE][round_ % 2]
            ask_one(operation, mode, max(1, share // 2), seed=round_)
            round_ += 1


def ask_one(operation: Any, mode: GenerationMode, examples: int, seed: int) -> None:
    from hypothesis import seed as seeded

    @seeded(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    ask()
