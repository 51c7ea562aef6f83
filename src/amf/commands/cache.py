"""`amf cache`: what LMCache holds below the engines' KV memory, and orders about it, by hand."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from amf.cache.orders import (
    DEFAULT_LOCATION,
    Order,
    OrderFailed,
    Place,
    carry_out,
    clearing,
    listing,
    looking_up,
    moving,
    pinning,
)
from amf.cache.prompt import PromptError
from amf.cache.show import show_instances, show_lookup
from amf.config import ConfigError, ServeConfig, load_config
from amf.sim.scenario import ScenarioError
from amf.simulate.run import check_writable
from amf.workers.show import console_for

Result = TypeVar("Result")

_FAILED = 1
_MISUSE = 2

cache = typer.Typer(
    help="Ask LMCache's controller what lies below the engines' KV memory, and give it orders: pin, move, clear. "
    "The gateway itself only asks; see docs/engines.md.",
    no_args_is_help=True,
)

_Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="A fabric.toml: its residency url, pools and workers."),
]
_Url = Annotated[str | None, typer.Option(help="The controller, in place of the residency url of the fabric.toml.")]
_Prompt = Annotated[
    typer.FileBinaryRead,
    typer.Option(
        "--prompt",
        help="A JSON list of token ids, or a request's body, tokenised as [pools] says. - is standard input.",
    ),
]
_Instance = Annotated[str, typer.Option(help="An lmcache_instance_id.")]
_Location = Annotated[str, typer.Option(help="LMCache's name of a store in it, as LocalDiskBackend.")]
_JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the answer here.")]


@cache.command()
def instances(config: _Config = None, url: _Url = None, json_file: _JsonFile = None) -> None:
    """List the instances that are registered, and those that are configured and are not.

    Example: amf cache instances -c fabric.toml
    """
    settings = _settings(config)
    report = _run(settings, url, None, listing(settings), json_file)
    show_instances(report, console_for(Console()))


@cache.command()
def lookup(prompt: _Prompt, config: _Config = None, url: _Url = None, json_file: _JsonFile = None) -> None:
    """Say which instances hold how much of a prompt, and where.

    Example: amf cache lookup -c fabric.toml --prompt request.json

    Example: echo '[1, 15043, 3186]' | amf cache lookup --url http://10.0.0.9:9000 --prompt -
    """
    settings = _settings(config)
    report = _run(settings, url, prompt.read(), looking_up(settings), json_file)
    show_lookup(report, console_for(Console()))


@cache.command()
def pin(
    prompt: _Prompt,
    instance: _Instance,
    location: _Location = DEFAULT_LOCATION,
    config: _Config = None,
    url: _Url = None,
    json_file: _JsonFile = None,
) -> None:
    """Keep a prompt from being evicted, for the instance's pin_timeout_sec (300 s unless it says otherwise).

    Example: amf cache pin -c fabric.toml --prompt system.json --instance node-1
    """
    place = Place(instance=instance, location=location)
    report = _run(_settings(config), url, prompt.read(), pinning(place), json_file)
    typer.echo(f"pinned {report['pinned_tokens']:,} of {report['prompt_tokens']:,} tokens in {instance} {location}")


@cache.command()
def move(
    prompt: _Prompt,
    instance: _Instance,
    to: Annotated[str, typer.Option(help="The instance that is to have it.")],
    location: _Location = DEFAULT_LOCATION,
    to_location: Annotated[str, typer.Option(help="The store there.")] = DEFAULT_LOCATION,
    copy: Annotated[bool, typer.Option("--copy", help="And keep it where it is.")] = False,
    config: _Config = None,
    url: _Url = None,
    json_file: _JsonFile = None,
) -> None:
    """Send a prompt's KV from one instance to another, as before a worker is drained.

    Example: amf cache move -c fabric.toml --prompt system.json --instance node-1 --to node-2 --copy
    """
    source, target = Place(instance=instance, location=location), Place(instance=to, location=to_location)
    report = _run(_settings(config), url, prompt.read(), moving(source, target, copy=copy), json_file)
    did = "copied" if copy else "moved"
    typer.echo(
        f"{did} {report['moved_tokens']:,} of {report['prompt_tokens']:,} tokens from {instance} {location} "
        f"to {to} {to_location}"
    )


@cache.command()
def clear(
    instance: _Instance,
    location: _Location = DEFAULT_LOCATION,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: _Config = None,
    url: _Url = None,
    json_file: _JsonFile = None,
) -> None:
    """Forget everything that an instance holds in a store, whoever's it is.

    Example: amf cache clear -c fabric.toml --instance node-1 --yes
    """
    if not yes:
        typer.confirm(f"Forget all that {instance} holds in {location}?", abort=True)
    report = _run(_settings(config), url, None, clearing(Place(instance=instance, location=location)), json_file)
    typer.echo(f"cleared {report['cleared_tokens']:,} tokens in {instance} {location}")


def _settings(config: Path | None) -> ServeConfig:
    return _or_exit(lambda: load_config(config) if config is not None else ServeConfig())


def _run(
    settings: ServeConfig, url: str | None, prompt: bytes | None, order: Order, json_file: Path | None
) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        check_writable(("--json", json_file))
        return asyncio.run(carry_out(settings, url, prompt, order))

    report = _or_exit(run)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"report: {json_file}")
    return report


def _or_exit(do: Callable[[], Result]) -> Result:
    try:
        return do()
    except OrderFailed as error:
        typer.echo(f"amf cache: {error}", err=True)
        raise typer.Exit(_FAILED) from None
    except (ConfigError, PromptError, ScenarioError) as error:
        typer.echo(f"amf cache: {error}", err=True)
        raise typer.Exit(_MISUSE) from None
