"""A study's document on the screen: rich tables on a terminal, aligned lines in a pipe."""

from rich.console import Console
from rich.table import Table

from amf.experiment.run import Document
from amf.experiment.tables import TextTable, gain_table, goal_table, row_table


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
    if not console.is_terminal:
        rows = [tuple(head.replace(" ", "_") for head in table.heads), *table.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(table.heads))]
        console.out(f"\n{title}:", highlight=False)
        for row in rows:
            cells = [
                cell.ljust(width) if column < table.texts else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            console.out("  ".join(cells).rstrip(), highlight=False)
        return
    grid = Table(title=title, header_style="bold", pad_edge=False)
    for number, head in enumerate(table.heads):
        grid.add_column(head, justify="left" if number < table.texts else "right")
    for row in table.rows:
        grid.add_row(*row)
    console.print(grid)
