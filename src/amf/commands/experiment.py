"""`amf experiment`: named, seeded studies in virtual time; each writes its table, its goals and a page."""

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated

import typer

from amf.experiment.page import write_page
from amf.experiment.results import collect, page, write_document
from amf.experiment.run import Document, run, tasks_of
from amf.experiment.show import show
from amf.experiment.studies import STUDIES, about, study_named
from amf.experiment.study import Options
from amf.experiment.traces import recordings
from amf.sim.scenario import ScenarioError
from amf.simulate.play import kept
from amf.simulate.players import players
from amf.simulate.pool import cores
from amf.simulate.run import Interrupted, check_writable

_ALL = "all"
_MISUSE = 2
_INTERRUPTED = 130

_Name = Annotated[str, typer.Argument(help="Which study, or all; without one they are listed.", show_default=False)]
_Quick = Annotated[bool, typer.Option("--quick", help="Small fleets, few seeds, a minute or two: shows that it runs.")]
_Seeds = Annotated[int | None, typer.Option(min=1, help="So many seeds, from 7 up.  [default: the study's]")]
_Pipelines = Annotated[int | None, typer.Option(min=1, help="In every run.  [default: the study's]")]
_Jobs = Annotated[int | None, typer.Option(min=1, help="Processes at most.  [default: one a core]")]
_Ray = Annotated[str | None, typer.Option(help="Spread the runs over this Ray cluster; local starts one here.")]
_Trace = Annotated[
    list[Path] | None,
    typer.Option(help="A recording, or a folder of them: sessions and Mooncake requests. Repeatable."),
]
_Markdown = Annotated[Path | None, typer.Option(help="With all: write every study's tables into this page.")]
_Keep = Annotated[
    Path, typer.Option(help="The folder for each study's JSON (with all) and for finished runs (to resume).")
]
_Resume = Annotated[
    bool, typer.Option("--resume", help="Keep each finished run there, and play none again that is kept.")
]
_Finished = Annotated[
    bool, typer.Option("--finished", help="With all: play nothing; only studies whose runs are all kept by --resume.")
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
    markdown: _Markdown = None,
    keep: _Keep = Path("out/results"),
    resume: _Resume = False,
    finished: _Finished = False,
) -> None:
    """Run the study NAME: what varies, how the fabric compares with the strongest rivals, which goals are met.

    Example: amf experiment sessions --quick --json sessions.json --html sessions.html

    Every study, into one page: amf experiment all --markdown docs/results.md --resume

    What of it is done so far: amf experiment all --markdown docs/results.md --finished
    """
    if not name:
        width = max(map(len, STUDIES))
        for each in STUDIES:
            typer.echo(f"{each:<{width}}  {about(each)}")
        return
    try:
        check_writable(("--json", json_file), ("--html", html_file), ("--markdown", markdown))
        options = Options(quick=quick, seeds=seeds, pipelines=pipelines, traces=recordings(trace or ()))
        runner = _Runner(options, jobs or cores(), ray, keep / "runs" if resume or finished else None)
        if name == _ALL:
            _refuse_for_all(json_file, html_file)
            _run_all(runner, markdown, keep, finished)
            return
        if finished:
            raise ScenarioError("--finished: is for all studies; for one, leave it out")
        document = runner.run(name)
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


class _Runner:
    """Plays studies under one set of options."""

    def __init__(self, options: Options, jobs: int, ray: str | None, runs: Path | None) -> None:
        self.options = options
        self._runs = runs
        self._players = players(jobs, ray)
        self._width = f"Ray at {ray}" if ray else f"processes {jobs}"

    def missing(self, name: str) -> int:
        """Runs that are not kept."""
        return sum(
            not (task.keep and kept(task.keep)) for task in tasks_of(study_named(name, self.options), self._runs)
        )

    def run(self, name: str) -> Document:
        return run(study_named(name, self.options), self.options, self._players, self._width, self._runs)


def _refuse_for_all(json_file: Path | None, html_file: Path | None) -> None:
    for option, file in (("--json", json_file), ("--html", html_file)):
        if file is not None:
            raise ScenarioError(f"{option} {file}: is for one study; all keep theirs in the folder of --keep")


def _run_all(runner: _Runner, markdown: Path | None, keep: Path, finished: bool) -> None:
    left = {name: runs for name in STUDIES if (runs := runner.missing(name))} if finished else {}
    for name, runs in left.items():
        typer.echo(f"left out: {name}, {runs} runs are missing", err=True)
    names = [name for name in STUDIES if name not in left]
    documents = collect(names, keep, runner.run, lambda line: typer.echo(line, err=True))
    for document in documents:
        show(document)
        write_page(keep / f"{document['experiment']}.html", document)
    typer.echo(f"reports and pages: {keep}")
    if markdown is not None:
        markdown.write_text(
            page(documents, [path.name for _, path in runner.options.traces], list(left)), encoding="utf-8"
        )
        typer.echo(f"page: {markdown}")


def _write(document: Document, json_file: Path | None, html_file: Path | None) -> None:
    if json_file is not None:
        write_document(json_file, document)
        typer.echo(f"report: {json_file}")
    if html_file is not None:
        write_page(html_file, document)
        typer.echo(f"page: {html_file}")
