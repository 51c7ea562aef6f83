"""Runs a workload against a target in real time and writes down what happened.

Closed loop: `concurrency` pipelines are live, a finished one is replaced by the next. Open loop: each starts at its
arrival. A call is due `gap_s` after its last parent ended (after the pipeline's start without parents); all planned
seconds are divided by the time scale. The driver's own lateness, send minus due, is recorded for every call: when it
is not small against what is measured, the machine that drives was the bottleneck.

All times in here are seconds of the event loop's clock since the run began. Failures are outcomes, never exceptions.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from amf.bench.client import Answer, Request, Target
from amf.bench.requests import Identity, Moment, RequestBuilder
from amf.sim.plan import CallPlan, PipelinePlan, Workload

Fate = Literal["completed", "refused", "failed", "unfinished"]


class Sender(Protocol):
    """What the driver needs of a client."""

    @property
    def target(self) -> Target: ...

    async def send(self, request: Request) -> Answer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveOptions:
    """`seconds`: real seconds after which no pipeline starts; live ones get `drain_s` more, then they are abandoned."""

    time_scale: float = 1.0
    seconds: float | None = None
    drain_s: float = 0.0
    identity: Identity = "auto"
    nonce: str = field(default_factory=lambda: secrets.token_hex(4))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRun:
    """One call as it went. `ready_s`: parents done; `due_s`: ready plus gap; then sent, first content, end."""

    plan: CallPlan
    ready_s: float
    due_s: float
    sent_s: float
    first_s: float | None
    end_s: float
    answer: Answer

    @property
    def lag_s(self) -> float:
        return self.sent_s - self.due_s


@dataclass(slots=True, kw_only=True)
class PipelineRun:
    """One pipeline as it went. `end_s` is when its fate was sealed; for an unfinished one, when it was abandoned."""

    plan: PipelinePlan
    start_s: float
    end_s: float | None = None
    fate: Fate = "unfinished"
    code: str | None = None
    calls: list[CallRun] = field(default_factory=list)


class Driver:
    """One run. `await run()` once; `stop()` ends it early and keeps what is known. Read `runs` at any time."""

    def __init__(self, workload: Workload, client: Sender, options: DriveOptions) -> None:
        self._workload = workload
        self._client = client
        self._options = options
        self._stopped = asyncio.Event()
        self._closed = asyncio.Event()
        self._began_s = 0.0
        self.runs: list[PipelineRun] = []

    @property
    def total(self) -> int:
        return len(self._workload.pipelines)

    def stop(self) -> None:
        """Abandon what is live and return from `run` with what is known."""
        self._stopped.set()

    def now_s(self) -> float:
        """Seconds since the run began."""
        return asyncio.get_running_loop().time() - self._began_s

    async def run(self) -> list[PipelineRun]:
        """Start pipelines as the workload says until all are done, time is up or `stop()`."""
        self._began_s = asyncio.get_running_loop().time()
        whole = asyncio.create_task(self._start_all())
        stop = asyncio.create_task(self._stopped.wait())
        both: set[asyncio.Task[None] | asyncio.Task[bool]] = {whole, stop}
        try:
            await asyncio.wait(both, timeout=self._options.seconds, return_when=asyncio.FIRST_COMPLETED)
            self._closed.set()
            if not whole.done() and not stop.done():
                await asyncio.wait(both, timeout=self._options.drain_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            whole.cancel()
            stop.cancel()
            await asyncio.gather(whole, stop, return_exceptions=True)
        if not whole.cancelled():
            whole.result()
        return self.runs

    async def _start_all(self) -> None:
        places = self._workload.concurrency and asyncio.Semaphore(self._workload.concurrency)
        async with asyncio.TaskGroup() as live:
            for plan in self._workload.pipelines:
                start_s = self.now_s()
                if plan.arrival_s is not None:
                    start_s = plan.arrival_s / self._options.time_scale
                    await self._closed_within(start_s - self.now_s())
                if places:
                    await places.acquire()
                    start_s = self.now_s() if plan.arrival_s is None else start_s
                if self._closed.is_set():
                    return
                live.create_task(self._pipeline(plan, start_s, places or None))

    async def _closed_within(self, delay_s: float) -> None:
        """Sleep, or wake early because no more pipelines may start."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), max(0.0, delay_s))

    async def _pipeline(self, plan: PipelinePlan, start_s: float, places: asyncio.Semaphore | None) -> None:
        run = PipelineRun(plan=plan, start_s=start_s)
        self.runs.append(run)
        run_id = f"{plan.pipeline_id}-{self._options.nonce}"
        builder = RequestBuilder(plan, self._client.target, self._options.identity, run_id)
        try:
            await self._calls(run, builder)
        finally:
            run.end_s = self.now_s()
            if places:
                places.release()

    async def _calls(self, run: PipelineRun, builder: RequestBuilder) -> None:
        """Send every call when it is due until all are done or one has gone wrong; then seal the run's fate."""
        calls = run.plan.calls
        ended_s: dict[int, float] = {}
        live: set[asyncio.Task[CallRun]] = set()

        def release(candidates: Iterable[CallPlan]) -> None:
            for call in candidates:
                if all(parent in ended_s for parent in call.parents):
                    ready_s = max((ended_s[parent] for parent in call.parents), default=run.start_s)
                    live.add(asyncio.create_task(self._call(run, builder, call, ready_s)))

        try:
            release(calls)
            while live:
                finished, live = await asyncio.wait(live, return_when=asyncio.FIRST_COMPLETED)
                batch = sorted((task.result() for task in finished), key=lambda each: each.plan.index)
                run.calls += batch
                for done in batch:
                    if done.answer.outcome != "ok":
                        first = done.answer.outcome == "refused" and not ended_s
                        run.fate, run.code = ("refused" if first else "failed"), done.answer.code
                        return
                    ended_s[done.plan.index] = done.end_s
                    release(call for call in calls if done.plan.index in call.parents)
            run.fate = "completed"
        finally:
            for task in live:
                task.cancel()
            await asyncio.gather(*live, return_exceptions=True)

    async def _call(self, run: PipelineRun, builder: RequestBuilder, call: CallPlan, ready_s: float) -> CallRun:
        scale = self._options.time_scale
        due_s = ready_s + call.gap_s / scale
        if (wait_s := due_s - self.now_s()) > 0:
            await asyncio.sleep(wait_s)
        deadline_ms = None
        if run.plan.slo_s is not None and not call.parents:
            deadline_ms = (run.start_s + run.plan.slo_s / scale - self.now_s()) * 1000
        moment = Moment(deadline_ms=deadline_ms, last=len(run.calls) == len(run.plan.calls) - 1)
        answer = await self._client.send(builder.build(call, moment))
        return CallRun(
            plan=call,
            ready_s=ready_s,
            due_s=due_s,
            sent_s=answer.sent_s - self._began_s,
            first_s=None if answer.first_s is None else answer.first_s - self._began_s,
            end_s=answer.end_s - self._began_s,
            answer=answer,
        )
