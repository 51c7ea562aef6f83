"""An answer of `amf slo` as tables, for the screen and for the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from amf.slo.compose import QUANTILES, Answer


@dataclass(frozen=True, slots=True)
class Cells:
    """The first `texts` columns are words, the rest numbers."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int


def tables(answer: Answer) -> list[Cells]:
    slo_s, share = answer["slo_s"], answer["quantile"]
    return [
        Cells(
            f"End to end of {answer['graph']}, seconds",
            ("composed", *QUANTILES),
            [
                (_label(name, answer), *(_number(row[q]) for q in QUANTILES))
                for name, row in answer["end_to_end_s"].items()
            ],
            1,
        ),
        Cells(
            "If a hop were 10 % shorter",
            ("hop", "pool", "p99 s", "gain s"),
            [(row["hop"], row["pool"], _number(row["p99_s"]), _number(row["gain_s"])) for row in answer["shorten"]],
            2,
        ),
        Cells(
            f"Budgets for an SLO of {slo_s:.1f} s, leaving room for the p{100 * share:g} of what remains",
            ("hop", "pool", "p50 s", "p99 s", "then mean s", f"then p{100 * share:g} s", "start by s", "end by s"),
            [(row["hop"], row["pool"], *(_number(row[key]) for key in _BUDGET)) for row in answer["budgets"]],
            2,
        ),
    ]


def remarks(answer: Answer) -> list[str]:
    said = [
        f"hop times: {answer['source']}",
        f"composed with the measured correlation, {100 * answer['met']:.1f} % of pipelines end within {answer['slo_s']:.1f} s",
    ]
    late = [row["hop"] for row in answer["budgets"] if row["latest_start_s"] < 0]
    if late:
        said.append(
            f"too tight at the p{100 * answer['quantile']:g}: {late[0]} would have to start before the pipeline does; "
            "raise --slo-s or lower --quantile"
        )
    if "load" in answer:
        found, share = answer["load"], 100 * answer["quantile"]
        said.append(
            f"load: {share:g} % of pipelines meet the SLO up to load {found:.2f} of saturation"
            if found is not None
            else f"load: not even at load {answer['load_runs'][0]['load']:g} do {share:g} % of pipelines meet the SLO"
        )
    return [*said, *answer["notes"]]


def show(answer: Answer, console: Console) -> None:
    """Tables on a terminal, aligned lines in a pipe."""
    for cells in tables(answer):
        if not console.is_terminal:
            console.out("\n".join([cells.title, *_lines(cells), ""]), highlight=False)
            continue
        grid = Table(header_style="bold", pad_edge=False, title=cells.title, title_justify="left")
        for number, head in enumerate(cells.heads):
            grid.add_column(head, justify="left" if number < cells.texts else "right")
        for row in cells.rows:
            grid.add_row(*row)
        console.print(grid)
    console.out("\n".join(remarks(answer)), highlight=False)


_LABELS = {
    "independent": "independent",
    "measured": "correlation {correlation:.2f}, as measured",
    "comonotone": "comonotone",
    "summed": "hop quantiles summed",
    "pipelines": "the pipelines themselves",
}
_BUDGET = ("p50_s", "p99_s", "after_mean_s", "after_s", "latest_start_s", "latest_end_s")


def _lines(cells: Cells) -> list[str]:
    rows = [cells.heads, *cells.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(cells.heads))]
    return [
        "  ".join(
            cell.ljust(width) if column < cells.texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _label(name: str, answer: Answer) -> str:
    return _LABELS[name].format(correlation=answer["correlation"])


def _number(seconds: float) -> str:
    return f"{seconds:.3f}" if abs(seconds) < 10 else f"{seconds:.1f}"
