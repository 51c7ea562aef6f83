"""Why was this call placed so? The last decisions of each recent call, kept as they came and rendered on demand. Bounded."""

import math
from collections import OrderedDict
from typing import Any

from amf.core.decisions import Because, Decision, Price
from amf.core.journal import decision_to_dict

_MAX_PER_CALL = 32
_PRICE_COLUMNS = ("wait_s", "prefill_s", "decode_s", "contention_s", "externality_s")


class Explained:
    def __init__(self, max_calls: int = 10_000) -> None:
        self._calls: OrderedDict[str, list[tuple[float, Decision]]] = OrderedDict()
        self._max_calls = max_calls

    def note(self, call_id: str, at_s: float, decision: Decision) -> None:
        if not call_id or self._max_calls < 1:
            return
        entries = self._calls.get(call_id)
        if entries is None:
            entries = self._calls[call_id] = []
            if len(self._calls) > self._max_calls:
                self._calls.popitem(last=False)
        if len(entries) < _MAX_PER_CALL:
            entries.append((at_s, decision))

    def decisions(self, call_id: str) -> list[tuple[float, Decision]]:
        """With the modelled time of each; empty for a call that is unknown or forgotten."""
        return list(self._calls.get(call_id, ()))


def as_json(entries: list[tuple[float, Decision]]) -> list[dict[str, Any]]:
    return [{"at_s": round(at_s, 6), **decision_to_dict(decision)} for at_s, decision in entries]


def as_text(call_id: str, entries: list[tuple[float, Decision]]) -> str:
    """A table for people: each decision, its reason, and the priced alternatives, cheapest first."""
    lines = [call_id]
    for at_s, decision in entries:
        because: Because | None = getattr(decision, "because", None)
        worker = getattr(decision, "worker", "")
        reason = because.reason if because else getattr(decision, "reason", "")
        lines.append(f"{at_s:10.3f}s  {type(decision).__name__.lower():<9} {worker:<20} {reason}")
        if because and because.alternatives:
            lines.extend(_prices(because.alternatives))
    return "\n".join(lines) + "\n"


def _prices(alternatives: tuple[Price, ...]) -> list[str]:
    head = "".join(f"{name.removesuffix('_s'):>12}" for name in _PRICE_COLUMNS)
    lines = [f"             {'worker':<20}{'total':>12}{'hit tokens':>12}{head}  note"]
    for price in sorted(alternatives, key=lambda p: (p.total_s, p.worker)):
        seconds = "".join(f"{_seconds(getattr(price, name)):>12}" for name in _PRICE_COLUMNS)
        lines.append(
            f"             {price.worker:<20}{_seconds(price.total_s):>12}{price.hit_tokens:>12}{seconds}  {price.note}"
        )
    return lines


def _seconds(value: float) -> str:
    return f"{value:.4f}s" if math.isfinite(value) else "cannot"
