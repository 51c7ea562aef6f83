"""Decoding requests advance in lockstep: each iteration gives every one of them a token.

So nothing is kept per token. One counter, the *tick*, is how many decode iterations have passed; a request joins with
an offset and its output is offset + tick. It needs a new block every `block_tokens` ticks, always at the same phase,
so requests are filed by phase; it fills a block at the tick before that; and it ends at a tick known when it joins
(to us, not to the scheduler). Between these ticks the worker's state does not change, and a `QuietRun` passes over
them at once; where nobody asks about blocks it goes on to the next end, and the blocks are counted afterwards.
"""

import heapq
from collections.abc import Callable

from amf.sim.worker_state import Live


class Lockstep:
    """`stores`: whether a filled block is an occurrence (prefix caching on)."""

    def __init__(self, block_tokens: int, stores: bool) -> None:
        self.tick = 0
        self.batch = 0
        self.kv_tokens = 0  # that the next iteration attends to, its own token included
        self._block_tokens = block_tokens
        self._stores = stores
        self._phases: list[dict[int, Live]] = [{} for _ in range(block_tokens)]
        self._occupied = 0  # phases with a request, as bits
        self._members: dict[int, Live] = {}
        self._ends: list[tuple[int, int, Live]] = []

    def join(self, live: Live) -> None:
        live.offset = live.produced - self.tick
        live.phase = (1 - live.length + self.tick) % self._block_tokens
        self._phases[live.phase][live.seq] = self._members[live.seq] = live
        self._occupied |= 1 << live.phase
        heapq.heappush(self._ends, (live.target - live.offset, live.seq, live))
        self.batch += 1
        self.kv_tokens += live.length

    def leave(self, live: Live) -> None:
        live.produced = live.offset + self.tick
        del self._phases[live.phase][live.seq], self._members[live.seq]
        if not self._phases[live.phase]:
            self._occupied ^= 1 << live.phase
        live.phase = -1
        self.batch -= 1
        self.kv_tokens -= live.length
        if not self.batch:
            self._ends.clear()

    def needing_block(self) -> list[Live]:
        """Requests whose next token opens a block, in order of admission."""
        return list(self._phases[self.tick % self._block_tokens].values())

    def filling_block(self) -> list[Live]:
        """Requests whose next token fills a block, in order of admission."""
        return list(self._phases[(self.tick + 1) % self._block_tokens].values())

    def quiet_ticks(self) -> int:
        """Iterations from now in which no block is opened or filled and no request ends."""
        if not self.batch:
            return 0
        now = self.tick % self._block_tokens
        upcoming = self._occupied >> now | self._occupied << self._block_tokens - now
        quiet = (upcoming & -upcoming).bit_length() - 1
        return max(0, min(quiet - self._stores, self._next_end() - self.tick - 1))

    def ticks_to_end(self) -> int | None:
        """Iterations from now in which no request ends; None: nobody decodes."""
        return self._next_end() - self.tick - 1 if self.batch else None

    def opens(self, ticks: int) -> int:
        """Blocks that the next `ticks` iterations open."""
        return sum([blocks for _, blocks in self.opening(ticks)])

    def opens_at_most(self, ticks: int) -> int:
        """A bound on `opens` that costs nothing."""
        return self.batch * (ticks // self._block_tokens + 1)

    def opening(self, ticks: int) -> list[tuple[Live, int]]:
        """Who opens how many blocks in the next `ticks` iterations."""
        size, tick = self._block_tokens, self.tick
        return [
            (live, (ticks - 1 - ahead) // size + 1)
            for live in self._members.values()
            if (ahead := (live.phase - tick) % size) < ticks
        ]

    def filling(self, ticks: int) -> list[tuple[int, int, Live]]:
        """(iteration, request's place in order of admission, request) of blocks filled in the next `ticks` iterations,
        by request."""
        size, tick = self._block_tokens, self.tick + 1
        return [
            (ahead, seq, live)
            for seq, live in self._members.items()
            for ahead in range((live.phase - tick) % size, ticks, size)
        ]

    def step(self, ticks: int = 1) -> None:
        self.tick += ticks
        self.kv_tokens += ticks * self.batch

    def ended(self) -> list[Live]:
        """Requests that have just produced their last token, in order of admission. They leave."""
        done: list[Live] = []
        while self.batch and self._next_end() == self.tick:
            live = heapq.heappop(self._ends)[2]
            self.leave(live)
            done.append(live)
        return done

    @staticmethod
    def _is_end(tick: int, seq: int, live: Live) -> bool:
        return live.phase >= 0 and live.seq == seq and live.target - live.offset == tick

    def _next_end(self) -> int:
        ends = self._ends
        while not self._is_end(*ends[0]):  # left before its end, and perhaps came back
            heapq.heappop(ends)
        return ends[0][0]


class QuietRun:
    """`count` iterations that start at `start_s`, the i-th of `seconds(i)`.

    Iteration time is piecewise affine in KV tokens, hence in i (a maximum of bytes and FLOPs, each affine, with
    perhaps a knee at a sliding window). The run is cut into affine pieces by bisection and each is summed as an
    arithmetic series.
    """

    def __init__(self, start_s: float, count: int, seconds: Callable[[int], float]) -> None:
        self.start_s = start_s
        self.count = count
        self.booked = 0  # leading iterations whose work is already in the scheduler's books
        self._pieces: list[tuple[int, int, float, float]] = []  # first, length, its seconds, growth per iteration
        self._divide(0, count - 1, seconds)
        self.end_s = start_s + self.elapsed(count)

    def elapsed(self, iterations: int) -> float:
        """Seconds that the first `iterations` take."""
        total = 0.0
        for first, length, start, growth in self._pieces:
            n = min(length, iterations - first)
            if n <= 0:
                break
            total += n * start + growth * (n * (n - 1) / 2)
        return total

    def done(self, now_s: float) -> int:
        """Iterations that have ended at `now_s`."""
        low, high = 0, self.count
        while low < high:
            middle = (low + high + 1) // 2
            if self.start_s + self.elapsed(middle) <= now_s:
                low = middle
            else:
                high = middle - 1
        return low

    def begun(self, now_s: float) -> int:
        """Iterations that have started before `now_s`."""
        done = self.done(now_s)
        return min(done + 1, self.count) if self.start_s + self.elapsed(done) < now_s else done

    def cut(self, now_s: float) -> None:
        """End at the first boundary between iterations at or after `now_s`."""
        self.count = self.begun(now_s)
        self.end_s = self.start_s + self.elapsed(self.count)

    def _divide(self, first: int, last: int, seconds: Callable[[int], float]) -> None:
        start, span = seconds(first), last - first
        end = seconds(last) if span else start
        growth = (end - start) / span if span else 0.0
        middle = first + span // 2
        for probe in (first + span // 4, middle):
            if probe > first and abs(seconds(probe) - start - growth * (probe - first)) > 1e-12 * end:
                self._divide(first, middle, seconds)
                self._divide(middle + 1, last, seconds)
                return
        self._pieces.append((first, span + 1, start, growth))
