"""LMCache's controller, as far as the fabric asks it: what lies below the KV memory of which engine, and orders about it.

Engines that run with LMCache's connector copy KV memory to host memory, disk or a store, in chunks of 256 tokens unless they
are told otherwise, and report each chunk to a controller. The controller answers over HTTP, by token ids.

What `/lookup` means is less than its form suggests. It walks the prompt chunk by chunk, credits each to *one* instance that
has it, though others may have it too, and stops at the first chunk that none has; an instance is listed with the end of the
last chunk that it was credited with (read in the source of 0.3 to 0.5). A chunk is only of use with all before it. So of an
instance that is listed, that much is held; of any, nothing more is known up to the longest length in the answer; beyond that
length nobody holds anything. `Lookup` says just this.

Every fault, of the wire and of the answer, is a `ControllerError`. Its text quotes nothing that was received.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import aiohttp
import msgspec

from amf.core.types import Tier
from amf.engines.engine import EngineError
from amf.engines.http import FAULTS, NOT_JSON, fault, read_whole

HOST_MEMORY = "LocalCPUBackend"  # LMCache's name for it; what else it names is slower
CHUNK_TOKENS = 256  # LMCache's default `chunk_size`
EVERYBODY = "all"  # as an instance id, in releases that know it
_MAX_DETAIL_CHARS = 300

Count = Annotated[int, msgspec.Meta(ge=0)]
Answer = TypeVar("Answer")


class ControllerError(Exception):
    """The controller did not do what it was asked. `detail`: in its own words, for who asked; not for logs."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The first `tokens` of a prompt, held by an LMCache instance at `location`."""

    instance: str
    location: str
    tokens: int

    @property
    def tier(self) -> Tier:
        return tier_of(self.location)


@dataclass(frozen=True, slots=True)
class Lookup:
    """What is known of one prompt: see the top of this file."""

    held: tuple[Held, ...]

    @property
    def longest_tokens(self) -> int:
        """Beyond this no instance holds anything of the prompt."""
        return max((each.tokens for each in self.held), default=0)

    def of(self, instance: str) -> Held | None:
        return next((each for each in self.held if each.instance == instance), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One worker process of an instance, as it registered at the controller. `heartbeat_s`: seconds since the epoch, on the
    controller's clock, when it last said that it lives."""

    instance: str
    rank: int
    address: str
    heartbeat_s: float


class _LookupAnswer(msgspec.Struct):
    layout_info: dict[str, tuple[str, Count]]


class _TokensAnswer(msgspec.Struct):
    num_tokens: Count


class _HealthAnswer(msgspec.Struct):
    """`error_codes` by rank; releases before it had one `error_code` for all."""

    error_codes: dict[int, int] | None = None
    error_code: int | None = None


class _RankAnswer(msgspec.Struct):
    instance_id: str
    worker_id: int
    ip: str
    port: int
    last_heartbeat_time: float = 0.0


class _RanksAnswer(msgspec.Struct):
    worker_infos: list[_RankAnswer]


def tier_of(location: str) -> Tier:
    """Host memory, or anything slower: disk, or a store over the network."""
    return Tier.DRAM if location == HOST_MEMORY else Tier.DISK


class Controller:
    """One LMCache controller. `session` is shared and closed by its owner. `timeout_s` bounds each question as a whole, an
    answer has at most `max_bytes`. All methods raise ControllerError."""

    def __init__(
        self, url: str, session: aiohttp.ClientSession, *, timeout_s: float, max_bytes: int = 4 * 1024 * 1024
    ) -> None:
        self.url = url.rstrip("/")
        self._session = session
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes

    async def lookup(self, tokens: Sequence[int]) -> Lookup:
        """Who holds how much of a prompt, from its first token on."""
        answer = await self._ask("/lookup", {"tokens": tokens}, _LookupAnswer)
        return Lookup(
            tuple(
                Held(instance=instance, location=location, tokens=min(count, len(tokens)))
                for instance, (location, count) in answer.layout_info.items()
            )
        )

    async def pin(self, instance: str, location: str, tokens: Sequence[int]) -> int:
        """Keep a prompt from being evicted there, for as long as the instance's `pin_timeout_sec` says. Returns the tokens that
        are pinned."""
        body = {"instance_id": instance, "location": location, "tokens": tokens}
        return (await self._ask("/pin", body, _TokensAnswer)).num_tokens

    async def move(self, source: tuple[str, str], target: tuple[str, str], tokens: Sequence[int], *, copy: bool) -> int:
        """Send a prompt's KV from one (instance, location) to another; `copy`: and keep it here. Returns the tokens that are on
        their way. The name of `copy` on the wire has changed between releases, which ignore the other."""
        body = {"old_position": source, "new_position": target, "tokens": tokens, "copy": copy, "should_copy": copy}
        return (await self._ask("/move", body, _TokensAnswer)).num_tokens

    async def clear(self, instance: str, location: str) -> int:
        """Forget everything that an instance holds at a location, whoever's it is. Returns the tokens that are gone."""
        return (await self._ask("/clear", {"instance_id": instance, "location": location}, _TokensAnswer)).num_tokens

    async def health(self, instance: str) -> dict[int, int]:
        """Error codes of an instance's ranks, as they answer the controller now; 0: well. Empty: it has none."""
        answer = await self._ask("/health", {"instance_id": instance}, _HealthAnswer)
        if answer.error_codes is not None:
            return answer.error_codes
        if answer.error_code is not None:
            return {0: answer.error_code}
        raise ControllerError("/health: the answer has no error codes")

    async def ranks(self, instance: str = EVERYBODY) -> tuple[Rank, ...]:
        """Who is registered. Releases that do not know `EVERYBODY` answer it with nobody."""
        answer = await self._ask("/query_worker_info", {"instance_id": instance}, _RanksAnswer)
        return tuple(
            Rank(
                instance=each.instance_id,
                rank=each.worker_id,
                address=f"{each.ip}:{each.port}",
                heartbeat_s=each.last_heartbeat_time,
            )
            for each in answer.worker_infos
        )

    async def _ask(self, path: str, body: Any, kind: type[Answer]) -> Answer:
        try:
            async with self._session.post(
                self.url + path,
                data=msgspec.json.encode(body),
                headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                allow_redirects=False,
            ) as response:
                status, answer = response.status, await read_whole(response, self._max_bytes)
        except TimeoutError:
            raise ControllerError(f"{path}: no answer within {self._timeout_s:g} s") from None
        except EngineError as error:
            raise ControllerError(f"{path}: {error}") from None
        except FAULTS as error:
            raise ControllerError(f"{path}: {fault(error).replace('the engine', 'the controller')}") from None
        if status != 200:
            raise ControllerError(f"{path}: status {status}", _detail(answer))
        try:
            return msgspec.json.decode(answer, type=kind)
        except (*NOT_JSON, msgspec.ValidationError):
            raise ControllerError(f"{path}: the answer is not one of LMCache's controller") from None


def _detail(body: bytes) -> str:
    """FastAPI's word about an error, where it is a plain one."""
    try:
        answer = msgspec.json.decode(body)
    except NOT_JSON:
        return ""
    detail = answer.get("detail") if isinstance(answer, dict) else None
    return detail[:_MAX_DETAIL_CHARS] if isinstance(detail, str) and detail.isprintable() else ""
