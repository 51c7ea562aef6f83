"""`amf simulate`: a scenario under several policies in virtual time, on this machine, without GPUs."""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from amf.bench.page import Measured, Page, write_page
from amf.bench.show import show
from amf.sim.paired import comparisons, means
from amf.sim.report import Report, write_json
from amf.sim.scenario import Scenario, ScenarioError, load_scenario
from amf.sim.study import Case, cases_of
from amf.simulate.pool import Played, cores, play_all
from amf.simulate.progress import StudyProgress

_MISUSE = 2
_INTERRUPTED = 130
_OURS = "fabric"

_ScenarioFile = Annotated[Path, typer.Argument(help="A scenario file (TOML); docs/scenarios.md describes it.")]
_Policy = Annotated[str, typer.Option(help="Names of policies, comma separated.  [default: the scenario's]")]
_Seeds = Annotated[int, typer.Option(min=1, help="Run on so many seeds, counted up from the first.")]
_Seed = Annotated[int | None, typer.Option(help="The first seed.  [default: the scenario's]")]
_Pipelines = Annotated[int | None, typer.Option(min=1, help="Replaces the scenario's number.")]
_Jobs = Annotated[int | None, typer.Option(min=1, help="Processes at most.  [default: one a core]")]
_JsonFile = Annotated[Path | None, typer.Option("--json", help="Write one report per policy and seed here.")]
_HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write a self-contained page here.")]


def simulate(
    scenario: _ScenarioFile,
    policy: _Policy = "",
    seeds: _Seeds = 1,
    seed: _Seed = None,
    pipelines: _Pipelines = None,
    jobs: _Jobs = None,
    json_file: _JsonFile = None,
    html_file: _HtmlFile = None,
) -> None:
    """Play SCENARIO under each policy in virtual time and compare.

    Example: amf simulate examples/generated-sessions.toml --policy session-affinity,fabric --seeds 5 --html report.html
    """
    try:
        _check_writable(("--json", json_file), ("--html", html_file))
        read = load_scenario(scenario)
        if pipelines is not None:
            read = replace(read, workload=replace(read.workload, pipelines=pipelines))
        first = read.workload.seed if seed is None else seed
        where = "--policy" if policy else f"{scenario}: [run] policies"
        names = [name.strip() for name in policy.split(",")] if policy else read.run.policies
        cases = cases_of(names, range(first, first + seeds), where)
        played = _played(read, cases, jobs or cores())
        _show([each.report for each in played])
        _write(read, played, json_file, html_file)
    except (ScenarioError, OSError, BrokenProcessPool) as error:
        _refuse(scenario, error)


def _check_writable(*files: tuple[str, Path | None]) -> None:
    """Before minutes are spent. Raises ScenarioError."""
    for option, file in files:
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise ScenarioError(
                f"{option} {file}: is no file in a folder that exists; make the folder or choose another"
            )


def _played(scenario: Scenario, cases: Sequence[Case], jobs: int) -> list[Played]:
    progress = StudyProgress(len(cases), min(jobs, len(cases)))
    with _terminated_as_interrupted():
        try:
            with progress:
                return play_all(scenario, cases, jobs, progress)
        except KeyboardInterrupt:
            typer.echo(f"amf simulate: interrupted after {progress.done} of {len(cases)} runs", err=True)
            raise typer.Exit(_INTERRUPTED) from None


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the study as an interrupt does, so that no process stays behind."""

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(reports: Sequence[Report]) -> None:
    rows = means(reports)
    show(rows, Console())
    if len(rows[0]["seeds"]) > 1:
        typer.echo(_seeds(rows))
    for line in (*_notes(reports), *_comparison(reports)):
        typer.echo(line)


def _seeds(rows: Sequence[Report]) -> str:
    seeds = rows[0]["seeds"]
    return f"means over {len(seeds)} seeds, {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"


def _notes(reports: Sequence[Report]) -> list[str]:
    """What the table does not show."""
    rows = means(reports)
    everywhere = [note for note in reports[0]["notes"] if all(note in report["notes"] for report in reports)]
    only = {
        f"workload, seed {report['seed']}: {note}": None
        for report in reports
        for note in report["notes"]
        if note not in everywhere
    }
    lines = [*(f"workload: {note}" for note in everywhere), *only]
    if len({(row["completed"], row["pipelines"]) for row in rows}) > 1:
        lines.append("NOTE: not all policies completed the same pipelines; completion times are of completed ones only")
    return lines


def _comparison(reports: Sequence[Report]) -> list[str]:
    """The fabric, or else the policy named last, against the strongest rival; nothing if there is none."""
    rows = means(reports)
    ours = _OURS if any(row["policy"] == _OURS for row in rows) else str(rows[-1]["policy"])
    compared = comparisons(reports, ours)
    if not compared:
        return []
    count = len(rows[0]["seeds"])
    runs = f"95 % interval over {count} paired runs" if count > 1 else "one run, use --seeds for intervals"
    return [
        f"{ours} against the strongest rival, above 1 it is better; {runs}:",
        *(f"  {each.line()}" for each in compared),
    ]


def _write(scenario: Scenario, played: Sequence[Played], json_file: Path | None, html_file: Path | None) -> None:
    reports = [each.report for each in played]
    if json_file is not None:
        write_json(json_file, reports)
        typer.echo(f"report: {json_file}")
    if html_file is not None:
        rows = means(reports)
        measured = [
            Measured(
                row=row,
                runs=[run for each in played if each.report["policy"] == row["policy"] for run in each.runs],
                time_scale=1.0,
            )
            for row in rows
        ]
        summary = (f"Simulated: {_seeds(rows)}.", "\n".join(_comparison(reports)))
        write_page(
            html_file, Page(title=f"amf simulate: {scenario.name}", summary=summary, notes=_notes(reports)), measured
        )
        typer.echo(f"page: {html_file}")


def _refuse(scenario: Path, error: Exception) -> NoReturn:
    message = str(error)
    if isinstance(error, BrokenProcessPool):
        message = "a process was killed, probably for want of memory; use fewer --jobs or --pipelines"
    elif isinstance(error, ScenarioError) and str(scenario) not in message and not message.startswith("--"):
        message = f"{scenario}: {message}"
    typer.echo(f"amf simulate: {message}", err=True)
    raise typer.Exit(_MISUSE)
