"""What a policy sees, what it answers, and the bundle of choices a fabric runs with."""

from collections.abc import Callable
from dataclasses import dataclass, field

from amf.core.config import FabricConfig
from amf.core.decisions import Because
from amf.core.graph import CallGraph
from amf.core.state.lanes import Lanes
from amf.core.state.pipelines import CallState, Pipeline, Pipelines
from amf.core.state.profiles import Profiles
from amf.core.state.warmth import Warmth
from amf.core.state.workers import WorkerState
from amf.core.types import Call


@dataclass(slots=True, kw_only=True)
class View:
    """The state as policies may read it, at one moment."""

    now_s: float
    config: FabricConfig
    pipelines: Pipelines
    profiles: Profiles
    lanes: Lanes
    _remaining: dict[int, dict[str, float]] = field(default_factory=dict)

    def remembered(self, graph: CallGraph, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The graph's seconds after each hop, computed once per view: nothing changes while a view is looked at."""
        if id(graph) not in self._remaining:
            self._remaining[id(graph)] = compute()
        return self._remaining[id(graph)]


@dataclass(slots=True, kw_only=True)
class PoolView(View):
    """One pool: its usable workers by name, its registry, how many calls it was ever given (for round-robin), and the worker
    that takes nothing new because a call that has waited too long needs its memory."""

    pool: str
    workers: list[WorkerState]
    warmth: Warmth
    dispatched: int
    reserved: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """May a pipeline start? Refused when `code` is set."""

    because: Because
    code: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a waiting call goes now. `worker` None: it waits, and holding is the decision. `hit_tokens` None: the rule did
    not look at warmth. `reserve`: a held call's claim on a worker, which then takes nothing new. `pauses`: pipelines whose
    idle contexts in this pool give up their place until their next call is sent (`Lane.paused` remembers it)."""

    worker: str | None
    because: Because
    hit_tokens: int | None = None
    reserve: str = ""
    pauses: tuple[str, ...] = ()


Admit = Callable[[Call, View], Verdict]
Budget = Callable[[Pipeline, CallState, View], float | None]
Order = Callable[[CallState, float | None, View], float]
Route = Callable[[CallState, PoolView], Placement]
Retain = Callable[[WorkerState, int, FabricConfig], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """admit: may this pipeline start?  budget: by when (absolute s) must this call be done?  order: latest start (absolute
    s), lowest goes first.  route: which worker, or none yet?  retain: for how long (s) is this idle context protected?"""

    name: str
    admit: Admit
    budget: Budget
    order: Order
    route: Route
    retain: Retain
