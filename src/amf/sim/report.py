"""What a run amounts to: one object per policy and workload, the same from the simulator, emulators and real engines.

Seconds are the workload's own (a driver that runs faster than life multiplies before it records). A figure a run cannot
know is null, never guessed; a sum over nothing is 0.

- `jct_s`, `stretch`: of completed pipelines, from their start (arrival in an open loop) to the end of their last call.
  Stretch is that over the pipeline's critical-path bound where bounds are given, else over `standalone_s`. Refused and
  failed pipelines are not in it: read it beside `slo_attainment`.
- `slo_attainment`: share of offered pipelines that met their deadline; refused and failed ones missed it, and pipelines
  cut off before their deadline had passed do not count. `goodput_per_s`: those that met it, per second of the run.
- `lateness_s`: of completed pipelines that had a deadline, how long after it they ended; 0 for those in time. Who refuses or
  cancels the late ones leaves them out: read it beside `slo_attainment`, too.
- `ttft_s`: of calls that were answered, from when they were due to the first token.
- `prompt_tokens`, `cached_tokens`: as the engines report them, over answered calls. `hit_ratio` is their quotient where
  cached tokens were reported; `ideal_hit_ratio` the same with an infinite cache per pool.
- `recomputed_tokens`: prefilled although the same pool had computed them before: ideal minus cached over all answered
  calls, at least 0. Taken over the sum, since which of two calls comes first with a shared prefix is a matter of timing.
- `wasted_speculative_tokens`: computed and produced by calls whose work nobody used, whether they ended, were cancelled or were
  still running: attempts that failed or lost, and wrong guesses; but for the context that they left to one that was used
  (`sim/reuse.py`). `speculation`: `needless_tokens` are those of them that a
  client would not waste that does one thing after the other; `wasted_share` of all tokens computed and produced; `hit_ratio`
  of answered calls whose work was used; completion times of pipelines that speculate (`own`) and of the `others`. Null where
  none speculates.
- `gpu_s`, `cost_usd`: the whole fleet for the length of the run, idle or not, as it is paid for.
- `bytes`: `kv` written by prefill and decode; `reprefill` the part of it recomputed; `serialisation` four bytes for every
  prompt and output token that crosses the wire; `churn` KV of wasted speculation; `weights` read, if counted.
- `bound`: what no policy can beat (docs/bounds.md). `jct_s` and `critical_path_s`: completed pipelines alone, with what
  their own calls leave in cache, and with what any pipeline leaves there. `srpt_mean_s` and `edf_p99_s`: what the load of
  all pipelines enforces, null unless all completed. `belady_hit_ratio`: the best cache for this run's order of calls.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np

from amf.sim.optimum import Bounds
from amf.sim.plan import PipelinePlan

TOKEN_ID_BYTES = 4

CallStatus = Literal["ok", "refused", "failed", "cancelled"]
PipelineStatus = Literal["completed", "refused", "failed", "unfinished"]
Report = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class CallRecord:
    """One call as it went. `pipeline` and `index` name its plan. `start_s` is when it was due (parents done, gap over),
    `ttft_s` the seconds from then to the first token. `cached_tokens` is None if the engine does not say. Cancelled: a branch
    that has lost; `spent_tokens` were computed and produced for it until then. `reused_tokens`: what a call whose work nobody
    used left to one that was (`sim/reuse.py`)."""

    pipeline: str
    index: int
    hop: str
    pool: str
    start_s: float
    end_s: float
    worker: str | None = None
    ttft_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    output_tokens: int = 0
    spent_tokens: int = 0
    reused_tokens: int = 0
    status: CallStatus = "ok"
    attempts: int = 1
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRecord:
    """One pipeline as it went. `met` is None without a deadline, or if it was cut off while it could still be met. `unused`:
    its calls (indices) whose work nobody used, where it `speculates`; `needless`: those of them that a client would not waste
    that does one thing after the other."""

    pipeline: str
    graph: str
    start_s: float
    end_s: float
    status: PipelineStatus
    slo_s: float | None = None
    standalone_s: float | None = None
    met: bool | None = None
    speculates: bool = False
    unused: frozenset[int] = frozenset()
    needless: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecords:
    pipelines: Sequence[PipelineRecord]
    calls: Sequence[CallRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContext:
    """What the records do not say. `duration_s`: length of the run. `gpus` and `dollars_per_hour`: of the whole fleet.
    `ideal_cached`: tokens by (pipeline, call index). `kv_bytes_per_token` by pool. `bounds`: of the whole workload, with
    the hit ratio of this run's `served_order`. None: not measured in this run."""

    policy: str
    workload: str
    seed: int
    duration_s: float
    gpus: int = 0
    dollars_per_hour: float = 0.0
    ideal_cached: Mapping[tuple[str, int], int] = field(default_factory=dict)
    kv_bytes_per_token: Mapping[str, float] = field(default_factory=dict)
    wasted_speculative_tokens: int | None = None
    churn_bytes: float | None = None
    weights_bytes: float | None = None
    decision_us_p50: float | None = None
    decision_us_p99: float | None = None
    bounds: Bounds | None = None


def judged(plan: PipelinePlan, start_s: float, end_s: float, status: PipelineStatus) -> PipelineRecord:
    """The record of a pipeline that ended (or was cut off) at `end_s`, measured against its plan's deadline."""
    met: bool | None = None
    if plan.slo_s is not None:
        in_time = end_s - start_s <= plan.slo_s
        met = in_time if status == "completed" else (None if status == "unfinished" and in_time else False)
    return PipelineRecord(
        pipeline=plan.pipeline_id,
        graph=plan.graph,
        start_s=start_s,
        end_s=end_s,
        status=status,
        slo_s=plan.slo_s,
        standalone_s=plan.standalone_s,
        met=met,
        speculates=plan.speculates,
    )


def summarise(records: RunRecords, context: ReportContext) -> Report:
    """The report of one run (fields at the top of this file)."""
    done = [each for each in records.pipelines if each.status == "completed"]
    verdicts = [each.met for each in records.pipelines if each.met is not None]
    answered = [call for call in records.calls if call.status == "ok"]
    wasted = _wasted(records)
    hours = context.duration_s / 3600
    return {
        "policy": context.policy,
        "workload": context.workload,
        "seed": context.seed,
        "pipelines": len(records.pipelines),
        "completed": len(done),
        "refused": sum(each.status == "refused" for each in records.pipelines),
        "failed": sum(each.status == "failed" for each in records.pipelines),
        "jct_s": spread([each.end_s - each.start_s for each in done]),
        "lateness_s": spread([_lateness_s(each, each.slo_s) for each in done if each.slo_s is not None]),
        "ttft_s": spread([call.ttft_s for call in answered if call.ttft_s is not None]),
        "slo_attainment": sum(verdicts) / len(verdicts) if verdicts else None,
        "goodput_per_s": sum(verdicts) / context.duration_s if verdicts and context.duration_s > 0 else None,
        **_tokens(answered, context),
        "wasted_speculative_tokens": context.wasted_speculative_tokens
        if wasted is None
        else sum(map(wasted_tokens, wasted)),
        "speculation": _speculation(records, answered, wasted),
        "gpu_s": context.gpus * context.duration_s,
        "cost_usd": context.dollars_per_hour * hours,
        "bytes": {**_bytes(answered, context), "churn": _churn_bytes(wasted, context)},
        "stretch": _stretch(done, context.bounds),
        "bound": _bound(records, done, context.bounds),
        "decision_us": {"p50": context.decision_us_p50, "p99": context.decision_us_p99},
    }


def spent_tokens(call: CallRecord) -> int:
    """Computed and produced for it."""
    if call.status != "ok":
        return call.spent_tokens
    return call.prompt_tokens - (call.cached_tokens or 0) + call.output_tokens


def wasted_tokens(call: CallRecord) -> int:
    """Of a call whose work nobody used."""
    return spent_tokens(call) - call.reused_tokens


def served_order(records: RunRecords) -> list[tuple[str, int]]:
    """Answered calls (pipeline, index) by the time of their first token (their end, if it was not seen): the order in
    which an engine that does one prefill after the other took them up."""

    def taken_up(call: CallRecord) -> tuple[float, str, int]:
        at_s = call.end_s if call.ttft_s is None else call.start_s + call.ttft_s
        return at_s, call.pipeline, call.index

    return [(call.pipeline, call.index) for call in sorted(records.calls, key=taken_up) if call.status == "ok"]


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and percentiles (linear between neighbours); null if there are no values."""
    if not values:
        return {"mean": None, "p50": None, "p95": None, "p99": None}
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return {"mean": float(np.mean(values)), "p50": float(p50), "p95": float(p95), "p99": float(p99)}


def cost_per_pipeline(report: Report) -> float | None:
    """Dollars of the whole fleet per completed pipeline; None if none completed."""
    return report["cost_usd"] / report["completed"] if report["completed"] else None


def compare(baseline: Report, ours: Report) -> dict[str, float | None]:
    """Gains of `ours` over `baseline` by dotted field, each a ratio that is above 1 where ours is better; None where
    either side has no figure or the divisor is 0. Of lateness, which may well be 0: two zeros are 1, and a zero against
    more is infinity for ours and 0 for theirs."""
    gains: dict[str, float | None] = {}
    if "live_groups" in ours:  # a report of memory alone (`sim/memory/run.py`)
        return {name: _ratio(ours[name], baseline[name]) for name in ("live_groups", "hops_per_s")}
    for name in ("jct_s", "ttft_s", "stretch"):
        for part in ("mean", "p50", "p95", "p99"):
            gains[f"{name}.{part}"] = _ratio(baseline[name][part], ours[name][part])
    for part in ("mean", "p50", "p95", "p99"):
        gains[f"lateness_s.{part}"] = _ratio_of_lateness(baseline["lateness_s"][part], ours["lateness_s"][part])
    for name in ("recomputed_tokens", "gpu_s", "wasted_speculative_tokens"):
        gains[name] = _ratio(baseline[name], ours[name])
    needless = baseline["speculation"]["needless_tokens"], ours["speculation"]["needless_tokens"]
    gains["speculation.needless_tokens"] = _ratio(*needless)
    for name in ("own", "others"):
        for part in ("mean", "p50", "p95", "p99"):
            pair = baseline["speculation"][name][part], ours["speculation"][name][part]
            gains[f"speculation.{name}.{part}"] = _ratio(*pair)
    gains["cost_per_pipeline"] = _ratio(cost_per_pipeline(baseline), cost_per_pipeline(ours))
    for name in ("slo_attainment", "goodput_per_s", "hit_ratio"):
        gains[name] = _ratio(ours[name], baseline[name])
    return gains


def write_json(path: str | Path, reports: Sequence[Report]) -> None:
    """Write the list of reports. Raises OSError if the file cannot be written."""
    Path(path).write_text(json.dumps(list(reports), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _wasted(records: RunRecords) -> list[CallRecord] | None:
    """Calls whose work nobody used; None: nobody speculates."""
    if not any(each.speculates for each in records.pipelines):
        return None
    unused = {(each.pipeline, index) for each in records.pipelines for index in each.unused}
    return [call for call in records.calls if call.status == "cancelled" or (call.pipeline, call.index) in unused]


def _speculation(
    records: RunRecords, answered: Sequence[CallRecord], wasted: Sequence[CallRecord] | None
) -> dict[str, Any]:
    if wasted is None:
        unknown = dict.fromkeys(("needless_tokens", "wasted_share", "hit_ratio"))
        return {**unknown, "own": spread([]), "others": spread([])}
    done = [(each.end_s - each.start_s, each.speculates) for each in records.pipelines if each.status == "completed"]
    all_tokens = sum(spent_tokens(call) for call in records.calls)
    in_vain = {(each.pipeline, index) for each in records.pipelines for index in each.unused - each.needless}
    needless = [call for call in wasted if (call.pipeline, call.index) not in in_vain]
    thrown_away = {id(call) for call in wasted}
    used = [call for call in answered if id(call) not in thrown_away]
    known = [(call.prompt_tokens, call.cached_tokens) for call in used if call.cached_tokens is not None]
    prompt_tokens = sum(prompt for prompt, _ in known)
    return {
        "needless_tokens": sum(map(wasted_tokens, needless)),
        "wasted_share": sum(map(wasted_tokens, wasted)) / all_tokens if all_tokens else None,
        "hit_ratio": sum(cached for _, cached in known) / prompt_tokens if prompt_tokens else None,
        "own": spread([took_s for took_s, speculates in done if speculates]),
        "others": spread([took_s for took_s, speculates in done if not speculates]),
    }


def _churn_bytes(wasted: Sequence[CallRecord] | None, context: ReportContext) -> float | None:
    width = context.kv_bytes_per_token
    if wasted is None or any(call.pool not in width for call in wasted):
        return context.churn_bytes
    return float(sum(wasted_tokens(call) * width[call.pool] for call in wasted))


def _lateness_s(pipeline: PipelineRecord, slo_s: float) -> float:
    return max(0.0, pipeline.end_s - pipeline.start_s - slo_s)


def _stretch(done: Sequence[PipelineRecord], bounds: Bounds | None) -> dict[str, float | None]:
    least_s = bounds.critical_path_s if bounds else {}
    pairs = [(each, least_s.get(each.pipeline, each.standalone_s)) for each in done]
    return spread([(each.end_s - each.start_s) / alone_s for each, alone_s in pairs if alone_s])


def _bound(records: RunRecords, done: Sequence[PipelineRecord], bounds: Bounds | None) -> Report:
    """Bounds on the load are about all pipelines: a run that leaves some undone, or is cut off, may be below them."""
    least_s = bounds.critical_path_s if bounds else {}
    whole = bounds if len(done) == len(records.pipelines) == len(least_s) else None
    return {
        "jct_s": spread([each.standalone_s for each in done if each.standalone_s]),
        "critical_path_s": spread([least_s[each.pipeline] for each in done if each.pipeline in least_s]),
        "srpt_mean_s": whole.srpt_mean_s if whole else None,
        "edf_p99_s": whole.edf_p99_s if whole else None,
        "belady_hit_ratio": bounds.belady_hit_ratio if bounds else None,
    }


def _tokens(answered: Sequence[CallRecord], context: ReportContext) -> Report:
    known = [(call, call.cached_tokens) for call in answered if call.cached_tokens is not None]
    prompt, cached = sum(call.prompt_tokens for call, _ in known), sum(tokens for _, tokens in known)
    return {
        "prompt_tokens": sum(call.prompt_tokens for call in answered),
        "cached_tokens": cached if known or not answered else None,
        "recomputed_tokens": _recomputed(known, context) if known or not answered else None,
        "hit_ratio": cached / prompt if prompt else None,
        "ideal_hit_ratio": _ideal_hit_ratio(answered, context),
    }


def _recomputed(known: Sequence[tuple[CallRecord, int]], context: ReportContext) -> int:
    return max(0, sum(context.ideal_cached.get((call.pipeline, call.index), 0) - cached for call, cached in known))


def _ideal_hit_ratio(answered: Sequence[CallRecord], context: ReportContext) -> float | None:
    prompt = sum(call.prompt_tokens for call in answered)
    if not prompt or not context.ideal_cached:
        return None
    return sum(context.ideal_cached.get((call.pipeline, call.index), 0) for call in answered) / prompt


def _bytes(answered: Sequence[CallRecord], context: ReportContext) -> dict[str, float | None]:
    """Bytes by kind. KV figures are null unless every pool's size per token and the cached tokens are known."""
    width = context.kv_bytes_per_token
    known = [(call, call.cached_tokens) for call in answered if call.cached_tokens is not None and call.pool in width]
    kv = reprefill = None
    if len(known) == len(answered):
        kv = float(sum((call.prompt_tokens - cached + call.output_tokens) * width[call.pool] for call, cached in known))
        pools = sorted({call.pool for call in answered})
        by_pool = {pool: [each for each in known if each[0].pool == pool] for pool in pools}
        reprefill = float(sum(_recomputed(by_pool[pool], context) * width[pool] for pool in pools))
    moved = sum(call.prompt_tokens + call.output_tokens for call in answered)
    return {
        "weights": context.weights_bytes,
        "kv": kv,
        "reprefill": reprefill,
        "serialisation": float(TOKEN_ID_BYTES * moved),
    }


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _ratio_of_lateness(above: float | None, below: float | None) -> float | None:
    if above is None or below is None:
        return None
    if below == 0:
        return inf if above else 1.0
    return above / below
