"""The service's HTTP surface: who may ask what, and what comes back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from lorafit.errors import LorafitError, printable
from lorafit.serve import journal
from lorafit.serve.journal import Journal
from lorafit.serve.limits import Gate, Keys
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
    Texts,
)
from lorafit.serve.refusals import CLIENT_GONE, RefusalError, refusal
from lorafit.serve.service import HungUp, Service

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
_KEYS = {"texts": list(Texts.model_fields), "inputs": list(Inputs.model_fields), "path": list(Place.model_fields)}
_NO_OBJECT = {"model_attributes_type", "model_type", "dict_type"}  # pydantic's names for it
_NO_ROUTE = {404: "There is nothing at this path.", 405: "This path has other methods."}
router = APIRouter()


def build(service: Service, keys: Keys | None) -> ASGIApp:
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
    app.state.service = service
    app.include_router(router)
    _add_refusals(app)
    return Journal(Gate(app, service.limits, keys), service.figures, lambda: service.stopping)


def _service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": _PROBLEMS[status]} for status in sorted((*statuses, 401, 413))}


@router.post(
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
    service = _service(request)
    adapter = service.adapters.find(question.adapter)
    if isinstance(question, Inputs):
        asked = await service.ask(request, adapter, question.listed(), whole=question.truncate is False)
        values = asked.logits if question.wants_logits else adapter.probabilities(asked.logits)
        scores = adapter.scores(values, question.top_k)
        return _json(_SCORES.dump_json(scores if question.wants_lists else scores[0]))
    asked = await service.ask(request, adapter, question.listed())
    answer = Predictions(
        adapter=adapter.name,
        sha256=adapter.sha256,
        cut_texts=asked.cut_texts,
        predictions=adapter.predictions(asked.logits, question.top_k),
    )
    return _json(answer.model_dump_json(exclude_none=True).encode())


@router.get("/adapters", responses=_problems())
async def adapters(request: Request) -> AdapterList:
    """Say which adapters there are."""
    return AdapterList(adapters=_service(request).adapters.described())


@router.put(
    "/adapters/{name}",
    responses={
        201: {"model": AdapterInfo, "description": "A new one."},
        **_problems(400, 403, 404, 408, 422, 500, 504),
    },
)
async def put(
    request: Request, name: Annotated[AdapterName, PathParameter()], place: Place, response: Response
) -> AdapterInfo:
    """Take an adapter into service, or another version of one: what came before is answered by the old one."""
    service = _service(request)
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


@router.delete("/adapters/{name}", status_code=204, responses=_problems(403, 404, 422))
async def delete(request: Request, name: Annotated[AdapterName, PathParameter()]) -> None:
    """Take an adapter out of service; what it has taken in it still answers."""
    service = _service(request)
    service.refuse_change()
    service.remove(name)


@router.get("/health")
async def health() -> Status:
    """Say that the process answers."""
    return Status(status="ok")


@router.get("/ready", responses={503: {"model": Status, "description": "No adapter, or about to stop."}})
async def ready(request: Request, response: Response) -> Status:
    """Say whether texts can be answered."""
    service = _service(request)
    status = "stopping" if service.stopping else "ready" if len(service.adapters) else "no adapter"
    response.status_code = 200 if status == "ready" else 503
    return Status(status=status)


@router.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **_problems()}, response_class=Response)
async def metrics(request: Request) -> Response:
    """Give figures to Prometheus."""
    content, kind = _service(request).figures.exposition()
    return Response(content, media_type=kind)


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _add_refusals(app: FastAPI) -> None:
    """Turn each way in which a request can fail into one sentence."""

    def answer(status: int, sentence: str, headers: Any = None) -> Response:
        journal.note(refused=sentence)
        return refusal(status, sentence, headers)

    handlers: dict[type[Exception], Callable[[Any], Response]] = {
        RefusalError: lambda error: answer(error.status, str(error), error.headers),
        LorafitError: lambda error: answer(422, str(error)),
        RequestValidationError: lambda error: answer(*_fault(error)),
        HTTPException: lambda error: answer(
            error.status_code, _NO_ROUTE.get(error.status_code, str(error.detail)), error.headers
        ),
        HungUp: lambda _: Response(status_code=CLIENT_GONE),
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
    if first["type"] in _NO_OBJECT or not place:
        return 422, "The body is no JSON object, or its Content-Type is not application/json."
    if first["type"] == "extra_forbidden":  # whose name may be anything
        known = _KEYS.get(place[0], _KEYS["path"])
        return 422, f"The body has a key that is not known here; there are {', '.join(known)}."
    field = next((name for name in place[1:] if name in _FORMS), "")
    if field:
        return 422, _FORMS[field]
    name = ".".join(place[1:]) or place[0]
    return 422, printable(f"{name}: {first['msg']}."[:500])
