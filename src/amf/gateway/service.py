"""The gateway put together: one process, one event loop, one fabric."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from amf.config import ConfigError, ServeConfig
from amf.core.fabric import Fabric
from amf.core.policy.bundles import live_policies_named
from amf.core.state.profiles import Profiles
from amf.engines.lmcache import Controller
from amf.gateway.app import Surface
from amf.gateway.auth import Keys
from amf.gateway.belief_metrics import BeliefCollector
from amf.gateway.clock import Clock
from amf.gateway.control import Control
from amf.gateway.derive import DerivedRuns
from amf.gateway.driver import Driver
from amf.gateway.exact import encoder_for
from amf.gateway.explain import Explained
from amf.gateway.fleet import Fleet
from amf.gateway.forward import Forwarder, ForwardLimits
from amf.gateway.graphs import Graphs
from amf.gateway.intake import Intake
from amf.gateway.journal import JournalWriter
from amf.gateway.learned import ProfileKeeper, load_profiles
from amf.gateway.lines import LineWriter
from amf.gateway.logs import HTTP_LOGGER
from amf.gateway.metrics import Metrics
from amf.gateway.pools import Pools
from amf.gateway.problem import Problem
from amf.gateway.promises import Promises
from amf.gateway.record import Recorder
from amf.gateway.residency import Residency

_LAST_WORDS_S = 1.0  # after the grace, to tell clients that their calls are over
_MAX_HEAD_BYTES = 64 * 1024  # of a request's first line, and of each header


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that listens at `url`."""

    url: str
    config: ServeConfig
    fabric: Any
    driver: Driver
    fleet: Fleet
    metrics: Metrics


@asynccontextmanager
async def running_gateway(config: ServeConfig, fabric: Any = None) -> AsyncIterator[Gateway]:
    """Serve until the context is left: then accept nothing new, let what runs finish for `shutdown_grace_s`, and close.

    Port 0 takes any free port. `fabric` stands in for the real one in tests. Raises OSError if the port, the journal, the
    recording or the file of profiles cannot be opened, ValueError for an unknown policy, damaged profiles, unusable workers
    or an unusable tokenizer.
    """
    limits, server = config.limits, config.server
    policies = live_policies_named(config.policy)
    profiles = load_profiles(Path(config.profiles.path), config.fabric) if config.profiles.path is not None else None
    fabric = fabric or Fabric(config.fabric, policies, profiles)
    clock, metrics = Clock(server.time_scale), Metrics(config.slo.max_positions)
    metrics.registry.register(BeliefCollector(fabric.worker_reports))
    pools, graphs = Pools(), Graphs()
    promises = Promises(config.slo, clock, metrics.slo, fabric.is_live, config.fabric.max_live_pipelines)
    explained = Explained(limits.explain_entries)
    async with AsyncExitStack() as stack:
        if profiles is not None:
            _keep_profiles(config, profiles, stack)
        journal, recorder = _open_journal(config, profiles, stack), _open_recorder(config, stack)
        listeners = [promises.ended] if recorder is None else [promises.ended, recorder.ended]
        driver = Driver(fabric, clock, metrics, explained, journal, listeners)
        stack.callback(driver.stop)
        fleet = await stack.enter_async_context(Fleet(driver, pools, metrics, limits))
        for name, pool in config.pools.items():
            pools.set_encoder(name, encoder_for(pool.tokenizer, name, fleet))
        pools.inquirer = _open_residency(config, fleet, driver, metrics, stack)
        derived = DerivedRuns(limits.derived_runs, limits.derived_idle_s)
        intake = Intake(pools, graphs, clock, derived, fabric.known_hops, promises)
        forward_limits = ForwardLimits(
            wait_s=limits.wait_s, upload_s=limits.upload_s, max_buffered_bytes=limits.max_buffered_bytes
        )
        forwarder = Forwarder(intake, driver, fleet, metrics, forward_limits)
        keys = Keys(server.api_keys, server.trusted_keys)
        surface = Surface(
            forwarder=forwarder,
            control=Control(driver=driver, fleet=fleet, reports=fabric, graphs=graphs, explained=explained, keys=keys),
            pools=pools,
            fleet=fleet,
            metrics=metrics,
            promises=promises,
            clock=clock,
            keys=keys,
        )
        port = await _listen(surface.app(server.max_body_bytes), config, stack, driver)
        try:
            await asyncio.gather(*(fleet.add(worker) for worker in config.workers))
        except Problem as problem:
            raise ConfigError(problem.message) from problem
        host = f"[{server.host}]" if ":" in server.host else server.host
        yield Gateway(f"http://{host}:{port}", config, fabric, driver, fleet, metrics)


def _open_residency(
    config: ServeConfig, fleet: Fleet, driver: Driver, metrics: Metrics, stack: AsyncExitStack
) -> Residency | None:
    options = config.residency
    if options.url is None:
        return None
    controller = Controller(options.url, fleet.session, timeout_s=options.timeout_s)
    residency = Residency(options, controller, fleet, driver, metrics)
    stack.push_async_callback(residency.close)
    return residency


def _keep_profiles(config: ServeConfig, profiles: Profiles, stack: AsyncExitStack) -> None:
    """Save now and then; on leaving `stack`, once more."""
    assert config.profiles.path is not None
    keeper = ProfileKeeper(Path(config.profiles.path), profiles, config.profiles.save_interval_s)
    stack.callback(keeper.close)
    _in_background(keeper.save_forever(), stack)


def _open_journal(config: ServeConfig, profiles: Profiles | None, stack: AsyncExitStack) -> JournalWriter | None:
    if config.journal.path is None:
        return None
    writer = JournalWriter(
        Path(config.journal.path),
        config.fabric,
        config.policy,
        profiles=profiles,
        flush_interval_s=config.journal.flush_interval_s,
        max_buffer_bytes=config.journal.max_buffer_bytes,
    )
    _keep_writing(writer.lines, stack)
    return writer


def _open_recorder(config: ServeConfig, stack: AsyncExitStack) -> Recorder | None:
    if config.record.path is None:
        return None
    recorder = Recorder(
        Path(config.record.path),
        config.policy,
        flush_interval_s=config.record.flush_interval_s,
        max_buffer_bytes=config.record.max_buffer_bytes,
    )
    _keep_writing(recorder.lines, stack)
    return recorder


def _keep_writing(lines: LineWriter[Any], stack: AsyncExitStack) -> None:
    """Flush now and then; on leaving `stack`, write the rest and close."""
    stack.callback(lines.close)
    _in_background(lines.flush_forever(), stack)


def _in_background(work: Coroutine[Any, Any, None], stack: AsyncExitStack) -> None:
    """Until `stack` is left."""
    task = asyncio.create_task(work)

    async def stop() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(stop)


async def _listen(app: web.Application, config: ServeConfig, stack: AsyncExitStack, driver: Driver) -> int:
    """Returns the port. On leaving `stack` what runs may finish within the grace; what then still runs is told so."""
    grace_s = config.server.shutdown_grace_s
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=logging.getLogger(HTTP_LOGGER),
        handler_cancellation=True,
        shutdown_timeout=grace_s + _LAST_WORDS_S,
        max_line_size=_MAX_HEAD_BYTES,
        max_field_size=_MAX_HEAD_BYTES,
    )
    await runner.setup()

    async def close() -> None:
        problem = Problem(
            503, "shutting_down", "The gateway stops: try again.", "service_unavailable_error", retry=True
        )
        timer = asyncio.get_running_loop().call_later(grace_s, driver.end_all, problem)
        await runner.cleanup()
        timer.cancel()

    stack.push_async_callback(close)
    site = web.TCPSite(runner, config.server.host, config.server.port)
    await site.start()
    port: int = runner.addresses[0][1]
    return port
