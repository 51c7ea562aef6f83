"""Simulated calls per second of one core on coding sessions, by fleet size and policy.

    .venv/bin/python bench/simulation.py [--json out/bench/simulation.json] [--trace PATH] [--live 4] [--seed 7]

Sessions are generated, or recorded ones with `--trace`. Each worker serves `--live` sessions on average, on the KV memory
that a Llama 3.3 70B leaves on an H200; all are played to their end. Time is the process's CPU time of the run alone, without
making the workload. The baseline in the same run is `session-affinity`: the ratio says what a policy costs the simulator.
`kv events` rows have engines that report every block, as a fabric that subscribes to them would see.
"""

import argparse
import gc
import json
import platform
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import process_time

from amf.core.config import FabricConfig
from amf.core.fabric import Fabric
from amf.core.policy.bundles import policies_named
from amf.sim.loop import Simulation
from amf.sim.scenario import pool_worker, scenario_from_dict
from amf.sim.workload import build, fleet_of

GOALS = {"session-affinity": 5_000, "fabric": 2_500}


@dataclass(frozen=True)
class Case:
    workers: int
    policy: str
    kv_events: bool = False


CASES = (
    Case(8, "session-affinity"),
    Case(8, "fabric"),
    Case(8, "session-affinity", kv_events=True),
    Case(64, "session-affinity"),
    Case(64, "fabric"),
)


def measure(case: Case, trace: Path | None, live: int, seed: int) -> dict[str, object]:
    """Play one workload and time it."""
    sessions = case.workers * live
    workload: dict[str, object] = {"pipelines": sessions, "concurrency": sessions, "seed": seed}
    workload |= {"kind": "claude-code", "path": str(trace.resolve())} if trace else {"kind": "coding-sessions"}
    pool = {"model": "llama-3.3-70b", "workers": case.workers}
    scenario = scenario_from_dict({"workload": workload, "pool": [pool]}, "bench.toml")
    pools = fleet_of(scenario)
    plans = build(scenario.workload, pools)
    workers = [pool_worker(pool, index) for pool in pools for index in range(pool.workers)]
    workers = [replace(worker, has_kv_events=case.kv_events) for worker in workers]
    simulation = Simulation(Fabric(FabricConfig(), policies_named(case.policy)), workers, plans)
    gc.collect()
    gc.freeze()
    start_s = process_time()
    records = simulation.run()
    elapsed_s = process_time() - start_s
    gc.unfreeze()
    prompts = [call.prompt_tokens for call in records.calls]
    return {
        "workers": case.workers,
        "policy": case.policy,
        "kv_events": case.kv_events,
        "calls": len(prompts),
        "median_prompt_tokens": int(median(prompts)),
        "hit_ratio": round(sum(call.cached_tokens or 0 for call in records.calls) / sum(prompts), 3),
        "cpu_s": round(elapsed_s, 2),
        "calls_per_s": round(len(prompts) / elapsed_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--trace", type=Path, help="recorded Claude Code sessions to play instead of generated ones")
    parser.add_argument("--live", type=int, default=4, help="sessions for each worker (default 4)")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    rows, baseline = [], {}
    print(
        f"{'workers':>8} {'policy':>28} {'calls':>7} {'median prompt':>14} {'calls/s':>8} {'vs session-affinity':>20}"
    )
    for case in CASES:
        row = measure(case, options.trace, options.live, options.seed)
        rate = float(str(row["calls_per_s"]))
        row["ratio"] = round(rate / baseline.setdefault(case.workers, rate), 2)
        rows.append(row)
        name = case.policy + (" + kv events" if case.kv_events else "")
        print(
            f"{case.workers:>8} {name:>28} {row['calls']:>7} {row['median_prompt_tokens']:>14} "
            f"{row['calls_per_s']:>8} {row['ratio']:>19}x",
            flush=True,
        )
    if options.json:
        report = {
            "benchmark": "simulation",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "workload": "recorded" if options.trace else "generated",
            "seed": options.seed,
            "goal": GOALS,
            "rows": rows,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
