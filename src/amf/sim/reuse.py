"""What was computed for calls whose work nobody used, and served others all the same.

Attempts share a context, and the first that runs on a worker computes it for all. Where that one loses, the context is not
wasted if one whose work was used found it there: of the prompt that the loser computed this is what lies before the end of what
the other found in cache, as far as both prompts agree. Only calls of one pipeline on one worker are compared: what pipelines
share is static text, which is warm sooner or later whoever speculates.
"""

from collections.abc import Sequence

from amf.sim.keys import agreeing_blocks
from amf.sim.plan import CallPlan, PipelinePlan, Workload
from amf.sim.report import CallRecord, RunRecords
from amf.sim.workload.blocks import owned_runs


def note_reuse(workload: Workload, records: RunRecords) -> None:
    """Set `reused_tokens` of the calls whose work nobody used."""
    plans = {plan.pipeline_id: plan for plan in workload.pipelines if plan.speculates}
    unused = {each.pipeline: each.unused for each in records.pipelines}
    calls: dict[str, list[CallRecord]] = {}
    for call in records.calls:
        if call.pipeline in plans:
            calls.setdefault(call.pipeline, []).append(call)
    for pipeline, mine in calls.items():
        used = [call for call in mine if call.status == "ok" and call.index not in unused[pipeline]]
        by_worker: dict[str | None, list[CallRecord]] = {}
        for call in used:
            by_worker.setdefault(call.worker, []).append(call)
        taken = {id(call) for call in used}
        for call in mine:
            if id(call) not in taken and call.worker is not None and call.cached_tokens is not None:
                call.reused_tokens = _reused(call, by_worker.get(call.worker, ()), plans[pipeline])


def _reused(loser: CallRecord, used: Sequence[CallRecord], plan: PipelinePlan) -> int:
    own, cached = plan.calls[loser.index], loser.cached_tokens or 0
    end = own.prompt.total_tokens if loser.status == "ok" else min(own.prompt.total_tokens, cached + loser.spent_tokens)
    reach = max(
        (min(_common_tokens(own, plan.calls[call.index]), call.cached_tokens or 0, end) for call in used), default=0
    )
    return max(0, reach - cached)


def _common_tokens(one: CallPlan, other: CallPlan) -> int:
    return agreeing_blocks(owned_runs(one.prompt), owned_runs(other.prompt)) * one.prompt.block_tokens
