"""The tasks of a study over processes. A task needs nothing of the others, so who plays it and when changes no figure.

Each process writes how far its task is into memory it shares with us, and reads there whether to stop; nothing else passes
until a task is done. An interrupt is ours alone: we raise the flag, every run ends at its next call, and the processes leave
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
from multiprocessing import connection
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import Any

from amf.simulate.play import Played, Task, play_task
from amf.simulate.progress import StudyProgress

_LOOK_EVERY_S = 0.25
_INTERRUPTS = {signal.SIGINT, signal.SIGTERM}
_board: tuple[Any, Any] = ((), None)  # in a process of the pool: the shares of all tasks, the stop flag


class Stopped(Exception):
    """The study was interrupted while this task ran."""


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """Processes of this machine, at most `jobs`. With one job or one task: this one."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def play(self, tasks: Sequence[Task], progress: StudyProgress) -> list[Played]:
        """In the order of `tasks`. Raises ScenarioError, KeyboardInterrupt, and BrokenProcessPool if a process was killed (by
        the system, for want of memory)."""
        if self.jobs == 1 or len(tasks) == 1:
            return _in_turn(tasks, progress)
        context = multiprocessing.get_context("spawn")
        shares, stop = RawArray("d", len(tasks)), RawValue("b", 0)
        pool = ProcessPoolExecutor(min(self.jobs, len(tasks)), context, initializer=_enter, initargs=(shares, stop))
        try:
            with _interrupts_held_back():
                futures = [pool.submit(_play_there, task, index) for index, task in enumerate(tasks)]
            _await(futures, tasks, shares, progress)
            return [future.result() for future in futures]
        finally:
            stop.value = 1
            pool.shutdown(cancel_futures=True)


def _await(
    futures: Sequence[Future[Played]], tasks: Sequence[Task], shares: Sequence[float], progress: StudyProgress
) -> None:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_LOOK_EVERY_S, return_when=FIRST_COMPLETED)
        for future, task in zip(futures, tasks, strict=True):
            if future in done:
                progress.finished(future.result().report, task.label)
        progress.moved(shares)


def _in_turn(tasks: Sequence[Task], progress: StudyProgress) -> list[Played]:
    played: list[Played] = []
    looked_s = time.monotonic()

    def watch(arrived: int, total: int) -> None:
        nonlocal looked_s
        if time.monotonic() - looked_s >= _LOOK_EVERY_S:
            looked_s = time.monotonic()
            progress.moved([len(played), arrived / total])

    for task in tasks:
        played.append(play_task(task, watch))
        progress.finished(played[-1].report, task.label)
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


def _play_there(task: Task, index: int) -> Played:
    shares, stop = _board

    def watch(arrived: int, total: int) -> None:
        if stop.value:
            raise Stopped
        shares[index] = arrived / total

    played = play_task(task, watch)
    shares[index] = 1.0
    return played
