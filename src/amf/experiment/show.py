"""A study's document on the screen: rich tables on a terminal, aligned lines in a pipe."""

from dataclasses import replace

from rich.console import Console

from amf.experiment.run import Document
from amf.experiment.tables import gain_table, goal_table, row_table
from amf.sim.text_table import TextTable


def show(document: Document, console: Console | None = None) -> None:
    console = console or Console()
    seeds = document["seeds"]
    console.out(f"{document['experiment']}: {document['question']}", highlight=False)
    quick = "; QUICK: shows that it runs, not what is true" if document["quick"] else ""
    console.out(f"seeds {seeds[0]} to {seeds[-1]}{quick}", highlight=False)
    for title, table in (
        ("figures, means over the seeds", row_table(document)),
        ("fabric against the strongest other, above 1 it is better", gain_table(document)),
        ("goals", goal_table(document)),
    ):
        if table.rows:
            _table(title, table, console)
    for note in document["notes"]:
        console.out(note, highlight=False)
    met = sum(goal["met"] is True for goal in document["goals"])
    console.out(f"{met} of {len(document['goals'])} goals met", highlight=False)


def _table(title: str, table: TextTable, console: Console) -> None:
    if console.is_terminal:
        console.print(replace(table, title=title).grid())
        return
    console.out(f"\n{title}:", highlight=False)
    for line in table.lines(one_word=True):
        console.out(line, highlight=False)
