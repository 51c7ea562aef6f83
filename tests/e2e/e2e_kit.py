"""For the end-to-end tests: a real gateway before real emulators, in this process or as processes of their own; what the
fabric was told and decided; what the workers counted themselves."""

import asyncio
import os
import re
import select
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

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
_START_LIMIT_S = 60.0
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
    they listen. Blocks until then: what they need to start must not run on the caller's event loop. All are killed at the
    end."""
    with ExitStack() as stack:
        started = [stack.enter_context(_process(command)) for command in commands]
        yield [Process(popen, _announced_url(popen, errors)) for popen, errors in started]


@contextmanager
def _process(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(
            [*AMF, *command], stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        ) as popen,
    ):
        try:
            yield popen, errors
        finally:
            popen.kill()


def _announced_url(popen: subprocess.Popen[str], errors: IO[str]) -> str:
    assert popen.stdout is not None
    ready, _, _ = select.select([popen.stdout], [], [], _START_LIMIT_S)
    line = popen.stdout.readline() if ready else ""
    match = re.search(r"http://127\.0\.0\.1:\d+", line)
    if match is None:
        errors.seek(0)
        raise AssertionError(f"{popen.args} said {line!r} and {errors.read()!r}")
    return match.group()


def samples(url: str) -> dict[str, float]:
    """A worker's own metrics by name, without its histograms' buckets."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        text = response.read().decode()
    found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {each.name: each.value for each in found if "le" not in each.labels}


def counters(*urls: str) -> dict[str, int]:
    """The workers' own token counters, summed."""
    names = {
        "prompt": "prompt_tokens_total",
        "cached": "prompt_tokens_cached_total",
        "output": "generation_tokens_total",
    }
    counted = [samples(url) for url in urls]
    return {short: round(sum(each[f"vllm:{name}"] for each in counted)) for short, name in names.items()}


def is_idle(url: str) -> bool:
    """Whether the worker says that it has nothing to do."""
    found = samples(url)
    return found["vllm:num_requests_running"] == found["vllm:num_requests_waiting"] == 0


async def workers_counters(emulators: Sequence[Emulator]) -> dict[str, int]:
    """`counters` of emulators in this process."""
    return await asyncio.to_thread(counters, *(each.url for each in emulators))


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
