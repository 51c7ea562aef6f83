"""`amf experiment`: named, seeded studies in virtual time; each writes its table, its goals and a page."""

import json
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated

import typer

from amf.experiment.page import write_page
from amf.experiment.run import Document, run
from amf.experiment.show import show
from amf.experiment.studies import STUDIES, about, study_named
from amf.experiment.study import Options
from amf.experiment.traces import recordings
from amf.sim.scenario import ScenarioError
from amf.simulate.players import players
from amf.simulate.pool import cores
from amf.simulate.run import Interrupted, check_writable

_MISUSE = 2
_INTERRUPTED = 130

_Name = Annotated[str, typer.Argument(help="Which study; without one they are listed.", show_default=False)]
_Quick = Annotated[bool, typer.Option("--quick", help="Small fleets, few seeds, a minute or two: shows that it runs.")]
_Seeds = Annotated[int | None, typer.Option(min=1, help="So many seeds, from 7 up.  [default: the study's]")]
_Pipelines = Annotated[int | None, typer.Option(min=1, help="In every run.  [default: the study's]")]
_Jobs = Annotated[int | None, typer.Option(min=1, help="Processes at most.  [default: one a core]")]
_Ray = Annotated[str | None, typer.Option(help="Spread the runs over this Ray cluster; local starts one here.")]
_Trace = Annotated[
    list[Path] | None,
    typer.Option(help="A recording, or a folder of them: sessions and Mooncake requests. Repeatable."),
]
_JsonFile = Annotated[Path | None, typer.Option("--json", help="Write goals and rows here.")]
_HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write a self-contained page here.")]


def experiment(
    name: _Name = "",
    quick: _Quick = False,
    seeds: _Seeds = None,
    pipelines: _Pipelines = None,
    jobs: _Jobs = None,
    ray: _Ray = None,
    trace: _Trace = None,
    json_file: _JsonFile = None,
    html_file: _HtmlFile = None,
) -> None:
    """Run the study NAME: what varies, how the fabric compares with the strongest rivals, which goals are met.

    Example: amf experiment sessions --quick --json sessions.json --html sessions.html
    """
    if not name:
        width = max(map(len, STUDIES))
        for each in STUDIES:
            typer.echo(f"{each:<{width}}  {about(each)}")
        return
    try:
        check_writable(("--json", json_file), ("--html", html_file))
        options = Options(quick=quick, seeds=seeds, pipelines=pipelines, traces=recordings(trace or ()))
        study = study_named(name, options)
        count = jobs or cores()
        width_said = f"Ray at {ray}" if ray else f"processes {count}"
        document = run(study, options, players(count, ray), width_said)
        show(document)
        _write(document, json_file, html_file)
    except Interrupted as error:
        typer.echo(f"amf experiment: {error}", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    except BrokenProcessPool:
        typer.echo("amf experiment: a process was killed, probably for want of memory; use fewer --jobs", err=True)
        raise typer.Exit(_MISUSE) from None
    except (ScenarioError, OSError) as error:
        typer.echo(f"amf experiment: {error}", err=True)
        raise typer.Exit(_MISUSE) from None


def _write(document: Document, json_file: Path | None, html_file: Path | None) -> None:
    if json_file is not None:
        json_file.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        typer.echo(f"report: {json_file}")
    if html_file is not None:
        write_page(html_file, document)
        typer.echo(f"page: {html_file}")
