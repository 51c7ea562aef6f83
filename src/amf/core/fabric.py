"""The one door. `Fabric.handle(event)` takes what happened and returns what to do; nothing else changes the state.

This file is control flow only: which facts an event touches, which questions are asked in which order. Facts live in
`state/` (the book), choices in `policy/`, the look at waiting calls in `pump.py`. The journey of a call: arrived ->
admission, once per pipeline -> waiting in its pool -> budget, order, route at every look -> dispatched -> first token ->
finished; or back to waiting when an attempt fails before its first byte; or refused, failed, cancelled.
"""

from collections.abc import Callable, Collection
from math import inf

from amf.core.branching import decide, late_branches
from amf.core.config import FabricConfig
from amf.core.decisions import Admit, Cancel, Decision, WakeAt
from amf.core.events import (
    BranchDecided,
    CallArrived,
    CallCancelled,
    CallFailed,
    CallFinished,
    Event,
    FirstToken,
    GraphDeclared,
    PipelineClosed,
    PrefixesCleared,
    PrefixEvicted,
    PrefixStored,
    Woke,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
    WorkerReported,
)
from amf.core.policy.interface import FleetView, Policies
from amf.core.pump import next_look_s, pump, refusal
from amf.core.state import learned, reports
from amf.core.state.book import Book
from amf.core.state.pipelines import CallState, CallStatus, Pipeline
from amf.core.state.pools import Pool
from amf.core.state.profiles import Profiles
from amf.core.state.workers import WorkerStatus
from amf.core.types import Call


class Fabric:
    def __init__(self, config: FabricConfig, policies: Policies, profiles: Profiles | None = None) -> None:
        """`profiles` answers what policies predict, in place of what this fabric learns itself."""
        self.config = config
        self.policies = policies
        self.book = Book(config, profiles)
        self._wake_s = inf
        self._busy = False
        self._decisions: list[Decision] = []
        self._handlers: dict[type[Event], Callable[..., None]] = {
            GraphDeclared: self._on_graph_declared,
            CallArrived: self._on_call_arrived,
            FirstToken: self._on_first_token,
            CallFinished: self._on_call_finished,
            CallFailed: self._on_call_failed,
            CallCancelled: self._on_call_cancelled,
            PipelineClosed: self._on_pipeline_closed,
            BranchDecided: self._on_branch_decided,
            WorkerJoined: self._on_worker_joined,
            WorkerDraining: self._on_worker_draining,
            WorkerLost: self._on_worker_lost,
            WorkerReported: self._on_worker_reported,
            PrefixStored: self._on_prefix_stored,
            PrefixEvicted: self._on_prefix_evicted,
            PrefixesCleared: self._on_prefixes_cleared,
            Woke: self._on_woke,
        }

    def handle(self, event: Event) -> list[Decision]:
        """The decisions that follow from this event, in order. Raises ValueError if time runs backwards and RuntimeError if
        re-entered; both are faults of the shell."""
        if self._busy:
            raise RuntimeError("Fabric.handle was re-entered")
        if event.at_s < self.book.now_s:
            raise ValueError(f"time ran backwards: {event.at_s} after {self.book.now_s}")
        self._busy, self._decisions = True, []
        try:
            self.book.advance(event.at_s)
            self._handlers[type(event)](event)
            self._expire()
            for run_id in self.book.pipelines.idle_since(event.at_s - self.config.pipeline_idle_s):
                self.book.close(run_id, "idle")
            self._plan_wake()
            return self._decisions
        finally:
            self._busy = False

    # Snapshots for the shell's reports; plain JSON-able data.

    def run_report(self, run_id: str) -> dict[str, object] | None:
        pipeline = self.book.pipelines.get(run_id)
        return self.book.report(pipeline) if pipeline else self.book.closed.get(run_id)

    def run_reports(self, limit: int) -> list[dict[str, object]]:
        """Live pipelines first, most recently active first, then closed ones."""
        live = [self.book.report(pipeline) for pipeline in reversed(self.book.pipelines.live())]
        return (live + list(reversed(self.book.closed.values())))[:limit]

    def graph_report(self, name: str) -> dict[str, object] | None:
        """What was learned of a declared graph (`core/state/learned.py`); None if there is none of this name."""
        graph = self.book.graphs.get(name)
        return learned.of_graph(graph, self.book.profiles) if graph else None

    def worker_reports(self) -> list[dict[str, object]]:
        workers = sorted(self.book.workers.items())
        return [reports.of_worker(w, self.book.pools[w.spec.pool], self.book.lanes.home(name)) for name, w in workers]

    def totals(self) -> dict[str, object]:
        book = self.book
        waiting = {name: len(pool.waiting) for name, pool in sorted(book.pools.items())}
        live = {"live_pipelines": len(book.pipelines), "live_calls": len(book.pipelines.calls()), "waiting": waiting}
        return {**book.counts, **live, **book.account.to_dict()}

    def has_worker(self, name: str) -> bool:
        return name in self.book.workers

    def is_live(self, run_id: str) -> bool:
        return self.book.pipelines.get(run_id) is not None

    def known_hops(self, run_id: str) -> Collection[str]:
        """Hops that a new call of this run may name as parents."""
        pipeline = self.book.pipelines.get(run_id)
        if pipeline is None:
            return ()
        return {**pipeline.hops, **{state.hop_id: 0 for state in pipeline.live.values()}}

    def check_invariants(self) -> None:
        self.book.check_invariants()

    # Calls.

    def _on_graph_declared(self, event: GraphDeclared) -> None:
        self.book.declare(event.graph)

    def _on_call_arrived(self, event: CallArrived) -> None:
        call, book = event.call, self.book
        if book.pipelines.call(call.call_id) is not None:
            return
        pool = book.pools.get(call.pool)
        if pool is None:
            return self._refuse(call.call_id, "model_not_found", f"no worker has ever served model {call.pool!r}")
        pipeline = book.pipelines.get(call.run_id)
        if pipeline is None and book.closed.get(call.run_id, {}).get("status") == "cancelled":
            return self._refuse(call.call_id, "run_cancelled", "the run was cancelled: start another one")
        if pipeline is None and book.closed.get(call.run_id, {}).get("status") == "expired":
            return self._refuse(
                call.call_id, "deadline_exceeded", "the run was ended at its deadline: start another one"
            )
        if pipeline is not None and pipeline.branches is not None:
            for group, alternative in tuple(pipeline.branches.implied(call)):
                self._decide(pipeline, group, (alternative,), ())
        if call.branch and (why := book.branch_lost(call)):
            return self._refuse(call.call_id, "branch_cancelled", f"branch {call.branch} has lost: {why}")
        limit = self.config.max_waiting_calls
        if pipeline is not None or pool.shares.within_part(call.tenant, limit):
            limit *= 2  # new pipelines do not crowd out admitted ones, nor one tenant's those of the others
        if len(pool.waiting) >= limit:
            message = f"{len(pool.waiting)} calls wait for model {call.pool!r}, the bound is {limit}"
            return self._refuse(call.call_id, "overloaded", message, book.profiles.duty(call.pool)[1] or 1.0)
        pipeline = pipeline or self._admit(call)
        if pipeline is not None:
            book.enter(pipeline, call)
            book.expiries.set(pipeline.run_id, self.policies.expire(pipeline))
            self._expire()
            self._pump(pool)
        return None

    def _admit(self, call: Call) -> Pipeline | None:
        book = self.book
        view = FleetView(
            now_s=book.now_s,
            config=self.config,
            pipelines=book.pipelines,
            profiles=book.profiles,
            lanes=book.lanes,
            outcomes=book.outcomes,
            workers={name: len(pool.usable) for name, pool in book.pools.items()},
            pledges=book.pledges,
        )
        verdict = self.policies.admit(call, view)
        if verdict.code:
            self._refuse(call.call_id, verdict.code, verdict.because.reason, verdict.retry_after_s)
            return None
        book.make_room()
        self._decisions.append(Admit(run_id=call.run_id, because=verdict.because))
        return book.open(call)

    def _on_first_token(self, event: FirstToken) -> None:
        state = self.book.running(event.call_id, event.attempt)
        if state is None or state.first_token_s is not None:
            return
        state.first_token_s = event.at_s
        landed = self.book.land(state)
        if landed is not None:
            landed[0].first_token(event.call_id, event.at_s)
            self._pump(self.book.pools[state.call.pool])

    def _on_call_finished(self, event: CallFinished) -> None:
        state = self.book.running(event.call_id, event.attempt)
        if state is None:
            return
        call, book = state.call, self.book
        pipeline, worker = book.finish(state, event)
        if worker is not None:
            context_tokens = event.prompt_tokens + event.output_tokens if worker.spec.kv_tokens > 0 else 0
            worth_s = self.policies.retain(worker, context_tokens, self.config)
            protect_s = book.profiles.protection_s(call, worth_s)
            reside_s = max(protect_s, book.profiles.residence_s(call))
            book.lanes.ended(call.run_id, call.pool, context_tokens, protect_s, reside_s)
        self.book.close_if_over(pipeline)
        self._pump(book.pools[call.pool])

    def _on_call_failed(self, event: CallFailed) -> None:
        state = self.book.running(event.call_id, event.attempt)
        if state is None:
            return
        worker = self.book.workers.get(state.worker)
        if worker is not None:
            worker.failures += event.retryable
        self.book.abandon(state)
        state.last_failure = event.reason
        if event.streamed or not event.retryable:
            self.book.close_if_over(self.book.leave(state, "failed"))
        else:
            self._retry(state)
        self._pump(self.book.pools[state.call.pool])

    def _on_call_cancelled(self, event: CallCancelled) -> None:
        state = self.book.pipelines.call(event.call_id)
        if state is not None:
            self.book.close_if_over(self._cancel(state, "the client went away"))
            self._pump(self.book.pools[state.call.pool])

    def _on_pipeline_closed(self, event: PipelineClosed) -> None:
        pipeline = self.book.pipelines.get(event.run_id)
        if pipeline is None:
            return
        for state in list(pipeline.live.values()):
            self._cancel(state, "the run was closed")
            self._refuse(state.call.call_id, "run_cancelled", "the run was closed while this call was open")
        self._close(pipeline, "cancelled" if event.cancelled else "closed")

    def _on_branch_decided(self, event: BranchDecided) -> None:
        pipeline = self.book.pipelines.get(event.run_id)
        if pipeline is not None:
            self._decide(pipeline, event.group, event.committed, event.discarded)
            self.book.close_if_over(pipeline)

    # Workers and what they hold.

    def _on_worker_joined(self, event: WorkerJoined) -> None:
        known = self.book.workers.get(event.worker.name)
        if known is not None and known.spec == event.worker and known.status is WorkerStatus.DRAINING:
            known.status = WorkerStatus.UP
            pool = self.book.pools[known.spec.pool]
            pool.refresh(event.at_s)
            return self._pump(pool)
        if known is not None:
            self._lose(known.name, "it joined anew")
        return self._pump(self.book.add_worker(event.worker))

    def _on_worker_draining(self, event: WorkerDraining) -> None:
        worker = self.book.workers.get(event.name)
        if worker is not None:
            worker.status = WorkerStatus.DRAINING
            self.book.pools[worker.spec.pool].refresh(event.at_s)

    def _on_worker_lost(self, event: WorkerLost) -> None:
        if event.name in self.book.workers:
            self._pump(self._lose(event.name, event.reason))

    def _on_worker_reported(self, event: WorkerReported) -> None:
        worker = self.book.workers.get(event.name)
        if worker is not None:
            worker.reported_running, worker.reported_waiting = event.running, event.waiting
            worker.reported_kv_used_ratio = event.kv_used_ratio
            worker.has_reported = True
            if self.policies.reads_reports:
                self._pump(self.book.pools[worker.spec.pool])

    def _on_prefix_stored(self, event: PrefixStored) -> None:
        worker = self.book.workers.get(event.name)
        if worker is not None:
            warmth = self.book.pools[worker.spec.pool].warmth
            warmth.evicted(event.name, event.evicted, event.tier)
            warmth.stored(event.name, event.keys, event.tier)

    def _on_prefix_evicted(self, event: PrefixEvicted) -> None:
        worker = self.book.workers.get(event.name)
        if worker is not None:
            self.book.pools[worker.spec.pool].warmth.evicted(event.name, event.keys, event.tier)

    def _on_prefixes_cleared(self, event: PrefixesCleared) -> None:
        worker = self.book.workers.get(event.name)
        if worker is not None:
            self.book.pools[worker.spec.pool].warmth.clear_worker(event.name)

    def _on_woke(self, event: Woke) -> None:
        self._wake_s = inf
        self._expire()
        for state in late_branches(self.book, self.policies):
            self._lose_branch(state, "too late to matter, its branch was given up")
        for name in sorted(self.book.pools):
            self._pump(self.book.pools[name])

    # Steps that several events share.

    def _pump(self, pool: Pool) -> None:
        self._decisions.extend(pump(self.book, self.policies, pool))

    def _refuse(self, call_id: str, code: str, message: str, retry_after_s: float | None = None) -> None:
        self._decisions.append(refusal(call_id, code, message, retry_after_s))

    def _retry(self, state: CallState) -> None:
        """An attempt failed before its first byte: place the call again, or give up."""
        if state.attempt < self.config.max_attempts:
            self.book.requeue(state)
            return
        self.book.close_if_over(self.book.leave(state, "failed"))
        message = f"{state.attempt} attempts failed; the last: {state.last_failure}"
        self._refuse(state.call.call_id, "upstream_failed", message)

    def _cancel(self, state: CallState, reason: str) -> Pipeline:
        if state.status is CallStatus.RUNNING:
            cancel = Cancel(call_id=state.call.call_id, worker=state.worker, attempt=state.attempt, reason=reason)
            self._decisions.append(cancel)
        return self.book.stop(state, "cancelled")

    def _lose(self, name: str, reason: str) -> Pool:
        """Forget a worker; its calls without a first byte are placed again, the others end by what their streams show."""
        pool, states = self.book.remove_worker(name)
        for state in states:
            cancel = Cancel(call_id=state.call.call_id, worker=name, attempt=state.attempt, reason=reason)
            self._decisions.append(cancel)
            state.last_failure = f"worker {name} was lost: {reason}"
            self._retry(state)
        return pool

    def _expire(self) -> None:
        """End the pipelines whose policy gives them up by now, with all their calls. What finished at that very moment, and
        was heard of before, is in time."""
        while (run_id := self.book.expiries.due(self.book.now_s)) is not None:
            pipeline = self.book.pipelines.get(run_id)
            assert pipeline is not None
            for state in list(pipeline.live.values()):
                self._cancel(state, "the deadline of its run has passed")
                message = "the deadline of the run passed while this call was open"
                self._refuse(state.call.call_id, "deadline_exceeded", message)
            self._close(pipeline, "expired")

    def _decide(self, pipeline: Pipeline, group: str, committed: Collection[str], discarded: Collection[str]) -> None:
        """What has lost ends, and what waited behind it may be needed now."""
        for state in decide(self.book, pipeline, group, committed, discarded):
            self._lose_branch(state, "its branch has lost")
        for name in pipeline.pools:
            self._pump(self.book.pools[name])

    def _lose_branch(self, state: CallState, why: str) -> None:
        self._cancel(state, why)
        self._refuse(state.call.call_id, "branch_cancelled", f"{why} while this call was open")

    def _close(self, pipeline: Pipeline, why: str) -> None:
        """The pipeline is over, and what waits may have what it leaves."""
        self.book.close(pipeline.run_id, why)
        for name in pipeline.pools:
            self._pump(self.book.pools[name])

    def _plan_wake(self) -> None:
        look_s = next_look_s(self.book, self.config)
        if look_s is not None and not self.book.now_s < self._wake_s <= look_s:
            self._wake_s = look_s
            self._decisions.append(WakeAt(at_s=look_s))
