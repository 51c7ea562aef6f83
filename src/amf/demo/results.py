"""The demo's measurements as reports: one per policy and workload, the fleet's price shared out between the two."""

from collections.abc import Sequence
from dataclasses import dataclass

from amf.bench.driver import PipelineRun
from amf.bench.page import Measured
from amf.bench.records import Measurement, report_of
from amf.sim.plan import Workload
from amf.sim.scenario import PoolSpec, pool_worker


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRun:
    """What one policy did: the runs of each workload, over the same real seconds on the same fleet."""

    policy: str
    workloads: Sequence[Workload]
    runs: Sequence[Sequence[PipelineRun]]
    duration_s: float
    decision_us: tuple[float | None, float | None]


def measured_of(run: PolicyRun, pools: Sequence[PoolSpec], time_scale: float) -> list[Measured]:
    """Reports with the runs behind them. `gpu_s` and `cost_usd` are each workload's share: a pool's hours are divided by
    the seconds of service that its calls took there."""
    shares = _shares([_service_s(runs) for runs in run.runs], pools)
    result: list[Measured] = []
    for workload, runs, share in zip(run.workloads, run.runs, shares, strict=True):
        measurement = Measurement(
            policy=run.policy,
            workload=workload,
            runs=runs,
            duration_s=run.duration_s,
            time_scale=time_scale,
            decision_us=run.decision_us,
        )
        report = report_of(measurement, pools)
        hours = run.duration_s * time_scale / 3600
        report["gpu_s"] = sum(share[pool.model] * pool.workers * pool.tensor_parallel for pool in pools) * hours * 3600
        report["cost_usd"] = sum(share[pool.model] * _dollars_per_hour(pool) for pool in pools) * hours
        result.append(Measured(row=report, runs=runs, time_scale=time_scale))
    return result


def _service_s(runs: Sequence[PipelineRun]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for run in runs:
        for call in run.calls:
            seconds[call.plan.pool] = seconds.get(call.plan.pool, 0.0) + call.end_s - call.sent_s
    return seconds


def _shares(service_s: Sequence[dict[str, float]], pools: Sequence[PoolSpec]) -> list[dict[str, float]]:
    """Each workload's share of each pool; an unused pool is shared equally."""
    shares: list[dict[str, float]] = [{} for _ in service_s]
    for pool in pools:
        total_s = sum(each.get(pool.model, 0.0) for each in service_s)
        for share, each in zip(shares, service_s, strict=True):
            share[pool.model] = each.get(pool.model, 0.0) / total_s if total_s else 1 / len(service_s)
    return shares


def _dollars_per_hour(pool: PoolSpec) -> float:
    return pool.workers * pool_worker(pool, 0).profile.dollars_per_hour
