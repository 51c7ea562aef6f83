"""`amf bench`: drive an OpenAI-compatible endpoint with whole pipelines and report what they experienced."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from amf.bench.client import Api, Target
from amf.bench.driver import DriveOptions
from amf.bench.loop import run
from amf.bench.page import Measured, Page, write_page
from amf.bench.remarks import remarks
from amf.bench.requests import Identity
from amf.bench.runner import BenchError, BenchJob, BenchResult, run_bench
from amf.bench.show import show
from amf.sim.in_turn import workload_in_turn
from amf.sim.plan import Workload
from amf.sim.report import write_json
from amf.sim.scenario import PoolSpec, ScenarioError, WorkloadSpec, load_scenario
from amf.sim.workload import build, fleet_of

_INTERRUPTED = 130


_Scenario = Annotated[Path, typer.Argument(help="A scenario file (TOML); docs/scenarios.md describes it.")]
_Target = Annotated[str, typer.Option(help="Base URL of an OpenAI-compatible endpoint, with or without /v1.")]
_Api = Annotated[Api, typer.Option(help="Send prompts as chat messages or as one text.")]
_Identity = Annotated[
    Identity,
    typer.Option(
        help="What pipelines say about themselves: explicit x-amf-* headers, an x-session-id, or nothing. "
        "auto: explicit for declared graphs, a session id for the others, as coding agents send it."
    ),
]
_TimeScale = Annotated[
    float,
    typer.Option(min=0.001, help="For emulated targets that run X times faster than life; reports stay modelled."),
]
_Seconds = Annotated[float | None, typer.Option(min=0, help="Start no pipeline after this many real seconds.")]
_DrainS = Annotated[
    float, typer.Option("--drain-s", min=0, help="Then wait this long for live ones before abandoning them.")
]
_Pipelines = Annotated[int | None, typer.Option(min=1, help="Replaces the scenario's number.")]
_Concurrency = Annotated[int | None, typer.Option(min=1, help="Closed loop with this many live pipelines.")]
_Seed = Annotated[int | None, typer.Option(help="Replaces the scenario's seed.")]
_Label = Annotated[str, typer.Option(help="The policy's name in the report.")]
_ModelMap = Annotated[
    list[str] | None, typer.Option(help="OURS=THEIRS: the target's name for a model. May be repeated.")
]
_Workers = Annotated[
    str, typer.Option(help="URLs of the engines behind the target, comma separated: compare their token counters.")
]
_TimeoutS = Annotated[float, typer.Option("--timeout-s", min=0.1, help="Real seconds for one call.")]
_MaxHolds = Annotated[int, typer.Option(min=0, help="How often a 429 or 503 with retry-after is honoured.")]
_ApiKey = Annotated[str | None, typer.Option(envvar="AMF_API_KEY", help="Bearer token.")]
_JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the report here.")]
_HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write a self-contained page here.")]


def bench(
    scenario: _Scenario,
    target: _Target,
    api: _Api = "chat",
    identity: _Identity = "auto",
    time_scale: _TimeScale = 1.0,
    seconds: _Seconds = None,
    drain_s: _DrainS = 30.0,
    pipelines: _Pipelines = None,
    concurrency: _Concurrency = None,
    seed: _Seed = None,
    label: _Label = "target",
    model_map: _ModelMap = None,
    workers: _Workers = "",
    timeout_s: _TimeoutS = 600.0,
    max_holds: _MaxHolds = 20,
    api_key: _ApiKey = None,
    json_file: _JsonFile = None,
    html_file: _HtmlFile = None,
) -> None:
    """Drive TARGET with the pipelines of SCENARIO.

    Example: amf bench examples/coding-7hop.toml --target http://127.0.0.1:8080 --html report.html
    """
    try:
        workload, fleet = _workload(scenario, pipelines, concurrency, seed)
        job = BenchJob(
            workload=workload,
            fleet=fleet,
            target=Target(
                url=_url(target),
                api=api,
                api_key=api_key,
                model_map=_mapping(model_map or []),
                timeout_s=timeout_s,
                max_holds=max_holds,
            ),
            label=label,
            options=DriveOptions(time_scale=time_scale, seconds=seconds, drain_s=drain_s, identity=identity),
            workers=[_url(each) for each in workers.split(",") if each],
        )
        result = run(run_bench(job))
        _show(job, result)
        _write(job, result, json_file, html_file)
    except (BenchError, ScenarioError, OSError) as error:
        typer.echo(f"amf bench: {error}", err=True)
        raise typer.Exit(2) from error
    if result.interrupted:
        raise typer.Exit(_INTERRUPTED)


def _workload(
    scenario: Path, pipelines: int | None, concurrency: int | None, seed: int | None
) -> tuple[Workload, tuple[PoolSpec, ...]]:
    read = load_scenario(scenario)
    spec: WorkloadSpec = read.workload
    if pipelines is not None:
        spec = replace(spec, pipelines=pipelines)
    if concurrency is not None:
        spec = replace(spec, concurrency=concurrency, rate_per_s=None, load=None, arrival="poisson")
    fleet = fleet_of(read)
    return workload_in_turn(build(spec, fleet, seed)), fleet


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise BenchError(f"{text!r} is not a URL; write it as http://HOST:PORT")
    return text


def _mapping(pairs: list[str]) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise BenchError(f"--model-map {pair!r} is not OURS=THEIRS")
        mapping[ours] = theirs
    return mapping


def _show(job: BenchJob, result: BenchResult) -> None:
    show([result.report], Console())
    for line in _remarks(job, result):
        typer.echo(line)


def _remarks(job: BenchJob, result: BenchResult) -> list[str]:
    lines = [f"workload: {note}" for note in job.workload.notes]
    if result.interrupted:
        lines.append("INTERRUPTED: this is a partial result.")
    lines += remarks(result.report)
    lines.append(result.lag.line(job.options.time_scale))
    return lines + (result.agreement.lines() if result.agreement else [])


def _write(job: BenchJob, result: BenchResult, json_file: Path | None, html_file: Path | None) -> None:
    if json_file is not None:
        write_json(json_file, [result.report])
        typer.echo(f"report: {json_file}")
    if html_file is not None:
        page = Page(
            title=f"amf bench: {job.workload.name} on {job.label}",
            summary=(f"Target {job.target.base}, seed {job.workload.seed}, time scale {job.options.time_scale:g}.",),
            notes=_remarks(job, result),
        )
        measured = Measured(row=result.report, runs=result.runs, time_scale=job.options.time_scale)
        write_page(html_file, page, [measured])
        typer.echo(f"page: {html_file}")
