"""Measured runs as the report's records: real seconds become modelled ones, outcomes keep their codes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from amf.bench.driver import CallRun, PipelineRun
from amf.bench.lag import lag_of
from amf.bench.scrape import Totals
from amf.sim.plan import Workload
from amf.sim.report import CallRecord, Report, ReportContext, RunRecords, judged, summarise
from amf.sim.scenario import PoolSpec, pool_workers
from amf.sim.workload import ideal_cached_by_call


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One workload under one policy. `duration_s` is real; `decision_us` (p50, p99) where the target tells."""

    policy: str
    workload: Workload
    runs: Sequence[PipelineRun]
    duration_s: float
    time_scale: float
    decision_us: tuple[float | None, float | None] = (None, None)


def report_of(measured: Measurement, fleet: Sequence[PoolSpec]) -> Report:
    """The report's object, with what only a real run has: `unfinished` and `not_started` pipelines, `errors` by code,
    `unfinished_age_s` (modelled), `driver_lag_s` (real), `time_scale` and `notes`."""
    runs, scale = measured.runs, measured.time_scale
    calls = [call for run in runs for call in run.calls]
    lag = lag_of(calls)
    cut = [run for run in runs if run.fate == "unfinished"]
    report = summarise(records_of(runs, scale), _context(measured, fleet))
    return {
        **report,
        "unfinished": len(cut),
        "unfinished_age_s": sorted(round((_end_s(run) - run.start_s) * scale, 1) for run in cut),
        "not_started": len(measured.workload.pipelines) - len(runs),
        "errors": dict(Counter(run.code for run in runs if run.code is not None)),
        "driver_lag_s": {"mean": lag.mean_s, "p99": lag.p99_s, "max": lag.max_s, "share_of_call": lag.share},
        "time_scale": scale,
        "notes": list(measured.workload.notes),
    }


def records_of(runs: Sequence[PipelineRun], time_scale: float) -> RunRecords:
    return RunRecords(
        pipelines=[judged(run.plan, run.start_s * time_scale, _end_s(run) * time_scale, run.fate) for run in runs],
        calls=[_call_record(run.plan.pipeline_id, call, time_scale) for run in runs for call in run.calls],
    )


def totals_of(runs: Sequence[PipelineRun]) -> Totals:
    """Tokens as the answers' `usage` said."""
    usages = [call.answer.usage for run in runs for call in run.calls]
    return Totals(
        prompt_tokens=sum(usage.prompt_tokens or 0 for usage in usages),
        cached_tokens=sum(usage.cached_tokens or 0 for usage in usages),
        output_tokens=sum(usage.output_tokens or 0 for usage in usages),
    )


def _call_record(pipeline: str, call: CallRun, scale: float) -> CallRecord:
    usage = call.answer.usage
    return CallRecord(
        pipeline=pipeline,
        index=call.plan.index,
        hop=call.plan.hop,
        pool=call.plan.pool,
        start_s=call.due_s * scale,
        end_s=call.end_s * scale,
        worker=call.answer.worker,
        ttft_s=None if call.first_s is None else (call.first_s - call.due_s) * scale,
        prompt_tokens=usage.prompt_tokens or 0,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens or 0,
        status=call.answer.outcome,
        attempts=1 + call.answer.holds,
        error=call.answer.code,
    )


def _context(measured: Measurement, fleet: Sequence[PoolSpec]) -> ReportContext:
    workers = pool_workers(fleet)
    return ReportContext(
        policy=measured.policy,
        workload=measured.workload.name,
        seed=measured.workload.seed,
        duration_s=measured.duration_s * measured.time_scale,
        gpus=sum(pool.workers * pool.tensor_parallel for pool in fleet),
        dollars_per_hour=sum(worker.profile.dollars_per_hour for worker in workers),
        ideal_cached=ideal_cached_by_call(measured.workload),
        kv_bytes_per_token={worker.pool: worker.profile.kv_bytes_per_token for worker in workers},
        decision_us_p50=measured.decision_us[0],
        decision_us_p99=measured.decision_us[1],
    )


def _end_s(run: PipelineRun) -> float:
    return run.start_s if run.end_s is None else run.end_s
