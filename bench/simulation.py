"""Simulated calls per second of one core on coding sessions, by fleet size and policy.

    .venv/bin/python bench/simulation.py [--json out/bench/simulation.json] [--trace PATH] [--live 4] [--seed 7]

Sessions are generated, or recorded ones with `--trace`. Each worker serves `--live` sessions on average, on the KV memory
that a Llama 3.3 70B leaves on an H200; all are played to their end. Time is the process's CPU time of the run alone, without
making the workload. The baseline in the same run is `session-affinity`: the ratio says what a policy costs the simulator.
`kv events` rows have engines that report every block, as a fabric that subscribes to them would see. In the `short` ones
memory is: 8 sessions live on 500 K tokens a worker.

The shares say where the time goes: the fabric's decisions and books, the workers, and the shell (keys, clock, records). Their
own clock is read around every call of the first two, which costs the rows a few microseconds a call.

Memory is what the simulation and its fabric hold when the last session ends, beside plans and records: 128 sessions on
4 workers and then four times as many, 16 live in either. What grows there, grows with finished pipelines. The fabric's
summaries of ended runs are counted apart, since it keeps no more than `max_closed_pipelines` of them. What grows without
bound are the records of which the report is made.
"""

import argparse
import gc
import json
import platform
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import process_time, thread_time
from typing import Any

from amf.core.config import FabricConfig
from amf.core.fabric import Fabric
from amf.core.policy.bundles import policies_named
from amf.core.types import Worker
from amf.sim.loop import Simulation
from amf.sim.plan import Workload
from amf.sim.scenario import pool_worker, scenario_from_dict
from amf.sim.workload import build, fleet_of

SHORT_TOKENS, SHORT_LIVE = 500_000, 8
GOALS = {"session-affinity": 5_000, "fabric": 2_500}


@dataclass(frozen=True)
class Case:
    workers: int
    policy: str
    kv_events: bool = False
    sessions: int | None = None  # in all; None: as many as live on each worker
    short: bool = (
        False  # of memory: 8 live sessions a worker on `SHORT_TOKENS`, each finished one replaced as often again
    )

    @property
    def name(self) -> str:
        return self.policy + (" + kv events" if self.kv_events else "") + (", short" if self.short else "")


CASES = (
    Case(8, "session-affinity"),
    Case(8, "fabric"),
    Case(8, "session-affinity", kv_events=True),
    Case(8, "session-affinity", kv_events=True, short=True),
    Case(8, "fabric", kv_events=True, short=True),
    Case(64, "session-affinity"),
    Case(64, "fabric"),
    Case(2048, "session-affinity", sessions=128),
    Case(2048, "fabric", sessions=128),
)


def time_methods(owner: object, names: Sequence[str], spent_s: Counter[str], share: str) -> None:
    """From now on, calls of these methods of this object add their seconds to `share`."""

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start_s = thread_time()
            try:
                return method(*arguments)
            finally:
                spent_s[share] += thread_time() - start_s

        return call

    for name in names:
        setattr(owner, name, timed(getattr(owner, name)))


def fleet_and_plans(
    workers: int, sessions: int, concurrency: int, trace: Path | None, seed: int, kv_tokens: int | None = None
) -> tuple[list[Worker], Workload]:
    workload: dict[str, object] = {"pipelines": sessions, "concurrency": concurrency, "seed": seed}
    workload |= {"kind": "claude-code", "path": str(trace.resolve())} if trace else {"kind": "coding-sessions"}
    pool: dict[str, object] = {"model": "llama-3.3-70b", "workers": workers}
    pool |= {"kv_tokens": kv_tokens} if kv_tokens else {}
    scenario = scenario_from_dict({"workload": workload, "pool": [pool]}, "bench.toml")
    pools = fleet_of(scenario)
    fleet = [pool_worker(pool, index) for pool in pools for index in range(pool.workers)]
    return fleet, build(scenario.workload, pools)


def measure(case: Case, trace: Path | None, live: int, seed: int) -> dict[str, Any]:
    """Play one workload and time it."""
    live = case.workers * (SHORT_LIVE if case.short else live)
    sessions = case.sessions or (2 * live if case.short else live)
    kv_tokens = SHORT_TOKENS if case.short else None
    workers, plans = fleet_and_plans(case.workers, sessions, min(live, sessions), trace, seed, kv_tokens)
    workers = [replace(worker, has_kv_events=case.kv_events) for worker in workers]
    simulation = Simulation(Fabric(FabricConfig(), policies_named(case.policy)), workers, plans)
    spent_s = Counter[str]()
    time_methods(simulation.fabric, ["handle"], spent_s, "fabric")
    for worker in simulation.workers.values():
        time_methods(worker, ["submit", "advance", "next_event_s", "abort"], spent_s, "workers")
    gc.collect()
    gc.freeze()
    start_s = process_time()
    records = simulation.run()
    elapsed_s = process_time() - start_s
    gc.unfreeze()
    prompts = [call.prompt_tokens for call in records.calls]
    spent_s["shell"] = elapsed_s - spent_s["fabric"] - spent_s["workers"]
    return {
        "workers": case.workers,
        "policy": case.policy,
        "kv_events": case.kv_events,
        "short": case.short,
        "calls": len(prompts),
        "median_prompt_tokens": int(median(prompts)),
        "hit_ratio": round(sum(call.cached_tokens or 0 for call in records.calls) / sum(prompts), 3),
        "cpu_s": round(elapsed_s, 2),
        "calls_per_s": round(len(prompts) / elapsed_s),
        "shares": {name: round(each_s / elapsed_s, 2) for name, each_s in spent_s.items()},
    }


def measure_memory(trace: Path | None, seed: int) -> list[dict[str, Any]]:
    """What a simulation and its fabric hold at the end, beside plans, by how many sessions it has played."""
    rows: list[dict[str, Any]] = []
    for sessions in (128, 512):
        workers, plans = fleet_and_plans(4, sessions, 16, trace, seed)
        tracemalloc.start()
        simulation = Simulation(Fabric(FabricConfig(), policies_named("fabric")), workers, plans)
        records = simulation.run()
        calls, at_end = len(records.calls), _traced_bytes()
        simulation.fabric.book.closed.clear()
        summaries = at_end - _traced_bytes()
        del simulation
        held = at_end - summaries - _traced_bytes()
        before = _traced_bytes()
        del records
        kept = before - _traced_bytes()
        tracemalloc.stop()
        rows.append(
            {
                "sessions": sessions,
                "calls": calls,
                "held_mib": round(held / 2**20, 1),
                "summaries_mib": round(summaries / 2**20, 1),
                "record_bytes_per_call": round(kept / calls),
            }
        )
    return rows


def _traced_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--trace", type=Path, help="recorded Claude Code sessions to play instead of generated ones")
    parser.add_argument("--live", type=int, default=4, help="sessions for each worker (default 4)")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    baseline: dict[tuple[int, bool], int] = {}
    print(
        f"{'workers':>8} {'policy':>35} {'calls':>7} {'median prompt':>14} {'calls/s':>8} {'vs session-affinity':>20}"
        f"   fabric, workers, shell"
    )
    for case in CASES:
        row = measure(case, options.trace, options.live, options.seed)
        rate = row["calls_per_s"]
        row["ratio"] = round(rate / baseline.setdefault((case.workers, case.short), rate), 2)
        rows.append(row)
        shares = ", ".join(f"{row['shares'][part]:.0%}" for part in ("fabric", "workers", "shell"))
        print(
            f"{case.workers:>8} {case.name:>35} {row['calls']:>7} {row['median_prompt_tokens']:>14} "
            f"{row['calls_per_s']:>8} {row['ratio']:>19}x   {shares}",
            flush=True,
        )
    memory = measure_memory(options.trace, options.seed)
    for row in memory:
        print(
            f"{row['sessions']:>8} sessions, {row['calls']} calls: {row['held_mib']} MiB held at the end, "
            f"{row['summaries_mib']} MiB of summaries, {row['record_bytes_per_call']} bytes of records a call",
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
            "memory": memory,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
