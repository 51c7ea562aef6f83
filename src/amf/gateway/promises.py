"""What each run was promised, where the promise came from, and whether it was kept.

A run has one deadline: the first that it gets. Its source, first match wins: the client (`explicit`); a timeout header, if the
request is the whole run; the API key; the graph; the class. All but the explicit one are set by a run's first call only. The
class goes the same way, and later calls inherit it. A request is known to be the whole run if it says `final`, or if nobody
named its run and no history could continue it (a completion, an embedding). A chat that nobody named may go on: its
timeout bounds the call, since as a deadline it would make every later call of an agent late.

The fabric does not say when a run is over: this book asks, when a call ends, at each scrape, and before it forgets. Times
are modelled ones, absolute on the fabric's clock. Resolving changes nothing, so a request that is turned away leaves no trace.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from amf.config import SloConfig, SloTarget, tenant_of
from amf.core.types import Call, SloClass
from amf.gateway.clock import Clock
from amf.gateway.identity import Identity
from amf.gateway.problem import bad_request
from amf.gateway.record import Ended
from amf.gateway.slo import expired
from amf.gateway.slo_metrics import SloMetrics

_NOTHING = SloTarget()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSlo:
    """The time of one call. `deadline_s` is its run's; `brings_s` the same if this call brought it. An answer that has not
    begun by `timeout_at_s` is given up; one that has not begun by `ttft_at_s` missed a target."""

    graph: str = ""
    slo_class: SloClass = SloClass.INTERACTIVE
    deadline_s: float | None = None
    brings_s: float | None = None
    source: str = ""
    timeout_at_s: float | None = None
    timeout_source: str = ""
    ttft_at_s: float | None = None


@dataclass(slots=True)
class _Run:
    graph: str
    slo_class: SloClass
    deadline_s: float | None
    source: str
    since_s: float  # the arrival of the call that brought the deadline
    open_calls: int = 0
    last: Ended | None = None


@dataclass(slots=True)
class Promises:
    """`is_live` tells whether the fabric has a run. More than twice `max_runs` runs are not remembered."""

    config: SloConfig
    clock: Clock
    metrics: SloMetrics
    is_live: Callable[[str], bool]
    max_runs: int = 20_000
    _runs: dict[str, _Run] = field(default_factory=dict)
    _calls: dict[str, CallSlo] = field(default_factory=dict)
    _by_tenant: dict[str, SloTarget] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_tenant = {tenant_of(key): target for key, target in self.config.keys.items()}

    def resolve(self, run_id: str, tenant: str, identity: Identity, arrived_s: float, whole_run: bool) -> CallSlo:
        """Raises Problem: 400 for a deadline above the bound, 504 for one that has passed."""
        wishes, run = identity.wishes, self._current(run_id)
        key = self._by_tenant.get(tenant, _NOTHING)
        graph = self.config.graphs.get(identity.graph, _NOTHING)
        inherited = run.slo_class if run is not None else key.slo_class or graph.slo_class
        slo_class = wishes.slo_class or inherited or self.config.default_class
        self._check_bound(wishes.deadline_ms)
        timeout_s = _seconds(wishes.timeout_ms)
        if timeout_s is not None and timeout_s > self.config.max_deadline_s:
            timeout_s = None
        slo = CallSlo(
            graph=run.graph if run is not None else identity.graph,
            slo_class=slo_class,
            timeout_at_s=self._at(arrived_s, timeout_s),
            timeout_source=wishes.timeout_source,
            ttft_at_s=self._at(arrived_s, _seconds(wishes.ttft_ms)),
        )
        if run is not None and run.deadline_s is not None:
            return self._in_time(replace(slo, deadline_s=run.deadline_s, source=run.source))
        sources = [("explicit", _seconds(wishes.deadline_ms))]
        if run is None:
            sources.append((wishes.timeout_source, timeout_s if whole_run else None))
            sources += self._defaults(key, graph, slo_class)
        for source, after_s in sources:
            if after_s is not None:
                due_s = self._at(arrived_s, after_s)
                return self._in_time(replace(slo, deadline_s=due_s, brings_s=due_s, source=source))
        return self._in_time(slo)

    def note(self, call: Call, slo: CallSlo, arrived_s: float) -> None:
        """The call was accepted; `ended` will be told of it."""
        run = self._current(call.run_id)
        if run is None:
            self._forget(call.run_id)
            run = self._runs[call.run_id] = _Run(slo.graph, slo.slo_class, None, "", arrived_s)
        if slo.brings_s is not None:
            run.deadline_s, run.source, run.since_s = slo.brings_s, slo.source, arrived_s
        run.open_calls += 1
        self._calls[call.call_id] = slo
        if len(self._runs) > 2 * self.max_runs:
            self._make_room()

    def ended(self, ended: Ended) -> None:
        """A call has ended, however it went."""
        call = ended.call
        slo = self._calls.pop(call.call_id, None)
        run = self._runs.get(call.run_id)
        if slo is None or run is None:
            return
        self._judge_ttft(ended, slo)
        if run.deadline_s is not None and ended.outcome == "ok":
            burn = (ended.ended_s - run.since_s) / (run.deadline_s - run.since_s)
            self.metrics.hop_ended(slo.graph, call.hop, burn)
        run.open_calls -= 1
        if ended.outcome != "discarded":  # an alternative that lost says nothing of its run
            run.last = ended
        if self._current(call.run_id) is None:
            self._forget(call.run_id)

    def sweep(self) -> None:
        """Judge the runs that are over by now."""
        for run_id in [run_id for run_id in self._runs if self._current(run_id) is None]:
            self._forget(run_id)

    def _current(self, run_id: str) -> _Run | None:
        """The run if it is still on, else None."""
        run = self._runs.get(run_id)
        return run if run is not None and (run.open_calls or self.is_live(run_id)) else None

    def _forget(self, run_id: str) -> None:
        run = self._runs.pop(run_id, None)
        if run is None or run.deadline_s is None or run.last is None:
            return
        if run.last.ended_s > run.deadline_s:
            outcome = "missed"
        else:
            outcome = {"ok": "met", "cancelled": "cancelled"}.get(run.last.outcome, "missed")
        self.metrics.pipeline_ended(run.graph, run.slo_class.value, outcome)

    def _make_room(self) -> None:
        self.sweep()
        idle = [run_id for run_id, run in self._runs.items() if not run.open_calls]
        for run_id in idle[: max(0, len(self._runs) - self.max_runs)]:
            self._forget(run_id)

    def _judge_ttft(self, ended: Ended, slo: CallSlo) -> None:
        if slo.ttft_at_s is None:
            return
        first_s = ended.ended_s if ended.first_s is None and ended.outcome == "ok" else ended.first_s
        if first_s is None and ended.outcome == "cancelled":
            return  # nobody knows
        met = first_s is not None and first_s <= slo.ttft_at_s
        self.metrics.ttft(slo.graph, slo.slo_class.value, met)

    def _defaults(self, key: SloTarget, graph: SloTarget, slo_class: SloClass) -> list[tuple[str, float | None]]:
        by_class = {
            SloClass.INTERACTIVE: self.config.interactive_deadline_s,
            SloClass.THROUGHPUT: self.config.throughput_deadline_s,
            SloClass.BACKGROUND: self.config.background_deadline_s,
        }
        return [("key", key.deadline_s), ("graph", graph.deadline_s), ("class", by_class[slo_class])]

    def _at(self, arrived_s: float, after_s: float | None) -> float | None:
        return None if after_s is None else arrived_s + self.clock.modelled_s(after_s)

    def _check_bound(self, deadline_ms: float | None) -> None:
        limit_s = self.config.max_deadline_s
        if deadline_ms is not None and deadline_ms > 1000 * limit_s:
            raise bad_request(
                f"`x-amf-deadline-ms` is {deadline_ms:.15g}: send at most {1000 * limit_s:.15g} "
                "([slo] max_deadline_s), or none.",
                code="invalid_deadline",
                param="x-amf-deadline-ms",
            )

    def _in_time(self, slo: CallSlo) -> CallSlo:
        """Raises Problem (504) if what this request brings has passed while it was on its way."""
        now_s = self.clock.now_s()
        if slo.brings_s is not None and slo.brings_s <= now_s:
            raise expired()
        if slo.timeout_at_s is not None and slo.timeout_at_s <= now_s:
            raise expired(f"The {slo.timeout_source} of this request has passed")
        return slo


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000
