"""What can be predicted of a place in a call graph, and what stands behind a prediction."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from amf.core.state.sketch import Sketch

Place = tuple[str, str, str]  # graph, hop, pool

Quantity = Literal["output_tokens", "service_s", "gap_s", "growth_tokens", "further_hops"]
QUANTITIES: tuple[Quantity, ...] = (
    "output_tokens",
    "service_s",  # from dispatch to the end
    "gap_s",  # after it: from its end to its pipeline's next arrival, no call being open
    "growth_tokens",  # of the prompt, beyond what its pipeline had in the pool
    "further_hops",  # calls its pipeline finished after it
)


@dataclass(slots=True)
class Sketches:
    """One for each quantity."""

    output_tokens: Sketch = field(default_factory=Sketch)
    service_s: Sketch = field(default_factory=Sketch)
    gap_s: Sketch = field(default_factory=Sketch)
    growth_tokens: Sketch = field(default_factory=Sketch)
    further_hops: Sketch = field(default_factory=Sketch)


class Source(StrEnum):
    """Where a prediction comes from, best first."""

    POSITION = "position"  # this hop of this graph
    POOL = "pool"  # calls of the same model
    DECLARED = "declared"  # a hint of the graph, or the cost model: what the asker named
    DEFAULT = "default"  # the configuration


@dataclass(frozen=True, slots=True)
class Prediction:
    """`evidence`: observations behind it that are not forgotten. `sketch`: theirs, as it is when it is asked."""

    value: float  # the mean
    evidence: float
    source: Source
    sketch: Sketch | None = None

    def quantile(self, q: float) -> float:
        """Of the observations, within the sketch's error; the mean where there are none."""
        return self.sketch.quantile(q) if self.sketch else self.value
