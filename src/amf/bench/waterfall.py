"""One pipeline as a waterfall: a row a call, time to the right. Plain SVG text, everything escaped."""

from collections.abc import Sequence
from html import escape

from amf.bench.driver import CallRun, PipelineRun

_ROW_PX = 16
_LABEL_PX = 150
_PLOT_PX = 800
_MIN_BAR_PX = 2.0
_MAX_ROWS = 80
LEGEND = (("gap", "tool or think gap"), ("wait", "wait and prefill"), ("decode", "decode"), ("late", "driver late"))


def waterfall_svg(run: PipelineRun, time_scale: float) -> str:
    """Seconds shown are modelled: measured times `time_scale`."""
    end_s = run.end_s if run.end_s is not None else max((call.end_s for call in run.calls), default=run.start_s)
    span_s = max(end_s - run.start_s, 1e-9)
    calls = sorted(run.calls, key=lambda call: (call.ready_s, call.plan.index))[:_MAX_ROWS]
    height = (len(calls) + 1) * _ROW_PX + 6
    rows = [_row(index, call, run.start_s, span_s, time_scale) for index, call in enumerate(calls)]
    return (
        f'<svg class="waterfall" viewBox="0 0 {_LABEL_PX + _PLOT_PX} {height}" role="img">'
        + "".join(rows)
        + _axis(len(calls) * _ROW_PX, span_s * time_scale)
        + "</svg>"
    )


def _row(index: int, call: CallRun, start_s: float, span_s: float, time_scale: float) -> str:
    y = index * _ROW_PX
    plan, usage = call.plan, call.answer.usage
    first_s = call.first_s if call.first_s is not None else call.end_s
    facts = (
        f"{plan.hop} on {call.answer.worker or '?'}: {usage.prompt_tokens or 0:,} prompt tokens, "
        f"{usage.cached_tokens or 0:,} cached, {usage.output_tokens or 0:,} out; first token after "
        f"{(first_s - call.sent_s) * time_scale:.2f} s, done after {(call.end_s - call.sent_s) * time_scale:.2f} s"
        + (f"; {call.answer.code}" if call.answer.code else "")
    )
    phases = (
        ("gap", call.ready_s, call.due_s),
        ("late", call.due_s, call.sent_s),
        ("wait", call.sent_s, first_s),
        ("decode", first_s, call.end_s),
    )
    bars = "".join(_bar(kind, y, (a - start_s) / span_s, (b - start_s) / span_s) for kind, a, b in phases if b > a)
    label = escape(f"{plan.index} {plan.hop}"[:22])
    return f'<g><title>{escape(facts)}</title><text x="0" y="{y + 12}">{label}</text>{bars}</g>'


def _bar(kind: str, y: int, begin: float, end: float) -> str:
    x, width = _LABEL_PX + begin * _PLOT_PX, max((end - begin) * _PLOT_PX, _MIN_BAR_PX if kind != "late" else 0.0)
    thin = kind == "gap"
    top, height = (y + 7, 2) if thin else (y + 3, _ROW_PX - 5)
    return f'<rect class="{kind}" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{height}"/>'


def _axis(y: int, span_s: float) -> str:
    ticks: Sequence[float] = [share / 4 for share in range(5)]
    return "".join(
        f'<text class="tick" x="{_LABEL_PX + share * _PLOT_PX:.0f}" y="{y + 14}" '
        f'text-anchor="{"end" if share == 1 else "middle"}">{share * span_s:.1f} s</text>'
        for share in ticks
    )
