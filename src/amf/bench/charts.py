"""The page's charts as plain SVG: no script, no font, nothing fetched.

Importing pygal adds a finder for its map plug-ins to `sys.meta_path`, in a form that Python no longer supports: every
later import of something absent would warn. No plug-in is used here, so the finder goes again.
"""

import re
import sys
from collections.abc import Mapping, Sequence

import pygal
from pygal.style import Style

sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != pygal.__name__]

_SCRIPT = re.compile(r"<script.*?</script>", re.DOTALL)
_STYLE = Style(
    background="transparent",
    plot_background="transparent",
    font_family="system-ui, sans-serif",
    colors=(
        "#8c8c8c",
        "#d98a00",
        "#0a6fc2",
        "#2a9d5c",
        "#9b4dca",
        "#c23b3b",
        "#5a7d1f",
        "#00838f",
        "#b0578d",
        "#4b4b9f",
        "#7a4f1e",
        "#e0736a",
        "#3fa7d6",
        "#8fae1b",
        "#d4b106",
        "#5f6b7a",
        "#1f6f50",
        "#a78bda",
        "#e377c2",
        "#222222",
    ),
)
_MAX_POINTS = 200
_MAX_PRINTED, _MAX_UPRIGHT = 12, 4  # bars, labels


def cdf(title: str, unit: str, series: Mapping[str, Sequence[float]]) -> str:
    """Share of values at or below x, one line per name."""
    chart = pygal.XY(**_common(title), x_title=unit, y_title="share", stroke=True, show_dots=False, range=(0, 1))
    for name, values in series.items():
        chart.add(name, _steps(sorted(values)))
    return _svg(chart)


def lines(title: str, x_title: str, series: Mapping[str, Sequence[tuple[float, float | None]]]) -> str:
    """One line per name through its (x, y) points; a point without y is left out. Values that differ by rounding errors alone
    are drawn as one: pygal finds no scale for such a difference, and looks for ever."""
    chart = pygal.XY(**_common(title), x_title=x_title, stroke=True, dots_size=3, value_formatter=_short)
    for name, points in series.items():
        chart.add(name, [(x, float(f"{y:.9g}")) for x, y in points if y is not None])
    return _svg(chart)


def bars(title: str, groups: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> str:
    """Grouped bars: one group per x label, one bar per name. Values are printed on the bars where there is room."""
    room = len(groups) * len(series) <= _MAX_PRINTED
    leaning = {"x_label_rotation": 30, "truncate_label": -1} if len(groups) > _MAX_UPRIGHT else {}
    chart = pygal.Bar(**_common(title), **leaning, print_values=room, value_formatter=_short)
    chart.x_labels = list(groups)
    for name, values in series.items():
        chart.add(name, list(values))
    return _svg(chart)


def _common(title: str) -> dict[str, object]:
    return {
        "title": title,
        "style": _STYLE,
        "js": [],
        "disable_xml_declaration": True,
        "width": 640,
        "height": 380,
        "legend_at_bottom": True,
        "show_y_guides": True,
    }


def _steps(ordered: Sequence[float]) -> list[tuple[float, float]]:
    count = len(ordered)
    step = max(1, count // _MAX_POINTS)
    indices = sorted({*range(0, count, step), count - 1} if count else ())
    return [(ordered[index], (index + 1) / count) for index in indices]


def _short(value: float | None) -> str:
    if value is None:
        return ""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.1f}{suffix}"
    return f"{value:.2f}"


def _svg(chart: pygal.Graph) -> str:
    return _SCRIPT.sub("", chart.render(is_unicode=True))
