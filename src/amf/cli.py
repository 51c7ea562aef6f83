"""The command line: one file per command under `commands/`, registered here."""

from typing import Annotated

import typer

from amf import __version__
from amf.commands.bench import bench
from amf.commands.cache import cache
from amf.commands.demo import demo
from amf.commands.doctor import doctor
from amf.commands.emulate import emulate
from amf.commands.experiment import experiment
from amf.commands.replay import replay
from amf.commands.serve import serve
from amf.commands.simulate import simulate
from amf.commands.slo import slo
from amf.commands.workers import workers

app = typer.Typer(
    name="amf",
    help="Agent Memory Fabric: schedules whole agent pipelines above unmodified LLM engines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"amf {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for command in (serve, workers, doctor, emulate, bench, simulate, experiment, slo, demo, replay):
    app.command()(command)
app.add_typer(cache, name="cache")


def main() -> None:
    app()
