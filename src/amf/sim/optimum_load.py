"""What the load of all pipelines together makes unavoidable, on one preemptive server that stands for a pool.

The server is faster than the pool could ever be: work splits freely over the workers, never waits for a parent or a gap,
and is done in any order. Then three classical facts hold:

- Schrage (1968): shortest remaining work first minimises the sum of flow times.
- Kise, Ibaraki and Mine (1978): if deadlines are ordered as releases are, the fewest late jobs are found by adding jobs in
  that order and, whenever the newest is late, leaving out the one without which the rest ends soonest.
- A closed loop that keeps N live starts a pipeline whenever one ends, so that the sum of all times in the system is the
  sum of the last N ends; and the i-th end comes no sooner than the i smallest works are done.
"""

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np

_SLACK = 1e-9  # seconds and relative: rounding must not make a feasible deadline infeasible


def srpt_flow_s(releases_s: Sequence[float], works_s: Sequence[float]) -> float:
    """The least possible sum of (end - release) on one preemptive server."""
    jobs = sorted(zip(releases_s, works_s, strict=True))
    left: list[tuple[float, float]] = []  # remaining work, release
    now_s, total_s, upcoming = 0.0, 0.0, 0
    while left or upcoming < len(jobs):
        if not left:
            now_s = max(now_s, jobs[upcoming][0])
        while upcoming < len(jobs) and jobs[upcoming][0] <= now_s:
            heappush(left, (jobs[upcoming][1], jobs[upcoming][0]))
            upcoming += 1
        work_s, release_s = heappop(left)
        until_s = jobs[upcoming][0] if upcoming < len(jobs) else np.inf
        if now_s + work_s <= until_s:
            now_s += work_s
            total_s += now_s - release_s
        else:
            heappush(left, (work_s - (until_s - now_s), release_s))
            now_s = until_s
    return total_s


def closed_loop_flow_s(works_s: Sequence[float], concurrency: int) -> float:
    """The least possible sum of (end - start) when `concurrency` pipelines are kept live until none is left to start."""
    ends_s = np.cumsum(np.sort(works_s))
    return float(ends_s[-concurrency:].sum())


def spared(count: int) -> int:
    """How many of `count` values may lie above their 99th percentile (linear between neighbours, as reported)."""
    return count - 1 - int(0.99 * (count - 1)) if count else 0


def closed_loop_p99_s(works_s: Sequence[float], concurrency: int) -> float:
    """A lower bound on the 99th percentile of (end - start) in a closed loop of more pipelines than places.

    Let D be that percentile, m the pipelines above it, T the last start. Until T all N places are taken: N T is at
    most (n - m) D + m T. By T + D all but m have ended, hence T + D >= V, the work without the m largest. Together
    D >= (N - m) V / (n + N - 2 m)."""
    count, above = len(works_s), spared(len(works_s))
    if concurrency <= above:
        return 0.0
    kept_s = float(np.sort(works_s)[: count - above].sum())
    return (concurrency - above) * kept_s / (count + concurrency - 2 * above)


def earliest_p99_s(releases_s: Sequence[float], works_s: Sequence[float], alone_s: Sequence[float]) -> float:
    """The least D at which all but `spared` pipelines could end within D of their release: none that needs longer alone,
    the others feasible under earliest deadline first. Found by bisection; the value returned is on the infeasible side
    (or is the percentile of `alone_s`, if that is feasible)."""
    order = sorted(range(len(works_s)), key=lambda i: releases_s[i])
    jobs = [(releases_s[i], works_s[i], alone_s[i]) for i in order]
    if not jobs:
        return 0.0
    above = spared(len(jobs))
    low_s = sorted(alone_s)[len(jobs) - 1 - above]
    if _feasible(jobs, low_s, above):
        return low_s
    high_s = max(2 * low_s, 1e-3)
    while not _feasible(jobs, high_s, above):
        low_s, high_s = high_s, 2 * high_s
    while high_s - low_s > 1e-6 * high_s:
        middle_s = (low_s + high_s) / 2
        if _feasible(jobs, middle_s, above):
            high_s = middle_s
        else:
            low_s = middle_s
    return low_s


def _feasible(jobs: Sequence[tuple[float, float, float]], within_s: float, may_miss: int) -> bool:
    """Whether all but `may_miss` of the jobs (release, work, seconds alone; by release) can end `within_s` of release."""
    slack = _SLACK * (1 + within_s)
    left = may_miss - sum(alone_s > within_s + slack for _, _, alone_s in jobs)
    busy: list[tuple[float, float]] = []  # kept jobs (release, work) since the server was last idle
    end_s = -np.inf
    for release_s, work_s, alone_s in jobs:
        if left < 0:
            return False
        if alone_s > within_s + slack:
            continue
        if release_s >= end_s:
            busy.clear()
        busy.append((release_s, work_s))
        end_s = max(end_s, release_s) + work_s
        if end_s > release_s + within_s + slack:
            end_s = _leave_out(busy)
            left -= 1
    return left >= 0


def _leave_out(busy: list[tuple[float, float]]) -> float:
    """Remove the job without which the others end soonest; returns that end."""
    before, end_s = [], -np.inf
    for release_s, work_s in busy:
        before.append(end_s)
        end_s = max(end_s, release_s) + work_s
    best_s, best = np.inf, 0
    work_after_s, end_after_s = 0.0, -np.inf  # of the jobs behind: their work, and their end if nothing is before them
    for index in range(len(busy) - 1, -1, -1):
        without_s = max(before[index] + work_after_s, end_after_s)
        if without_s < best_s:
            best_s, best = without_s, index
        release_s, work_s = busy[index]
        end_after_s = max(release_s + work_s + work_after_s, end_after_s)
        work_after_s += work_s
    del busy[best]
    return best_s
