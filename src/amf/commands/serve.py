"""`amf serve`: the gateway on this machine, until it is stopped."""

import asyncio
import dataclasses
import errno
import gc
import logging
import math
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from amf.config import LOG_LEVELS, ConfigError, ServeConfig, WorkerConfig, check_worker, load_config
from amf.core.policy.bundles import live_policies_named
from amf.gateway.logs import configure_logging
from amf.gateway.service import Gateway, running_gateway

if sys.platform == "win32":
    _new_loop = asyncio.new_event_loop
else:
    import uvloop

    _new_loop = uvloop.new_event_loop

_USAGE_ERROR = 2


@dataclasses.dataclass(frozen=True, slots=True)
class _Overrides:
    """What the command line says over the configuration file; None where it says nothing."""

    policy: str | None
    host: str | None
    port: int | None
    time_scale: float | None
    journal: Path | None
    record: Path | None
    profiles: Path | None
    log_level: str | None


def serve(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="A fabric.toml; not needed.")] = None,
    worker: Annotated[list[str] | None, typer.Option("--worker", help="URL of an engine; may be repeated.")] = None,
    policy: Annotated[str | None, typer.Option(help="How calls are placed and ordered.  [default: fabric]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes any free one.  [default: 8080]")] = None,
    time_scale: Annotated[float | None, typer.Option(help="Modelled seconds per second, for emulated fleets.")] = None,
    journal: Annotated[Path | None, typer.Option(help="Write events and decisions to this file.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="Record the traffic, without its text, for `amf simulate`; .gz is compressed.")
    ] = None,
    profiles: Annotated[
        Path | None, typer.Option(help="Keep what is learned of lengths and times in this file, over restarts.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.  [default: info]")] = None,
) -> None:
    """Serve agent pipelines on a fleet of engines, through one OpenAI-compatible address.

    Example: amf serve --worker http://10.0.0.5:8000 --worker http://10.0.0.6:8000 --port 8080

    Then: export OPENAI_BASE_URL=http://127.0.0.1:8080/v1
    """
    overrides = _Overrides(policy, host, port, time_scale, journal, record, profiles, log_level)
    try:
        settings = _settings(config, worker or [], overrides)
        configure_logging(settings.server.log_level)
        live_policies_named(settings.policy)
    except ValueError as error:
        _fail(str(error))
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        try:
            runner.run(_serve(settings))
        except ValueError as error:
            _fail(str(error))
        except OSError as error:
            _fail(_why_not(error, settings))


def _settings(path: Path | None, urls: list[str], overrides: _Overrides) -> ServeConfig:
    """Raises ConfigError."""
    config = load_config(path) if path is not None else ServeConfig()
    said = {
        name: value
        for name in ("host", "port", "time_scale", "log_level")
        if (value := getattr(overrides, name)) is not None
    }
    if not 0 <= said.get("port", 0) <= 65_535:
        raise ConfigError(f"--port is {said['port']}; use 0 (any free port) to 65535")
    if not 0 < said.get("time_scale", 1.0) < math.inf:
        raise ConfigError(f"--time-scale is {said['time_scale']}; use a number above 0")
    if said.get("log_level", "info").lower() not in LOG_LEVELS:
        raise ConfigError(f"--log-level is `{said['log_level']}`; use one of {', '.join(LOG_LEVELS)}")
    known = {entry.url for entry in config.workers}
    added = tuple(WorkerConfig(url=url) for url in dict.fromkeys(urls) if url not in known)
    for worker in added:
        try:
            check_worker(worker)
        except ConfigError as error:
            raise ConfigError(f"--worker: {error}") from error
    journal = config.journal
    if overrides.journal is not None:
        journal = dataclasses.replace(journal, path=str(overrides.journal))
    record = config.record
    if overrides.record is not None:
        record = dataclasses.replace(record, path=str(overrides.record))
    profiles = config.profiles
    if overrides.profiles is not None:
        profiles = dataclasses.replace(profiles, path=str(overrides.profiles))
    return dataclasses.replace(
        config,
        policy=overrides.policy or config.policy,
        server=dataclasses.replace(config.server, **said),
        workers=(*config.workers, *added),
        journal=journal,
        record=record,
        profiles=profiles,
    )


def _settle_memory() -> None:
    """What stands now lives as long as the process, and requests leave no cyclic garbage: looking for it after every 700 net
    allocations, as Python does by default, took a tenth of the CPU. What little there is can wait for 10,000."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _serve(config: ServeConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop.set)
    async with running_gateway(config) as gateway:
        _announce(gateway)
        _settle_memory()
        await stop.wait()
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)  # a second signal ends the process at once
        logging.getLogger("amf.serve").info("stopping", extra={"open_calls": gateway.driver.open_calls()})


def _announce(gateway: Gateway) -> None:
    names = gateway.fleet.names()
    if not sys.stdout.isatty():
        print(f"amf serve: listening on {gateway.url} policy={gateway.config.policy} workers={len(names)}", flush=True)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("worker", "model", "health", "KV tokens"):
        table.add_column(column)
    for name in names:
        about = gateway.fleet.describe(name)
        tokens = f"{about['kv_tokens']:,}" if about["kv_tokens"] else "?"
        health = about["status"] + (f" ({about['reason']})" if about["reason"] else "")
        table.add_row(name, about["pool"] or "?", health, tokens)
    console = Console()
    title = f"amf serve: listening on {gateway.url}  policy={gateway.config.policy}"
    console.print(Panel(table if names else "no workers yet: POST them to /amf/v1/workers", title=title, expand=False))
    console.print(f"export OPENAI_BASE_URL={gateway.url}/v1", style="bold")


def _why_not(error: OSError, config: ServeConfig) -> str:
    host, port = config.server.host, config.server.port
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what listens there, or choose another --port (0: any free one)"
    if error.errno in (errno.EACCES, errno.EADDRNOTAVAIL):
        return f"cannot listen on {host}:{port} ({error.strerror}): choose another --host or --port"
    return f"cannot start: {error}"


def _fail(message: str) -> NoReturn:
    print(f"amf serve: {message}", file=sys.stderr)
    raise typer.Exit(_USAGE_ERROR)
