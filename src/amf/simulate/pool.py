"""The cases of a study over processes. A case needs nothing of the others, so who plays it and when changes no figure.

Each process writes how far its case is into memory it shares with us, and reads there whether to stop; nothing else passes
until a case is done. An interrupt is ours alone: we raise the flag, every run ends at its next call, and the processes leave
by themselves. Should we be killed outright, they notice and leave as well.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import Any

from amf.bench.driver import PipelineRun
from amf.sim.report import Report
from amf.sim.scenario import Scenario
from amf.sim.study import Case, play
from amf.simulate.pages import page_runs
from amf.simulate.progress import StudyProgress

_LOOK_EVERY_S = 0.25
_INTERRUPTS = {signal.SIGINT, signal.SIGTERM}
_board: tuple[Any, Any] = ((), None)  # in a process of the pool: the shares of all cases, the stop flag


class Stopped(Exception):
    """The study was interrupted while this case ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    report: Report
    runs: tuple[PipelineRun, ...]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def play_all(scenario: Scenario, cases: Sequence[Case], jobs: int, progress: StudyProgress) -> list[Played]:
    """In the order of `cases`. With one job or one case in this process. Raises ScenarioError, KeyboardInterrupt, and
    BrokenProcessPool if a process was killed (by the system, for want of memory)."""
    if jobs == 1 or len(cases) == 1:
        return _in_turn(scenario, cases, progress)
    context = multiprocessing.get_context("spawn")
    shares, stop = RawArray("d", len(cases)), RawValue("b", 0)
    pool = ProcessPoolExecutor(min(jobs, len(cases)), context, initializer=_enter, initargs=(shares, stop))
    try:
        with _interrupts_held_back():
            futures = [pool.submit(_play_there, scenario, case, index) for index, case in enumerate(cases)]
        _await(futures, shares, progress)
        return [future.result() for future in futures]
    finally:
        stop.value = 1
        pool.shutdown(cancel_futures=True)


def _await(futures: Sequence[Future[Played]], shares: Sequence[float], progress: StudyProgress) -> None:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_LOOK_EVERY_S, return_when=FIRST_COMPLETED)
        for future in futures:
            if future in done:
                progress.finished(future.result().report)
        progress.moved(shares)


def _in_turn(scenario: Scenario, cases: Sequence[Case], progress: StudyProgress) -> list[Played]:
    played: list[Played] = []
    looked_s = time.monotonic()

    def watch(arrived: int, total: int) -> None:
        nonlocal looked_s
        if time.monotonic() - looked_s >= _LOOK_EVERY_S:
            looked_s = time.monotonic()
            progress.moved([len(played), arrived / total])

    for case in cases:
        outcome = play(scenario, case, watch)
        played.append(Played(report=outcome.report, runs=page_runs(outcome)))
        progress.finished(outcome.report)
        progress.moved([len(played)])
    return played


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """They come when the block is left. A process started in it gets none before it has decided what to do with them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in a process of the pool ---------------------------------------------------------------------------------------------


def _enter(shares: Any, stop: Any) -> None:
    global _board
    _board = (shares, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _play_there(scenario: Scenario, case: Case, index: int) -> Played:
    shares, stop = _board

    def watch(arrived: int, total: int) -> None:
        if stop.value:
            raise Stopped
        shares[index] = arrived / total

    outcome = play(scenario, case, watch)
    shares[index] = 1.0
    return Played(report=outcome.report, runs=page_runs(outcome))
