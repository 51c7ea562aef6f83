"""One engine under examination: the adapter that the gateway would use for it, and plain questions over HTTP beside."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from amf.config import PoolConfig, WorkerConfig
from amf.engines.choose import connect
from amf.engines.engine import Engine, EngineError, EngineInfo, EngineRequest
from amf.engines.headers import request_headers
from amf.engines.http import decoded, fault
from amf.engines.options import EngineLimits
from amf.gateway.profiles import DEFAULT_BLOCK_TOKENS, name_of, options_of

ANSWER_S = 60.0  # for a tiny completion, queueing in a busy engine included
CONTROL_S = 10.0  # for any other question
_LIMITS = EngineLimits(head_timeout_s=ANSWER_S, stall_timeout_s=ANSWER_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """`sent_s` and `got_s`: this machine's clock, seconds since the epoch."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent_s: float
    got_s: float

    def json(self) -> Any:
        """None where it is not JSON."""
        return decoded(self.body)


@dataclass(slots=True)
class Patient:
    """`engine` and `info` are there once it has been met."""

    config: WorkerConfig
    session: aiohttp.ClientSession
    pools: Mapping[str, PoolConfig] = field(default_factory=dict)
    engine: Engine | None = None
    info: EngineInfo | None = None

    @property
    def name(self) -> str:
        return name_of(self.config)

    @property
    def url(self) -> str:
        return self.config.url.rstrip("/").removesuffix("/v1")

    @property
    def model(self) -> str:
        """The pool it is in; "" before it has been met."""
        return self.config.model or (self.info.models[0] if self.info else "")

    @property
    def tokenizer(self) -> str | None:
        """Of its pool, if that is in exact mode."""
        pool = self.pools.get(self.model)
        return pool.tokenizer if pool else None

    @property
    def block_tokens(self) -> int:
        told = self.info.block_tokens if self.info else None
        return self.config.block_tokens or told or DEFAULT_BLOCK_TOKENS

    async def meet(self) -> None:
        """Find its adapter and ask it what it is. Raises EngineError."""
        self.engine = await connect(self.config.url, self.session, options_of(self.config, _LIMITS))
        self.info = await self.engine.probe()

    async def ask(
        self, method: str, path: str, body: Any = None, more_headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Raises EngineError if nothing answers."""
        headers = request_headers({}, self.config.api_key)
        headers.update(more_headers or {})
        data = None if body is None else msgspec.json.encode(body)
        limit_s = CONTROL_S if body is None else ANSWER_S
        return await ask(self.session, method, self.url + path, limit_s, headers=headers, data=data)

    async def generate(self, path: str, body: Mapping[str, Any], **more: Any) -> Reply:
        """One attempt as the gateway would send it: with the adapter's own headers and fields. `more`: `session_id`,
        `request_id`, `urgency_s`, `headers` of an EngineRequest. Raises EngineError."""
        assert self.engine is not None
        request = EngineRequest(
            path=path,
            body=msgspec.json.encode(body),
            **{"request_id": "amf-doctor", "headers": {"Content-Type": "application/json"}, **more},
        )
        sent_s = time.time()
        async with asyncio.timeout(ANSWER_S), self.engine.generate(request) as upstream:
            content = b"".join([chunk async for chunk in upstream.chunks()])
            return Reply(
                status=upstream.status, headers=upstream.headers, body=content, sent_s=sent_s, got_s=time.time()
            )


async def ask(session: aiohttp.ClientSession, method: str, url: str, limit_s: float = CONTROL_S, **more: Any) -> Reply:
    """Any one request. Raises EngineError if nothing answers whole and in time."""
    timeout = aiohttp.ClientTimeout(total=limit_s)
    sent_s = time.time()
    try:
        async with session.request(method, url, timeout=timeout, allow_redirects=False, **more) as response:
            body = await response.read()
            return Reply(status=response.status, headers=response.headers, body=body, sent_s=sent_s, got_s=time.time())
    except TimeoutError:
        raise EngineError(f"no answer within {limit_s:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise EngineError(fault(error)) from None
