"""How the service says no: one sentence, an HTTP status, and a type that clients of text-embeddings-inference know."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from lorafit.errors import LorafitError

CLIENT_GONE = 499  # nginx's number for it
_TYPES = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 408: "Timeout", 429: "Overloaded"}


class RefusalError(LorafitError):
    """An answer other than the one that was asked for: a status from 400 on, and why."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


def refusal(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the answer that is a refusal.

    >>> refusal(404, "There is no adapter 'x'.").body
    b'{"error":"There is no adapter \\'x\\'.","error_type":"NotFound"}'
    """
    kind = _TYPES.get(status, "Validation" if status < 500 else "Backend")
    return JSONResponse({"error": sentence, "error_type": kind}, status, headers)
