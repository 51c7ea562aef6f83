"""All facts in one place, and the transitions that keep them consistent with each other.

`Fabric` decides which transition an event calls for; the book carries it out across pipelines, pools, workers, lanes,
profiles and accounts. No policy is asked here.
"""

from math import inf

from amf.core.config import FabricConfig
from amf.core.events import CallFinished
from amf.core.graph import CallGraph
from amf.core.state import reports
from amf.core.state.branches import Branches
from amf.core.state.expiries import Expiries
from amf.core.state.lanes import Lanes
from amf.core.state.ledger import Account, charge
from amf.core.state.outcomes import Outcomes
from amf.core.state.pipelines import CallState, CallStatus, Pipeline, Pipelines
from amf.core.state.pledges import Pledges
from amf.core.state.pools import Pool
from amf.core.state.prediction import Place
from amf.core.state.profiles import Profiles
from amf.core.state.shared import shared_tokens
from amf.core.state.workers import Flight, WorkerState
from amf.core.types import Call, Worker

_OUTCOMES = ("finished", "failed", "refused", "cancelled")
_CUT_SHORT = ("cancelled", "expired")  # ways to end from which nothing is learned about how pipelines end


class Book:
    def __init__(self, config: FabricConfig, profiles: Profiles | None = None) -> None:
        self.config = config
        self.now_s = -inf
        self.pools: dict[str, Pool] = {}
        self.workers: dict[str, WorkerState] = {}
        self.graphs: dict[str, CallGraph] = {}
        self.pipelines = Pipelines()
        self.profiles = profiles or Profiles(config)
        self.lanes = Lanes()
        self.expiries = Expiries()
        self.silences = Expiries()  # when a pipeline without an open call is probably over
        self.pledges = Pledges()
        self.outcomes = Outcomes(config.max_profiles)
        self.account = Account()
        self.counts = dict.fromkeys(("opened", "closed", "calls", *_OUTCOMES, "retried"), 0)
        self.closed: dict[str, dict[str, object]] = {}

    def advance(self, now_s: float) -> None:
        self.now_s = now_s
        for pool in self.lanes.advance(now_s):
            self.profiles.observe_return(pool, returned=False)
        while (run_id := self.silences.due(now_s)) is not None:
            self.silences.drop(run_id)
            self.pledges.drop(run_id)
            self._learn_end(self.pipelines.fell_silent(run_id))
        for run_id in self.pledges.advance(now_s):
            pipeline = self.pipelines.get(run_id)
            if pipeline is not None and pipeline.live:
                self._judge(pipeline, False)

    # Pipelines and their calls.

    def declare(self, graph: CallGraph) -> None:
        self.graphs.pop(graph.name, None)
        self.graphs[graph.name] = graph
        if len(self.graphs) > self.config.max_graphs:
            del self.graphs[next(iter(self.graphs))]

    def open(self, call: Call) -> Pipeline:
        pipeline = Pipeline(
            run_id=call.run_id,
            graph_name=call.graph,
            graph=self.graphs.get(call.graph),
            opened_s=self.now_s,
            deadline_s=call.deadline_s,
            slo_class=call.slo_class,
            tenant=call.tenant,
            identity=call.identity,
            last_event_s=self.now_s,
            account=Account(),
            first_tokens=call.prompt_tokens,
        )
        pipeline.size = self.profiles.demand.size(pipeline)
        self.pipelines.open(pipeline)
        self._pledge(pipeline)
        self.counts["opened"] += 1
        return pipeline

    def enter(self, pipeline: Pipeline, call: Call) -> CallState:
        """A call joins its pipeline and waits in its pool."""
        if pipeline.deadline_s is None:
            pipeline.deadline_s = call.deadline_s
        self.silences.drop(call.run_id)
        returns = call.run_id in self.pipelines.silent
        pipeline.final_seen = pipeline.final_seen or call.final
        pipeline.pools[call.pool] = None
        if pipeline.last_finish_s is not None and not pipeline.live:
            gap_s = self.now_s - pipeline.last_finish_s
            pipeline.idle_s += gap_s
            self.profiles.observe_gap(call, gap_s)
            self.profiles.observe_gap_after(pipeline.last_place, gap_s)
        state = CallState(call, self.now_s, pipeline.calls)
        state.expected_output_tokens = self.profiles.expected_output_tokens(call)
        pipeline.calls += 1
        self.counts["calls"] += 1
        pipeline.edges.update({(parent, state.hop_id): None for parent in call.parents})
        while len(pipeline.edges) > self.config.max_hops_per_pipeline:
            del pipeline.edges[next(iter(pipeline.edges))]
        self.pipelines.add_call(state)
        if call.branch:
            pipeline.branches = pipeline.branches or Branches(
                self.config.max_branch_groups, self.config.max_branch_members
            )
            self.pipelines.branching[call.run_id] = None
            pipeline.branches.enter(call, state.hop_id, pipeline.graph)
        if returns:
            self._pledge(pipeline)
        self.pipelines.touch(call.run_id, self.now_s)
        pool = self.pools[call.pool]
        state.latest_start_s = -inf  # first in the queue until it is looked at
        state.served_path_s, state.alone_path_s = pipeline.served_path_s, pipeline.alone_path_s
        pool.wait(state)
        self._await_in_lane(pipeline, state, pool)
        return state

    def branch_lost(self, call: Call) -> str:
        """Why the call's branch has lost, in its run or before that ended; empty if it has not."""
        pipeline = self.pipelines.get(call.run_id)
        if pipeline is not None:
            return pipeline.branches.lost(call.branch) if pipeline.branches else ""
        groups = self.closed.get(call.run_id, {}).get("groups")
        return Branches.of_ended(groups).lost(call.branch) if isinstance(groups, dict) else ""

    def send(self, state: CallState, worker: WorkerState, hit_tokens: int) -> Flight:
        """A waiting call goes to a worker."""
        call, pool = state.call, self.pools[state.call.pool]
        pool.unwait(state)
        state.status = CallStatus.RUNNING
        state.attempt += 1
        state.worker = worker.name
        state.dispatched_s = self.now_s
        state.held = False
        pipeline = self.pipelines.get(call.run_id)
        for other in pipeline.live.values() if pipeline else ():
            other.cold_until_s = -inf
        if pipeline and pipeline.graph and pipeline.deadline_s is not None and call.hop in pipeline.graph.by_name:
            state.said_s = self.profiles.paths.said_s(pipeline.graph, call.hop)
        pool.dispatched += 1
        prefill_s = worker.prefill_s(call.prompt_tokens - hit_tokens, hit_tokens)
        backlog_s = worker.backlog_s(self.now_s)
        restore_s = 0.0
        if worker.spec.dram_tokens:
            hit = pool.warmth.hit(worker.name, call.prefix, self.now_s)
            restore_s = worker.restore_s(hit.tokens - hit.hbm_tokens, self.config)
        flight = Flight(
            call_id=call.call_id,
            run_id=call.run_id,
            attempt=state.attempt,
            prefix=call.prefix,
            hit_tokens=hit_tokens,
            footprint_tokens=state.footprint_tokens,
            prefill_s=prefill_s,
            restore_s=restore_s,
            sent_s=self.now_s,
            due_s=self.now_s + backlog_s + restore_s + prefill_s,
            backlog_s=backlog_s,
            streams=call.streams,
            cold=call.prompt_tokens - hit_tokens > self.config.cold_tokens,
            used_s=pool.warmth.dispatched(worker.name, call.prefix, self.now_s),
        )
        worker.start(flight)
        pool.shares.serve(call.tenant, flight.uncached_tokens, flight.output_tokens)
        if flight.cold and self.now_s - state.arrived_s > self.config.lapse_s:
            share = self.config.yield_share
            worker.yields_from_s = self.now_s + prefill_s / share if share else inf
        pool.unseen_first_tokens = pool.unseen_first_tokens or not call.streams
        self.lanes.sent(call.run_id, call.pool, worker.name, call.prefix, state.due_s is not None)
        return flight

    def running(self, call_id: str, attempt: int) -> CallState | None:
        """The call, if this news of it is not stale."""
        state = self.pipelines.call(call_id)
        if state is None or state.status is not CallStatus.RUNNING or state.attempt != attempt:
            return None
        return state

    def land(self, state: CallState) -> tuple[WorkerState, Flight] | None:
        """Where a running call flies; None if its worker is gone."""
        worker = self.workers.get(state.worker)
        flight = worker.flights.get(state.call.call_id) if worker else None
        return (worker, flight) if worker and flight and flight.attempt == state.attempt else None

    def finish(self, state: CallState, event: CallFinished) -> tuple[Pipeline, WorkerState | None]:
        """An attempt completed: charge it, learn from it, correct the registry. The lane is left to the caller to settle."""
        call, pool = state.call, self.pools[state.call.pool]
        pipeline = self.leave(state, "finished", (call.graph, call.hop, call.pool))
        pipeline.hops[state.hop_id] = pipeline.hops.pop(state.hop_id, 0) + 1
        if len(pipeline.hops) > self.config.max_hops_per_pipeline:
            del pipeline.hops[next(iter(pipeline.hops))]
        pipeline.last_finish_s = self.now_s
        pipeline.trail.add(pipeline.last_place)
        pipeline.contexts[call.pool] = call.prompt_tokens + event.output_tokens
        pipeline.attain(call.pool, event.prompt_tokens + 2 * event.output_tokens, self.now_s)
        service_s = self.now_s - state.dispatched_s
        pipeline.served_path_s = max(pipeline.served_path_s, state.served_path_s + service_s)
        pipeline.note_stage(state, self.now_s)
        self.profiles.observe_call(call, event.output_tokens, service_s, state.growth_tokens)
        landed = self.land(state)
        if landed is None:
            return pipeline, None
        worker, flight = landed
        worker.end(call.call_id, self.now_s, event.output_tokens)
        pool.warmth.ended(worker.name, call.prefix, self.now_s, completed=True)
        if event.cached_tokens is not None:
            pool.warmth.correct(worker.name, flight.hit_tokens, event.cached_tokens, flight.used_s)
        cached_tokens = min(
            flight.hit_tokens if event.cached_tokens is None else event.cached_tokens, event.prompt_tokens
        )
        uncached_tokens = event.prompt_tokens - cached_tokens
        pool.shares.settle(
            call.tenant, uncached_tokens - flight.uncached_tokens, event.output_tokens - flight.output_tokens
        )
        account = charge(worker, (event.prompt_tokens, cached_tokens, event.output_tokens), state.known_tokens)
        account.service_s, account.queue_s = service_s, state.dispatched_s - state.arrived_s
        pipeline.account.add(account)
        alone_s, work_s = worker.toll_s(event.prompt_tokens, cached_tokens, event.output_tokens)
        pipeline.alone_path_s = max(pipeline.alone_path_s, state.alone_path_s + alone_s)
        pipeline.work_s[call.pool] = pipeline.work_s.get(call.pool, 0.0) + work_s
        self.account.add(account)
        self._pledge(pipeline)
        return pipeline, worker

    def abandon(self, state: CallState) -> None:
        """An attempt ended without an answer: give back what it held on its worker."""
        landed = self.land(state)
        if landed is None:
            return
        worker, flight = landed
        worker.end(state.call.call_id, self.now_s, None)
        completed = flight.first_token_s is not None
        self.pools[state.call.pool].warmth.ended(worker.name, state.call.prefix, self.now_s, completed)
        self.lanes.ended(state.call.run_id, state.call.pool, 0, 0.0, 0.0)

    def requeue(self, state: CallState) -> None:
        """A running call without a first byte waits again, for another worker."""
        state.excluded = (*state.excluded, state.worker)
        state.status, state.worker = CallStatus.WAITING, ""
        pool, pipeline = self.pools[state.call.pool], self.pipelines.get(state.call.run_id)
        assert pipeline is not None
        pool.wait(state)
        self._await_in_lane(pipeline, state, pool)
        self.counts["retried"] += 1

    def stop(self, state: CallState, outcome: str) -> Pipeline:
        """End a call without an answer, wherever it is."""
        if state.status is CallStatus.WAITING:
            self.pools[state.call.pool].unwait(state)
            self.lanes.left(state.call.run_id, state.call.pool)
        else:
            self.abandon(state)
        return self.leave(state, outcome)

    def leave(self, state: CallState, outcome: str, place: Place | None = None) -> Pipeline:
        """The call ends, exactly once; `outcome` is one of finished, failed, refused, cancelled. `place`: where it finished."""
        self.pipelines.end_call(state.call.call_id)
        pipeline = self.pipelines.get(state.call.run_id)
        assert pipeline is not None
        if pipeline.branches is not None:
            pipeline.branches.left(state.call, self.now_s)
        setattr(pipeline, outcome, getattr(pipeline, outcome) + 1)
        self.counts[outcome] += 1
        self.pipelines.touch(pipeline.run_id, self.now_s)
        pipeline.last_place = place or pipeline.last_place
        if not pipeline.live:
            self.silences.set(pipeline.run_id, self.now_s + self.profiles.over_after_s(pipeline.last_place))
        return pipeline

    def close_if_over(self, pipeline: Pipeline) -> None:
        """A pipeline whose final call was seen is over with its last live call, however that ended."""
        if pipeline.final_seen and not pipeline.live:
            self.close(pipeline.run_id, "final")

    def close(self, run_id: str, why: str) -> None:
        """The pipeline is over: only its summary is kept."""
        pipeline = self.pipelines.close(run_id)
        if why not in _CUT_SHORT:
            self._learn_end(pipeline)
        self.lanes.close(run_id, tuple(pipeline.pools))
        self.expiries.drop(run_id)
        self.silences.drop(run_id)
        self.pledges.drop(run_id)
        self.closed.pop(run_id, None)
        self.closed[run_id] = {**reports.of_pipeline(pipeline, self.now_s), "status": why, "probably_over": True}
        self.counts["closed"] += 1
        if len(self.closed) > self.config.max_closed_pipelines:
            del self.closed[next(iter(self.closed))]

    def report(self, pipeline: Pipeline) -> dict[str, object]:
        """Of a live pipeline."""
        over = pipeline.run_id in self.pipelines.silent
        return {**reports.of_pipeline(pipeline, self.now_s), "probably_over": over}

    def make_room(self) -> None:
        """Where no more pipelines may be live, close one that is probably over, if there is one."""
        if len(self.pipelines) >= self.config.max_live_pipelines and self.pipelines.silent:
            self.close(next(iter(self.pipelines.silent)), "idle")

    # Workers.

    def add_worker(self, spec: Worker) -> Pool:
        pool = self.pools.get(spec.pool)
        if pool is None:
            pool = self.pools[spec.pool] = Pool(spec.pool, self.config)
        worker = self.workers[spec.name] = WorkerState(spec, pool.paces)
        pool.add(worker, self.now_s)
        return pool

    def remove_worker(self, name: str) -> tuple[Pool, list[CallState]]:
        """Forget the worker. Returns its pool and the calls that ran there and have no first byte yet."""
        worker = self.workers.pop(name)
        pool = self.pools[worker.spec.pool]
        pool.remove(name, self.now_s)
        states = [state for state in map(self.pipelines.call, worker.flights) if state is not None]
        for state in states:  # a lane may live on another worker by now
            self.lanes.ended(state.call.run_id, state.call.pool, 0, 0.0, 0.0)
        self.lanes.drop_worker(name)
        return pool, [state for state in states if state.first_token_s is None]

    def check_invariants(self) -> None:
        self.pipelines.check_invariants()
        self.lanes.check_invariants()
        self.expiries.check_invariants(self.pipelines)
        self.silences.check_invariants(self.pipelines)
        self.pledges.check_invariants(self.pipelines)
        for pool in self.pools.values():
            pool.check_invariants()
        for state in self.pipelines.calls():
            waits = state.call.call_id in self.pools[state.call.pool].waiting
            assert waits == (state.status is CallStatus.WAITING)
        flights = sorted(call_id for worker in self.workers.values() for call_id in worker.flights)
        running = {s.call.call_id for s in self.pipelines.calls() if s.status is CallStatus.RUNNING}
        assert len(flights) == len(set(flights)) and running.issuperset(flights)
        assert self.counts["calls"] == len(self.pipelines.calls()) + sum(self.counts[name] for name in _OUTCOMES)

    def _pledge(self, pipeline: Pipeline) -> None:
        """Renew what it is expected to ask of the pools until its deadline, as far as there is evidence."""
        demand, deadline_s = self.profiles.demand.of(pipeline.graph_name), pipeline.deadline_s
        if demand is None or deadline_s is None or deadline_s <= self.now_s:
            return self.pledges.drop(pipeline.run_id)
        due_s = demand.latest_useful_s(pipeline, self.config.demand_path_share)
        needed_s = {pool: seconds for pool in demand.work_s if (seconds := demand.needed_s(pipeline, pool)) > 0.0}
        return self.pledges.set(pipeline.run_id, deadline_s, due_s, needed_s)

    def _judge(self, pipeline: Pipeline, in_time: bool) -> None:
        """What became of the promise that its admission was, once."""
        demand = self.profiles.demand.of(pipeline.graph_name)
        if demand is not None and not pipeline.promise_judged:
            pipeline.promise_judged = True
            demand.judge(in_time, self.config.promise_target)

    def _learn_end(self, pipeline: Pipeline) -> None:
        """It came to its end: once, though it may have seemed so before."""
        if pipeline.end_learned:
            return
        pipeline.end_learned = True
        self.profiles.observe_end(pipeline.graph_name, pipeline.trail, pipeline.hops, pipeline.edges)
        if pipeline.graph is not None:
            whole = pipeline.finished == pipeline.calls == len(pipeline.stages)
            self.profiles.paths.observe_end(pipeline.graph_name, pipeline.stages, whole)
        if pipeline.deadline_s is not None and pipeline.last_finish_s is not None:
            self._judge(pipeline, pipeline.last_finish_s <= pipeline.deadline_s)
        if pipeline.finished == pipeline.calls:
            self.profiles.demand.observe(pipeline)

    def _await_in_lane(self, pipeline: Pipeline, state: CallState, pool: Pool) -> None:
        """Note what the pipeline had computed before, and whether its context is still warm enough to protect. How much of
        the prompt is new is known while no other call of it is open there; an answer was had if the prompt before it was."""
        call = state.call
        lane = self.lanes.get(call.run_id, call.pool)
        had_tokens = pipeline.contexts.get(call.pool, 0)
        if lane is None:
            if not had_tokens:  # else its worker was lost
                state.growth_tokens = call.prompt_tokens
            return
        if lane.counted_resident and lane.idle and not lane.waiting and not state.attempt:
            self.profiles.observe_return(call.pool, returned=True)
        shared = shared_tokens(lane.prefix, call.prefix)
        state.known_tokens = max(state.known_tokens, shared)
        if lane.idle and not lane.waiting and not state.attempt:
            goes_on = lane.prefix.ends and shared >= lane.prefix.ends[-1]
            state.growth_tokens = max(0, call.prompt_tokens - (had_tokens if goes_on else shared))
        cold_tokens = self.config.cold_tokens
        still_warm = call.prompt_tokens <= cold_tokens or (
            call.prompt_tokens - pool.warmth.hit(lane.worker, call.prefix, self.now_s).tokens <= cold_tokens
        )
        self.lanes.arrived(call.run_id, call.pool, still_warm)
