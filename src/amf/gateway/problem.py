"""What a client is told when it gets no answer: a status, a code and a remedy, in the OpenAI error form.

`retry` says whether the same request may succeed later; the SDKs obey `x-should-retry` and `retry-after-ms`.
"""

import math
from dataclasses import dataclass

import msgspec
from aiohttp import web

BRANCH_CANCELLED = "branch_cancelled"

# A refusal's code (docs/wire.md) -> HTTP status, error type, worth retrying.
_REFUSALS: dict[str, tuple[int, str, bool]] = {
    "pipeline_admission_refused": (429, "rate_limit_error", True),
    "overloaded": (429, "rate_limit_error", True),
    "deadline_infeasible": (429, "rate_limit_error", False),
    "deadline_exceeded": (504, "timeout_error", False),
    BRANCH_CANCELLED: (410, "invalid_request_error", False),
    "run_cancelled": (410, "invalid_request_error", False),
    "no_worker": (503, "service_unavailable_error", True),
    "queue_timeout": (503, "service_unavailable_error", True),
    "model_not_found": (404, "invalid_request_error", False),
    "upstream_failed": (502, "upstream_error", True),
}
_UNKNOWN_REFUSAL = (503, "service_unavailable_error", True)
_RETRY_AFTER_S = 1.0


@dataclass(eq=False)
class Problem(Exception):
    """An HTTP error in the making. Raising it anywhere under a route ends the request with it."""

    status: int
    code: str
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    retry: bool | None = None
    retry_after_s: float | None = None

    def payload(self) -> dict[str, object]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry is not None:
            headers["x-should-retry"] = "true" if self.retry else "false"
        if self.retry_after_s is not None:
            headers["retry-after-ms"] = str(math.ceil(self.retry_after_s * 1000))
            headers["retry-after"] = str(math.ceil(self.retry_after_s))
        return headers

    def response(self, extra: dict[str, str] | None = None) -> web.Response:
        return web.Response(
            status=self.status,
            body=msgspec.json.encode(self.payload()),
            content_type="application/json",
            headers={**(extra or {}), **self.headers()},
        )

    def sse(self) -> bytes:
        """The same error for a client that already reads a stream."""
        return b"data: " + msgspec.json.encode(self.payload()) + b"\n\n"


def bad_request(message: str, *, code: str = "invalid_request", param: str | None = None) -> Problem:
    """A request that can never succeed as it is; `message` says what to change."""
    return Problem(400, code, message, param=param)


def refusal(code: str, message: str, retry_after_s: float | None = None) -> Problem:
    """The problem for a refusal's code. `retry_after_s` is in real seconds."""
    status, kind, retry = _REFUSALS.get(code, _UNKNOWN_REFUSAL)
    after_s = (retry_after_s if retry_after_s is not None else _RETRY_AFTER_S) if retry else None
    return Problem(status, code, message, type=kind, retry=retry, retry_after_s=after_s)
