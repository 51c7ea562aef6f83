"""Deadlines in Prometheus: were they met, how much slack was left at each hop, how much of the budget was gone after it.

Graph and hop names come from clients, so the first `max_positions` pairs that appear get series of their own and all later
ones share `other`; a call that names no graph or hop has "". Seconds are real ones.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram

_OTHER = "other"
_SLACK = (-60.0, -30.0, -10.0, -5.0, -1.0, -0.25, 0.0, 0.25, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_BURN = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 4.0)


class SloMetrics:
    def __init__(self, registry: CollectorRegistry, max_positions: int) -> None:
        self._max_positions = max_positions
        self._positions: dict[tuple[str, str], tuple[str, str]] = {}
        self._graphs: set[str] = {""}
        r = registry
        labels = ["graph", "slo_class", "outcome"]
        self._pipelines = Counter("amf_deadline_pipelines", "Pipelines with a deadline that ended", labels, registry=r)
        self._ttft = Counter("amf_ttft_target_calls", "Calls with x-slo-ttft-ms that ended", labels, registry=r)
        at = ["graph", "hop"]
        self._slack_s = Histogram("amf_slack_seconds", "Slack at dispatch", at, buckets=_SLACK, registry=r)
        self._burn = Histogram("amf_budget_burn_ratio", "Budget used at a hop's end", at, buckets=_BURN, registry=r)

    def pipeline_ended(self, graph: str, slo_class: str, outcome: str) -> None:
        """`outcome`: met, missed or cancelled."""
        self._pipelines.labels(self._graph(graph), slo_class, outcome).inc()

    def ttft(self, graph: str, slo_class: str, met: bool) -> None:
        self._ttft.labels(self._graph(graph), slo_class, "met" if met else "missed").inc()

    def sent(self, graph: str, hop: str, slack_s: float) -> None:
        self._slack_s.labels(*self._position(graph, hop)).observe(slack_s)

    def hop_ended(self, graph: str, hop: str, burn: float) -> None:
        """`burn`: share of the pipeline's budget that is gone."""
        self._burn.labels(*self._position(graph, hop)).observe(burn)

    def _position(self, graph: str, hop: str) -> tuple[str, str]:
        known = self._positions.get((graph, hop))
        if known is not None:
            return known
        if len(self._positions) >= self._max_positions:
            return (_OTHER, _OTHER)
        self._positions[graph, hop] = (graph, hop)
        return (graph, hop)

    def _graph(self, graph: str) -> str:
        if graph not in self._graphs:
            if len(self._graphs) > self._max_positions:
                return _OTHER
            self._graphs.add(graph)
        return graph
