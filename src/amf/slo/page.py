"""An answer of `amf slo` as one self-contained HTML page. Nothing is fetched."""

from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from amf.bench.charts import bars, lines
from amf.bench.page_template import HEAD, TABLE_STYLE, TEXT_TABLE
from amf.slo.compose import QUANTILES, Answer
from amf.slo.tables import remarks, tables

_TEMPLATE = (
    TEXT_TABLE
    + HEAD
    + TABLE_STYLE
    + """</style></head><body>
<h1>{{ title }}</h1>
<div class="charts">{% for chart in charts %}<div>{{ chart }}</div>{% endfor %}</div>
{% for table in tables %}<h2>{{ table.title }}</h2>
{{ text_table(table) }}
{% endfor %}<h2>Notes</h2>
{% for note in notes %}<p class="note">{{ note }}</p>
{% endfor %}</body></html>
"""
)


def write_page(path: Path, answer: Answer) -> None:
    """Raises OSError if the file cannot be written."""
    path.write_text(render(answer), encoding="utf-8")


def render(answer: Answer) -> str:
    return (
        Environment(autoescape=True)
        .from_string(_TEMPLATE)
        .render(
            title=f"amf slo {answer['graph']}",
            charts=[Markup(chart) for chart in _charts(answer)],
            tables=tables(answer),
            notes=remarks(answer),
        )
    )


def _charts(answer: Answer) -> list[str]:
    composed = {name: [row[q] for q in QUANTILES] for name, row in answer["end_to_end_s"].items()}
    budgets = answer["budgets"]
    charts = [
        bars("End to end, seconds", list(QUANTILES), composed),
        bars(
            "Start and end by, seconds after the pipeline's start",
            [row["hop"] for row in budgets],
            {
                "start by": [row["latest_start_s"] for row in budgets],
                "end by": [row["latest_end_s"] for row in budgets],
            },
        ),
        bars(
            "p99 gained if a hop were 10 % shorter, seconds",
            [row["hop"] for row in answer["shorten"]],
            {"gain": [row["gain_s"] for row in answer["shorten"]]},
        ),
    ]
    if "load_runs" in answer:
        points = sorted((run["load"], run["met"]) for run in answer["load_runs"])
        charts.append(lines("Pipelines that meet the SLO", "load", {"share": points}))
    return charts
