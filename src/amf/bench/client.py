"""One call over HTTP to an OpenAI-compatible endpoint, measured from the outside.

Every way a call can go wrong becomes an `Answer` with an outcome and a code; nothing is raised. A 429 or 503 that
names a time to come back (`retry-after-ms`, `retry-after`) is a hold and honoured a bounded number of times, unless
the answer says `x-should-retry: false`; after that it counts as a refusal (429) or a failure (503).
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import msgspec

from amf.bench.sse import StreamReader, Usage, decode, error_code, read_usage
from amf.core.graph import CallGraph
from amf.core.types import CallKind

Api = Literal["chat", "completions"]
Outcome = Literal["ok", "refused", "failed"]
_MAX_HOLD_S = 30.0
_CONTROL_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to send and how patiently. `model_map` renames the workload's models; `url` may end in /v1."""

    url: str
    api: Api = "chat"
    api_key: str | None = None
    model_map: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 600.0
    max_holds: int = 20

    @property
    def base(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")

    def model(self, pool: str) -> str:
        return self.model_map.get(pool, pool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`path` without the base; `body` is JSON. A GENERATE body asks for a stream."""

    kind: CallKind
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Times are seconds on the event loop's clock. `first_s` is the first content (for embeddings: the answer)."""

    outcome: Outcome
    sent_s: float
    end_s: float
    code: str | None = None
    first_s: float | None = None
    usage: Usage = field(default_factory=Usage)
    worker: str | None = None
    holds: int = 0


class Client:
    """An aiohttp session on one target. Use as an async context manager."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Client":
        headers = {"content-type": "application/json", "user-agent": "amf-bench"}
        if self.target.api_key:
            headers["authorization"] = f"Bearer {self.target.api_key}"
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self.target.timeout_s),
            headers=headers,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()

    async def send(self, request: Request) -> Answer:
        """Send one call and read the answer to its end; `sent_s` is the first attempt's time. Never raises but for
        cancellation."""
        sent_s, holds = _now(), 0
        while True:
            answer, hold_s = await self._attempt(request, sent_s, holds)
            if hold_s is None or holds >= self.target.max_holds:
                return answer
            holds += 1
            await asyncio.sleep(min(hold_s, _MAX_HOLD_S))

    async def models(self) -> list[str]:
        """The models the target lists. Raises aiohttp.ClientError or TimeoutError when it cannot be asked."""
        async with self._session.get(
            f"{self.target.base}/v1/models", timeout=aiohttp.ClientTimeout(total=10)
        ) as response:
            body = decode(await response.read())
            response.raise_for_status()
        entries = body.get("data") if isinstance(body, dict) else None
        return [str(entry["id"]) for entry in entries or () if isinstance(entry, dict) and "id" in entry]

    async def declare(self, graph: CallGraph) -> None:
        """Tell a fabric about a call graph. Raises aiohttp.ClientError or TimeoutError if it does not take it."""
        url, body = f"{self.target.base}/amf/v1/graphs", msgspec.json.encode(graph.to_dict())
        async with self._session.post(
            url, data=body, timeout=aiohttp.ClientTimeout(total=_CONTROL_TIMEOUT_S)
        ) as response:
            response.raise_for_status()

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise RuntimeError("use Client as an async context manager")
        return self._http

    async def _attempt(self, request: Request, sent_s: float, holds: int) -> tuple[Answer, float | None]:
        """One HTTP exchange: the answer, and how long to hold before trying again (None: do not)."""
        try:
            url = self.target.base + request.path
            async with self._session.post(url, data=request.body, headers=request.headers) as response:
                if response.status != 200:
                    outcome: Outcome = "refused" if response.status == 429 else "failed"
                    code = f"{response.status} {error_code(decode(await response.read()))}"
                    return _ended(outcome, code, sent_s, holds), _hold_s(response)
                if request.kind is CallKind.GENERATE:
                    return await _read_stream(response, sent_s, holds), None
                return await _read_json(response, sent_s, holds), None
        except TimeoutError:
            return _ended("failed", "timeout", sent_s, holds), None
        except aiohttp.ClientConnectorError:
            return _ended("failed", "unreachable", sent_s, holds), None
        except aiohttp.ClientError as error:
            return _ended("failed", f"connection_{type(error).__name__}", sent_s, holds), None


def encode_generate(model: str, prompt: Mapping[str, Any], output_tokens: int) -> bytes:
    """The body of a streamed generation of exactly `output_tokens`; `prompt` is its `messages` or `prompt` field."""
    return msgspec.json.encode(
        {
            "model": model,
            **prompt,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


async def _read_stream(response: aiohttp.ClientResponse, sent_s: float, holds: int) -> Answer:
    reader = StreamReader()
    async for data in response.content.iter_any():
        reader.feed(data, _now())
    code = reader.error_code()
    if code is None and not reader.complete:
        code = "stream_truncated"
    return Answer(
        outcome="ok" if code is None else "failed",
        code=code,
        sent_s=sent_s,
        end_s=_now(),
        first_s=reader.first_content_s,
        usage=reader.usage(),
        worker=response.headers.get("x-amf-worker"),
        holds=holds,
    )


async def _read_json(response: aiohttp.ClientResponse, sent_s: float, holds: int) -> Answer:
    body = decode(await response.read())
    now_s = _now()
    return Answer(
        outcome="ok" if body is not None else "failed",
        code=None if body is not None else "not_json",
        sent_s=sent_s,
        end_s=now_s,
        first_s=now_s,
        usage=read_usage(body),
        worker=response.headers.get("x-amf-worker"),
        holds=holds,
    )


def _ended(outcome: Outcome, code: str, sent_s: float, holds: int) -> Answer:
    return Answer(outcome=outcome, code=code, sent_s=sent_s, end_s=_now(), holds=holds)


def _hold_s(response: aiohttp.ClientResponse) -> float | None:
    headers = response.headers
    if response.status not in (429, 503) or headers.get("x-should-retry", "").lower() == "false":
        return None
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit_s)
        except (KeyError, ValueError):
            continue
    return None


def _now() -> float:
    return asyncio.get_running_loop().time()
