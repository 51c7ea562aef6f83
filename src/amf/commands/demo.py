"""`amf demo`: see it work. Emulated workers, the gateway under several policies, one honest table."""

import contextlib
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from amf.bench.lag import lag_of
from amf.bench.loop import run
from amf.bench.page import Measured, Page, write_page
from amf.bench.remarks import remarks
from amf.bench.runner import BenchError
from amf.bench.scrape import ScrapeError
from amf.bench.show import show
from amf.core.policy.bundles import live_policies_named
from amf.demo.conclusion import conclusions
from amf.demo.processes import ChildError
from amf.demo.results import PolicyRun, measured_of
from amf.demo.runner import DemoOptions, run_demo
from amf.demo.workload import DemoSize, DemoWork, demo_work
from amf.sim.report import write_json
from amf.sim.scenario import ScenarioError

_USAGE_ERROR = 2
_INTERRUPTED = 130
_DEFAULT_POLICIES = "round-robin,session-affinity,fabric"

_READING = (
    "All seconds are modelled: measured seconds times the time scale. Workers are emulated from the cost model; no GPU ran.",
    "Hit of ideal: prompt tokens from cache, beside what an infinite cache would have given.",
    "Recomputed: tokens prefilled although the same pool had computed them before.",
    "$ per pipeline: the whole fleet for the run, each pool shared out by seconds of service, over completed pipelines.",
)

_Seconds = Annotated[float, typer.Option(min=10, help="Real seconds for everything, divided over the policies.")]
_JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the reports here.")]
_HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write the page here.  [default: a temporary folder]")]
_Trace = Annotated[
    Path | None, typer.Option(help="Recorded Claude Code sessions instead of generated ones (see docs/scenarios.md).")
]
_Seed = Annotated[int, typer.Option(help="Same seed, same pipelines.")]
_Policies = Annotated[str, typer.Option(help="Comma separated, run one after the other.")]
_TimeScale = Annotated[float, typer.Option(min=1, help="How many times faster than life the workers run.")]
_Keep = Annotated[bool, typer.Option("--keep", help="Keep logs and configuration also after success.")]


def demo(
    seconds: _Seconds = 150.0,
    json_file: _JsonFile = None,
    html_file: _HtmlFile = None,
    trace: _Trace = None,
    seed: _Seed = 7,
    policies: _Policies = _DEFAULT_POLICIES,
    time_scale: _TimeScale = 40.0,
    keep: _Keep = False,
) -> None:
    """Start a fleet of emulated workers, run the same agent pipelines under each policy, print one table.

    Example: amf demo --seconds 120 --json demo.json --policies session-affinity,fabric
    """
    names = [name.strip() for name in policies.split(",") if name.strip()]
    folder = Path(tempfile.mkdtemp(prefix="amf-demo-"))
    options = DemoOptions(seconds=seconds, seed=seed, policies=names, time_scale=time_scale, folder=folder)
    finished: list[PolicyRun] = []
    try:
        work = _work(options, trace)
    except (ScenarioError, ValueError) as error:
        folder.rmdir()
        typer.echo(f"amf demo: {error}", err=True)
        raise typer.Exit(_USAGE_ERROR) from error
    try:
        complete = run(run_demo(options, work, typer.echo, finished))
        measured = [each for one in finished for each in measured_of(one, work.pools, time_scale)]
        _show(measured, time_scale)
        _write(work, measured, json_file, html_file or folder / "demo.html")
    except (BenchError, ChildError, ScrapeError, OSError) as error:
        typer.echo(f"amf demo: {error}\nlogs: {folder}", err=True)
        raise typer.Exit(1) from error
    if complete and not keep:
        _clear(folder)
    else:
        typer.echo(f"logs: {folder}")
    if not complete:
        typer.echo("interrupted: all processes are stopped; the table shows the policies that were finished", err=True)
        raise typer.Exit(_INTERRUPTED)


def _work(options: DemoOptions, trace: Path | None) -> DemoWork:
    """Raises ValueError for an unknown policy, ScenarioError for an unusable recording."""
    for name in options.policies:
        live_policies_named(name)
    work = demo_work(DemoSize.fitting(options.policy_s * options.time_scale), options.seed, trace)
    for note in work.notes:
        typer.echo(note)
    return work


def _clear(folder: Path) -> None:
    """Remove logs and configuration; the folder stays if the page is in it."""
    for path in (*folder.glob("*.log"), *folder.glob("*.toml")):
        path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _show(measured: list[Measured], time_scale: float) -> None:
    rows = [each.row for each in measured]
    show(rows, Console())
    for line in _remarks(measured, time_scale):
        typer.echo(line)
    for line in conclusions(rows):
        typer.echo(line)


def _remarks(measured: list[Measured], time_scale: float) -> list[str]:
    """What the table leaves out, a line each; how late the driver was last, policy by policy."""
    lines = [line for each in measured for line in remarks(each.row)]
    for policy in dict.fromkeys(str(each.row["policy"]) for each in measured):
        runs = [run for each in measured if each.row["policy"] == policy for run in each.runs]
        lag = lag_of([call for run in runs for call in run.calls])
        lines.append(f"{policy}, {lag.line(time_scale)}")
    return lines


def _write(work: DemoWork, measured: list[Measured], json_file: Path | None, html_file: Path) -> None:
    rows = [each.row for each in measured]
    if json_file is not None:
        write_json(json_file, rows)
        typer.echo(f"reports: {json_file}")
    if measured:
        time_scale = measured[0].time_scale
        page = Page(
            title="amf demo",
            summary=conclusions(rows),
            notes=(*work.notes, *_remarks(measured, time_scale), *_READING),
        )
        write_page(html_file, page, measured)
        typer.echo(f"page: {html_file}")
