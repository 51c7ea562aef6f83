"""Microseconds of one decision (a call arrives -> it is dispatched), by fleet size, prompt length and block size.

    .venv/bin/python bench/decisions.py [--json out/bench/decisions.json] [--rounds 300]

Every worker holds eight sessions behind one shared system prompt; each timed call extends one of them, as an agent's next
hop does. `text` blocks are the gateway's default (1 KiB of text, about 256 tokens); `exact` blocks are an engine's 16
tokens, seen through KV events (observed) or predicted. The baseline in the same run is the `least-loaded` policy, which
looks at no warmth: the ratio is what warmth, prices and hold-back cost.
"""

import argparse
import gc
import json
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from time import perf_counter_ns

import numpy as np

from amf.core.config import FabricConfig
from amf.core.cost import Deployment, worker_profile
from amf.core.decisions import Dispatch
from amf.core.events import CallArrived, CallFinished, FirstToken, PrefixStored, WorkerJoined
from amf.core.fabric import Fabric
from amf.core.policy.bundles import policies_named
from amf.core.presets import gpu_preset, model_preset
from amf.core.types import Call, Prefix, Worker

SESSIONS_PER_WORKER = 8
SYSTEM_TOKENS = 1_024
PROFILE = worker_profile(model_preset("llama-3.3-70b"), gpu_preset("h200"), Deployment())


@dataclass(frozen=True)
class Case:
    workers: int
    tokens: int
    blocks: str  # text | exact-predicted | exact-observed

    @property
    def block_tokens(self) -> int:
        return 256 if self.blocks == "text" else 16


def prompt(case: Case, session: int, extra_tokens: int = 0) -> Prefix:
    """The session's prompt; keys are chained by construction (session and depth), the system prompt's are shared."""
    size = case.block_tokens
    shared, count = SYSTEM_TOKENS // size, (case.tokens + extra_tokens) // size
    keys = tuple(range(1, shared + 1)) + tuple(hash((session, depth)) for depth in range(shared, count))
    return Prefix(keys=keys, ends=range(size, size * count + 1, size), total_tokens=case.tokens + extra_tokens)


def prepared(case: Case, policy: str) -> Fabric:
    """A fabric in steady state: all sessions have run once where the policy put them."""
    fabric = Fabric(FabricConfig(max_scan_calls=64), policies_named(policy))
    roomy = 4 * SESSIONS_PER_WORKER * (case.tokens + 2_000)
    for index in range(case.workers):
        worker = Worker(
            name=f"w{index:04}",
            pool="m",
            profile=PROFILE,
            kv_tokens=roomy,
            has_kv_events=case.blocks == "exact-observed",
        )
        fabric.handle(WorkerJoined(at_s=0.0, worker=worker))
    for session in range(case.workers * SESSIONS_PER_WORKER):
        serve(fabric, case, session, float(session), 0)
    return fabric


def serve(fabric: Fabric, case: Case, session: int, at_s: float, extra_tokens: int) -> float:
    """One call from arrival to end. Returns the microseconds of the arrival."""
    call_id = f"{session}/{at_s}"
    call = Call(call_id=call_id, run_id=f"s{session}", pool="m", prefix=prompt(case, session, extra_tokens))
    event = CallArrived(at_s=at_s, call=call)
    start_ns = perf_counter_ns()
    decisions = fabric.handle(event)
    elapsed_us = (perf_counter_ns() - start_ns) / 1e3
    placed = next(d for d in decisions if isinstance(d, Dispatch))
    fabric.handle(FirstToken(at_s=at_s + 0.2, call_id=call_id, attempt=1))
    if case.blocks == "exact-observed" and not extra_tokens:
        fabric.handle(PrefixStored(at_s=at_s + 0.2, name=placed.worker, keys=call.prefix.keys))
    tokens = call.prefix.total_tokens
    done = CallFinished(
        at_s=at_s + 0.4,
        call_id=call_id,
        attempt=1,
        prompt_tokens=tokens,
        cached_tokens=placed.hit_tokens,
        output_tokens=200,
    )
    fabric.handle(done)
    return elapsed_us


def measure(case: Case, rounds: int, seed: int) -> dict[str, object]:
    """Fabric and baseline in turns, so that a drifting machine drifts for both."""
    fabrics = {policy: prepared(case, policy) for policy in ("fabric", "least-loaded")}
    random = Random(seed)
    times: dict[str, list[float]] = {policy: [] for policy in fabrics}
    at_s = float(case.workers * SESSIONS_PER_WORKER)
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        at_s += 1.0
        session = random.randrange(case.workers * SESSIONS_PER_WORKER)
        for policy, fabric in fabrics.items():
            times[policy].append(serve(fabric, case, session, at_s, 256))
    gc.unfreeze()
    p50, p99 = np.percentile(times["fabric"], [50, 99])
    base50 = float(np.percentile(times["least-loaded"], 50))
    return {
        "workers": case.workers,
        "prompt_tokens": case.tokens,
        "blocks": case.blocks,
        "decision_us": {"p50": round(float(p50), 1), "p99": round(float(p99), 1)},
        "least_loaded_us_p50": round(base50, 1),
        "ratio_p50": round(float(p50) / base50, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--rounds", type=int, default=300, help="timed calls per case (default 300)")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    rows = []
    print(f"{'workers':>8} {'tokens':>8} {'blocks':>16} {'p50 us':>8} {'p99 us':>8} {'vs least-loaded':>16}")
    for workers in (8, 64, 512):
        for tokens in (2_048, 32_768, 262_144):
            for blocks in ("text", "exact-predicted", "exact-observed"):
                if workers * tokens // (256 if blocks == "text" else 16) > 2_000_000:
                    continue  # the preparation alone would take minutes and gigabytes
                row = measure(Case(workers, tokens, blocks), options.rounds, options.seed)
                rows.append(row)
                times = row["decision_us"]
                print(
                    f"{workers:>8} {tokens:>8} {blocks:>16} {times['p50']:>8} {times['p99']:>8} {row['ratio_p50']:>15}x",
                    flush=True,
                )
    if options.json:
        report = {
            "benchmark": "decisions",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "seed": options.seed,
            "goal": "p50 <= 100 us at 64 workers and 32 K tokens",
            "rows": rows,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
