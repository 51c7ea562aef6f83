"""Simulated runs in the form the report page draws: every completion time, and the calls of the slowest pipelines only,
so that what a process hands back stays small."""

from dataclasses import replace

from amf.bench.client import Answer
from amf.bench.driver import CallRun, PipelineRun
from amf.bench.page import SLOWEST
from amf.bench.sse import Usage
from amf.sim.plan import CallPlan, PipelinePlan
from amf.sim.report import CallRecord, PipelineRecord
from amf.sim.study import Outcome


def page_runs(outcome: Outcome) -> tuple[PipelineRun, ...]:
    """One per pipeline, in order of start."""
    plans = {plan.pipeline_id: plan for plan in outcome.workload.pipelines}
    completed = [record for record in outcome.records.pipelines if record.status == "completed"]
    slowest = sorted(completed, key=lambda record: record.end_s - record.start_s, reverse=True)[:SLOWEST]
    drawn: dict[str, list[CallRecord]] = {record.pipeline: [] for record in slowest}
    for call in outcome.records.calls:
        if call.pipeline in drawn:
            drawn[call.pipeline].append(call)
    return tuple(
        _run(record, plans[record.pipeline], drawn.get(record.pipeline, [])) for record in outcome.records.pipelines
    )


def _run(record: PipelineRecord, plan: PipelinePlan, calls: list[CallRecord]) -> PipelineRun:
    return PipelineRun(
        plan=replace(plan, calls=()),
        start_s=record.start_s,
        end_s=record.end_s,
        fate=record.status,
        calls=[_call(call, plan.calls[call.index]) for call in calls],
    )


def _call(record: CallRecord, plan: CallPlan) -> CallRun:
    first_s = None if record.ttft_s is None else record.start_s + record.ttft_s
    usage = Usage(
        prompt_tokens=record.prompt_tokens, cached_tokens=record.cached_tokens, output_tokens=record.output_tokens
    )
    return CallRun(
        plan=plan,
        ready_s=record.start_s - plan.gap_s,
        due_s=record.start_s,
        sent_s=record.start_s,
        first_s=first_s,
        end_s=record.end_s,
        answer=Answer(
            outcome="refused" if record.status == "cancelled" else record.status,
            sent_s=record.start_s,
            end_s=record.end_s,
            code=record.error,
            first_s=first_s,
            usage=usage,
            worker=record.worker,
        ),
    )
