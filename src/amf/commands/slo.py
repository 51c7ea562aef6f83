"""`amf slo`: what an end-to-end deadline means for a graph and for each of its hops."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from amf.core.graph import GraphError
from amf.sim.scenario import ScenarioError
from amf.simulate.run import check_writable
from amf.slo.compose import Answer, compose
from amf.slo.load import Asked, load_kept
from amf.slo.observed import GRAPH_SUFFIXES, Observed, drawn, recorded
from amf.slo.page import write_page
from amf.slo.tables import show

_MISUSE = 2
_INTERRUPTED = 130

_Source = Annotated[
    str,
    typer.Argument(
        metavar="GRAPH|RUNS",
        help="A built-in graph, a graph file (YAML, TOML, JSON), or a recording of amf serve --record.",
    ),
]
_Graph = Annotated[str | None, typer.Option(help="RUNS: the graph its pipelines follow; else the recorded one")]
_Slo = Annotated[float | None, typer.Option(help="End-to-end deadline, seconds; else the composed p95")]
_Quantile = Annotated[
    float, typer.Option(help="Budgets leave room for this quantile of what remains; --load wants this share on time.")
]
_Pipelines = Annotated[int, typer.Option(min=50, max=20_000, help="GRAPH: draw so many pipelines.")]
_Seed = Annotated[int, typer.Option(help="GRAPH: the seed they are drawn from.")]
_Load = Annotated[bool, typer.Option("--load", help="GRAPH: find the load at which its fleet keeps the SLO.")]
_LoadPipelines = Annotated[int, typer.Option(min=20, help="Simulate so many pipelines at each load.")]
_JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all figures here.")]
_HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write a self-contained page here.")]


def slo(
    source: _Source,
    graph: _Graph = None,
    slo_s: _Slo = None,
    quantile: _Quantile = 0.9,
    pipelines: _Pipelines = 2_000,
    seed: _Seed = 7,
    load: _Load = False,
    load_pipelines: _LoadPipelines = 200,
    json_file: _JsonFile = None,
    html_file: _HtmlFile = None,
) -> None:
    """Compose a graph's end-to-end times from its hops: quantiles, what to shorten, a budget for each hop.

    Example: amf slo coding-7hop --slo-s 240 --load --html slo.html

    Example: amf slo traffic.jsonl.gz --graph my-graph.yaml --json slo.json
    """
    try:
        _check(slo_s, quantile)
        check_writable(("--json", json_file), ("--html", html_file))
        runs = _is_recording(source, graph)
        if load and runs:
            raise ScenarioError("--load: needs a GRAPH with a fleet to simulate; a recording names none")
        observed = recorded(Path(source), graph) if runs else drawn(source, pipelines, seed)
        answer = compose(observed, slo_s, quantile)
        if load:
            answer |= _load(source, observed, answer, (load_pipelines, seed))
    except KeyboardInterrupt:
        typer.echo("amf slo: interrupted", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    except (ScenarioError, GraphError, OSError) as error:
        typer.echo(f"amf slo: {error}", err=True)
        raise typer.Exit(_MISUSE) from None
    show(answer, Console())
    if json_file is not None:
        json_file.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"report: {json_file}")
    if html_file is not None:
        write_page(html_file, answer)
        typer.echo(f"page: {html_file}")


def _check(slo_s: float | None, quantile: float) -> None:
    if not 0 < quantile < 1:
        raise ScenarioError(f"--quantile {quantile:g}: is a share between 0 and 1, for example 0.9")
    if slo_s is not None and not 0 < slo_s < float("inf"):
        raise ScenarioError(f"--slo-s {slo_s:g}: is a number of seconds above 0")


def _is_recording(source: str, graph: str | None) -> bool:
    """What is no graph file, and is there, or was told its graph."""
    path = Path(source)
    return graph is not None or (path.suffix not in GRAPH_SUFFIXES and (bool(path.suffix) or path.is_dir()))


def _load(source: str, observed: Observed, answer: Answer, size: tuple[int, int]) -> Answer:
    """`size`: pipelines and seed."""
    asked = Asked(
        graph=source,
        fleet=observed.fleet,
        slo_s=answer["slo_s"],
        share=answer["quantile"],
        pipelines=size[0],
        seed=size[1],
    )
    found, runs = load_kept(asked)
    return {"load": found, "load_runs": runs}
