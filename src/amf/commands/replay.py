"""`amf replay`: does a live journal lead to the same decisions again?"""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from amf.gateway.replay import replay as replay_journal


def replay(
    journal: Annotated[Path, typer.Argument(help="A journal written by `amf serve --journal FILE`.")],
    json: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Replay a journal through the fabric and compare every decision.

    Example: amf serve --worker http://localhost:8000 --journal run.jsonl, then: amf replay run.jsonl
    """
    try:
        result = replay_journal(journal)
    except (OSError, ValueError) as error:
        typer.echo(f"amf replay: {error}", err=True)
        raise typer.Exit(2) from None
    if json is not None:
        json.write_bytes(msgspec.json.encode(result))
    typer.echo(f"{result.events} events, {result.decisions} decisions, {len(result.differences)} differences")
    for difference in result.differences[:10]:
        typer.echo(f"  line {difference.line}: was {difference.then}, is {difference.now}")
    if result.differences:
        raise typer.Exit(1)
