"""What a policy sees, what it answers, and the bundle of choices a fabric runs with."""

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, TypeVar

from amf.core.config import FabricConfig
from amf.core.decisions import Because
from amf.core.state.lanes import Lanes
from amf.core.state.outcomes import Outcomes
from amf.core.state.pipelines import CallState, Pipeline, Pipelines
from amf.core.state.pledges import Pledges
from amf.core.state.profiles import Profiles
from amf.core.state.warmth import Warmth
from amf.core.state.workers import WorkerState
from amf.core.types import Call

Value = TypeVar("Value")


@dataclass(slots=True, kw_only=True)
class View:
    """The state as policies may read it, at one moment."""

    now_s: float
    config: FabricConfig
    pipelines: Pipelines
    profiles: Profiles
    lanes: Lanes
    outcomes: Outcomes
    _memory: dict[Hashable, Any] = field(default_factory=dict)

    def remembered(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """What holds for the whole look, as the seconds after each hop of a graph, computed once per view. `key` names it."""
        if key not in self._memory:
            self._memory[key] = compute()
        value: Value = self._memory[key]
        return value


@dataclass(slots=True, kw_only=True)
class FleetView(View):
    """All pools, for who asks to start: how many usable workers each has, and what live pipelines still need of them."""

    workers: Mapping[str, int]
    pledges: Pledges


@dataclass(slots=True, kw_only=True)
class PoolView(View):
    """One pool: its usable workers by name, its registry, how many calls it was ever given (for round-robin), and the workers
    that take nothing new because a call that has waited too long needs their memory. `tiers_tokens`: HBM and DRAM of all
    workers, 0 where none has a DRAM tier; there `live_tokens` is what the contexts of all live pipelines take. `waiting`: all
    calls that wait here."""

    pool: str
    workers: list[WorkerState]
    warmth: Warmth
    dispatched: int
    reserved: set[str] = field(default_factory=set)
    tiers_tokens: int = 0
    live_tokens: int = 0
    waiting: Collection[CallState] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """May a pipeline start? Refused when `code` is set."""

    because: Because
    code: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a waiting call goes now. `worker` None: it waits, and holding is the decision. `hit_tokens` None: the rule did
    not look at warmth. `reserve`: a held call's claim on a worker, which then takes nothing new. `cold`: no worker
    has enough of a held call's prompt; its pipeline's context is not worth protection any more. `pauses`: pipelines whose
    idle contexts in this pool give up their place until their next call is sent (`Lane.paused` remembers it)."""

    worker: str | None
    because: Because
    hit_tokens: int | None = None
    reserve: str = ""
    cold: bool = False
    pauses: tuple[str, ...] = ()


Admit = Callable[[Call, FleetView], Verdict]
Budget = Callable[[Pipeline, CallState, View], float | None]
Order = Callable[[CallState, float | None, View], float]
Share = Callable[[Mapping[str, float], FabricConfig], Mapping[str, int]]
Route = Callable[[CallState, PoolView], Placement]
MayStart = Callable[[CallState, PoolView], bool]
Launch = Callable[[CallState, Placement, PoolView], Placement]
Retain = Callable[[WorkerState, int, FabricConfig], float]
Expire = Callable[[Pipeline], float]


def always(state: CallState, view: PoolView) -> bool:
    """Every waiting call is worth a look."""
    return True


def never(pipeline: Pipeline) -> float:
    """No pipeline is given up for being late."""
    return inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """admit: may this pipeline start?  budget: by when (absolute s) must this call be done, as `order` reckons?  stated: by
    when do we say that it must (None: as `budget` does)?  order: latest start (absolute s), lowest goes first.  share: by what
    the tenants that wait were served (weighted tokens), in which step is each? Lower steps go first, whatever `order` says;
    None: nobody asks whose a call is.  route: which worker, or none yet?  may_start: a cheap question before `route`, false
    only where that would hold a call that it has held before.  launch: is an alternative of a branch group worth what it costs
    where it was placed, or does it wait? None: alternatives are calls like others.  retain: for how long (s) is an idle context
    that is sure to be used again protected?  expire: when (absolute s, infinite: never) is the pipeline ended unfinished?

    `reads_reports`: it looks at what workers report of their load. `clairvoyant`: it is an ablation that needs a plan of the
    future for its predictions, so nothing live can run it."""

    name: str
    admit: Admit
    budget: Budget
    order: Order
    route: Route
    retain: Retain
    may_start: MayStart = always
    launch: Launch | None = None
    stated: Budget | None = None
    share: Share | None = None
    expire: Expire = never
    reads_reports: bool = False
    clairvoyant: bool = False
