"""The demo from start to end: workers up, one policy after the other with the same pipelines, everything down again."""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from amf.bench.client import Client, Target
from amf.bench.driver import DriveOptions, Driver
from amf.bench.progress import shown
from amf.bench.runner import declare_graphs
from amf.bench.scrape import decision_us, scrape
from amf.demo.fleet import gateway_config, reset, start_gateway, start_workers
from amf.demo.processes import Children
from amf.demo.results import PolicyRun
from amf.demo.workload import DemoWork

_WORKER_START_S = 8.0  # of the time given, kept for starting workers
_GATEWAY_START_S = 3.0  # and for each gateway
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """`seconds`: real ones, for everything. `folder`: for logs and configuration."""

    seconds: float
    seed: int
    policies: Sequence[str]
    time_scale: float
    folder: Path

    @property
    def policy_s(self) -> float:
        """Real seconds that each policy gets for its pipelines."""
        left_s = self.seconds - _WORKER_START_S - _GATEWAY_START_S * len(self.policies)
        return max(2.0, left_s / len(self.policies))


async def run_demo(options: DemoOptions, work: DemoWork, say: Say, finished: list[PolicyRun]) -> bool:
    """Run every policy, appending to `finished` as each ends. True if all did, False after SIGINT or SIGTERM.

    Raises ChildError if a process does not start or dies. No process is left behind in any case."""
    task = asyncio.ensure_future(_all_policies(options, work, say, finished))
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
        return True
    except asyncio.CancelledError:
        return False
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def _all_policies(options: DemoOptions, work: DemoWork, say: Say, finished: list[PolicyRun]) -> None:
    with Children(options.folder) as children:
        say(f"starting {sum(pool.workers for pool in work.pools)} emulated workers in {len(work.pools)} pools")
        machines = await start_workers(children, work.pools, options.time_scale, options.seed)
        config = options.folder / "fabric.toml"
        config.write_text(gateway_config(machines, options.time_scale), encoding="utf-8")
        for policy in options.policies:
            await reset(machines)
            gateway, url = await start_gateway(children, policy, config)
            say(f"{policy}: up to {options.policy_s:.0f} s")
            finished.append(await _one_policy(options, work, policy, url))
            children.check()
            children.stop([gateway])


async def _one_policy(options: DemoOptions, work: DemoWork, policy: str, url: str) -> PolicyRun:
    drive = DriveOptions(time_scale=options.time_scale, seconds=options.policy_s)
    workloads = (work.sessions, work.graphs)
    async with Client(Target(url=url, timeout_s=options.policy_s)) as client:
        await declare_graphs(client, work.graphs)
        before = await scrape(url)
        drivers = [Driver(workload, client, drive) for workload in workloads]
        labels = {f"{policy}: {each.name}": driver for each, driver in zip(workloads, drivers, strict=True)}
        began_s = time.monotonic()
        async with shown(labels):
            runs = await asyncio.gather(*(driver.run() for driver in drivers))
        duration_s = time.monotonic() - began_s
        after = await scrape(url)
    return PolicyRun(
        policy=policy,
        workloads=workloads,
        runs=runs,
        duration_s=duration_s,
        decision_us=(decision_us(before, after, 0.5), decision_us(before, after, 0.99)),
    )
