"""Errors in the form vLLM and the OpenAI API share: {"error": {"message", "type", "param", "code"}}. Where vLLM has no such
route or method, its web framework answers, in a form of its own: {"detail"}."""

from typing import Any

MALFORMED = "Bad Request"  # the type of vLLM's error for a body that has another shape than it reads
_TYPES = {400: "BadRequestError", 404: "NotFoundError", 413: "BadRequestError", 503: "ServiceUnavailableError"}


class ApiError(Exception):
    """A request the engine answers with `status` and an error body."""

    def __init__(self, status: int, message: str, *, param: str | None = None, kind: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.kind = kind or _TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}}
