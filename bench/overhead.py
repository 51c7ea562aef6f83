"""What the gateway costs: its latency, throughput and CPU against a direct connection, as ratios within one run.

    .venv/bin/python bench/overhead.py [--quick] [--json out/bench/overhead.json] [--against OTHER/src]

One run holds a model server that answers at once, the gateway under each policy, and a bare aiohttp proxy (what HTTP alone
costs in Python), each in a process of its own. All take turns: request by request where latency is measured, one after
another in each round where throughput is, so a machine that drifts drifts for all. Compare the ratios; the milliseconds
belong to the machine. `--against` runs another source tree's gateway in the same turns: before and after a change.

Latency: one request at a time over one connection; `added` is over the direct connection's same quantile. Throughput: 32
connections that never pause, all processes sharing the machine's cores, so requests a second are bounded by generator and
upstream as well; CPU a request is the gateway's own (of its process tree, from /proc). `sse N` is N chunks in a burst,
`sse N PACE` one each PACE ms.
"""

import argparse
import asyncio
import gc
import json
import os
import platform
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from rig.client import Sample, connect, press
from rig.requests import chat_requests
from rig.servers import RIG, Server, running, upstreams

GOAL_ADDED_P50_MS = 1.5
CONNECTIONS = 32
SESSIONS = 64
WORKERS = 4
DIRECT, BARE = "direct", "bare proxy"


@dataclass(frozen=True, slots=True)
class Case:
    body_bytes: int
    order: str  # json | sse CHUNKS PACE_MS

    @property
    def events(self) -> int:
        """Stream events to expect: the chunks, the usage and the end mark."""
        return int(self.order.split()[1]) + 2 if self.order.startswith("sse") else 0

    @property
    def is_paced(self) -> bool:
        return self.order.startswith("sse") and not self.order.endswith(" 0")

    def __str__(self) -> str:
        size = f"{self.body_bytes // 1024} KB" if self.body_bytes >= 1024 else f"{self.body_bytes} B"
        return f"{size} {self.order.removesuffix(' 0')}"


LATENCY = [Case(size, order) for size in (200, 8_192, 131_072) for order in ("json", "sse 20 0")]
THROUGHPUT = [
    *(Case(size, "json") for size in (200, 8_192, 131_072)),
    *(Case(size, "sse 20 0") for size in (200, 8_192)),
    Case(8_192, "sse 50 10"),
]


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    url: str
    server: Server | None  # None: the upstream itself
    windows: list[tuple[int, float, float]] = field(default_factory=list)  # requests, seconds, CPU seconds

    def requests(self, case: Case, seed: int) -> list[bytes]:
        return chat_requests(self.url, case.body_bytes, case.order, sessions=SESSIONS, seed=seed)


async def latency(case: Case, targets: list[Target], rounds: int, seed: int) -> list[dict[str, Any]]:
    """Every target once in each round, in a new order each time."""
    requests = {target.name: target.requests(case, seed) for target in targets}
    connections = {target.name: await connect(target.url) for target in targets}
    random = np.random.default_rng(seed)
    samples: dict[str, list[Sample]] = {target.name: [] for target in targets}
    warm_up = min(SESSIONS, rounds)
    for turn in range(-warm_up, rounds):
        for place in random.permutation(len(targets)):
            name = targets[place].name
            sample = await connections[name].ask(requests[name][turn % SESSIONS], case.events)
            if turn >= 0:
                samples[name].append(sample)
    for connection in connections.values():
        connection.close()
    base = samples[DIRECT]
    return [latency_row(case, target.name, samples[target.name], base, random) for target in targets]


def latency_row(
    case: Case, name: str, samples: list[Sample], base: list[Sample], random: np.random.Generator
) -> dict[str, Any]:
    total, base_total = (np.array([s.total_s for s in each]) * 1000 for each in (samples, base))
    first, base_first = (np.array([s.first_s for s in each]) * 1000 for each in (samples, base))
    again = random.integers(0, len(total), (400, len(total)))
    spread = np.median(total[again], axis=1) - np.median(base_total[again], axis=1)
    (p50, p99), (base_p50, base_p99) = (np.percentile(each, [50, 99]) for each in (total, base_total))
    row: dict[str, Any] = {
        "measure": "latency",
        "case": str(case),
        "target": name,
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "first_byte_p50_ms": round(float(np.median(first)), 3),
    }
    if name != DIRECT:
        row |= {
            "added_p50_ms": round(p50 - base_p50, 3),
            "added_p50_ci95_ms": [round(float(edge), 3) for edge in np.percentile(spread, [2.5, 97.5])],
            "added_p99_ms": round(p99 - base_p99, 3),
            "added_first_byte_p50_ms": round(float(np.median(first) - np.median(base_first)), 3),
            "ratio_p50": round(p50 / base_p50, 2),
        }
    if samples[0].overhead_ms >= 0:
        row["reported_overhead_p50_ms"] = round(float(np.median([s.overhead_ms for s in samples])), 3)
        row["reported_queue_p99_ms"] = round(float(np.percentile([s.queue_ms for s in samples], 99)), 3)
    return row


async def throughput(
    case: Case, targets: list[Target], rounds: int, window_s: float, seed: int
) -> list[dict[str, Any]]:
    """A window for every target in each round; the first round warms up and is shorter."""
    requests = {target.name: target.requests(case, seed) for target in targets}
    window_s *= 2 if case.is_paced else 1
    first: dict[str, list[float]] = {target.name: [] for target in targets}
    for turn in range(rounds + 1):
        for target in targets if turn % 2 else reversed(targets):
            seconds = window_s if turn else window_s / 4
            cpu_s = target.server.cpu_s() if target.server else None
            started_s = asyncio.get_running_loop().time()
            samples = await press(
                target.url, requests[target.name], case.events, connections=CONNECTIONS, seconds=seconds
            )
            took_s = asyncio.get_running_loop().time() - started_s
            used_s = target.server.cpu_s() if target.server else None
            if turn:
                cpu = used_s - cpu_s if cpu_s is not None and used_s is not None else float("nan")
                target.windows.append((len(samples), took_s, cpu))
                first[target.name].extend(sample.first_s for sample in samples)
    rows = [throughput_row(case, target, first[target.name]) for target in targets]
    compare(rows)
    return rows


def throughput_row(case: Case, target: Target, first_s: list[float]) -> dict[str, Any]:
    answered, seconds, cpu_s = (sum(each) for each in zip(*target.windows, strict=True))
    rates = [count / took for count, took, _ in target.windows]
    target.windows.clear()
    row: dict[str, Any] = {
        "measure": "throughput",
        "case": str(case),
        "target": target.name,
        "requests": answered,
        "requests_per_s": round(answered / seconds, 1),
        "requests_per_s_range": [round(min(rates), 1), round(max(rates), 1)],
        "first_byte_p50_ms": round(float(np.median(first_s)) * 1000, 2),
        "first_byte_p99_ms": round(float(np.percentile(first_s, 99)) * 1000, 2),
    }
    if cpu_s == cpu_s:  # NaN where CPU time cannot be read
        row["cpu_us_per_request"] = round(1e6 * cpu_s / answered, 1)
    return row


def compare(rows: list[dict[str, Any]]) -> None:
    """Ratios to the direct connection (rate) and to the bare proxy (rate and CPU)."""
    of = {row["target"]: row for row in rows}
    for row in rows:
        row["rate_to_direct"] = round(row["requests_per_s"] / of[DIRECT]["requests_per_s"], 3)
        if row["target"] != DIRECT and BARE in of:
            row["rate_to_bare"] = round(row["requests_per_s"] / of[BARE]["requests_per_s"], 3)
            if "cpu_us_per_request" in row:
                row["cpu_to_bare"] = round(row["cpu_us_per_request"] / of[BARE]["cpu_us_per_request"], 2)


# --- printed ----------------------------------------------------------------------------------------------------------

_LATENCY_COLUMNS = (
    ("p50 ms", "p50_ms"),
    ("p99 ms", "p99_ms"),
    ("added p50", "added_p50_ms"),
    ("added p99", "added_p99_ms"),
    ("added first", "added_first_byte_p50_ms"),
    ("x direct", "ratio_p50"),
    ("reported", "reported_overhead_p50_ms"),
)
_THROUGHPUT_COLUMNS = (
    ("req/s", "requests_per_s"),
    ("x direct", "rate_to_direct"),
    ("x bare", "rate_to_bare"),
    ("first p50", "first_byte_p50_ms"),
    ("first p99", "first_byte_p99_ms"),
    ("CPU us/req", "cpu_us_per_request"),
    ("CPU x bare", "cpu_to_bare"),
)


def show(rows: list[dict[str, Any]], columns: tuple[tuple[str, str], ...]) -> None:
    for row in rows:
        cells = "".join(f"{row.get(key, ''):>13}" for _, key in columns)
        print(f"{row['case']:<16}{row['target']:<22}{cells}", flush=True)


def heading(columns: tuple[tuple[str, str], ...]) -> None:
    print(f"\n{'case':<16}{'target':<22}" + "".join(f"{title:>13}" for title, _ in columns))


# --- the run ----------------------------------------------------------------------------------------------------------


async def start(stack: AsyncExitStack, policies: list[str], against: Path | None) -> list[Target]:
    urls = await stack.enter_async_context(upstreams(WORKERS))
    targets = [Target(DIRECT, urls[0], None)]
    bare = await stack.enter_async_context(running(BARE, str(RIG / "proxy.py"), *urls))
    targets.append(Target(BARE, bare.url, bare))
    workers = [word for url in urls for word in ("--worker", url)]
    for policy in policies:
        for suffix, source in (("", None), *([(" (against)", against)] if against else [])):
            serve = ("-m", "amf", "serve", "--port", "0", "--log-level", "warning", "--policy", policy, *workers)
            server = await stack.enter_async_context(running(policy, *serve, source=source))
            targets.append(Target(policy + suffix, server.url, server))
    return targets


async def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    rounds, turns, window_s = (60, 1, 0.5) if options.quick else (400, 3, 1.0)
    async with AsyncExitStack() as stack:
        targets = await start(stack, options.policies.split(","), options.against)
        gc.collect()
        gc.freeze()
        heading(_LATENCY_COLUMNS)
        for case in LATENCY:
            rows.extend(await latency(case, targets, rounds, options.seed))
            show(rows[-len(targets) :], _LATENCY_COLUMNS)
        heading(_THROUGHPUT_COLUMNS)
        for case in THROUGHPUT:
            rows.extend(await throughput(case, targets, turns, window_s, options.seed))
            show(rows[-len(targets) :], _THROUGHPUT_COLUMNS)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--quick", action="store_true", help="about 20 s instead of about 2 minutes")
    parser.add_argument("--policies", default="round-robin,fabric", help="default round-robin,fabric")
    parser.add_argument("--against", type=Path, metavar="SRC", help="measure this source tree's gateway as well")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows = runner.run(measure(options))
    fabric = [row["added_p50_ms"] for row in rows if row["target"] == "fabric" and "added_p50_ms" in row]
    if fabric:
        met = "met" if max(fabric) <= GOAL_ADDED_P50_MS else "NOT met"
        print(
            f"\nadded p50 under fabric: {min(fabric)} to {max(fabric)} ms; the goal of {GOAL_ADDED_P50_MS} ms is {met}"
        )
    if options.json:
        report = {
            "benchmark": "overhead",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "seed": options.seed,
            "goal": f"added p50 <= {GOAL_ADDED_P50_MS} ms under fabric",
            "rows": rows,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
