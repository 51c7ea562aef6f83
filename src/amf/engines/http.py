"""HTTP to an engine: one attempt out, its answer's bytes back untouched, and every fault of the wire as an EngineError.

Three rules carry the file. (1) Time is bounded everywhere, but only while the engine is being waited for: a client that
reads slowly does not count against the engine. (2) A response closed before its end takes its connection with it, which
is how engines learn of a cancel. (3) An engine may close an idle connection in the moment a request is sent on it; if
then not one byte of an answer has come, the request goes out once more, on a connection of its own. Anything else that
goes wrong is the caller's to retry, elsewhere. Reasons never quote what was received: it may be somebody's answer.
"""

import asyncio
import io
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
from multidict import CIMultiDict

from amf.engines.engine import EngineError, EngineRequest, Upstream
from amf.engines.headers import identifier, request_headers, response_headers
from amf.engines.options import EngineLimits, EngineOptions

IDLE_CONNECTION_S = 4.0  # shorter than the 5 s after which uvicorn, and so vLLM, closes an idle connection
_STALE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionResetError)
# aiohttp says RuntimeError for a session or socket closed under it, ValueError for a URL or header that cannot be sent.
_FAULTS = (aiohttp.ClientError, OSError, RuntimeError, ValueError)


def open_session() -> aiohttp.ClientSession:
    """The client session that all engines of one event loop share. No connection limit, no cookies, no proxies."""
    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trace_configs=[tracing],
    )


async def _note_reuse(session: aiohttp.ClientSession, context: SimpleNamespace, params: Any) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.reused = True


class _Connection:
    """What tracing learned about the connection of one request."""

    reused = False


class HttpUpstream:
    """An open response. Satisfies `Upstream`."""

    def __init__(self, response: aiohttp.ClientResponse, stall_timeout_s: float) -> None:
        self._response = response
        self._stall_timeout_s = stall_timeout_s
        self._now_s = asyncio.get_running_loop().time
        self._waiting_since_s = math.inf  # infinite: nobody waits for the engine
        self._is_stalled = False
        self.status = response.status
        self.headers: Mapping[str, str] = response_headers(response.headers)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Body bytes as they arrive. Raises EngineError if the connection breaks, ends early or stalls."""
        read = self._response.content.readany
        self._watch()
        try:
            while True:
                self._waiting_since_s = self._now_s()
                chunk = await read()
                self._waiting_since_s = math.inf
                if not chunk:
                    return
                yield chunk
        except _FAULTS as error:
            stalled = f"the engine stalled for {self._stall_timeout_s:g} s"
            raise EngineError(stalled if self._is_stalled else fault(error)) from None
        finally:
            self._timer.cancel()

    def _watch(self) -> None:
        """One timer a stream, set anew when it rings early: cheaper than one a chunk. Closing ends the read."""
        ends_at_s = min(self._waiting_since_s, self._now_s()) + self._stall_timeout_s
        self._is_stalled = ends_at_s <= self._now_s()
        if self._is_stalled:
            self._response.close()
        else:
            self._timer = asyncio.get_running_loop().call_at(ends_at_s, self._watch)


class HttpEngine:
    """What all engines that speak HTTP have in common; an adapter adds what its engine says about itself.

    `session` comes from `open_session()`, is shared and is closed by its owner.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession, options: EngineOptions) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.options = options
        self._session = session
        self._closed = asyncio.Event()
        limits = options.limits
        self._call_timeout = aiohttp.ClientTimeout(total=None, connect=limits.connect_timeout_s)
        self._control_timeout = aiohttp.ClientTimeout(
            total=limits.control_timeout_s, connect=min(limits.connect_timeout_s, limits.control_timeout_s)
        )

    @asynccontextmanager
    async def generate(self, request: EngineRequest) -> AsyncIterator[Upstream]:
        """Send one attempt. Entering raises EngineError if no response head arrives."""
        async with AsyncExitStack() as stack:
            response = await self._send(request, stack)
            stack.callback(response.close)
            if response.status < 200:
                raise EngineError(f"the engine answered with status {response.status}")
            yield HttpUpstream(response, self.options.limits.stall_timeout_s)

    async def healthy(self) -> bool:
        """Whether the engine says that it can serve; an engine without /health is asked for its models."""
        try:
            status, _ = await self.get("/health")
            if status == 404:
                status, _ = await self.get("/v1/models")
        except EngineError:
            return False
        return status == 200

    async def close(self) -> None:
        """End all observation; what is being generated may finish. Later calls raise EngineError."""
        self._closed.set()

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a control endpoint. Raises EngineError if it does not answer whole, in time and size."""
        self._check_open()
        headers = self._headers(CIMultiDict())
        try:
            async with self._session.get(
                self.url + path, headers=headers, timeout=self._control_timeout, allow_redirects=False
            ) as response:
                return response.status, await _read(response, self.options.limits)
        except TimeoutError:
            raise EngineError(f"GET {path}: no answer within {self.options.limits.control_timeout_s:g} s") from None
        except _FAULTS as error:
            raise EngineError(f"GET {path}: {fault(error)}") from None

    async def get_json(self, path: str) -> Any:
        """The decoded answer of a control endpoint. Raises EngineError for any answer but 200 with JSON."""
        status, body = await self.get(path)
        if status != 200:
            raise EngineError(f"GET {path}: status {status}")
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError:
            raise EngineError(f"GET {path}: the answer is not JSON") from None

    def _headers(self, headers: Mapping[str, str]) -> CIMultiDict[str]:
        return request_headers(headers, self.options.api_key)

    def _attempt_headers(self, request: EngineRequest) -> CIMultiDict[str]:
        headers = self._headers(request.headers)
        headers["X-Request-Id"] = identifier(request.request_id)
        return headers

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise EngineError("the adapter is closed")

    async def _send(self, request: EngineRequest, stack: AsyncExitStack) -> aiohttp.ClientResponse:
        self._check_open()
        limits = self.options.limits
        connection = _Connection()
        try:
            async with asyncio.timeout(limits.head_timeout_s):
                try:
                    return await self._post(self._session, request, connection)
                except _STALE:
                    if not connection.reused:
                        raise
                own_session = await stack.enter_async_context(open_session())
                return await self._post(own_session, request, connection)
        except aiohttp.ServerTimeoutError:
            raise EngineError(f"no connection to the engine within {limits.connect_timeout_s:g} s") from None
        except TimeoutError:
            raise EngineError(f"no response head from the engine within {limits.head_timeout_s:g} s") from None
        except _FAULTS as error:
            raise EngineError(fault(error)) from None

    async def _post(
        self, session: aiohttp.ClientSession, request: EngineRequest, connection: _Connection
    ) -> aiohttp.ClientResponse:
        return await session.post(
            self.url + request.path,
            data=io.BytesIO(request.body),  # written in pieces: a large body must not hold up the event loop
            headers=self._attempt_headers(request),
            timeout=self._call_timeout,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            trace_request_ctx=connection,
        )


def fault(error: BaseException) -> str:
    """What went wrong on the wire, in words that quote nothing of what was received."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "the engine's host name does not resolve"
        case aiohttp.ClientSSLError():
            return "no trusted TLS connection to the engine"
        case aiohttp.ClientConnectorError():
            return f"no connection to the engine: {error.strerror or 'connect failed'}"
        case aiohttp.ServerDisconnectedError():
            return "the engine closed the connection before answering"
        case aiohttp.ClientPayloadError():
            return "the engine's answer broke off or is malformed"
        case aiohttp.ClientResponseError():
            return "the engine answered with what is not HTTP"
        case aiohttp.InvalidURL() | ValueError():
            return "the engine's URL or a header for it is not usable"
        case aiohttp.ClientConnectionError() | OSError():
            return "the connection to the engine broke"
        case _:
            return f"the connection to the engine failed ({type(error).__name__})"


def models_of(listing: Any) -> tuple[dict[str, Any], ...]:
    """The model cards of a /v1/models answer. Raises EngineError if there is none."""
    data = listing.get("data") if isinstance(listing, dict) else None
    cards = [card for card in data if isinstance(card, dict)] if isinstance(data, list) else []
    named = tuple(card for card in cards if isinstance(card.get("id"), str))
    if not named:
        raise EngineError("GET /v1/models: the engine names no model")
    return named


def max_model_tokens_of(cards: tuple[dict[str, Any], ...]) -> int | None:
    """The longest prompt plus answer, where the engine's model cards tell it as vLLM and SGLang do."""
    lengths = [card["max_model_len"] for card in cards if isinstance(card.get("max_model_len"), int)]
    return max(lengths, default=None)


async def _read(response: aiohttp.ClientResponse, limits: EngineLimits) -> bytes:
    parts: list[bytes] = []
    total_bytes = 0
    async for part in response.content.iter_any():
        parts.append(part)
        total_bytes += len(part)
        if total_bytes > limits.control_max_bytes:
            raise EngineError(f"the answer is longer than {limits.control_max_bytes} bytes")
    return b"".join(parts)
