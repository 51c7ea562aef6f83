"""For the end-to-end tests: a real gateway before real emulators, in this process or as processes of their own; what the
fabric was told and decided; what the workers counted themselves."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from amf.config import JournalConfig, LimitsConfig, ServeConfig, ServerConfig, WorkerConfig
from amf.core.config import FabricConfig
from amf.core.decisions import Decision, Dispatch
from amf.core.events import CallArrived, CallFailed, CallFinished, Event, FirstToken
from amf.core.fabric import Fabric
from amf.core.policy.bundles import policies_named
from amf.emulator import Emulator, EmulatorConfig, running
from amf.gateway.service import Gateway, running_gateway

ROOT = Path(__file__).parents[2]
AMF = (sys.executable, "-m", "amf")
MODEL = "llama-3.1-8b"
QUICK = LimitsConfig(wait_s=30.0, health_interval_s=0.1, observe_interval_s=0.2, retry_min_s=0.05, retry_max_s=0.1)


@dataclass
class Watched:
    """The real fabric, with everything it was told and decided kept for the test."""

    inner: Fabric
    told: list[tuple[Event, list[Decision]]] = field(default_factory=list)

    def handle(self, event: Event) -> list[Decision]:
        decisions = self.inner.handle(event)
        self.told.append((event, decisions))
        return decisions

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def dispatches(self) -> list[Dispatch]:
        return [each for _, decisions in self.told for each in decisions if isinstance(each, Dispatch)]

    def events(self, kind: type[Event], call_id: str = "") -> list[Any]:
        found = (event for event, _ in self.told if isinstance(event, kind))
        return [event for event in found if not call_id or getattr(event, "call_id", "") == call_id]

    def calls_of(self, run_id: str) -> list[str]:
        return [event.call.call_id for event in self.events(CallArrived) if event.call.run_id == run_id]

    def workers_of(self, call_id: str) -> list[str]:
        """Where each attempt of the call went."""
        return [each.worker for each in self.dispatches() if each.call_id == call_id]

    def has_begun(self, call_id: str) -> bool:
        return bool(self.events(FirstToken, call_id))

    def ends(self, call_id: str) -> list[CallFinished | CallFailed]:
        return [*self.events(CallFinished, call_id), *self.events(CallFailed, call_id)]


@dataclass(frozen=True)
class House:
    """A gateway and the emulators behind it, all in this process."""

    gateway: Gateway
    fabric: Watched
    emulators: list[Emulator]

    @property
    def url(self) -> str:
        return f"{self.gateway.url}/v1"

    def count(self, name: str, **labels: str) -> float:
        """A sample of the gateway's own metrics; 0 while there is none."""
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0

    def requests(self, route: str = "/v1/chat/completions") -> dict[int, int]:
        """How many requests the gateway has answered on a route, by status."""
        samples = [s for family in self.gateway.metrics.registry.collect() for s in family.samples]
        wanted = (s for s in samples if s.name == "amf_requests_total" and s.labels["route"] == route)
        return {int(s.labels["status"]): round(s.value) for s in wanted}


def serve_config(urls: Sequence[str], *, time_scale: float, journal: Path | None = None, **more: Any) -> ServeConfig:
    """A gateway on a free port before these workers, named w0, w1, ..."""
    limits = more.pop("limits", QUICK)
    server = {"port": 0, "time_scale": time_scale, "shutdown_grace_s": 1.0, **more.pop("server", {})}
    return ServeConfig(
        server=ServerConfig(**server),
        workers=tuple(
            WorkerConfig(url=url, name=f"w{i}", gpu="h200", weights="fp8", kv="fp8") for i, url in enumerate(urls)
        ),
        journal=JournalConfig(path=str(journal) if journal else None),
        limits=limits,
        **more,
    )


@asynccontextmanager
async def gateway_before(config: ServeConfig) -> AsyncIterator[tuple[Gateway, Watched]]:
    watched = Watched(Fabric(config.fabric, policies_named(config.policy)))
    async with running_gateway(config, watched) as gateway:
        yield gateway, watched


@asynccontextmanager
async def house(*workers: EmulatorConfig, fabric: FabricConfig | None = None, **more: Any) -> AsyncIterator[House]:
    """The gateway runs at the workers' time scale."""
    async with AsyncExitStack() as stack:
        emulators = [await stack.enter_async_context(running(config)) for config in workers]
        config = serve_config(
            [each.url for each in emulators],
            time_scale=workers[0].time_scale,
            fabric=fabric or FabricConfig(),
            **more,
        )
        gateway, watched = await stack.enter_async_context(gateway_before(config))
        yield House(gateway, watched, emulators)


@dataclass(frozen=True)
class Process:
    popen: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(timeout=10)

    def is_group_gone(self) -> bool:
        """Whether neither the process nor anything it started is left."""
        try:
            os.killpg(self.popen.pid, 0)
        except ProcessLookupError:
            return True
        return False


@contextmanager
def processes(*commands: Sequence[str]) -> Iterator[list[Process]]:
    """`amf` with each of these arguments, started together, each in a group of its own; ready when they have said where
    they listen. All are killed at the end."""
    running = [
        subprocess.Popen(
            [*AMF, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        yield [Process(each, _announced_url(each)) for each in running]
    finally:
        for each in running:
            if each.poll() is None:
                each.kill()
            each.wait(timeout=10)
            assert each.stdout is not None
            each.stdout.close()


def _announced_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()  # ends with the process if it cannot start
    match = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert match, f"{process.args} said {line!r}"
    return match.group()


def counters(url: str) -> dict[str, int]:
    """A worker's own token counters, from its /metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        text = response.read().decode()
    samples = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    names = {"prompt": "vllm:prompt_tokens_total", "cached": "vllm:prompt_tokens_cached_total"}
    return {short: round(samples[name]) for short, name in {**names, "output": "vllm:generation_tokens_total"}.items()}


def summed(many: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(each[name] for each in many) for name in ("prompt", "cached", "output")}


async def until(fact: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Wait for what another task or process will bring about. Raises TimeoutError."""
    async with asyncio.timeout(limit_s):
        while not fact():
            await asyncio.sleep(0.005)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def wait_until(fact: Callable[[], bool], limit_s: float = 20.0) -> None:
    """As `until`, where there is no event loop."""
    ends_s = time.monotonic() + limit_s
    while not fact():
        assert time.monotonic() < ends_s, "it did not come about"
        time.sleep(0.005)


def is_at_rest(fabric: Watched, gateway: Gateway) -> bool:
    """Nothing is open, waiting, running, reserved."""
    totals = fabric.totals()
    workers = fabric.worker_reports()
    fabric.check_invariants()
    return (
        gateway.driver.open_calls() == 0
        and not +gateway.driver.in_flight
        and totals["live_calls"] == 0
        and not any(totals["waiting"].values())
        and all(w["running"] == w["committed_tokens"] == w["cold_prefills"] == 0 for w in workers)
    )
