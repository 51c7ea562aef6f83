"""Plain, JSON-able snapshots of the facts, for the shell's reports. Nothing here decides anything."""

from dataclasses import asdict

from amf.core.state.lanes import Home
from amf.core.state.pipelines import CallState, Pipeline
from amf.core.state.pools import Pool
from amf.core.state.workers import WorkerState


def of_pipeline(pipeline: Pipeline, now_s: float) -> dict[str, object]:
    return {
        "run_id": pipeline.run_id,
        "graph": pipeline.graph_name,
        "status": "live",
        "identity_source": pipeline.identity,
        "slo_class": pipeline.slo_class.value,
        "opened_s": pipeline.opened_s,
        "age_s": now_s - pipeline.opened_s,
        "deadline_s": pipeline.deadline_s,
        "slack_s": None if pipeline.deadline_s is None else pipeline.deadline_s - now_s,
        "calls": pipeline.calls,
        "finished": pipeline.finished,
        "failed": pipeline.failed,
        "refused": pipeline.refused,
        "cancelled": pipeline.cancelled,
        "hops": dict(pipeline.hops),
        "edges": [list(edge) for edge in pipeline.edges],
        "groups": pipeline.branches.to_dict() if pipeline.branches else {},
        "live_calls": [_of_call(state, now_s) for state in pipeline.live.values()],
        "account": pipeline.account.to_dict(),
    }


def _of_call(state: CallState, now_s: float) -> dict[str, object]:
    return {
        "call_id": state.call.call_id,
        "hop": state.hop_id,
        "model": state.call.pool,
        "status": state.status.value,
        "worker": state.worker,
        "attempt": state.attempt,
        "age_s": now_s - state.arrived_s,
        "prompt_tokens": state.call.prompt_tokens,
    }


def of_worker(worker: WorkerState, pool: Pool, home: Home) -> dict[str, object]:
    drift = pool.warmth.drift[worker.name]
    return {
        "name": worker.name,
        "model": worker.spec.pool,
        "status": worker.status.value,
        "running": worker.running,
        "committed_tokens": worker.committed_tokens,
        "kv_tokens": worker.spec.kv_tokens,
        "dram_tokens": worker.spec.dram_tokens,
        "cold_prefills": worker.cold_prefills,
        "dispatched": worker.dispatched,
        "failures": worker.failures,
        "resident_pipelines": home.residents,
        "protected_tokens": home.protected_tokens,
        "believed_warm_tokens": pool.warmth.resident_tokens(worker.name),
        "prefill_scale": worker.prefill_scale,
        "decode_scale": worker.decode_scale,
        "reported": {
            "running": worker.reported_running,
            "waiting": worker.reported_waiting,
            "kv_used_ratio": worker.reported_kv_used_ratio,
        },
        "drift": asdict(drift),
    }
