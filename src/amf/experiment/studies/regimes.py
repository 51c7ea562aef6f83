"""What the fabric must reach on coding sessions, by how short memory is. 100 K tokens is a session's usual context."""

from collections.abc import Iterator

from amf.experiment.study import Gain

CONTEXT_TOKENS = 100_000
FITS, SHORT = 1.0, 1.5  # contexts of live sessions over memory: at most, at least

_WHERE_SHORT = (
    ("jct_s.mean", "JCT mean", 1.15),
    ("stretch.p95", "stretch p95", 2.0),
    ("stretch.p99", "stretch p99", 2.5),
    ("ttft_s.mean", "TTFT mean", 1.5),
)
_WHERE_IT_FITS = (("jct_s.mean", "JCT mean", 0.99), ("ttft_s.mean", "TTFT mean", 1.0))


def pressure(live: int, workers: int, kv_tokens: int) -> float:
    """Contexts of all live sessions over the fleet's KV memory."""
    return live * CONTEXT_TOKENS / (workers * kv_tokens)


def goals(label: str, pressure: float) -> Iterator[Gain]:
    """None between the two regimes, of which nothing is asked."""
    wanted = _WHERE_SHORT if pressure >= SHORT else _WHERE_IT_FITS if pressure <= FITS else ()
    for figure, what, at_least in wanted:
        yield Gain(name=f"{label}: {what}", setting=label, figure=figure, at_least=at_least)
