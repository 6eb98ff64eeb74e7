"""The service's HTTP surface: who may ask what, and what comes back."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from fastapi import Body, FastAPI, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException

from lorafit.data import Text
from lorafit.errors import LorafitError, printable
from lorafit.serve import journal
from lorafit.serve.adapters import Adapter, Adapters
from lorafit.serve.batching import Batcher
from lorafit.serve.journal import Figures, Journal
from lorafit.serve.limits import App, Gate, Keys, Limits
from lorafit.serve.messages import (
    QUESTIONS,
    AdapterInfo,
    AdapterList,
    AdapterName,
    Inputs,
    Place,
    Predictions,
    Problem,
    Question,
    Scores,
    Status,
)
from lorafit.serve.refusals import RefusalError, as_record

_SCORES = TypeAdapter(Scores)
_PROBLEMS = {
    400: "No adapter named where there are several, or a body that is no JSON.",
    401: "A key is needed.",
    403: "This service does not load adapters from there.",
    404: "There is no such adapter.",
    408: "The body took too long to arrive.",
    413: "The body is too large, or holds too many texts, or a text too many tokens.",
    422: "The body has another form, or a text can't be classified.",
    429: "Too many texts wait; Retry-After says for how long.",
    500: "A fault of the service.",
    503: "No adapter is in service.",
    504: "The answer took too long.",
}
_FORMS = {  # of what may have several
    "texts": '"texts" is to be a text, or a list of texts; of pairs a list of lists of two texts.',
    "inputs": '"inputs" is to be a text, a pair of texts, or a list of lists of one or two texts.',
}
_NO_ROUTE = {404: "There is nothing at this path.", 405: "This path has other methods."}
_CLIENT_GONE = 499
Answer = TypeVar("Answer")


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
        self._loading = ThreadPoolExecutor(1, "lorafit-adapters")
        self._taken_in = 0
        self.stopping = False

    async def ask(self, request: Request, adapter: Adapter, texts: list[Text], *, whole: bool = False) -> "_Asked":
        """Return the logits of texts, (texts, labels), and of how many of them a part was not read.

        Args:
            request: whose sender may hang up.
            adapter: who answers.
            texts: any number.
            whole: refuse texts of which a part would not be read.

        Raises:
            RefusalError: a limit is passed, or the time is over.
            DataError: a text that can't be classified.
            _HungUp: nobody waits for the answer any more.
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

    async def _ask(self, adapter: Adapter, texts: list[Text], whole: bool = False) -> "_Asked":
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(self._reading, adapter.encode, texts)
        lengths = tokens.lengths
        if lengths.max() > self.limits.tokens:
            raise RefusalError(
                413,
                f"Text {int(lengths.argmax()) + 1} has {int(lengths.max()):,} tokens; at most {self.limits.tokens:,} "
                "are read of one.",
            )
        if whole and tokens.cut:
            most = adapter.reader.manifest.max_tokens
            raise RefusalError(
                413,
                f"{tokens.cut:,} of {len(texts):,} are over the {most:,} tokens that are read, and truncate is false.",
            )
        waiting = self._batcher.submit(adapter.engine, adapter.weights, tokens)
        try:
            logits = await asyncio.wrap_future(waiting.answer)
        except asyncio.CancelledError:
            self._batcher.give_up(waiting)
            raise
        return _Asked(logits, int(lengths.sum()), tokens.cut)

    async def load(self, name: str, path: Path, backend: Path | None = None) -> bool:
        """Take an adapter into service once it has answered a text; return whether it takes another one's place.

        Raises:
            LorafitError: it can't be loaded.
        """
        start, loop = time.perf_counter(), asyncio.get_running_loop()
        adapter = await loop.run_in_executor(self._loading, self.adapters.load, name, path, backend)
        first: Text = ("a text", "another") if adapter.reader.manifest.text_pair else "a text"
        logits = (await self._ask(adapter, [first])).logits
        if not np.isfinite(logits).all():
            raise LorafitError(f"{path} answers with something that is no number.")
        replaced = self.adapters.put(adapter)
        self.figures.adapters.set(len(self.adapters))
        journal.say(
            "adapter in service",
            adapter=name,
            sha256=adapter.sha256,
            labels=len(adapter.reader.manifest.labels),
            backend=adapter.backend,
            alone=adapter.alone,
            replaced=replaced,
            seconds=round(time.perf_counter() - start, 3),
        )
        return replaced

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
        self._loading.shutdown()

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
    def _taking_in(self, texts: int) -> Any:
        self._taken_in += texts
        try:
            yield
        finally:
            self._taken_in -= texts


class _Asked(NamedTuple):
    """The answer to texts: logits, (texts, labels), the tokens read, and of how many texts a part was not read."""

    logits: np.ndarray
    tokens: int
    cut_texts: int


class _HungUp(Exception):  # noqa: N818 - it is no error
    """The client has gone."""


async def _until_hung_up(request: Request, work: Awaitable[Answer], seconds: float) -> Answer:
    """Return what `work` gives, or break it off.

    Raises:
        RefusalError: 504, the time is over.
        _HungUp: the client has gone.
    """
    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        done, _ = await asyncio.wait({answer, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if answer in done:
            return answer.result()
        if gone in done:
            raise _HungUp
        raise RefusalError(504, f"The answer took longer than {seconds:g} seconds.")
    finally:
        for task in (answer, gone):
            task.cancel()


def build(service: Service, keys: Keys | None) -> App:
    """Return the whole application: routes, with keys and limits before them and the journal around all."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="lorafit",
        version=version("lorafit"),
        summary="Text classifiers: many LoRA adapters on one encoder.",
        lifespan=lifespan,
        docs_url=None,  # its page takes its scripts from elsewhere
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    _add_routes(app, service)
    _add_refusals(app)
    return Journal(Gate(app, service.limits, keys), service.figures, lambda: service.stopping)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": _PROBLEMS[status]} for status in sorted((*statuses, 401, 413))}


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/predict",
        responses={
            200: {
                "model": Predictions | Scores,
                "description": "`Predictions` to `Texts`, lists of scores to `Inputs`.",
            },
            **_problems(400, 404, 408, 422, 429, 500, 503, 504),
        },
    )
    async def predict(request: Request, question: Annotated[Question, Body(openapi_examples=QUESTIONS)]) -> Response:
        """Classify texts, by one adapter."""
        adapter = service.adapters.find(question.adapter)
        if isinstance(question, Inputs):
            asked = await service.ask(request, adapter, question.listed(), whole=question.truncate is False)
            values = asked.logits if question.wants_logits else adapter.probabilities(asked.logits)
            scores = adapter.scores(values, question.parameters.top_k)
            return _json(_SCORES.dump_json(scores if question.is_batch else scores[0]))
        asked = await service.ask(request, adapter, question.listed())
        answer = Predictions(
            adapter=adapter.name,
            sha256=adapter.sha256,
            cut_texts=asked.cut_texts,
            predictions=adapter.predictions(asked.logits, question.top_k),
        )
        return _json(answer.model_dump_json(exclude_none=True).encode())

    @app.get("/adapters", responses=_problems())
    async def adapters() -> AdapterList:
        """Say which adapters there are."""
        return AdapterList(adapters=service.adapters.described())

    @app.put(
        "/adapters/{name}",
        responses={
            201: {"model": AdapterInfo, "description": "A new one."},
            **_problems(400, 403, 404, 408, 422, 500, 504),
        },
    )
    async def put(name: Annotated[AdapterName, PathParameter()], place: Place, response: Response) -> AdapterInfo:
        """Take an adapter into service, or another version of one: what came before is answered by the old one."""
        found, seconds = service.place(place.path), service.limits.seconds
        try:
            async with asyncio.timeout(seconds):
                replaced = await service.load(name, found)
        except TimeoutError:
            raise RefusalError(504, f"The adapter took longer than {seconds:g} seconds to load.") from None
        except LorafitError as error:  # without the folders of this machine
            raise RefusalError(422, str(error).replace(f"{service.refuse_change()}/", "")) from None
        response.status_code = 200 if replaced else 201
        return service.adapters.describe(service.adapters.find(name))

    @app.delete("/adapters/{name}", status_code=204, responses=_problems(403, 404, 422))
    async def delete(name: Annotated[AdapterName, PathParameter()]) -> None:
        """Take an adapter out of service; what it has taken in it still answers."""
        service.refuse_change()
        service.remove(name)

    @app.get("/health")
    async def health() -> Status:
        """Say that the process answers."""
        return Status(status="ok")

    @app.get("/ready", responses={503: {"model": Status, "description": "No adapter, or about to stop."}})
    async def ready(response: Response) -> Status:
        """Say whether texts can be answered."""
        status = "stopping" if service.stopping else "ready" if len(service.adapters) else "no adapter"
        response.status_code = 200 if status == "ready" else 503
        return Status(status=status)

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **_problems()}, response_class=Response)
    async def metrics() -> Response:
        """Give figures to Prometheus."""
        content, kind = service.figures.exposition()
        return Response(content, media_type=kind)


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _add_refusals(app: FastAPI) -> None:
    """Turn each way in which a request can fail into one sentence."""

    def answer(status: int, sentence: str, headers: Any = None, logged: str = "") -> Response:
        journal.note(refused=logged or sentence)
        content = TypeAdapter(dict[str, str]).dump_json(as_record(status, sentence))
        return Response(content, status, headers, "application/json")

    handlers: dict[type[Exception], Callable[[Any], Response]] = {
        RefusalError: lambda error: answer(error.status, str(error), error.headers),
        LorafitError: lambda error: answer(422, str(error)),
        RequestValidationError: lambda error: answer(*_fault(error), logged="a body of another form"),
        HTTPException: lambda error: answer(
            error.status_code, _NO_ROUTE.get(error.status_code, str(error.detail)), error.headers
        ),
        _HungUp: lambda _: Response(status_code=_CLIENT_GONE),
        Exception: lambda _: answer(500, "The service failed over this request; its log says where."),
    }
    for kind, handle in handlers.items():

        async def respond(_: Request, error: Any, handle: Callable[[Any], Response] = handle) -> Response:
            return handle(error)

        app.add_exception_handler(kind, respond)


def _fault(error: RequestValidationError) -> tuple[int, str]:
    """Return a status and what is wrong with a request, without quoting it."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return 400, "The body is no JSON."
    if not place:
        return 422, "The body is no JSON object, or its Content-Type is not application/json."
    field = next((name for name in place[1:] if name in _FORMS), "")
    if field and first["type"] != "extra_forbidden":
        return 422, _FORMS[field]
    name = ".".join(place[1:]) or place[0]
    return 422, printable(f"{name}: {first['msg']}."[:500])
