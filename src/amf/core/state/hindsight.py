"""What the rest of a pipeline took, and by how much what was said of it beforehand was off.

A composition of hop times (`paths.py`) is an estimate: a fleet fills, loops differ from round to round, correlations are not
all alike. So a stated quantile is held to its word. What is said at a call's dispatch is the composed quantile times the
graph's `Factor`; when the pipeline is over, each call that took longer raises the factor and each that did not lowers it, in
balance when the stated share is within. That is the quantile tracker of Angelopoulos, Candes & Tibshirani 2023, after the
adaptive conformal inference of Gibbs & Candes 2021, on the logarithm of what is said: over N calls the share within differs
from the stated one by no more than (range of the logarithm + step) / (step x N), whatever the calls do, as long as the
factor is not at its bounds and answers come before the next is asked. (They come later: with a large step it swings.)

The *rest* after a dispatch is that call's service, and the gaps and services that follow on the longest way to the end; in
nothing of it are the seconds that calls waited in our queues.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import exp, log
from typing import NamedTuple

MOST_STAGES = 256  # of a pipeline; of a longer one nothing is learned here
_STEP = 0.005  # of the logarithm
_MOST = 4.0


class Stage(NamedTuple):
    """A finished call of a declared hop. `parents`: hops whose ends it waited for. `said_s`: what was said of the rest at
    its dispatch; None: nothing."""

    hop: str
    parents: tuple[str, ...]
    arrived_s: float
    dispatched_s: float
    ended_s: float
    said_s: float | None


class Factor:
    """On what a composition says of the rest of a pipeline of one graph, between 1/4 and 4."""

    __slots__ = ("value",)

    def __init__(self, value: float = 1.0) -> None:
        self.value = min(max(value, 1.0 / _MOST), _MOST)

    def observe(self, stages: Sequence[Stage], quantile: float) -> None:
        """A pipeline is over; its stages in the order in which they ended."""
        step = sum(
            quantile - 1.0 if took_s <= stage.said_s else quantile
            for stage, took_s in zip(stages, rests_s(stages), strict=True)
            if stage.said_s is not None
        )
        self.value = exp(min(max(log(self.value) + _STEP * step, -log(_MOST)), log(_MOST)))


def rests_s(stages: Sequence[Stage]) -> list[float]:
    """The rest from each stage's dispatch on. They come in the order in which they ended."""
    rests_s = [0.0] * len(stages)
    after_s = [0.0] * len(stages)
    for index in range(len(stages) - 1, -1, -1):
        stage = stages[index]
        rests_s[index] = stage.ended_s - stage.dispatched_s + after_s[index]
        parents = list(_parents(stages, index))
        ready_s = max((stages[parent].ended_s for parent in parents), default=stage.arrived_s)
        for parent in parents:
            after_s[parent] = max(after_s[parent], stage.arrived_s - ready_s + rests_s[index])
    return rests_s


def first_services_s(stages: Iterable[Stage]) -> dict[str, float]:
    """Service of each hop's first call."""
    found: dict[str, float] = {}
    for stage in stages:
        found.setdefault(stage.hop, stage.ended_s - stage.dispatched_s)
    return found


def _parents(stages: Sequence[Stage], index: int) -> Iterator[int]:
    """Of each hop that this stage waited for, the call that ended last before it came."""
    awaited, arrived_s = set(stages[index].parents), stages[index].arrived_s
    for before in range(index - 1, -1, -1):
        if not awaited:
            return
        if stages[before].hop in awaited and stages[before].ended_s <= arrived_s:
            awaited.remove(stages[before].hop)
            yield before
