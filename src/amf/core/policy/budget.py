"""By when must this call be done? Asked again at every look at a waiting call, so slack gained or lost upstream reaches the
hops that remain.

Calls are ordered by the expected remaining path, and told a due time by a high quantile of it: in the order a quantile is no
better, and where too much is admitted it costs deadlines (docs/time.md has the figures), while a due time that half of the
pipelines cannot keep tells nobody anything.
"""

from collections.abc import Callable

from amf.core.graph import CallGraph
from amf.core.policy.interface import View
from amf.core.state.pipelines import CallState, Pipeline
from amf.core.types import Call


def by_critical_path(pipeline: Pipeline, state: CallState, view: View) -> float | None:
    """The pipeline's deadline minus the expected seconds of the critical path after this hop, with learned hop times.

    A pipeline that reveals its hops one by one has no known remainder: its calls are due by the pipeline's deadline.
    """
    if pipeline.deadline_s is None:
        return None
    graph, hop = pipeline.graph, state.call.hop
    if graph is None or hop not in graph.by_name:
        return pipeline.deadline_s
    return pipeline.deadline_s - seconds_after(graph, state.call, view)


def by_remaining_path(pipeline: Pipeline, state: CallState, view: View) -> float | None:
    """The pipeline's deadline minus the `budget_quantile` of what remains after this hop (`core/state/paths.py`), corrected by
    what became of earlier ones.

    What remains is composed from the end of this very hop on, so siblings are budgeted by their join without more ado: each
    is due when the join's part must begin, and one off the critical path has the difference as slack. As above where the
    remainder is not known."""
    if pipeline.deadline_s is None:
        return None
    graph, hop = pipeline.graph, state.call.hop
    if graph is None or hop not in graph.by_name:
        return pipeline.deadline_s
    return pipeline.deadline_s - view.profiles.expected_after_s(state.call, view.profiles.paths.room_s(graph, hop))


def static_split(pipeline: Pipeline, state: CallState, view: View) -> float | None:
    """The essay's static budgets: each hop's share of the SLO is its share of the sum of all hops, fixed at the start."""
    if pipeline.deadline_s is None:
        return None
    graph, hop = pipeline.graph, state.call.hop
    if graph is None or hop not in graph.by_name:
        return pipeline.deadline_s
    seconds = hop_seconds(graph, view)
    costs = {name: seconds(name) for name in graph.order}
    total_s = sum(costs.values())
    if total_s <= 0.0:
        return pipeline.deadline_s
    spent_s = sum(costs[name] for name in graph.order[: graph.order.index(hop) + 1])
    return pipeline.opened_s + (pipeline.deadline_s - pipeline.opened_s) * spent_s / total_s


def no_budget(pipeline: Pipeline, state: CallState, view: View) -> float | None:
    """Baselines that know no deadlines still report the pipeline's."""
    return pipeline.deadline_s


def seconds_after(graph: CallGraph, call: Call, view: View) -> float:
    """Expected seconds of the critical path strictly after this call's hop."""
    seen = view.profiles.paths.remaining(graph).seen
    by_graph_s = view.remembered(id(graph), lambda: seen.remaining(hop_seconds(graph, view)))
    return view.profiles.expected_after_s(call, by_graph_s[call.hop])


def hop_seconds(graph: CallGraph, view: View) -> Callable[[str], float]:
    """Seconds of a hop: as seen at its position, else as its declaration hints, else as calls of its pool take."""

    def seconds(name: str) -> float:
        hop = graph.by_name[name]
        seen_s = view.profiles.position_service_s(graph.name, name)
        return seen_s or hop.expected_s or view.profiles.pool_service_s(hop.pool)

    return seconds
