"""`amf simulate`: a scenario under several policies in virtual time, on this machine, without GPUs."""

from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from amf.bench.charts import lines
from amf.bench.page import Measured, Page, write_page
from amf.bench.show import show
from amf.sim.report import Report, write_json
from amf.sim.scenario import Scenario, ScenarioError, load_scenario
from amf.sim.study import Case, cases_of
from amf.simulate.groups import Group, at_loads, comparison_lines, loads_of, note_lines, seeds_line
from amf.simulate.play import Task
from amf.simulate.players import players
from amf.simulate.pool import cores
from amf.simulate.run import Interrupted, check_writable, play_tasks

_MISUSE = 2
_INTERRUPTED = 130

_ScenarioFile = Annotated[Path, typer.Argument(help="A scenario file (TOML); docs/scenarios.md describes it.")]
_Policy = Annotated[str, typer.Option(help="Names of policies, comma separated.  [default: the scenario's]")]
_Seeds = Annotated[int, typer.Option(min=1, help="Run on so many seeds, counted up from the first.")]
_Seed = Annotated[int | None, typer.Option(help="The first seed.  [default: the scenario's]")]
_Pipelines = Annotated[int | None, typer.Option(min=1, help="Replaces the scenario's number.")]
_Loads = Annotated[str, typer.Option(help="Run in an open loop at each of these loads, comma separated.")]
_Jobs = Annotated[int | None, typer.Option(min=1, help="Processes at most.  [default: one a core]")]
_Ray = Annotated[str | None, typer.Option(help="Spread the runs over this Ray cluster; local starts one here.")]
_JsonFile = Annotated[Path | None, typer.Option("--json", help="Write one report per policy and seed here.")]
_HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write a self-contained page here.")]


def simulate(
    scenario: _ScenarioFile,
    policy: _Policy = "",
    seeds: _Seeds = 1,
    seed: _Seed = None,
    pipelines: _Pipelines = None,
    loads: _Loads = "",
    jobs: _Jobs = None,
    ray: _Ray = None,
    json_file: _JsonFile = None,
    html_file: _HtmlFile = None,
) -> None:
    """Play SCENARIO under each policy in virtual time and compare.

    Example: amf simulate examples/generated-sessions.toml --policy session-affinity,fabric --seeds 5 --html report.html
    """
    try:
        check_writable(("--json", json_file), ("--html", html_file))
        read = load_scenario(scenario)
        if pipelines is not None:
            read = replace(read, workload=replace(read.workload, pipelines=pipelines))
        first = read.workload.seed if seed is None else seed
        where = "--policy" if policy else f"{scenario}: [run] policies"
        names = [name.strip() for name in policy.split(",")] if policy else read.run.policies
        cases = cases_of(names, range(first, first + seeds), where)
        groups = _groups(read, cases, loads_of(loads) if loads else None, (jobs or cores(), ray))
        _show(groups)
        _write(read, groups, json_file, html_file)
    except Interrupted as error:
        typer.echo(f"amf simulate: {error}", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    except (ScenarioError, OSError, BrokenProcessPool) as error:
        _refuse(scenario, error)


def _groups(
    scenario: Scenario, cases: Sequence[Case], loads: Sequence[float] | None, where: tuple[int, str | None]
) -> list[Group]:
    """`where`: jobs and the address of a Ray cluster."""
    scenarios = [scenario] if loads is None else at_loads(scenario, loads)
    labels = [""] if loads is None else [f"load {load:g}" for load in loads]
    tasks = [
        Task(scenario=each, case=case, label=label)
        for each, label in zip(scenarios, labels, strict=True)
        for case in cases
    ]
    jobs, ray = where
    width = f"Ray at {ray}" if ray else f"processes {min(jobs, len(tasks))}"
    played = play_tasks(tasks, players(jobs, ray), f"amf simulate: runs {len(tasks)}, {width}")
    size = len(cases)
    return [
        Group(load, played[index * size : (index + 1) * size])
        for index, load in enumerate([None] if loads is None else loads)
    ]


def _show(groups: Sequence[Group]) -> None:
    show([row for group in groups for row in group.rows], Console())
    if len(groups[0].rows[0]["seeds"]) > 1:
        typer.echo(seeds_line(groups[0].rows))
    for line in (*_notes(groups), *(line for group in groups for line in comparison_lines(group))):
        typer.echo(line)


def _notes(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(line for group in groups for line in note_lines(group)))


def _write(scenario: Scenario, groups: Sequence[Group], json_file: Path | None, html_file: Path | None) -> None:
    if json_file is not None:
        write_json(json_file, [report for group in groups for report in group.reports])
        typer.echo(f"report: {json_file}")
    if html_file is not None:
        measured = [each for group in groups for each in _measured(group)]
        rows = [each.row for each in measured]
        page = Page(
            title=f"amf simulate: {scenario.name}",
            summary=(
                f"Simulated: {seeds_line(groups[0].rows)}.",
                *("\n".join(comparison_lines(group)) for group in groups),
            ),
            notes=_notes(groups),
            charts=_against_load(rows) if groups[0].load is not None else (),
        )
        write_page(html_file, page, measured)
        typer.echo(f"page: {html_file}")


def _measured(group: Group) -> list[Measured]:
    return [
        Measured(
            row=row,
            runs=[run for each in group.played if each.report["policy"] == row["policy"] for run in each.runs],
            time_scale=1.0,
        )
        for row in group.rows
    ]


def _against_load(rows: Sequence[Report]) -> list[str]:
    def line(policy: str, figure: str, part: str = "") -> list[tuple[float, float | None]]:
        mine = [row for row in rows if row["policy"] == policy]
        return [(row["load"], row[figure][part] if part else row[figure]) for row in mine]

    policies = list(dict.fromkeys(str(row["policy"]) for row in rows))
    return [
        lines("Deadlines met", "load", {policy: line(policy, "slo_attainment") for policy in policies}),
        lines("Goodput, pipelines/s", "load", {policy: line(policy, "goodput_per_s") for policy in policies}),
        lines("Mean completion time, seconds", "load", {policy: line(policy, "jct_s", "mean") for policy in policies}),
    ]


def _refuse(scenario: Path, error: Exception) -> NoReturn:
    message = str(error)
    if isinstance(error, BrokenProcessPool):
        message = "a process was killed, probably for want of memory; use fewer --jobs or --pipelines"
    elif isinstance(error, ScenarioError) and str(scenario) not in message and not message.startswith("--"):
        message = f"{scenario}: {message}"
    typer.echo(f"amf simulate: {message}", err=True)
    raise typer.Exit(_MISUSE)
