"""How the service says no: one sentence, an HTTP status, and a type that clients of text-embeddings-inference know."""

from collections.abc import Mapping

from lorafit.errors import LorafitError

_TYPES = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 408: "Timeout", 429: "Overloaded"}


class RefusalError(LorafitError):
    """An answer other than the one that was asked for: a status from 400 on, and why."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})


def as_record(status: int, sentence: str) -> dict[str, str]:
    """Return the body of an answer that is a refusal.

    >>> as_record(404, "There is no adapter 'x'.")
    {'error': "There is no adapter 'x'.", 'error_type': 'NotFound'}
    """
    return {"error": sentence, "error_type": _TYPES.get(status, "Validation" if status < 500 else "Backend")}
