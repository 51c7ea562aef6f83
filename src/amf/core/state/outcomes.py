"""How often the alternatives of a branch group succeed, and how long the client takes to say so: learned by (graph, group).

What a client, or a graph, declares counts like `_PRIOR_COUNTS` alternatives seen; without it one in two does. An alternative
that is discarded because another was committed tells nothing of itself. Old outcomes count half once there are many; the
group least recently decided is forgotten first.
"""

from dataclasses import dataclass, field

from amf.core.state.mean import Mean
from amf.core.state.pipelines import Pipeline

_PRIOR = 0.5
_PRIOR_COUNTS = 4.0
_MEMORY = 1_000.0

Position = tuple[str, str]


@dataclass(slots=True)
class _Seen:
    tried: float = 0.0
    succeeded: float = 0.0
    decided_s: Mean = field(default_factory=lambda: Mean(0.0))


class Outcomes:
    def __init__(self, max_positions: int) -> None:
        self._seen: dict[Position, _Seen] = {}
        self._max_positions = max_positions

    def observe(self, position: Position, succeeded: bool, after_s: float | None) -> None:
        """An alternative was committed or failed its test, `after_s` after its last call had ended (None: before that)."""
        seen = self._seen[position] = self._seen.pop(position, _Seen())
        if len(self._seen) > self._max_positions:
            del self._seen[next(iter(self._seen))]
        seen.tried += 1.0
        seen.succeeded += succeeded
        if seen.tried > _MEMORY:
            seen.tried, seen.succeeded = seen.tried / 2.0, seen.succeeded / 2.0
        if after_s is not None:
            seen.decided_s.observe(after_s)

    def odds(self, position: Position, declared: float | None) -> float:
        """That an alternative here succeeds."""
        prior = _PRIOR if declared is None else declared
        seen = self._seen.get(position)
        if seen is None:
            return prior
        return (prior * _PRIOR_COUNTS + seen.succeeded) / (_PRIOR_COUNTS + seen.tried)

    def test_s(self, position: Position) -> float:
        """Mean seconds from the end of an alternative's last call to the client's word on it; 0 while nothing is known."""
        seen = self._seen.get(position)
        return seen.decided_s.value if seen else 0.0


def needed_odds(pipeline: Pipeline | None, branch: str, outcomes: Outcomes, now_s: float, patience_s: float) -> float:
    """Odds that a branch of this pipeline will be needed (`state/branches.py`); 1 for what is in none."""
    if pipeline is None or pipeline.branches is None or not branch:
        return 1.0
    graph = pipeline.graph_name
    return pipeline.branches.odds(
        branch, lambda group, member: outcomes.odds((graph, group.name), member.probability), now_s, patience_s
    )
