"""SGLang: load from /v1/loads, cache truth from its KV events, the fabric's urgency as a priority in the body.

SGLang takes its levers from the body, and of headers none that counts on every route. So members are put in behind the
client's own: `priority`, `session_id` (which its KV events name) and `rid`, the request's id in the engine. By that id a
call is aborted when its client leaves: where an answer is not streamed, the engine looks for closed connections only every
few seconds, and a branch that is no longer wanted should free its memory now.

A priority is a tenth of a second of urgency, and higher is served first unless the server was started otherwise. A running
call is preempted by one whose priority is better by more than the server's threshold (10, so one second). Why the fabric
does not send priorities to every server that takes them is said in `SglangServer.objection`.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Iterable
from typing import Any

import aiohttp
import msgspec

from amf.engines.body import with_members
from amf.engines.engine import Capabilities, EngineError, EngineInfo, EngineRequest, LoadReport
from amf.engines.headers import identifier
from amf.engines.http import NOT_JSON, HttpEngine, max_model_tokens_of, models_of
from amf.engines.kvfeed import KvSource
from amf.engines.metrics import Sample, SampleReader, ratio
from amf.engines.options import EngineOptions
from amf.engines.sglang_server import PriorityOrder, SglangServer, of_ranks
from amf.engines.urgency import MAX_STEPS, steps
from amf.engines.watched import WatchedEngine

STEPS_PER_S = 10
MAX_PRIORITY = MAX_STEPS  # urgency in tenths of a second: 6 years to either side

_GENERATES = ("/v1/chat/completions", "/v1/completions")
_TAKES_PRIORITY = (*_GENERATES, "/v1/embeddings")
_NOT_FOUND, _METHOD_NOT_ALLOWED = 404, 405

_LOAD = SampleReader(("sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"))
_CACHE = SampleReader(("sglang:page_size", "sglang:max_total_num_tokens"))

logger = logging.getLogger(__name__)


class _RankLoad(msgspec.Struct):
    num_running_reqs: int
    num_waiting_reqs: int
    token_usage: float = 0.0


class _Loads(msgspec.Struct):
    loads: list[_RankLoad]


_decode_loads = msgspec.json.Decoder(_Loads).decode


def priority(urgency_s: float, order: PriorityOrder) -> int:
    """SGLang's priority of an urgency in seconds, lower first: its tenths, bounded, NaN last."""
    tenths = steps(urgency_s, STEPS_PER_S)
    return tenths if order == "lower-first" else -tenths


class SglangEngine(WatchedEngine):
    """One SGLang server. Satisfies `Engine`. What it was started with is asked by `probe` and again with its event sources."""

    kind = "sglang"

    def __init__(self, url: str, session: aiohttp.ClientSession, options: EngineOptions) -> None:
        super().__init__(url, session, options)
        self._server = SglangServer()
        self._tells_loads = True
        self._aborts: set[asyncio.Task[None]] = set()

    async def probe(self) -> EngineInfo:
        """Models from /v1/models; what else it tells, where it does. Raises EngineError without models."""
        cards = models_of(await self.get_json("/v1/models"))
        server = await self._ask_server()
        self._tells_loads = True
        block_tokens, kv_tokens = server.block_tokens, server.kv_tokens
        if block_tokens is None or kv_tokens is None:
            pages, capacity = _by_rank(_CACHE.read(await self.metrics_page()), *_CACHE.names)
            block_tokens = block_tokens or _count(pages[:1])
            kv_tokens = kv_tokens or _count(capacity)
        has_events = bool(self._sources(server))
        order = server.priority(self.options.priority)
        if order != "none" and server.objection is not None:
            logger.warning("%s: priorities are sent as configured, but %s", self.url, server.objection)
        return EngineInfo(
            engine="sglang",
            models=tuple(card["id"] for card in cards),
            version=server.version,
            block_tokens=block_tokens,
            kv_tokens=kv_tokens,
            max_model_tokens=max_model_tokens_of(cards),
            max_running=server.max_running,
            capabilities=Capabilities(
                kv_events=has_events,
                token_hashes=has_events,
                attributed_events=has_events and server.names_requests,
                priority=order,
                token_prompts=True,
                tokenize=await self._tokenizes(server),
                release=server.flag("enable_session_radix_cache") is True,
                tiers=server.tiers,
                lora=server.flag("enable_lora") is True,
                ranks=server.ranks,
            ),
        )

    @staticmethod
    async def recognises(engine: HttpEngine) -> bool:
        """It signs its model cards. Raises EngineError if nothing answers."""
        cards = models_of(await engine.get_json("/v1/models"))
        return any(card.get("owned_by") == "sglang" for card in cards) or "sglang:" in await engine.metrics_page()

    async def load(self) -> LoadReport | None:
        """The engine's load now, summed over its data-parallel ranks; None if it does not tell. Raises EngineError."""
        if self._tells_loads:
            status, body = await self.get("/v1/loads?include=core")
            if status == 200:
                with contextlib.suppress(*NOT_JSON):
                    return _report(_decode_loads(body).loads)
            elif status != _NOT_FOUND:
                return None
            self._tells_loads = False  # until the next probe
        running, waiting, used = _by_rank(_LOAD.read(await self.metrics_page()), *_LOAD.names)
        if not running or not all(math.isfinite(value) for value in (*running, *waiting, *used)):
            return None
        return LoadReport(
            running=round(sum(running)), waiting=round(sum(waiting)), kv_used_ratio=_share(sum(used), len(used))
        )

    async def kv_sources(self) -> tuple[KvSource, ...]:
        """The engine's event publishers, one a rank, as options say (for the first) or else as it says itself. Raises
        EngineError if it is away."""
        return self._sources(await self._ask_server())

    def left_early(self, request: EngineRequest) -> None:
        """Has the engine abort the call, in the background."""
        if request.path in _GENERATES:
            task = asyncio.create_task(self._abort(request))
            self._aborts.add(task)
            task.add_done_callback(self._aborts.discard)

    async def _abort(self, request: EngineRequest) -> None:
        with contextlib.suppress(EngineError):  # closing the connection does it too, later
            await self.post("/abort_request", {"rid": _rid(request)})

    def _attempt_body(self, request: EngineRequest) -> bytes:
        members: dict[str, Any] = {}
        order = self._server.priority(self.options.priority)
        if order != "none" and request.path in _TAKES_PRIORITY:
            members["priority"] = priority(request.urgency_s, order)
        if request.path in _GENERATES:
            if b'"rid"' not in request.body:  # a client's own stays
                members["rid"] = _rid(request)
            session_id = identifier(request.session_id)
            if session_id and self._server.takes_sessions and b'"session_params"' not in request.body:
                members["session_id"] = session_id
        return with_members(request.body, members)

    async def _ask_server(self) -> SglangServer:
        """/server_info, under its earlier name in earlier releases. Without an answer just now, what it said before stands."""
        for path in ("/server_info", "/get_server_info"):
            status, body = await self.get(path)
            if status == 200:
                with contextlib.suppress(*NOT_JSON):
                    self._server = SglangServer(msgspec.json.decode(body, type=dict[str, Any]))
            if status != _NOT_FOUND:
                return self._server
        self._server = SglangServer()
        return self._server

    async def _tokenizes(self, server: SglangServer) -> bool:
        """A GET tells whether /tokenize is there without tokenising anything."""
        status, _ = await self.get("/tokenize")
        return status == _METHOD_NOT_ALLOWED and server.flag("skip_tokenizer_init") is not True

    def _sources(self, server: SglangServer) -> tuple[KvSource, ...]:
        options = self.options
        publishers = server.publishers()
        if options.kv_events_endpoint is not None:
            publishers = of_ranks(options.kv_events_endpoint, options.kv_replay_endpoint, server.ranks)
        elif options.kv_replay_endpoint is not None:
            replays = [replay for replay, _ in of_ranks(options.kv_replay_endpoint, None, server.ranks)]
            publishers = tuple((at, replay) for (at, _), replay in zip(publishers, replays, strict=False))
        if not server.names_blocks:
            return ()
        sources = [(self._reachable(at), self._reachable(replay)) for at, replay in publishers]
        several = len(sources) > 1
        return tuple(
            KvSource(endpoint=at, replay_endpoint=replay, copies=False, siblings=several)
            for at, replay in sources
            if at is not None
        )


def _rid(request: EngineRequest) -> str:
    """The call's id in the engine. SGLang aborts whatever begins with the id it is given: the full stop keeps a second attempt,
    whose id begins with the first's, out of that."""
    return f"{identifier(request.request_id)}."


def _report(ranks: list[_RankLoad]) -> LoadReport | None:
    if not ranks:
        return None
    return LoadReport(
        running=sum(rank.num_running_reqs for rank in ranks),
        waiting=sum(rank.num_waiting_reqs for rank in ranks),
        kv_used_ratio=_share(sum(rank.token_usage for rank in ranks), len(ranks)),
    )


def _by_rank(samples: Iterable[Sample], *names: str) -> list[list[float]]:
    """For each name its value on each data-parallel rank. With priorities SGLang also tells parts of a gauge, labelled with
    one; and each tensor-parallel scheduler may tell the same."""
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for sample in samples:
        if not sample.labels.get("priority"):
            ranks, rank = found[sample.name], sample.labels.get("dp_rank", "")
            ranks[rank] = max(sample.value, ranks.get(rank, sample.value))
    return [list(ranks.values()) for ranks in found.values()]


def _count(values: list[float]) -> int | None:
    total = sum(values)
    return round(total) if math.isfinite(total) and total >= 1 else None


def _share(used: float, ranks: int) -> float:
    return ratio(used / ranks) if ranks else 0.0
