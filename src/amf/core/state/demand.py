"""What pipelines of one call graph ask of the fleet, learned from those that came to their end.

Work is capacity, not latency: the account's GPU seconds, in which a decode iteration is shared by its batch. A pipeline's path
is what its longest chain of calls would take if each had its worker alone, and the seconds in which only its tools ran. Its
logarithm is taken as normal. How much longer calls take in the batches they really share is its dilation, which follows the
load; were it part of the path, an overload would make every deadline look hopeless.
"""

from math import erf, inf, log, sqrt

from amf.core.config import FabricConfig
from amf.core.state.pipelines import Pipeline
from amf.core.state.profiles import Mean

_LEAST_S = 1e-3
_FOLLOW = 0.05  # how fast the dilation follows the load


class GraphDemand:
    """`work_s`: worker-seconds of a whole pipeline by pool. `pipelines`: how many stand behind it."""

    __slots__ = ("delay", "log_path", "log_path_squared", "path_s", "pipelines", "work_s")

    def __init__(self) -> None:
        self.pipelines = 0
        self.work_s: dict[str, Mean] = {}
        self.path_s = Mean(0.0)
        self.log_path = Mean(0.0)
        self.log_path_squared = Mean(0.0)
        self.delay = Mean(0.0, _FOLLOW)

    def observe(self, pipeline: Pipeline) -> None:
        self.pipelines += 1
        for pool in pipeline.work_s.keys() - self.work_s.keys():
            self.work_s[pool] = mean = Mean(0.0)
            mean.count = self.pipelines - 1
        for pool, mean in self.work_s.items():
            mean.observe(pipeline.work_s.get(pool, 0.0))
        path_s = max(pipeline.alone_path_s + pipeline.idle_s, _LEAST_S)
        self.path_s.observe(path_s)
        self.log_path.observe(log(path_s))
        self.log_path_squared.observe(log(path_s) ** 2)
        if pipeline.pressure_s > 0.0 and pipeline.last_finish_s is not None:
            self.delay.observe(max(0.0, pipeline.last_finish_s - pipeline.opened_s - path_s) / pipeline.pressure_s)

    def odds_within(self, seconds: float) -> float:
        """Odds that the whole path, at the present dilation, takes no longer than this, by a lognormal of the same moments."""
        if seconds <= 0.0:
            return 0.0
        sigma = sqrt(max(self.log_path_squared.value - self.log_path.value**2, 1e-6))
        return 0.5 * (1.0 + erf((log(seconds) - self.log_path.value) / (sigma * sqrt(2.0))))

    def latest_useful_s(self, pipeline: Pipeline) -> float:
        """When its remaining work must be done for the rest of its path to be in time: the deadline, less the share of the path
        that lies behind the work. Infinite without a deadline."""
        if pipeline.deadline_s is None:
            return inf
        return pipeline.deadline_s - self.path_s.value * (1.0 - self.done_share(pipeline))

    def done_share(self, pipeline: Pipeline) -> float:
        expected_s = sum(mean.value for mean in self.work_s.values())
        return min(1.0, sum(pipeline.work_s.values()) / expected_s) if expected_s > 0.0 else 1.0

    def needed_s(self, pipeline: Pipeline, pool: str) -> float:
        """Worker-seconds that it is still expected to ask of the pool."""
        mean = self.work_s.get(pool)
        return max(0.0, mean.value - pipeline.work_s.get(pool, 0.0)) if mean else 0.0


class Demand:
    """By graph name; the least recently learned goes beyond `max_graphs`."""

    def __init__(self, config: FabricConfig) -> None:
        self._config = config
        self._graphs: dict[str, GraphDemand] = {}

    def observe(self, pipeline: Pipeline) -> None:
        """It came to its end."""
        found = self._graphs.pop(pipeline.graph_name, None) or GraphDemand()
        self._graphs[pipeline.graph_name] = found
        found.observe(pipeline)
        if len(self._graphs) > self._config.max_graphs:
            del self._graphs[next(iter(self._graphs))]

    def of(self, graph_name: str) -> GraphDemand | None:
        """None while too few have ended to tell."""
        found = self._graphs.get(graph_name)
        return found if found is not None and found.pipelines >= self._config.demand_evidence else None
