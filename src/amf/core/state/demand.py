"""What pipelines of one call graph ask of the fleet, learned from those that came to their end.

*Work* is capacity, not latency: the worker-seconds of a call whose decode iterations are shared by a full batch
(`WorkerState.toll_s`). A pipeline's *path* is what its longest chain of calls would take if each had its worker alone,
and the seconds in which only its tools ran.

Pipelines of one graph differ, and two things are known of a new one: how long its first prompt is, and how much time its
caller gives it, who tends to know what he asks for. Its path is predicted from both (`logline.py`), and its work in every
pool is taken to grow with its path. Without a deadline it counts as the mean pipeline.

All this is an estimate: batches slow each other down, contexts are evicted and computed again, bursts come. So what became of
earlier promises corrects it. `margin` is a factor on how much may be promised; each promise that was kept raises it a little
and each that was broken lowers it, in balance when the wanted share is kept (integral control on its logarithm). While
nothing is late it grows, and an unloaded fleet refuses nobody.
"""

from collections.abc import Iterator
from math import exp, inf, log
from typing import Any

from amf.core.config import FabricConfig
from amf.core.state.logline import Guess, LogLine
from amf.core.state.mean import Mean
from amf.core.state.pipelines import Pipeline
from amf.core.state.sketch import measure

_LEAST_S = 1e-3
_STEP = 0.1  # of the logarithm of the margin, for one promise
_LEAST_MARGIN, _MOST_MARGIN = 0.5, 4.0


class GraphDemand:
    """`work_s`: mean worker-seconds of a whole pipeline, by pool. `timed`: how many pipelines behind it had a deadline, since
    only they say what a path is for a given time. `margin`: how many times more than estimated may be promised."""

    __slots__ = ("line", "margin", "path_s", "timed", "work_s")

    def __init__(self) -> None:
        self.timed = 0
        self.work_s: dict[str, Mean] = {}
        self.path_s = Mean(0.0)
        self.line = LogLine()
        self.margin = 1.0

    @property
    def pipelines(self) -> int:
        """How many ended ones stand behind it."""
        return self.path_s.count

    def judge(self, in_time: bool, target: float) -> None:
        """An admitted pipeline met its deadline, or missed it. In balance when a share `target` meets it."""
        step = _STEP * (1.0 - target) if in_time else -_STEP * target
        self.margin = min(max(self.margin * exp(step), _LEAST_MARGIN), _MOST_MARGIN)

    def observe(self, pipeline: Pipeline) -> None:
        """It came to its end."""
        for pool in pipeline.work_s.keys() - self.work_s.keys():
            self.work_s[pool] = mean = Mean(0.0)
            mean.count = self.pipelines  # those before it asked nothing of this pool
        for pool, mean in self.work_s.items():
            mean.observe(pipeline.work_s.get(pool, 0.0))
        path_s = max(pipeline.alone_path_s + pipeline.idle_s, _LEAST_S)
        self.path_s.observe(path_s)
        if pipeline.deadline_s is not None:
            self.timed += 1
            budget_s = pipeline.deadline_s - pipeline.opened_s
            self.line.observe(*_known(pipeline.first_tokens, budget_s), log(path_s))

    def guess(self, first_tokens: int, budget_s: float) -> Guess:
        """Seconds of the path of a pipeline whose first prompt is so long and which may take so long."""
        return self.line.guess(*_known(first_tokens, budget_s))

    def size(self, path_s: float) -> float:
        """How many times the mean pipeline one with this path is."""
        return path_s / self.path_s.value

    def latest_useful_s(self, pipeline: Pipeline, path_share: float) -> float:
        """By when its remaining work must be done for it to be in time: the deadline, less `path_share` of the path that lies
        behind the work. Infinite without a deadline."""
        if pipeline.deadline_s is None:
            return inf
        left = 1.0 - self._done_share(pipeline)
        return pipeline.deadline_s - path_share * self.path_s.value * pipeline.size * left

    def needed_s(self, pipeline: Pipeline, pool: str) -> float:
        """Worker-seconds that it is still expected to ask of the pool."""
        mean = self.work_s.get(pool)
        return max(0.0, mean.value * pipeline.size - pipeline.work_s.get(pool, 0.0)) if mean else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "timed": self.timed,
            "work_s": {pool: mean.to_list() for pool, mean in self.work_s.items()},
            "path_s": self.path_s.to_list(),
            "line": self.line.to_list(),
            "margin": self.margin,
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "GraphDemand":
        """Raises KeyError, TypeError or ValueError for what `to_dict` cannot have written."""
        found = cls()
        found.path_s = Mean.from_list(document["path_s"])
        found.timed = int(measure(document["timed"]))
        if not found.path_s.value or found.timed > found.pipelines:
            raise ValueError(
                f"{found.timed} of {found.pipelines} pipelines had deadlines, their mean path is {found.path_s.value} s"
            )
        found.work_s = {pool: Mean.from_list(mean) for pool, mean in document["work_s"].items()}
        found.line = LogLine.from_list(document["line"])
        found.margin = min(max(measure(document["margin"]), _LEAST_MARGIN), _MOST_MARGIN)
        return found

    def _done_share(self, pipeline: Pipeline) -> float:
        expected_s = sum(mean.value for mean in self.work_s.values()) * pipeline.size
        return min(1.0, sum(pipeline.work_s.values()) / expected_s) if expected_s > 0.0 else 1.0


class Demand:
    """By graph name; the least recently learned goes beyond `max_graphs`."""

    def __init__(self, config: FabricConfig) -> None:
        self._config = config
        self._graphs: dict[str, GraphDemand] = {}

    def observe(self, pipeline: Pipeline) -> None:
        """It came to its end, and all its calls were answered."""
        found = self._graphs.pop(pipeline.graph_name, None) or GraphDemand()
        found.observe(pipeline)
        self._put(pipeline.graph_name, found)

    def of(self, graph_name: str) -> GraphDemand | None:
        """None while too few that had a deadline have ended to tell."""
        found = self._graphs.get(graph_name)
        return found if found is not None and found.timed >= max(1, self._config.demand_evidence) else None

    def size(self, pipeline: Pipeline) -> float:
        """How many times the mean pipeline of its graph it is, as far as can be told at its start."""
        found = self.of(pipeline.graph_name)
        if found is None or pipeline.deadline_s is None:
            return 1.0
        budget_s = pipeline.deadline_s - pipeline.opened_s
        return found.size(found.guess(pipeline.first_tokens, budget_s).mean)

    def report(self, graph_name: str) -> dict[str, Any] | None:
        """What whole pipelines of the graph were seen to ask: JSON-able; None if none has ended. `believed`: admission reckons
        with it."""
        found = self._graphs.get(graph_name)
        if found is None:
            return None
        return {
            "ended": found.pipelines,
            "with_deadline": found.timed,
            "believed": self.of(graph_name) is not None,
            "path_s": found.path_s.value,
            "work_s": {pool: mean.value for pool, mean in found.work_s.items()},
            "margin": found.margin,
        }

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, found in list(self._graphs.items()):
            yield name, found.to_dict()

    def load(self, name: str, document: dict[str, Any]) -> None:
        """Raises as `GraphDemand.from_dict` does."""
        self._put(name, GraphDemand.from_dict(document))

    def _put(self, name: str, found: GraphDemand) -> None:
        self._graphs[name] = found
        if len(self._graphs) > self._config.max_graphs:
            del self._graphs[next(iter(self._graphs))]


def _known(first_tokens: int, budget_s: float) -> tuple[float, float]:
    return log(max(first_tokens, 1)), log(max(budget_s, _LEAST_S))
