"""How far a run is: a bar on a terminal, a plain line every few seconds in a pipe. Written to standard error."""

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from amf.bench.driver import Driver

_LINE_EVERY_S = 5.0
_BAR_EVERY_S = 0.25


@contextlib.asynccontextmanager
async def shown(drivers: Mapping[str, Driver]) -> AsyncIterator[None]:
    """Show the progress of drivers, by label, while the block runs."""
    task = asyncio.create_task(_bars(drivers) if sys.stderr.isatty() else _lines(drivers))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def status(driver: Driver) -> str:
    """The state of all pipelines in words, ended ones by fate."""
    fates = Counter(run.fate for run in driver.runs if run.end_s is not None)
    live = sum(run.end_s is None for run in driver.runs)
    calls = sum(len(run.calls) for run in driver.runs)
    ended = ", ".join(f"{fates[fate]} {fate}" for fate in ("completed", "refused", "failed") if fates[fate])
    return f"{live} live, {ended or '0 completed'} of {driver.total}, {calls} calls"


async def _lines(drivers: Mapping[str, Driver]) -> None:
    while True:
        await asyncio.sleep(_LINE_EVERY_S)
        for label, driver in drivers.items():
            print(f"{label}: {driver.now_s():5.0f} s, {status(driver)}", file=sys.stderr, flush=True)


async def _bars(drivers: Mapping[str, Driver]) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[status]}"), console=Console(stderr=True), transient=True) as bar:
        tasks = [(bar.add_task(label, total=driver.total, status=""), driver) for label, driver in drivers.items()]
        while True:
            for task, driver in tasks:
                ended = sum(run.end_s is not None for run in driver.runs)
                bar.update(task, completed=ended, status=status(driver))
            await asyncio.sleep(_BAR_EVERY_S)
