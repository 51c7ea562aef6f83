"""What `amf cache` can ask of the controller. Each order gives a report: plain data, for people (`show.py`) and for scripts."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from amf.cache.prompt import tokens_of
from amf.config import ConfigError, ServeConfig, check_url
from amf.engines.http import open_session
from amf.engines.lmcache import EVERYBODY, HOST_MEMORY, Controller, ControllerError
from amf.gateway.profiles import name_of

DEFAULT_LOCATION = HOST_MEMORY
_TIMEOUT_S = 60.0  # moving a long prompt takes its time


class OrderFailed(Exception):
    """The controller did not answer, or refused; the message says what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where something lies: an instance, and LMCache's name for a store in it."""

    instance: str
    location: str = DEFAULT_LOCATION


Report = dict[str, Any]
Order = Callable[[Controller, list[int]], Awaitable[Report]]


async def carry_out(config: ServeConfig, url: str | None, prompt: bytes | None, order: Order) -> Report:
    """`prompt` None: the order is about none. Raises ConfigError, PromptError, OrderFailed."""
    url = url or config.residency.url
    if url is None:
        raise ConfigError("there is no controller to ask: give --url, or -c with [residency] url")
    check_url(url)
    async with open_session() as session:
        tokens = await tokens_of(prompt, config, session) if prompt is not None else []
        try:
            return await order(Controller(url, session, timeout_s=_TIMEOUT_S), tokens)
        except ControllerError as error:
            detail = f" ({error.detail})" if error.detail else ""
            raise OrderFailed(f"{url}{error}{detail}; `amf cache instances` shows who is registered there") from error


def looking_up(config: ServeConfig) -> Order:
    workers = _workers(config)

    async def order(controller: Controller, tokens: list[int]) -> Report:
        found = await controller.lookup(tokens)
        held = [
            {**asdict(each), "tier": str(each.tier), "workers": workers.get(each.instance, [])} for each in found.held
        ]
        return {"prompt_tokens": len(tokens), "longest_tokens": found.longest_tokens, "held": held}

    return order


def listing(config: ServeConfig) -> Order:
    """Who is registered. Releases that cannot list everybody are asked about the configured instances one by one."""
    workers = _workers(config)

    async def order(controller: Controller, _: list[int]) -> Report:
        ranks = await controller.ranks(EVERYBODY)
        if not ranks:
            ranks = tuple([rank for name in workers for rank in await controller.ranks(name)])
        known = [{**asdict(rank), "workers": workers.get(rank.instance, [])} for rank in ranks]
        missing = sorted(set(workers) - {rank.instance for rank in ranks})
        return {"ranks": known, "missing": missing}

    return order


def pinning(place: Place) -> Order:
    async def order(controller: Controller, tokens: list[int]) -> Report:
        pinned = await controller.pin(place.instance, place.location, tokens)
        return {**asdict(place), "prompt_tokens": len(tokens), "pinned_tokens": pinned}

    return order


def moving(source: Place, target: Place, *, copy: bool) -> Order:
    async def order(controller: Controller, tokens: list[int]) -> Report:
        here, there = (source.instance, source.location), (target.instance, target.location)
        moved = await controller.move(here, there, tokens, copy=copy)
        ends = {"source": asdict(source), "target": asdict(target), "copy": copy}
        return {**ends, "prompt_tokens": len(tokens), "moved_tokens": moved}

    return order


def clearing(place: Place) -> Order:
    async def order(controller: Controller, _: list[int]) -> Report:
        return {**asdict(place), "cleared_tokens": await controller.clear(place.instance, place.location)}

    return order


def _workers(config: ServeConfig) -> dict[str, list[str]]:
    """Instance -> the workers that are configured as it."""
    names: dict[str, list[str]] = {}
    for worker in config.workers:
        if worker.lmcache_instance:
            names.setdefault(worker.lmcache_instance, []).append(name_of(worker))
    return names
