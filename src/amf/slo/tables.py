"""An answer of `amf slo` as tables, for the screen and for the page."""

from rich.console import Console

from amf.sim.text_table import TextTable
from amf.slo.compose import QUANTILES, Answer


def tables(answer: Answer) -> list[TextTable]:
    slo_s, share = answer["slo_s"], answer["quantile"]
    return [
        TextTable(
            ("composed", *QUANTILES),
            [
                (_label(name, answer), *(_number(row[q]) for q in QUANTILES))
                for name, row in answer["end_to_end_s"].items()
            ],
            texts=1,
            title=f"End to end of {answer['graph']}, seconds",
        ),
        TextTable(
            ("hop", "pool", "p99 s", "gain s"),
            [(row["hop"], row["pool"], _number(row["p99_s"]), _number(row["gain_s"])) for row in answer["shorten"]],
            title="If a hop were 10 % shorter",
        ),
        TextTable(
            ("hop", "pool", "p50 s", "p99 s", "then mean s", f"then p{100 * share:g} s", "start by s", "end by s"),
            [(row["hop"], row["pool"], *(_number(row[key]) for key in _BUDGET)) for row in answer["budgets"]],
            title=f"Budgets for an SLO of {slo_s:.1f} s, leaving room for the p{100 * share:g} of what remains",
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
    for table in tables(answer):
        if console.is_terminal:
            grid = table.grid()
            grid.title_justify = "left"
            console.print(grid)
        else:
            console.out("\n".join([table.title, *table.lines(), ""]), highlight=False)
    console.out("\n".join(remarks(answer)), highlight=False)


_LABELS = {
    "independent": "independent",
    "measured": "correlation {correlation:.2f}, as measured",
    "comonotone": "comonotone",
    "summed": "hop quantiles summed",
    "pipelines": "the pipelines themselves",
}
_BUDGET = ("p50_s", "p99_s", "after_mean_s", "after_s", "latest_start_s", "latest_end_s")


def _label(name: str, answer: Answer) -> str:
    return _LABELS[name].format(correlation=answer["correlation"])


def _number(seconds: float) -> str:
    return f"{seconds:.3f}" if abs(seconds) < 10 else f"{seconds:.1f}"
