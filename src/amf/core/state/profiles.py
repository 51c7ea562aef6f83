"""What was learned about lengths and times, by position in a call graph: (graph, hop), else the pool, else a default.

A running mean with its count stands behind every prediction. Bounded by the least recently
updated position.

Whatever policies predict they ask here, call by call, so that something else may answer in its place: the simulator puts in
one that knows the future, or one that errs by a known amount (`sim/oracle.py`, `sim/misled.py`).
"""

from amf.core.config import FabricConfig
from amf.core.types import Call

_MEMORY_RETURNS = 4_000  # beyond it, older outcomes count half
_PRIOR_RETURNS = 8  # returns that count as seen before any was
_RESIDENT_GAPS = 8.0  # an idle pipeline is expected back for this many mean gaps


class Mean:
    """A mean that follows slow change: exact up to 1 / `floor` observations, exponentially weighted after."""

    __slots__ = ("count", "floor", "value")

    def __init__(self, value: float, floor: float = 0.02) -> None:
        self.value = value
        self.count = 0
        self.floor = floor

    def observe(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(1.0 / self.count, self.floor)


class Profile:
    __slots__ = ("context_tokens", "gap_s", "outcomes", "output_tokens", "returns", "service_s")

    def __init__(self, config: FabricConfig) -> None:
        self.output_tokens = Mean(config.default_output_tokens)
        self.context_tokens = Mean(0.0)
        self.service_s = Mean(0.0)
        self.gap_s = Mean(config.default_gap_s)
        self.outcomes = 0  # idle pipelines that came back, or were given up
        self.returns = 0  # of these, the ones that came back


class Profiles:
    def __init__(self, config: FabricConfig) -> None:
        self._config = config
        self._default = Profile(config)
        self._positions: dict[tuple[str, str], Profile] = {}
        self._pools: dict[str, Profile] = {}

    def observe_call(self, call: Call, output_tokens: int, service_s: float) -> None:
        for profile in self._owners(call):
            profile.output_tokens.observe(output_tokens)
            profile.context_tokens.observe(call.prompt_tokens + output_tokens)
            profile.service_s.observe(service_s)

    def observe_return(self, pool: str, returned: bool) -> None:
        """An idle pipeline came back to this pool, or has been given up."""
        profile = self._pool(pool)
        profile.outcomes += 1
        profile.returns += returned
        if profile.outcomes > _MEMORY_RETURNS:
            profile.outcomes, profile.returns = profile.outcomes // 2, profile.returns // 2

    def observe_gap(self, call: Call, gap_s: float) -> None:
        for profile in self._owners(call):
            profile.gap_s.observe(gap_s)

    def expected_output_tokens(self, call: Call) -> float:
        """Mean output at this position, never above the call's own limit."""
        expected = self._best(call.graph, call.hop, call.pool).output_tokens.value
        return min(expected, call.max_output_tokens) if call.max_output_tokens is not None else expected

    def expected_service_s(self, call: Call) -> float:
        """Mean seconds from dispatch to the end; 0 while nothing is known."""
        return self._best(call.graph, call.hop, call.pool).service_s.value

    def expected_after_s(self, call: Call, by_graph_s: float) -> float:
        """Seconds of the critical path after this call, of which its graph expects `by_graph_s`."""
        return by_graph_s

    def position_service_s(self, graph: str, hop: str) -> float:
        """Mean seconds at this very position of the graph; 0 while it has not been seen."""
        profile = self._positions.get((graph, hop))
        return profile.service_s.value if profile else 0.0

    def pool_service_s(self, pool: str) -> float:
        """Mean seconds of a call in this pool; 0 while nothing is known."""
        return self._pools.get(pool, self._default).service_s.value

    def pool_context_tokens(self, pool: str) -> float:
        """Mean context, prompt and answer, of the calls of this pool; 0 while nothing is known."""
        return self._pools.get(pool, self._default).context_tokens.value

    def protection_s(self, call: Call, worth_s: float) -> float:
        """For how long to protect the context this call leaves, if one that is sure to be used is worth it for `worth_s`."""
        return worth_s * self.return_odds(call.pool)

    def residence_s(self, call: Call) -> float:
        """For how long after this call its pipeline is expected back in this pool."""
        return _RESIDENT_GAPS * self._best(call.graph, call.hop, call.pool).gap_s.value

    def return_odds(self, pool: str) -> float:
        """Odds that an idle pipeline calls here again: 1 until enough of them have come back or been given up."""
        profile = self._pools.get(pool, self._default)
        return (profile.returns + _PRIOR_RETURNS) / (profile.outcomes + _PRIOR_RETURNS)

    def duty(self, pool: str) -> tuple[float, float]:
        """(share of its life that a pipeline will spend in service here, if it comes back at all; mean seconds of a call)."""
        profile = self._pools.get(pool, self._default)
        service_s = profile.service_s.value
        share = service_s / (service_s + profile.gap_s.value) if service_s else 0.0
        return share * self.return_odds(pool), service_s

    def _pool(self, pool: str) -> Profile:
        profile = self._pools.get(pool)
        if profile is None:
            profile = self._pools[pool] = Profile(self._config)
        return profile

    def _best(self, graph: str, hop: str, pool: str) -> Profile:
        found = self._positions.get((graph, hop)) if hop else None
        if found is None or not found.service_s.count:
            found = self._pools.get(pool, self._default)
        return found

    def _owners(self, call: Call) -> list[Profile]:
        owners = [self._pool(call.pool)]
        if call.hop:
            position = (call.graph, call.hop)
            profile = self._positions.pop(position, None) or Profile(self._config)
            self._positions[position] = profile
            if len(self._positions) > self._config.max_profiles:
                del self._positions[next(iter(self._positions))]
            owners.append(profile)
        return owners
