"""A study's document as Markdown. The words around the figures are true whatever the figures are."""

from collections.abc import Iterator, Sequence

from amf.experiment.run import Document
from amf.experiment.tables import gain_table, goal_table, row_table
from amf.sim.text_table import TextTable


def markdown(document: Document) -> str:
    """One section, from its heading on."""
    return "\n".join(_lines(document)).rstrip() + "\n"


def summary(documents: Sequence[Document]) -> str:
    """Goals met, missed and unknown, study by study."""
    table = TextTable(
        ("study", "seeds", "goals met", "missed", "unknown"),
        tuple(
            (
                f"[{each['experiment']}](#{each['experiment']})" + (" (quick)" if each["quick"] else ""),
                str(len(each["seeds"])),
                *(str(sum(goal["met"] is met for goal in each["goals"])) for met in (True, False, None)),
            )
            for each in documents
        ),
        texts=1,
    )
    return "\n".join(_table(table)) + "\n"


def _lines(document: Document) -> Iterator[str]:
    seeds = document["seeds"]
    yield f"## {document['experiment']}"
    yield ""
    yield document["question"]
    yield ""
    yield f"`{document['command']}`; seeds {seeds[0]} to {seeds[-1]}, version {document['amf_version']}."
    if document["quick"]:
        yield "**Quick: small fleets, few seeds; says that it runs, not what is true.**"
    for title, table in (
        ("Goals", goal_table(document)),
        ("Gains over the strongest other", gain_table(document)),
        ("Figures", row_table(document)),
    ):
        if table.rows:
            yield f"\n### {title} of {document['experiment']}\n"
            yield from _table(table)
    if document["notes"]:
        yield ""
        yield from (f"- {note}" for note in document["notes"])


def _table(table: TextTable) -> Iterator[str]:
    yield _row(table.heads)
    yield "|" + "|".join("---" if column < table.texts else "---:" for column in range(len(table.heads))) + "|"
    yield from (_row(row) for row in table.rows)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
