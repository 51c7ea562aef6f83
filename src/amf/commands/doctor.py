"""`amf doctor`: what is wrong with engines, gateway and prompts, and how to mend it."""

import asyncio
import dataclasses
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from amf.config import ConfigError, ServeConfig, WorkerConfig, check_worker, load_config
from amf.doctor.findings import Finding, count
from amf.doctor.prompts import PromptsError
from amf.doctor.run import Asked, diagnose
from amf.doctor.show import show
from amf.sim.scenario import ScenarioError
from amf.simulate.run import check_writable
from amf.workers.listing import GatewayError, gateway_url
from amf.workers.show import console_for

_FOUND = 1
_MISUSE = 2

_Config = Annotated[Path | None, typer.Option("--config", "-c", help="Examine the workers of this fabric.toml.")]
_Worker = Annotated[list[str] | None, typer.Option("--worker", help="URL of an engine; may be repeated.")]
_Gateway = Annotated[
    str | None, typer.Option(help="A running gateway; sends it one call of one token to see which headers pass.")
]
_ApiKey = Annotated[str | None, typer.Option(envvar="AMF_API_KEY", help="Key of the gateway, if it wants one.")]
_Probe = Annotated[
    bool,
    typer.Option("--probe", help="Send each engine some ten calls of one token, and the gateway four: they show more."),
]
_Prompts = Annotated[
    Path | None, typer.Option(help="JSON lines of chat request bodies; read here, nothing of them is shown or kept.")
]
_JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the findings here.")]


def doctor(
    config: _Config = None,
    worker: _Worker = None,
    gateway: _Gateway = None,
    prompts: _Prompts = None,
    probe: _Probe = False,
    api_key: _ApiKey = None,
    json_file: _JsonFile = None,
) -> None:
    """Examine engines, a gateway and prompts: what was seen, whether it is as it should be, and what to change.

    Ends with 0 if nothing fails, with 1 if something does, with 2 if it was asked wrongly.

    Example: amf doctor -c fabric.toml --probe

    Example: amf doctor --worker http://10.0.0.5:8000 --worker http://10.0.0.6:8000

    Example: amf doctor --gateway http://127.0.0.1:8080 --prompts requests.jsonl --json findings.json
    """
    try:
        check_writable(("--json", json_file))
        settings = load_config(config) if config is not None else ServeConfig()
        asked = Asked(
            workers=_workers(settings, worker or []),
            pools=settings.pools,
            residency=settings.residency,
            gateway=gateway_url(gateway) if gateway is not None else None,
            api_key=api_key,
            probe=probe,
            prompts=prompts,
        )
        if not asked.workers and asked.gateway is None and prompts is None:
            raise ConfigError(
                "there is nothing to examine: give --worker URL, -c fabric.toml, --gateway URL or --prompts FILE"
            )
        with _waiting():
            findings = asyncio.run(diagnose(asked))
    except (ConfigError, ScenarioError, GatewayError, PromptsError) as error:
        typer.echo(f"amf doctor: {error}", err=True)
        raise typer.Exit(_MISUSE) from None
    show(findings, console_for(Console()))
    if json_file is not None:
        json_file.write_text(json.dumps(_report(findings), indent=1) + "\n", encoding="utf-8")
        typer.echo(f"report: {json_file}")
    if count(findings)["fail"]:
        raise typer.Exit(_FOUND)


def _waiting() -> AbstractContextManager[Any]:
    """Something that moves, where somebody looks."""
    console = Console(stderr=True)
    return console.status("examining ...") if console.is_terminal else nullcontext()


def _workers(settings: ServeConfig, urls: list[str]) -> tuple[WorkerConfig, ...]:
    """Raises ConfigError."""
    added = tuple(WorkerConfig(url=url) for url in urls)
    for each in added:
        try:
            check_worker(each)
        except ConfigError as error:
            raise ConfigError(f"--worker: {error}") from error
    return (*settings.workers, *added)


def _report(findings: list[Finding]) -> dict[str, Any]:
    return {"counts": count(findings), "findings": [dataclasses.asdict(finding) for finding in findings]}
