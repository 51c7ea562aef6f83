"""Policies before real engines: the same closed-loop sessions through the gateway to vLLM replicas on this machine's CPUs.

    make engines
    .venv/bin/python bench/real_fleet.py [--rounds 3] [--json out/bench/real_fleet.json]

Two replicas of a tiny random-weight model (bench/real/) share nothing. Sessions are those of `coding-sessions`, their contexts
scaled down, their gaps hurried, cut after some calls; live ones together have more context than the replicas have KV memory.
Before each policy the engines' caches are reset. Every round plays all policies, each round beginning with another one.

Prompt and cached tokens are the engines' own counters, completion times the clients'. What is real here is the engine: its
scheduler, its cache, its evictions. Its speed is a CPU's, and engines, gateway and clients share the cores: read ratios within
a round, not seconds.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import aiohttp
import numpy as np

from amf.bench.client import Client, Target
from amf.bench.driver import DriveOptions, Driver
from amf.bench.records import records_of
from amf.bench.scrape import scrape_all, totals
from amf.config import ServeConfig, ServerConfig, WorkerConfig
from amf.gateway.service import running_gateway
from amf.sim.plan import PipelinePlan, Workload
from amf.sim.scenario import PoolSpec, WorkloadSpec
from amf.sim.workload import build
from real.server import MODEL_NAME, Server, Setup, fleet

PLANNED = "llama-3.3-70b"  # whose sessions are generated; they ask for the tiny model
SETUP = Setup(kv_blocks=385, max_running=8, token_budget=1024)
REPLICAS = 2
SCALE_TOKENS = 0.01
ANSWER_TOKENS = 24
LONGEST_GAP_S = 30.0
HURRY = 10.0
POLICIES = ("round-robin", "session-affinity", "prefix-affinity", "fabric")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One policy in one round. Seconds are real ones of the clients; tokens are the engines' counts."""

    policy: str
    round: int
    pipelines: int
    completed: int
    calls: int
    jct_p50_s: float
    jct_p99_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    prompt_tokens: int
    recomputed_tokens: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=24)
    parser.add_argument("--calls", type=int, default=8, help="of a session, at most")
    parser.add_argument("--live", type=int, default=10, help="sessions at once, in a closed loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--policies", default=",".join(POLICIES), help="names of bundles, by comma")
    parser.add_argument("--json", type=Path, help="write all rows here")
    given = parser.parse_args()
    workload = sessions(given.sessions, given.calls, given.live, given.seed)
    with tempfile.TemporaryDirectory() as folder, fleet([SETUP] * REPLICAS, Path(folder)) as servers:
        rows = asyncio.run(rounds(servers, workload, given.policies.split(","), given.rounds))
    show(rows)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        report = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine,
            "seed": given.seed,
            "rows": [asdict(row) for row in rows],
        }
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def sessions(count: int, calls: int, live: int, seed: int) -> Workload:
    """Coding sessions of a size that a CPU can serve."""
    spec = WorkloadSpec(kind="coding-sessions", pipelines=count, concurrency=live, scale_tokens=SCALE_TOKENS)
    whole = build(spec, (PoolSpec(model=PLANNED, workers=REPLICAS),), seed)
    return replace(whole, pipelines=tuple(_cut(pipeline, calls) for pipeline in whole.pipelines))


def _cut(pipeline: PipelinePlan, calls: int) -> PipelinePlan:
    kept = (
        replace(call, output_tokens=min(call.output_tokens, ANSWER_TOKENS), gap_s=min(call.gap_s, LONGEST_GAP_S))
        for call in pipeline.calls[:calls]
    )
    return replace(pipeline, calls=tuple(kept))


async def rounds(servers: Sequence[Server], workload: Workload, policies: Sequence[str], count: int) -> list[Row]:
    rows = []
    for number in range(count):
        first = number % len(policies)
        for policy in (*policies[first:], *policies[:first]):
            await reset(servers)
            rows.append(await play(servers, workload, policy, number))
            print(f"round {number + 1} of {count}: {policy}", file=sys.stderr, flush=True)
    return rows


async def play(servers: Sequence[Server], workload: Workload, policy: str, number: int) -> Row:
    """One policy, from a gateway that knows nothing yet and engines whose caches are empty."""
    urls = [server.url for server in servers]
    workers = tuple(WorkerConfig(url=url, name=f"w{place}") for place, url in enumerate(urls))
    config = ServeConfig(server=ServerConfig(port=0), policy=policy, workers=workers)
    async with running_gateway(config) as gateway:
        target = Target(url=gateway.url, model_map={PLANNED: MODEL_NAME})
        async with Client(target) as client:
            before = totals(await scrape_all(urls))
            runs = await Driver(workload, client, DriveOptions(time_scale=HURRY)).run()
            counted = totals(await scrape_all(urls)) - before
    records = records_of(runs, 1.0)
    jct_s = [each.end_s - each.start_s for each in records.pipelines if each.status == "completed"]
    ttft_s = [call.ttft_s for call in records.calls if call.ttft_s is not None]
    if not jct_s:
        raise SystemExit(f"{policy}: no session was completed; the first said {[run.code for run in runs[:1]]}")
    return Row(
        policy=policy,
        round=number,
        pipelines=len(records.pipelines),
        completed=len(jct_s),
        calls=len(records.calls),
        jct_p50_s=float(np.percentile(jct_s, 50)),
        jct_p99_s=float(np.percentile(jct_s, 99)),
        ttft_p50_s=float(np.percentile(ttft_s, 50)),
        ttft_p99_s=float(np.percentile(ttft_s, 99)),
        prompt_tokens=counted.prompt_tokens,
        recomputed_tokens=counted.prompt_tokens - counted.cached_tokens,
    )


async def reset(servers: Sequence[Server]) -> None:
    async with aiohttp.ClientSession() as session:
        for server in servers:
            async with session.post(f"{server.url}/reset_prefix_cache") as response:
                response.raise_for_status()


def show(rows: Sequence[Row]) -> None:
    """Medians of the rounds, with the least and the most."""
    heads = ("completed", "JCT p50 s", "JCT p99 s", "TTFT p50 s", "TTFT p99 s", "recomputed")
    print(f"{'policy':<18}{heads[0]:>10}" + "".join(f"{head:>20}" for head in heads[1:]))
    for policy in dict.fromkeys(row.policy for row in rows):
        of = [row for row in rows if row.policy == policy]
        seconds = (
            _spread([getattr(row, name) for row in of], ".2f")
            for name in ("jct_p50_s", "jct_p99_s", "ttft_p50_s", "ttft_p99_s")
        )
        recomputed = _spread([row.recomputed_tokens / row.prompt_tokens for row in of], ".1%")
        done = f"{sum(row.completed for row in of)}/{sum(row.pipelines for row in of)}"
        print(f"{policy:<18}{done:>10}" + "".join(f"{text:>20}" for text in (*seconds, recomputed)))


def _spread(values: Sequence[float], form: str) -> str:
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


if __name__ == "__main__":
    raise SystemExit(main())
