"""One planned pipeline while it runs in virtual time: which calls are ready, and what it has come to.

A `LivePipeline` has neither groups nor guesses; one that has them is in `sim/live_branches.py`, and only that has tests to run
and decisions to tell.
"""

from collections.abc import Callable
from dataclasses import replace

from amf.core.events import Event
from amf.core.types import Call, Prefix
from amf.sim.keys import PromptKeys
from amf.sim.plan import CallPlan, PipelinePlan
from amf.sim.report import CallStatus, PipelineRecord, PipelineStatus, judged

Test = tuple[float, Callable[[float], None]]  # after so many seconds, tell it the time


class LivePipeline:
    """The first refused or failed call ends the pipeline with its status; calls still out run on unheeded."""

    def __init__(self, plan: PipelinePlan, start_s: float) -> None:
        self.plan = plan
        self.start_s = start_s
        self.end_s = start_s
        self.status: PipelineStatus = "unfinished"
        self.keys = PromptKeys(plan)
        self._waits_for = {call.index: set(call.parents) for call in plan.calls}
        self._children: dict[int, list[CallPlan]] = {call.index: [] for call in plan.calls}
        for call in plan.calls:
            for parent in call.parents:
                self._children[parent].append(call)
        self._ready = [call for call in plan.calls if not call.parents]
        self._left = len(plan.calls)
        self._in_vain = frozenset(plan.unused)

    @property
    def ended(self) -> bool:
        return self.status != "unfinished"

    def ready(self) -> list[CallPlan]:
        """Calls that became ready since the last time asked, in plan order."""
        ready, self._ready = self._ready, []
        return ready

    def tests(self) -> list[Test]:
        """Tests that the client began since the last time asked."""
        return []

    def news(self, now_s: float) -> list[Event]:
        """What the client has to tell since the last time asked."""
        return []

    def wants(self, plan: CallPlan) -> bool:
        """Whether a call that became ready is still to be sent."""
        return not self.ended

    def call(self, plan: CallPlan, now_s: float) -> Call:
        """What intake would make of the call. A declared pipeline says its graph, hop, parents and deadline."""
        pipeline = self.plan
        prefix = self.keys.prefix(plan) if plan.kind == "generate" else Prefix(total_tokens=plan.prompt.total_tokens)
        declared = pipeline.declared
        return Call(
            call_id=f"{pipeline.pipeline_id}/{plan.index}",
            run_id=f"{pipeline.pipeline_id}{plan.lane}",
            pool=plan.pool,
            kind=plan.kind,
            prefix=prefix,
            max_output_tokens=plan.output_tokens,
            graph=pipeline.graph if declared else "",
            hop=plan.hop if declared else "",
            parents=self._hops(plan.parents) if declared else (),
            deadline_s=self.start_s + pipeline.slo_s if declared and pipeline.slo_s is not None else None,
            tenant=pipeline.tenant,
            identity="explicit" if declared else "session",
            final=declared and self._left == 1,
        )

    def settle(self, plan: CallPlan, status: CallStatus, now_s: float) -> None:
        """A call ended. Of a pipeline that has ended already, it changes nothing."""
        if self.ended:
            return
        self.end_s = now_s
        self._left -= 1
        if status != "ok":
            self.status = "failed" if status == "cancelled" else status
            return
        self._done(plan.index)
        if not self._left:
            self.status = "completed"

    def record(self) -> PipelineRecord:
        found = judged(self.plan, self.start_s, self.end_s, self.status)
        return replace(found, unused=self.unused, needless=self.unused - self._in_vain)

    @property
    def unused(self) -> frozenset[int]:
        """Calls whose work nobody uses."""
        return self._in_vain

    def _done(self, index: int) -> None:
        for child in self._children[index]:
            self._waits_for[child.index].discard(index)
            if not self._waits_for[child.index]:
                self._release(child)

    def _release(self, call: CallPlan) -> None:
        self._ready.append(call)

    def _hops(self, parents: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.plan.calls[parent].hop for parent in parents))
