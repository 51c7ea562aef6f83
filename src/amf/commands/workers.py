"""`amf workers`: the workers of a running gateway, what each lacks, and which could share KV memory."""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from amf.sim.scenario import ScenarioError
from amf.simulate.run import check_writable
from amf.workers.kin import families_of
from amf.workers.lacks import lacks_of
from amf.workers.listing import DEFAULT_GATEWAY, GatewayError, gateway_url, list_workers
from amf.workers.show import console_for, show

_MISUSE = 2

_Gateway = Annotated[str, typer.Option(help="Where `amf serve` listens, with or without /v1.")]
_ApiKey = Annotated[str | None, typer.Option(envvar="AMF_API_KEY", help="Key of the gateway, if it wants one.")]
_JsonFile = Annotated[Path | None, typer.Option("--json", help="Write workers, lacks and families here.")]


def workers(gateway: _Gateway = DEFAULT_GATEWAY, api_key: _ApiKey = None, json_file: _JsonFile = None) -> None:
    """List a gateway's workers: what each is and offers, what takes the place of what it lacks, what the fabric believes
    of it, and which of them could read each other's KV memory.

    Example: amf workers

    Example: amf workers --gateway http://10.0.0.9:8080 --json workers.json
    """
    try:
        check_writable(("--json", json_file))
        listed = asyncio.run(list_workers(gateway_url(gateway), api_key))
    except (GatewayError, ScenarioError) as error:
        typer.echo(f"amf workers: {error}", err=True)
        raise typer.Exit(_MISUSE) from None
    show(listed, console_for(Console()))
    if json_file is not None:
        json_file.write_text(json.dumps(_report(listed), indent=1) + "\n", encoding="utf-8")
        typer.echo(f"report: {json_file}")


def _report(listed: list[dict[str, Any]]) -> dict[str, Any]:
    families, apart = families_of(listed)
    return {
        "workers": listed,
        "lacks": [dataclasses.asdict(lack) for lack in lacks_of(listed)],
        "families": [list(family.workers) for family in families],
        "apart": [
            {"one": each.one, "other": each.other, "grade": each.match.grade, "reasons": list(each.match.reasons)}
            for each in apart
        ],
    }
