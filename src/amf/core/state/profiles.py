"""What was learned about lengths and times, by position in a call graph: (graph, hop), else the pool, else a default.

Two answers stand side by side. A running mean with its count stands behind every `expected_` answer: it is quick to move, and
policies reckon with it. A sketch (`sketch.py`) stands behind `predict`: it knows quantiles, and the answer says how much
evidence it rests on and where that comes from. What pipelines do after a hop (how many hops follow, which edges they take) is
learned when they end. Bounded by the least recently updated position.

Whatever policies predict they ask here, call by call, so that something else may answer in its place: the simulator puts in
one that knows the future, or one that errs by a known amount (`sim/oracle.py`, `sim/misled.py`). `records` and `from_records`
carry all of it over a restart, as JSON-able dicts: names, counts, tokens and seconds, nothing of a prompt.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any

from amf.core.config import FabricConfig
from amf.core.graph import CallGraph
from amf.core.path import HopTime
from amf.core.state.demand import Demand
from amf.core.state.mean import Mean
from amf.core.state.paths import Known, Paths
from amf.core.state.prediction import QUANTITIES, Place, Prediction, Quantity, Sketches, Source
from amf.core.state.sketch import Sketch, measure
from amf.core.state.transitions import Edge, Trail, Transitions, as_seen, name
from amf.core.types import Call

FORMAT = 1  # of the records

_MEMORY_RETURNS = 4_000  # beyond it, older outcomes count half
_PRIOR_RETURNS = 8  # returns that count as seen before any was
_OVER_MARGIN = 2.0  # a quantile of few observations is easily too low
_RESIDENT_GAPS = 8.0  # an idle pipeline is expected back for this many mean gaps


_MEANS = ("output_tokens", "context_tokens", "service_s", "gap_s")


class Profile:
    __slots__ = (*_MEANS, "outcomes", "returns", "sketches")

    def __init__(self, config: FabricConfig) -> None:
        self.output_tokens = Mean(config.default_output_tokens)
        self.context_tokens = Mean(0.0)
        self.service_s = Mean(0.0)
        self.gap_s = Mean(config.default_gap_s)
        self.outcomes = 0  # idle pipelines that came back, or were given up
        self.returns = 0  # of these, the ones that came back
        self.sketches = Sketches()

    def to_dict(self) -> dict[str, Any]:
        means = {each: mean.to_list() for each in _MEANS if (mean := getattr(self, each)).count}
        sketches = {each: sketch.to_dict() for each in QUANTITIES if (sketch := getattr(self.sketches, each)).count}
        return {"means": means, "outcomes": self.outcomes, "returns": self.returns, "sketches": sketches}

    @classmethod
    def from_dict(cls, document: dict[str, Any], config: FabricConfig) -> "Profile":
        """Raises KeyError, TypeError or ValueError for what `to_dict` cannot have written."""
        profile = cls(config)
        for each in _MEANS:
            if each in document["means"]:
                setattr(profile, each, Mean.from_list(document["means"][each]))
        for quantity in QUANTITIES:
            if quantity in document["sketches"]:
                setattr(profile.sketches, quantity, Sketch.from_dict(document["sketches"][quantity]))
        profile.outcomes, profile.returns = int(measure(document["outcomes"])), int(measure(document["returns"]))
        if profile.returns > profile.outcomes:
            raise ValueError(f"{profile.returns} of {profile.outcomes} idle pipelines came back")
        return profile


class Profiles:
    def __init__(self, config: FabricConfig) -> None:
        self._config = config
        self._enough = max(1, config.min_evidence)
        self._default = Profile(config)
        self._positions: dict[tuple[str, str], Profile] = {}
        self._pools: dict[str, Profile] = {}
        self._graphs: dict[str, Transitions] = {}
        self.demand = Demand(config)
        self.paths = Paths(config, self.hop_time, self.seen)

    def observe_call(self, call: Call, output_tokens: int, service_s: float, growth_tokens: int | None = None) -> None:
        """A call finished. `growth_tokens`: how much longer its prompt was than what its pipeline had in the pool, if known."""
        for profile in self._owners(call):
            profile.output_tokens.observe(output_tokens)
            profile.context_tokens.observe(call.prompt_tokens + output_tokens)
            profile.service_s.observe(service_s)
            sketches = profile.sketches
            sketches.output_tokens.observe(output_tokens)
            sketches.service_s.observe(service_s)
            if growth_tokens is not None:
                sketches.growth_tokens.observe(growth_tokens)
        self.paths.observe_call(call.graph)

    def observe_gap_after(self, place: Place, gap_s: float) -> None:
        """A pipeline whose last call finished there went on after this long."""
        for profile in self._known(*place):
            profile.sketches.gap_s.observe(gap_s)

    def observe_end(self, graph: str, trail: Trail, hops: Mapping[str, int], edges: Iterable[Edge]) -> None:
        """A pipeline went its way to the end: the calls it finished, by hop, and the edges it revealed."""
        for number, place in trail.entries:
            for profile in self._known(*place):
                profile.sketches.further_hops.observe(trail.calls - 1 - number, trail.stride)
        if graph:
            transitions = self._graphs[graph] = self._graphs.pop(graph, Transitions())
            transitions.observe(hops, edges)
            if len(self._graphs) > self._config.max_graphs:
                del self._graphs[next(iter(self._graphs))]

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

    def predict(self, quantity: Quantity, place: Place, declared: float = 0.0) -> Prediction:
        """From this very position, else from its pool, once `min_evidence` observations stand behind it; else `declared` (a
        hint, or what the cost model says; 0: nobody knows), else the configuration's default, 0 where it has none."""
        graph, hop, pool = place
        levels = (
            (Source.POSITION, self._positions.get((graph, hop)) if hop else None),
            (Source.POOL, self._pools.get(pool)),
        )
        for source, profile in levels:
            sketch: Sketch | None = getattr(profile.sketches, quantity) if profile else None
            if sketch is not None and sketch.count >= self._enough:
                return Prediction(sketch.mean, sketch.count, source, sketch)
        if declared > 0.0:
            return Prediction(declared, 0.0, Source.DECLARED)
        return Prediction(_prior(quantity, self._config), 0.0, Source.DEFAULT)

    def hop_time(self, graph: CallGraph, hop: str) -> Known:
        """Seconds of a declared hop from dispatch to its end, after the mean gap before it: as `predict` says, or else, while
        nobody has `min_evidence`, as its declaration hints, or as the calls seen so far took."""
        declared = graph.by_name[hop]
        guess_s = declared.expected_s or self.position_service_s(graph.name, hop) or self.pool_service_s(declared.pool)
        found = self.predict("service_s", (graph.name, hop, declared.pool), guess_s)
        profile = self._positions.get((graph.name, hop))
        gap_s = profile.gap_s.value if profile and profile.gap_s.count else 0.0
        evidence = found.evidence if found.source is Source.POSITION else 0.0
        return Known(HopTime(found.sketch.curve() if found.sketch else found.quantile, gap_s), evidence)

    def seen(self, graph: CallGraph) -> CallGraph:
        """The graph with what its pipelines that ended say of its odds."""
        return as_seen(graph, self._graphs.get(graph.name))

    def branch_odds(self, graph: str, parent: str, hop: str, declared: float = 1.0) -> Prediction:
        """Odds that a pipeline of this graph that finished `parent` goes on to `hop`; `declared` until `min_evidence` have."""
        seen = self._graphs.get(graph)
        if seen is None or seen.reached(parent) < self._enough:
            return Prediction(declared, 0.0, Source.DECLARED)
        reached = seen.reached(parent)
        return Prediction(min(seen.taken(parent, hop) / reached, 1.0), reached, Source.POSITION)

    def reach_odds(self, graph: str, hop: str, declared: float = 1.0) -> Prediction:
        """Odds that a pipeline of this graph comes to `hop` at all; `declared` until `min_evidence` pipelines have ended."""
        seen = self._graphs.get(graph)
        if seen is None or seen.pipelines < self._enough:
            return Prediction(declared, 0.0, Source.DECLARED)
        return Prediction(min(seen.reached(hop) / seen.pipelines, 1.0), seen.pipelines, Source.POSITION)

    def hop_calls(self, graph: str, hop: str, declared: float = 1.0) -> Prediction:
        """Calls of `hop` in a pipeline of this graph that comes to it, more than 1 in a loop; `declared` until `min_evidence`
        such pipelines have ended."""
        seen = self._graphs.get(graph)
        if seen is None or seen.reached(hop) < self._enough:
            return Prediction(declared, 0.0, Source.DECLARED)
        return Prediction(seen.calls_per_pipeline(hop), seen.reached(hop), Source.POSITION)

    def over_after_s(self, place: Place) -> float:
        """For how long a pipeline without an open call, whose last one finished there, may be silent before it has most likely
        ended without saying so: twice as long as hardly any that went on took (`over_quantile`), and `over_floor_s` at
        least. Infinite while there is no evidence for it."""
        gap = self.predict("gap_s", place)
        if gap.source not in (Source.POSITION, Source.POOL):
            return inf
        return max(self._config.over_floor_s, _OVER_MARGIN * gap.quantile(self._config.over_quantile))

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

    def records(self) -> Iterator[dict[str, Any]]:
        """All of it, as JSON-able dicts, the first of which says the format and how many follow. What is learned between two
        of them may or may not be in."""
        pools, positions, graphs = list(self._pools.items()), list(self._positions.items()), list(self._graphs.items())
        demands, paths = list(self.demand.records()), list(self.paths.records())
        count = len(pools) + len(positions) + len(graphs) + len(demands) + len(paths)
        yield {"amf_profiles": FORMAT, "records": count}
        for pool, profile in pools:
            yield {"pool": pool, **profile.to_dict()}
        for (graph, hop), profile in positions:
            yield {"graph": graph, "hop": hop, **profile.to_dict()}
        for graph, transitions in graphs:
            yield {"graph": graph, **transitions.to_dict()}
        for graph, demand in demands:
            yield {"demand_of": graph, **demand}
        for graph, path in paths:
            yield {"paths_of": graph, **path}

    @classmethod
    def from_records(cls, records: Sequence[Any], config: FabricConfig) -> "Profiles":
        """Raises ValueError for what `records` cannot have made, saying which record and why."""
        header = records[0] if records else None
        if not isinstance(header, dict) or header.get("amf_profiles") != FORMAT:
            raise ValueError(f"it does not begin as learned profiles of format {FORMAT} do")
        if header.get("records") != len(records) - 1:
            raise ValueError(f"it should have {header.get('records')} records and has {len(records) - 1}")
        profiles = cls(config)
        for number, record in enumerate(records[1:], start=1):
            try:
                profiles._load(record)
            except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"record {number} is damaged: {type(error).__name__}: {error}") from error
        return profiles

    def _load(self, record: dict[str, Any]) -> None:
        if "pool" in record:
            self._pools[name(record["pool"])] = Profile.from_dict(record, self._config)
        elif "hop" in record:
            self._positions[name(record["graph"]), name(record["hop"])] = Profile.from_dict(record, self._config)
            if len(self._positions) > self._config.max_profiles:
                del self._positions[next(iter(self._positions))]
        elif "demand_of" in record:
            self.demand.load(name(record["demand_of"]), record)
        elif "paths_of" in record:
            self.paths.load(name(record["paths_of"]), record)
        else:
            self._graphs[name(record["graph"])] = Transitions.from_dict(record)
            if len(self._graphs) > self._config.max_graphs:
                del self._graphs[next(iter(self._graphs))]

    def _known(self, graph: str, hop: str, pool: str) -> list[Profile]:
        """The profiles there are of a place. None is made and none counts as used: that is for finished calls to do."""
        found = [self._pool(pool)]
        if hop and (profile := self._positions.get((graph, hop))) is not None:
            found.append(profile)
        return found

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


def _prior(quantity: Quantity, config: FabricConfig) -> float:
    if quantity == "output_tokens":
        return config.default_output_tokens
    return config.default_gap_s if quantity == "gap_s" else 0.0
