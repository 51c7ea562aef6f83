"""The demo's machines: emulated workers, and the gateway in front of them under one policy."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from amf.demo.processes import Child, Children
from amf.sim.scenario import PoolSpec

BLOCK_TOKENS = 64
_START_TIMEOUT_S = 60.0
_RESET_TIMEOUT_S = 5.0
_RESET_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One emulated worker that answers at `url`."""

    child: Child
    pool: PoolSpec
    url: str


async def start_workers(
    children: Children, pools: Sequence[PoolSpec], time_scale: float, seed: int
) -> tuple[Machine, ...]:
    """One emulator process a worker, all started at once. Raises ChildError if one does not come up."""
    started = [
        (pool, children.start(f"{pool.model}-{index}", *_emulate(pool, time_scale, seed + index)))
        for pool in pools
        for index in range(pool.workers)
    ]
    urls = await asyncio.gather(*(child.url(_START_TIMEOUT_S) for _, child in started))
    return tuple(Machine(child=child, pool=pool, url=url) for (pool, child), url in zip(started, urls, strict=True))


async def reset(machines: Sequence[Machine]) -> bool:
    """Empty all caches. False if a worker still holds blocks after some seconds."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_RESET_TIMEOUT_S)) as http:
        return all(await asyncio.gather(*(_reset(http, machine.url) for machine in machines)))


async def start_gateway(children: Children, policy: str, config: Path) -> tuple[Child, str]:
    """`amf serve` under `policy` on any free port, and its URL. Raises ChildError."""
    gateway = children.start(f"gateway-{policy}", "serve", "--config", str(config), "--policy", policy, "--port", "0")
    return gateway, await gateway.url(_START_TIMEOUT_S)


def gateway_config(machines: Sequence[Machine], time_scale: float) -> str:
    """A fabric.toml that tells the gateway which hardware the workers stand for."""
    lines = ["[server]", f"time_scale = {time_scale}", 'log_level = "warning"']
    for machine in machines:
        pool = machine.pool
        lines += [
            "[[worker]]",
            f'url = "{machine.url}"',
            f'name = "{machine.child.name}"',
            f'gpu = "{pool.gpu}"',
            f'weights = "{pool.weights}"',
            f'kv = "{pool.kv}"',
        ]
    return "\n".join(lines) + "\n"


def _emulate(pool: PoolSpec, time_scale: float, seed: int) -> list[str]:
    return [
        "emulate",
        *("--port", "0"),
        *("--model", pool.model),
        *("--gpu", pool.gpu),
        *(("--kv-tokens", str(pool.kv_tokens)) if pool.kv_tokens else ()),
        *("--weights", pool.weights),
        *("--kv", pool.kv),
        *("--block-size", str(BLOCK_TOKENS)),
        *("--time-scale", str(time_scale)),
        *("--seed", str(seed)),
        *("--kv-events-port", "0"),
    ]


async def _reset(http: aiohttp.ClientSession, url: str) -> bool:
    """Abandoned requests let go of their blocks a moment after their connection closed, so try for a while."""
    for _ in range(round(_RESET_TIMEOUT_S / _RESET_POLL_S)):
        try:
            async with http.post(f"{url}/reset_prefix_cache") as response:
                if (await response.json()).get("success"):
                    return True
        except (aiohttp.ClientError, TimeoutError):
            return False
        await asyncio.sleep(_RESET_POLL_S)
    return False
