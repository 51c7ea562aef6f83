"""Predictions that are wrong by a known amount: how good must an estimator be before the policy suffers from it?

Every prediction about one call is that of an inner `Profiles`, learned or an oracle's, times a lognormal factor with median 1.
The factor belongs to (kind of prediction, run, hop), so asking again gives the same error, the same for every policy of a
seed; hops without a name are told apart by their call. The kinds, each with factors of its own: output tokens; service
seconds; seconds of the path after a call; and returns (how long a context is protected and its pipeline expected back).

What is said of a whole pool, or of a position in a graph over all runs, has no error of one run in it and is passed on.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from math import exp
from random import Random
from typing import Any

from amf.core.graph import CallGraph
from amf.core.state.paths import Known
from amf.core.state.prediction import Place, Prediction, Quantity
from amf.core.state.profiles import Profiles
from amf.core.state.transitions import Edge, Trail
from amf.core.types import Call


class Misled(Profiles):
    """`inner`, whose predictions are off by exp(`sigma` x a standard normal number). `sigma` 0 changes nothing.

    It is what `Fabric(config, policies, profiles=Misled(Profiles(config), sigma=0.5, seed=7))` asks in place of its own;
    what the fabric observes goes to `inner`, unharmed. Raises ValueError for a negative sigma.
    """

    def __init__(self, inner: Profiles, sigma: float, seed: int) -> None:
        if not sigma >= 0.0:
            raise ValueError(f"sigma must be 0 or more, not {sigma}")
        self._inner = inner
        self._sigma = sigma
        self._seed = seed
        self.demand = inner.demand
        self.paths = inner.paths

    def observe_call(self, call: Call, output_tokens: int, service_s: float, growth_tokens: int | None = None) -> None:
        self._inner.observe_call(call, output_tokens, service_s, growth_tokens)

    def observe_return(self, pool: str, returned: bool) -> None:
        self._inner.observe_return(pool, returned)

    def observe_gap(self, call: Call, gap_s: float) -> None:
        self._inner.observe_gap(call, gap_s)

    def observe_gap_after(self, place: Place, gap_s: float) -> None:
        self._inner.observe_gap_after(place, gap_s)

    def observe_end(self, graph: str, trail: Trail, hops: Mapping[str, int], edges: Iterable[Edge]) -> None:
        self._inner.observe_end(graph, trail, hops, edges)

    def predict(self, quantity: Quantity, place: Place, declared: float = 0.0) -> Prediction:
        return self._inner.predict(quantity, place, declared)

    def hop_time(self, graph: CallGraph, hop: str) -> Known:
        return self._inner.hop_time(graph, hop)

    def seen(self, graph: CallGraph) -> CallGraph:
        return self._inner.seen(graph)

    def branch_odds(self, graph: str, parent: str, hop: str, declared: float = 1.0) -> Prediction:
        return self._inner.branch_odds(graph, parent, hop, declared)

    def reach_odds(self, graph: str, hop: str, declared: float = 1.0) -> Prediction:
        return self._inner.reach_odds(graph, hop, declared)

    def hop_calls(self, graph: str, hop: str, declared: float = 1.0) -> Prediction:
        return self._inner.hop_calls(graph, hop, declared)

    def over_after_s(self, place: Place) -> float:
        return self._inner.over_after_s(place)

    def records(self) -> Iterator[dict[str, Any]]:
        return self._inner.records()

    def expected_output_tokens(self, call: Call) -> float:
        """Not cut at the call's limit, which in a simulation is its true length: the error would only ever be downwards."""
        return self._inner.expected_output_tokens(call) * self._error("output", call)

    def expected_service_s(self, call: Call) -> float:
        return self._inner.expected_service_s(call) * self._error("service", call)

    def expected_after_s(self, call: Call, by_graph_s: float) -> float:
        return self._inner.expected_after_s(call, by_graph_s) * self._error("after", call)

    def protection_s(self, call: Call, worth_s: float) -> float:
        return self._inner.protection_s(call, worth_s) * self._error("return", call)

    def residence_s(self, call: Call) -> float:
        return self._inner.residence_s(call) * self._error("return", call)

    def position_service_s(self, graph: str, hop: str) -> float:
        return self._inner.position_service_s(graph, hop)

    def pool_service_s(self, pool: str) -> float:
        return self._inner.pool_service_s(pool)

    def pool_context_tokens(self, pool: str) -> float:
        return self._inner.pool_context_tokens(pool)

    def return_odds(self, pool: str) -> float:
        return self._inner.return_odds(pool)

    def duty(self, pool: str) -> tuple[float, float]:
        return self._inner.duty(pool)

    def _error(self, kind: str, call: Call) -> float:
        return exp(self._sigma * _normal(self._seed, kind, call.run_id, call.hop or call.call_id))


@lru_cache(maxsize=100_000)
def _normal(seed: int, kind: str, run_id: str, hop: str) -> float:
    """A standard normal number, always the same for the same names."""
    return Random(f"misled/{seed}/{kind}/{run_id}/{hop}").gauss(0.0, 1.0)
