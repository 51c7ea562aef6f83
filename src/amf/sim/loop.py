"""The other shell: the same `Fabric`, simulated workers and planned pipelines, in virtual time.

A heap of (time, number, action) is the clock. Performing a decision pushes what follows from it; a worker's next event is one
entry, renewed whenever the worker is touched. The numbering makes ties deterministic, so one seed gives one run. A pipeline
with groups is played with everything at once (`sim/live_branches.py`); to play it without, give the workload in turn
(`sim/in_turn.py`). Belief and truth stay apart: the fabric learns of a worker only by the events this file sends, which may be
late, lost, or never come (`Faults`). Load reports are read only for a policy that looks at them (`sim/scrape.py`)."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random

from amf.core.config import FabricConfig
from amf.core.decisions import Cancel, Decision, Dispatch, Refuse, WakeAt
from amf.core.events import (
    CallArrived,
    CallCancelled,
    CallFailed,
    CallFinished,
    Event,
    FirstToken,
    GraphDeclared,
    Woke,
    WorkerJoined,
    WorkerLost,
)
from amf.core.fabric import Fabric
from amf.core.types import Worker
from amf.sim.kv_events import BlockEvent, kv_events
from amf.sim.live import LivePipeline
from amf.sim.live_branches import SpeculatingPipeline
from amf.sim.messages import (
    Finished,
    FirstTokenOut,
    SimRequest,
    SimWorkerConfig,
)
from amf.sim.plan import CallPlan, PipelinePlan, Workload
from amf.sim.report import CallRecord, CallStatus, PipelineRecord, RunRecords
from amf.sim.scrape import Scraper
from amf.sim.worker import QueueFull, RequestTooLarge, SimWorker, WorkerStats

_STATUS_OF: Mapping[str, CallStatus] = {"upstream_failed": "failed", "branch_cancelled": "cancelled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """The worker dies at `at_s` with all it holds, unseen for `detect_s`, and is back, empty, `down_s` after dying."""

    worker: str
    at_s: float
    detect_s: float = 2.0
    down_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """`event_loss`: probability that a batch of KV events never arrives. `event_delay_s`: how late the others are.
    `evict_tokens_per_s`: cached tokens each worker silently loses. `slow`: factor on a worker's iteration seconds.
    `metrics_staleness_s`: how old load reports get (0: as fresh as a scraper has them)."""

    event_loss: float = 0.0
    event_delay_s: float = 0.0
    evict_tokens_per_s: float = 0.0
    metrics_staleness_s: float = 0.0
    outages: tuple[Outage, ...] = ()
    slow: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Running:
    """A call inside the simulation, from arrival to end."""

    live: LivePipeline
    plan: CallPlan
    due_s: float
    chain: Sequence[int]
    prompt_tokens: int
    attempt: int = 0
    worker: str = ""
    first_s: float | None = None
    spent_tokens: int = 0  # computed and made for it where it was cancelled
    found_tokens: int | None = None  # and what the cache gave


class Simulation:
    def __init__(
        self,
        fabric: Fabric,
        workers: Sequence[Worker],
        workload: Workload,
        faults: Faults | None = None,
        *,
        managed: bool = True,
    ) -> None:
        """`managed`: clients that speculate say so."""
        self.fabric = fabric
        self._managed = managed
        self.workload = workload
        self.faults = faults or Faults()
        self.now_s = 0.0
        self.workers = {worker.name: _engine(worker, workload) for worker in workers}
        self.records: list[CallRecord] = []
        self._specs = {worker.name: worker for worker in workers}
        self._random = Random(f"faults/{workload.seed}")
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._number = -1  # of the action under way
        self._due: dict[str, int] = {}  # worker -> number of its current heap entry
        self._calls: dict[str, _Running] = {}
        self._waiting = list(reversed(workload.pipelines))
        self._pipelines: dict[str, LivePipeline | PipelineRecord] = {}  # in order of start; once ended, the record only
        self._news: deque[Event] = deque()  # the first is being told
        self._open = 0
        reads = fabric.policies.reads_reports
        staleness_s = self.faults.metrics_staleness_s
        self._scraper = Scraper(staleness_s, self._at, self._look, self._tell) if reads else None

    def run(self) -> RunRecords:
        """Play the whole workload. Every pipeline ends: completed, refused or failed."""
        for graph in self.workload.graphs:
            self._tell(GraphDeclared(at_s=0.0, graph=graph))
        for worker in self._specs.values():
            self.workers[worker.name].speed = self.faults.slow.get(worker.name, 1.0)
            self._tell(WorkerJoined(at_s=0.0, worker=worker))
        for outage in self.faults.outages:
            self._at(outage.at_s, lambda outage=outage: self._die(outage))  # type: ignore[misc]
        if self.faults.evict_tokens_per_s:
            self._at(1.0, self._evict)
        if self._scraper is not None:
            self._scraper.begin(list(self._specs))
        self._start_pipelines()
        while self._heap and (self._open or self._waiting):
            self.now_s, self._number, action = heappop(self._heap)
            action()
        for call_id, call in list(self._calls.items()):
            if isinstance(call.live, SpeculatingPipeline):  # whoever has lost may still be running
                self._tell(CallCancelled(at_s=self.now_s, call_id=call_id))
                self._end(call_id, "cancelled", "the run is over")
        pipelines = [each.record() if isinstance(each, LivePipeline) else each for each in self._pipelines.values()]
        return RunRecords(pipelines=pipelines, calls=self.records)

    def _at(self, at_s: float, action: Callable[[], None]) -> int:
        number = next(self._numbers)
        heappush(self._heap, (max(at_s, self.now_s), number, action))
        return number

    def _start_pipelines(self) -> None:
        """Closed loop: as many as may be live. Open loop: all, each at its arrival."""
        limit = self.workload.concurrency
        while self._waiting and (limit is None or self._open < limit):
            plan = self._waiting.pop()
            self._open += 1
            self._at(plan.arrival_s or 0.0, lambda plan=plan: self._begin(self._live(plan)))  # type: ignore[misc]

    def _live(self, plan: PipelinePlan) -> LivePipeline:
        if plan.groups or plan.guesses:
            return SpeculatingPipeline(plan, self.now_s, self._managed)
        return LivePipeline(plan, self.now_s)

    def _begin(self, live: LivePipeline) -> None:
        self._pipelines[live.plan.pipeline_id] = live
        self._release(live)

    def _release(self, live: LivePipeline) -> None:
        """Do what a client does next: send, test, tell."""
        for plan in live.ready():
            self._at(self.now_s + plan.gap_s, lambda plan=plan: self._arrive(live, plan))  # type: ignore[misc]
        for test_s, end in live.tests():
            self._at(self.now_s + test_s, lambda end=end: self._test(live, end))  # type: ignore[misc]
        for event in live.news(self.now_s):
            self._tell(event)
        if live.ended and self._pipelines[live.plan.pipeline_id] is live:
            self._pipelines[live.plan.pipeline_id] = live.record()
            self._open -= 1
            self._start_pipelines()

    def _test(self, live: LivePipeline, end: Callable[[float], None]) -> None:
        end(self.now_s)
        self._release(live)

    def _arrive(self, live: LivePipeline, plan: CallPlan) -> None:
        if not live.wants(plan):
            return
        call = live.call(plan, self.now_s)
        chain = live.keys.chain(plan, call.prefix)
        self._calls[call.call_id] = _Running(live, plan, self.now_s, chain, call.prompt_tokens)
        self._tell(CallArrived(at_s=self.now_s, call=call))

    def _tell(self, event: Event) -> None:
        """Tell the fabric and do what it decides. What is told while that is done comes after it."""
        self._news.append(event)
        if len(self._news) > 1:
            return
        while self._news:
            for decision in self.fabric.handle(self._news[0]):
                self._perform(decision)
            self._news.popleft()

    def _perform(self, decision: Decision) -> None:
        match decision:
            case Dispatch():
                self._dispatch(decision)
            case Refuse(call_id=call_id, code=code):
                self._end(call_id, _STATUS_OF.get(code, "refused"), code)
            case Cancel(call_id=call_id, worker=name, attempt=attempt) if name in self.workers:
                if call_id in self._calls:
                    self._spend(self._calls[call_id])
                self.workers[name].abort(f"{call_id}#{attempt}", self.now_s)
                self._watch(name)
                self._touched(name)
            case WakeAt(at_s=at_s):
                self._at(at_s, lambda: self._tell(Woke(at_s=self.now_s)))

    def _dispatch(self, decision: Dispatch) -> None:
        call = self._calls[decision.call_id]
        call.attempt, call.worker = decision.attempt, decision.worker
        request = SimRequest(
            request_id=f"{decision.call_id}#{decision.attempt}",
            prompt_tokens=call.prompt_tokens,
            output_tokens=call.plan.output_tokens,
            block_keys=call.chain,
        )
        worker = self.workers.get(decision.worker)
        try:
            if worker is None:  # dead, and the fabric does not know yet
                self._at(self.now_s, lambda: self._fail(decision.call_id, decision.attempt, "connection refused"))
                return
            worker.submit(request, self.now_s)
            self._watch(decision.worker)
            self._touched(decision.worker)
        except QueueFull as refusal:
            reason = str(refusal)
            self._at(self.now_s, lambda: self._fail(decision.call_id, decision.attempt, reason))
        except RequestTooLarge as refusal:
            reason = str(refusal)
            self._at(self.now_s, lambda: self._fail(decision.call_id, decision.attempt, reason, retryable=False))

    def _fail(self, call_id: str, attempt: int, reason: str, retryable: bool = True) -> None:
        call = self._calls.get(call_id)
        if call is None or call.attempt != attempt:
            return
        streamed = call.first_s is not None
        failed = CallFailed(
            at_s=self.now_s, call_id=call_id, attempt=attempt, reason=reason, streamed=streamed, retryable=retryable
        )
        self._tell(failed)
        if streamed or not retryable:
            self._end(call_id, "failed", reason)

    def _watch(self, name: str) -> None:
        """(Re)schedule the worker's next event."""
        next_s = self.workers[name].next_event_s()
        self._due.pop(name, None)
        if next_s is not None:
            self._due[name] = self._at(next_s, lambda: self._advance(name))

    def _advance(self, name: str) -> None:
        worker = self.workers.get(name)
        if worker is None or self._due.get(name) != self._number:  # dead, or looked at again in the meantime
            return
        self._hear(name, worker)
        self._watch(name)

    def _touched(self, name: str) -> None:
        if self._scraper is not None:
            self._scraper.touched(name, self.now_s)

    def _look(self, name: str) -> WorkerStats | None:
        """What the worker would report now."""
        worker = self.workers.get(name)
        if worker is None:
            return None
        self._hear(name, worker)
        self._watch(name)
        return worker.stats

    def _hear(self, name: str, worker: SimWorker) -> None:
        """What has happened on a worker until now. All that its blocks did goes to the fabric together."""
        has_kv_events = self._specs[name].has_kv_events
        blocks: list[BlockEvent] = []
        for event in worker.advance(self.now_s):
            if isinstance(event, FirstTokenOut | Finished):
                self._observe(name, event)
            elif has_kv_events and isinstance(event, BlockEvent):
                if self._random.random() < self.faults.event_loss:
                    continue
                if not blocks:
                    self._at(self.now_s + self.faults.event_delay_s, lambda: self._tell_blocks(name, blocks))
                blocks.append(event)

    def _tell_blocks(self, name: str, blocks: Sequence[BlockEvent]) -> None:
        for event in kv_events(self.now_s, name, blocks):
            self._tell(event)

    def _observe(self, name: str, event: FirstTokenOut | Finished) -> None:
        self._touched(name)
        call_id, _, attempt = event.request_id.rpartition("#")
        call = self._calls.get(call_id)
        if call is None or call.attempt != int(attempt):
            return
        if isinstance(event, FirstTokenOut):
            call.first_s = self.now_s
            self._tell(FirstToken(at_s=self.now_s, call_id=call_id, attempt=call.attempt))
        else:
            self._finish(call_id, call, event)

    def _finish(self, call_id: str, call: _Running, event: Finished) -> None:
        finished = CallFinished(
            at_s=self.now_s,
            call_id=call_id,
            attempt=call.attempt,
            prompt_tokens=call.prompt_tokens,
            cached_tokens=event.cached_tokens,
            output_tokens=event.output_tokens,
        )
        self._tell(finished)
        self._end(call_id, "ok", None, event)

    def _end(self, call_id: str, status: CallStatus, error: str | None, finished: Finished | None = None) -> None:
        call = self._calls.pop(call_id, None)
        if call is None:
            return
        ttft_s = None if call.first_s is None else call.first_s - call.due_s
        record = CallRecord(
            pipeline=call.live.plan.pipeline_id,
            index=call.plan.index,
            hop=call.plan.hop,
            pool=call.plan.pool,
            start_s=call.due_s,
            end_s=self.now_s,
            worker=call.worker or None,
            ttft_s=ttft_s,
            prompt_tokens=call.prompt_tokens if finished else 0,
            cached_tokens=finished.cached_tokens if finished else call.found_tokens,
            output_tokens=finished.output_tokens if finished else 0,
            spent_tokens=call.spent_tokens,
            status=status,
            attempts=call.attempt,
            error=error,
        )
        self.records.append(record)
        call.live.settle(call.plan, status, self.now_s)
        self._release(call.live)

    def _spend(self, call: _Running) -> None:
        """Note what was done for a call that goes without an answer."""
        worker = self.workers.get(call.worker)
        request_id = f"{call.live.plan.pipeline_id}/{call.plan.index}#{call.attempt}"
        if worker is not None:
            call.spent_tokens, call.found_tokens = worker.spent(request_id, self.now_s), worker.found(request_id)

    def _die(self, outage: Outage) -> None:
        """All that ran there breaks off now; the fabric hears of the worker's loss `detect_s` later."""
        name = outage.worker
        self.workers.pop(name, None)
        for call_id, call in list(self._calls.items()):
            if call.worker == name:
                self._fail(call_id, call.attempt, "connection reset")
        self._at(
            self.now_s + outage.detect_s,
            lambda: self._tell(WorkerLost(at_s=self.now_s, name=name, reason="health check")),
        )
        self._at(self.now_s + max(outage.down_s, outage.detect_s), lambda: self._return(name))

    def _return(self, name: str) -> None:
        self.workers[name] = _engine(self._specs[name], self.workload)
        if self._scraper is not None:
            self._scraper.forget(name)
        self._tell(WorkerJoined(at_s=self.now_s, worker=self._specs[name]))

    def _evict(self) -> None:
        for name in sorted(self.workers):
            self.workers[name].evict(int(self.faults.evict_tokens_per_s), self.now_s)
            self._watch(name)
        self._at(self.now_s + 1.0, self._evict)


def _engine(worker: Worker, workload: Workload) -> SimWorker:
    """The engine behind a worker. Its blocks are the plan's, so that what a plan shares the engine can share; it reports
    them only where the fabric would hear of it."""
    sizes = sorted({call.prompt.block_tokens for pipeline in workload.pipelines for call in pipeline.calls})
    if len(sizes) > 1:
        raise ValueError(f"a workload mixes block sizes {sizes}; an engine has one")
    block_tokens = sizes[0] if sizes else worker.block_tokens
    config = SimWorkerConfig(
        profile=worker.profile,
        kv_tokens=worker.kv_tokens,
        block_tokens=block_tokens,
        max_running=worker.max_running,
        dram_tokens=worker.dram_tokens,
        dram_bytes_per_s=worker.restore_bytes_per_s or FabricConfig().restore_bytes_per_s,
    )
    return SimWorker(config, outcomes_only=not worker.has_kv_events)
