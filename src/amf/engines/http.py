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
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, ClassVar

import aiohttp
import msgspec
from multidict import CIMultiDict

from amf.engines.engine import EngineError, EngineRequest, Upstream
from amf.engines.headers import identifier, request_headers, response_headers
from amf.engines.options import EngineKind, EngineOptions

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what decoding raises, whatever it is given
IDLE_CONNECTION_S = 4.0  # shorter than the 5 s after which uvicorn, and so vLLM, closes an idle connection
_WRITTEN_AT_ONCE_BYTES = 512 * 1024  # a larger body goes out in pieces, so that it does not hold up the event loop
_NOT_ADDED = ("User-Agent", "Accept", "Accept-Encoding")  # headers that aiohttp would add to the client's
_STALE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionResetError)
# aiohttp says RuntimeError for a session or socket closed under it, ValueError for a URL or header that cannot be sent.
FAULTS = (aiohttp.ClientError, OSError, RuntimeError, ValueError)


class _Connection:
    """Whether a request had to open its connection. An aiohttp trace would tell as well, at 35 us a request."""

    is_new = False


_connection: ContextVar[_Connection | None] = ContextVar("connection", default=None)  # of the request being sent


def open_session() -> aiohttp.ClientSession:
    """The client session that all engines of one event loop share. No connection limit, no cookies, no proxies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_S, socket_factory=_open_socket),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


def _open_socket(address: tuple[Any, ...]) -> socket.socket:
    connection = _connection.get()
    if connection is not None:
        connection.is_new = True
    family, kind, protocol = address[:3]
    return socket.socket(family, kind, protocol)


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
        except FAULTS as error:
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
    """What all engines that speak HTTP have in common; an adapter adds what its engine says about itself. `kind`: its name
    in the configuration.

    `session` comes from `open_session()`, is shared and is closed by its owner.
    """

    kind: ClassVar[EngineKind]

    def __init__(self, url: str, session: aiohttp.ClientSession, options: EngineOptions) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.options = options
        self.session = session
        self._closed = asyncio.Event()
        limits = options.limits
        self._call_timeout = aiohttp.ClientTimeout(total=None, connect=limits.connect_timeout_s)
        self._control_timeout = aiohttp.ClientTimeout(
            total=limits.control_timeout_s, connect=min(limits.connect_timeout_s, limits.control_timeout_s)
        )

    def generate(self, request: EngineRequest) -> AbstractAsyncContextManager[Upstream]:
        """Send one attempt. Entering raises EngineError if no response head arrives."""
        return _Attempt(self, request)

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
        return await self._ask("GET", path)

    async def post(self, path: str, value: Any) -> tuple[int, bytes]:
        """Status and body of a control endpoint that is sent `value` as JSON. Raises EngineError as `get` does."""
        return await self._ask("POST", path, msgspec.json.encode(value))

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        self.check_open()
        headers = self._headers(CIMultiDict())
        try:
            async with self.session.request(
                method,
                self.url + path,
                data=body,
                headers=headers,
                timeout=self._control_timeout,
                allow_redirects=False,
            ) as response:
                return response.status, await read_whole(response, self.options.limits.control_max_bytes)
        except TimeoutError:
            limit_s = self.options.limits.control_timeout_s
            raise EngineError(f"{method} {path}: no answer within {limit_s:g} s") from None
        except FAULTS as error:
            raise EngineError(f"{method} {path}: {fault(error)}") from None

    async def get_json(self, path: str) -> Any:
        """The decoded answer of a control endpoint. Raises EngineError for any answer but 200 with JSON."""
        status, body = await self.get(path)
        if status != 200:
            raise EngineError(f"GET {path}: status {status}")
        try:
            return msgspec.json.decode(body)
        except NOT_JSON:
            raise EngineError(f"GET {path}: the answer is not JSON") from None

    async def optional_json(self, path: str) -> Any:
        """What an endpoint tells that other releases lack, or that a flag turns off; None if it does not. Raises EngineError
        only if the engine is away."""
        status, body = await self.get(path)
        return decoded(body) if status == 200 else None

    async def metrics_page(self) -> str:
        """The engine's Prometheus page, empty if it has none. Raises EngineError if the engine is away."""
        status, page = await self.get("/metrics")
        return page.decode("utf-8", "replace") if status == 200 else ""

    def _headers(self, headers: Mapping[str, str]) -> CIMultiDict[str]:
        return request_headers(headers, self.options.api_key)

    def _attempt_headers(self, request: EngineRequest) -> CIMultiDict[str]:
        headers = self._headers(request.headers)
        headers["X-Request-Id"] = identifier(request.request_id)
        return headers

    def _attempt_body(self, request: EngineRequest) -> bytes:
        return request.body

    def left_early(self, request: EngineRequest) -> None:
        """An attempt ended before its answer did, and its connection was closed. For engines that take their time to notice."""

    def check_open(self) -> None:
        """Raises EngineError once the adapter is closed."""
        if self._closed.is_set():
            raise EngineError("the adapter is closed")

    async def send(self, session: aiohttp.ClientSession, request: EngineRequest) -> aiohttp.ClientResponse:
        """Post the request and wait for the head of its answer. Raises what aiohttp raises."""
        body = self._attempt_body(request)
        return await session.post(
            self.url + request.path,
            data=body if len(body) <= _WRITTEN_AT_ONCE_BYTES else io.BytesIO(body),
            headers=self._attempt_headers(request),
            timeout=self._call_timeout,
            allow_redirects=False,
            skip_auto_headers=_NOT_ADDED,
        )


class _Attempt(AbstractAsyncContextManager[Upstream]):
    """One request to an engine: sent on entering, and its connection closed on leaving unless the answer was read whole."""

    def __init__(self, engine: HttpEngine, request: EngineRequest) -> None:
        self._engine = engine
        self._request = request
        self._response: aiohttp.ClientResponse | None = None
        self._own_session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> HttpUpstream:
        try:
            response = self._response = await self._send()
            if response.status < 200:
                raise EngineError(f"the engine answered with status {response.status}")
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                self._engine.left_early(self._request)
            await self._close()
            raise
        return HttpUpstream(response, self._engine.options.limits.stall_timeout_s)

    async def __aexit__(self, *failure: object) -> None:
        if self._response is not None and not self._response.content.is_eof():
            self._engine.left_early(self._request)
        await self._close()

    async def _send(self) -> aiohttp.ClientResponse:
        engine, limits = self._engine, self._engine.options.limits
        engine.check_open()
        connection = _Connection()
        _connection.set(connection)
        try:
            async with asyncio.timeout(limits.head_timeout_s):
                try:
                    return await engine.send(engine.session, self._request)
                except _STALE:
                    if connection.is_new:
                        raise
                self._own_session = open_session()
                return await engine.send(self._own_session, self._request)
        except aiohttp.ServerTimeoutError:
            raise EngineError(f"no connection to the engine within {limits.connect_timeout_s:g} s") from None
        except TimeoutError:
            raise EngineError(f"no response head from the engine within {limits.head_timeout_s:g} s") from None
        except FAULTS as error:
            raise EngineError(fault(error)) from None

    async def _close(self) -> None:
        if self._response is not None:
            self._response.close()
        if self._own_session is not None:
            await self._own_session.close()


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


def decoded(body: bytes) -> Any:
    """The JSON value; None where it is none."""
    try:
        return msgspec.json.decode(body)
    except NOT_JSON:
        return None


def cards_of(listing: Any) -> list[dict[str, Any]]:
    """The cards of a /v1/models answer, with or without a name."""
    data = listing.get("data") if isinstance(listing, dict) else None
    return [card for card in data if isinstance(card, dict)] if isinstance(data, list) else []


def models_of(listing: Any) -> tuple[dict[str, Any], ...]:
    """The model cards of a /v1/models answer. Raises EngineError if there is none."""
    named = tuple(card for card in cards_of(listing) if isinstance(card.get("id"), str))
    if not named:
        raise EngineError("GET /v1/models: the engine names no model")
    return named


def max_model_tokens_of(cards: tuple[dict[str, Any], ...]) -> int | None:
    """The longest prompt plus answer, where the engine's model cards tell it as vLLM and SGLang do."""
    lengths = [card["max_model_len"] for card in cards if isinstance(card.get("max_model_len"), int)]
    return max(lengths, default=None)


def positive(value: Any) -> int | None:
    """A count that an engine states in JSON, where it is one: a whole number above 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def roots_of(cards: tuple[dict[str, Any], ...]) -> dict[str, str]:
    """Where the weights of each model were loaded from, where the cards tell it."""
    return {card["id"]: card["root"] for card in cards if isinstance(card.get("root"), str)}


async def read_whole(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body. Raises EngineError if it is longer."""
    parts: list[bytes] = []
    total_bytes = 0
    async for part in response.content.iter_any():
        parts.append(part)
        total_bytes += len(part)
        if total_bytes > max_bytes:
            raise EngineError(f"the answer is longer than {max_bytes} bytes")
    return b"".join(parts)
