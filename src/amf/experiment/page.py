"""A study's document as one self-contained HTML page: goals, gains, charts, figures. Nothing is fetched."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from amf.bench.charts import bars, lines
from amf.bench.page_template import HEAD, TABLE_STYLE, TEXT_TABLE
from amf.experiment.goals import figure_of
from amf.experiment.run import Document
from amf.experiment.tables import figure_name, gain_table, goal_table, row_table
from amf.sim.calibration import STATED

_TEMPLATE = (
    TEXT_TABLE
    + HEAD
    + TABLE_STYLE
    + """.quick{font-weight:700;color:#a33}
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ document.question }}</p>
<p><code>{{ document.command }}</code>; {{ document.seeds|length }} seeds from {{ document.seed }}, version
{{ document.amf_version }}</p>
{% if document.quick %}<p class="quick">Quick: small fleets, few seeds; says that it runs, not what is true.</p>
{% endif %}{% for heading, table in tables %}{% if table.rows %}<h2>{{ heading }}</h2>
{{ text_table(table) }}
{% endif %}{% endfor %}<h2>Charts</h2>
<div class="charts">{% for chart in charts %}<div>{{ chart }}</div>{% endfor %}</div>
<h2>Notes</h2>
<p class="note">A gain is the geometric mean over the seeds of the ratio of two runs that met the same pipelines, above 1 where
the fabric is better, against the rival that is strongest in that figure. Where its 95 % interval covers 1 it is called
noise. A difference of shares is in points: 0.12 is twelve percentage points, and noise is what covers 0.</p>
{% for note in document.notes %}<p class="note">{{ note }}</p>
{% endfor %}</body></html>
"""
)


def write_page(path: Path, document: Document) -> None:
    """Raises OSError if the file cannot be written."""
    path.write_text(render(document), encoding="utf-8")


def render(document: Document) -> str:
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    return template.render(
        title=f"amf experiment {document['experiment']}",
        document=document,
        tables=(
            ("Goals", goal_table(document)),
            ("Gains over the strongest other", gain_table(document)),
            ("Figures", row_table(document)),
        ),
        charts=[Markup(chart) for chart in _charts(document)],
    )


def _charts(document: Document) -> Iterator[str]:
    """A chart for each figure and series: lines along the axis, bars where there is none. Reliability curves where shares
    within stated quantiles are known."""
    for series in dict.fromkeys(row["series"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["series"] == series]
        if any("calibration" in row for row in rows):
            yield _reliability(series, rows)
        policies = list(dict.fromkeys(row["policy"] for row in rows))
        for figure in document["drawn"]:
            title = f"{figure_name(figure)}: {series}" if series else figure_name(figure)
            if document["axis"]:
                points = {
                    policy: [(row["x"], figure_of(row, figure)) for row in rows if row["policy"] == policy]
                    for policy in policies
                }
                yield lines(title, document["axis"], points)
                continue
            settings = list(dict.fromkeys(row["setting"] for row in rows))
            at = {(row["setting"], row["policy"]): figure_of(row, figure) for row in rows}
            yield bars(title, settings, {policy: [at.get((each, policy)) for each in settings] for policy in policies})


def _reliability(series: str, rows: list[dict[str, Any]]) -> str:
    """The share of outcomes within each stated quantile; on the diagonal what is stated is true."""
    known = {row["setting"]: row["calibration"] for row in rows if "calibration" in row}
    curves = {label: [(q, found[name]) for name, q in STATED.items()] for label, found in known.items()}
    return lines(f"reliability: {series}", "stated quantile", {"true": [(0.0, 0.0), (1.0, 1.0)], **curves})
