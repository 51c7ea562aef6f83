"""One benchmark run from a workload to a report: check the target, read counters, drive, read counters, compare."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import aiohttp

from amf.bench.client import Client, Target
from amf.bench.driver import DriveOptions, Driver, PipelineRun
from amf.bench.lag import Lag, lag_of
from amf.bench.progress import shown
from amf.bench.records import Measurement, report_of, totals_of
from amf.bench.scrape import Agreement, Samples, ScrapeError, decision_us, is_fabric, scrape, scrape_all, totals
from amf.sim.plan import Workload
from amf.sim.report import Report
from amf.sim.scenario import PoolSpec


class BenchError(Exception):
    """The run cannot start. The message says what is wrong and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchJob:
    """`label` names the policy in the report. `workers`: engines whose counters are compared with the answers."""

    workload: Workload
    fleet: Sequence[PoolSpec]
    target: Target
    label: str
    options: DriveOptions = field(default_factory=DriveOptions)
    workers: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    report: Report
    runs: Sequence[PipelineRun]
    lag: Lag
    agreement: Agreement | None
    interrupted: bool


async def run_bench(job: BenchJob) -> BenchResult:
    """Raises BenchError before anything is sent. SIGINT and SIGTERM end the run early and keep the partial result."""
    async with Client(job.target) as client:
        await check_target(client, job.workload)
        try:
            workers_before = await scrape_all(job.workers)
        except ScrapeError as error:
            raise BenchError(f"a worker's counters cannot be read: {error}; correct --workers") from error
        target_before = await _fabric_samples(job.target.base)
        if target_before and job.options.identity in ("auto", "explicit"):
            await declare_graphs(client, job.workload)
        driver = Driver(job.workload, client, job.options)
        with stopping(driver) as received:
            async with shown({job.label: driver}):
                runs = await driver.run()
        duration_s = driver.now_s()
    return await _result(job, runs, duration_s, (workers_before, target_before, bool(received)))


async def check_target(client: Client, workload: Workload) -> None:
    """Raises BenchError if the target does not answer or lists models but not the workload's."""
    try:
        served = await client.models()
    except aiohttp.ClientResponseError:
        return  # it answers, but does not list its models
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise BenchError(
            f"{client.target.base} does not answer ({error or type(error).__name__}); start it, "
            "for example with `amf serve --worker URL`, or correct --target"
        ) from error
    wanted = dict.fromkeys(call.pool for plan in workload.pipelines for call in plan.calls)
    missing = [pool for pool in wanted if served and client.target.model(pool) not in served]
    if missing:
        near = get_close_matches(missing[0], served, n=1, cutoff=0.3) or served
        raise BenchError(
            f"{client.target.base} does not serve {', '.join(client.target.model(pool) for pool in missing)}; "
            f"it serves {', '.join(served)}. Rename with --model-map {missing[0]}={near[0]}"
        )


async def declare_graphs(client: Client, workload: Workload) -> None:
    """Tell a fabric the call graphs that the workload's declared pipelines run. Raises BenchError."""
    for graph in workload.graphs:
        try:
            await client.declare(graph)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise BenchError(
                f"{client.target.base} does not take the declaration of graph {graph.name} ({error}); "
                "give a trusted --api-key, or run with --identity session"
            ) from error


async def _result(
    job: BenchJob, runs: Sequence[PipelineRun], duration_s: float, before: tuple[Samples, Samples, bool]
) -> BenchResult:
    workers_before, target_before, interrupted = before
    target_after = await _fabric_samples(job.target.base)
    others = {}
    if target_after:
        others["gateway"] = totals(target_after) - totals(target_before)
    if job.workers:
        with contextlib.suppress(ScrapeError):
            others["workers"] = totals(await scrape_all(job.workers)) - totals(workers_before)
    calls = [call for run in runs for call in run.calls]
    cut_off = sum(call.answer.usage.prompt_tokens is None for call in calls) + sum(
        run.fate == "unfinished" for run in runs
    )
    measured = Measurement(
        policy=job.label,
        workload=job.workload,
        runs=runs,
        duration_s=duration_s,
        time_scale=job.options.time_scale,
        decision_us=(
            decision_us(target_before, target_after, 0.5),
            decision_us(target_before, target_after, 0.99),
        ),
    )
    return BenchResult(
        report=report_of(measured, job.fleet),
        runs=runs,
        lag=lag_of(calls),
        agreement=Agreement(measured=totals_of(runs), others=others, cut_off=cut_off) if others else None,
        interrupted=interrupted,
    )


async def _fabric_samples(url: str) -> Samples:
    """The target's own metrics if it is a fabric, else nothing."""
    try:
        samples = await scrape(url)
    except ScrapeError:
        return {}
    return samples if is_fabric(samples) else {}


@contextlib.contextmanager
def stopping(*drivers: Driver) -> Iterator[list[signal.Signals]]:
    """While the block runs, SIGINT and SIGTERM stop the drivers. Yields the list of signals that came."""
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        received.append(number)
        for driver in drivers:
            driver.stop()

    loop = asyncio.get_running_loop()
    handled = (signal.SIGINT, signal.SIGTERM)
    for number in handled:
        loop.add_signal_handler(number, stop, number)
    try:
        yield received
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
