"""What the simulated engine puts into its next iteration: vLLM v1's scheduler over a paged block pool.

Running requests come first. Decodes take a token each and a new block when they open one; then the one prefill that
did not fit in the last iteration goes on (there is never more than one: nothing is admitted unless every older
prefill got all it asked for). When a block is missing, a victim loses all of its blocks and goes back to the front of
the queue; where that is the very request that misses the block, those admitted after it sit this iteration out. In an
iteration without a victim, waiting requests are then admitted, in order and none past another, while
tokens, sequences and memory last. A request needs room for its whole known length to be admitted, but takes blocks
only as it computes; one that loads from DRAM first (worker_loads.py) takes all of them at once, is passed by those behind
it meanwhile, and runs, as if it had been admitted only then, before any that waits.

As in vLLM, a block is findable from the moment its filling is scheduled, so that of two requests with one prompt
admitted into the same iteration the second finds the first one's blocks.
"""

from bisect import bisect_right
from collections.abc import Mapping
from math import inf
from operator import itemgetter

from amf.sim.blocks import BlockPool, count_free, depth_of
from amf.sim.messages import SimWorkerConfig
from amf.sim.worker_decode import Lockstep
from amf.sim.worker_loads import Loads
from amf.sim.worker_queue import WaitingQueue
from amf.sim.worker_state import Iteration, Live, WorkerStats


class Scheduler:
    """Owner of the pool, the queue and the running requests of one worker."""

    def __init__(self, config: SimWorkerConfig, stats: WorkerStats) -> None:
        self.config = config
        self.stats = stats
        self.loads = Loads(config)
        self.pool = BlockPool(
            config.kv_tokens // config.block_tokens, self.loads.tier if self.loads.tier.total else None
        )
        self.lockstep = Lockstep(config.block_tokens, config.prefix_caching)
        self.waiting = WaitingQueue(config.scheduling == "priority")
        self.running: dict[int, Live] = {}  # by order of admission
        self.max_running = min(config.max_running, config.token_budget)  # every decode takes a token
        self._prefilling: Live | None = None  # the last admitted, if its prompt is not done yet
        self._admissions = 0
        self._refused: tuple[Live, int, int | None] | None = None  # who, the pool's releases, the first block it missed

    @property
    def idle(self) -> bool:
        return not (self.running or self.waiting or self.loads.waiting)

    @property
    def admitted(self) -> list[Live]:
        """What runs, and what loads before it does."""
        return [*self.running.values(), *self.loads.waiting]

    @property
    def only_loads(self) -> bool:
        """Nobody can compute anything before a load has come."""
        return bool(self.loads.waiting) and not self.running and not self.may_admit(True)

    @property
    def next_loaded_s(self) -> float:
        """When a load will have come for which the iteration then has time; infinite while there is none."""
        return inf if self._prefilling else self.loads.next_s

    def form(self, remember: bool, now_s: float) -> Iteration:
        """The next iteration; its blocks are taken and findable, its results are not out. `remember`: do not look
        again at a request that memory refused until memory has changed in its favour (same outcome, less work)."""
        iteration = Iteration()
        if self.lockstep.batch:
            self._open_blocks(iteration)
        chunk = self._make_room_for_prefill(iteration)
        if self.lockstep.batch:
            self._fill_blocks(iteration)
        if chunk and self._prefilling:
            self._prefill(self._prefilling, chunk, iteration)
        iteration.decodes = self.lockstep.batch
        iteration.decode_kv_tokens = self.lockstep.kv_tokens
        if not iteration.preempted:
            budget = self.config.token_budget - iteration.tokens
            while budget > 0 and (loaded := self.loads.take_ready(now_s)):
                budget -= self._begin(loaded, budget, iteration)
            while budget > 0 and self.may_admit(remember):
                taken = self._admit(budget, iteration, now_s)
                if taken is None:
                    break
                budget -= taken
        iteration.offloaded, iteration.dropped = self.loads.tier.drain()
        return iteration

    def outline(self, ticks_ahead: int) -> tuple[list[tuple[int, int]], int, int]:
        """Prefill, decode batch and its KV tokens of the iteration after `ticks_ahead` silent ones, nobody coming or
        going."""
        batch, live = self.lockstep.batch, self._prefilling
        prefill = [(self._chunk(ticks_ahead), live.computed + self.tokens_ahead(ticks_ahead))] if live else []
        return prefill, batch, self.lockstep.kv_tokens + ticks_ahead * batch

    def quiet_ticks(self) -> int:
        """How many iterations from now change nothing but the number of tokens produced."""
        return 0 if self._prefilling or self.may_admit(True) else self.lockstep.quiet_ticks()

    def silent_ticks(self) -> int:
        """How many iterations from now bring no first token, no end, no admission and no preemption: decodes open and
        fill blocks, and the prefill under way gets all the tokens that decodes leave. `pass_over` does their work."""
        if self._prefilling is None and (self.may_admit(True) or self._awaits_a_fill()):
            return self.quiet_ticks()
        limits = [] if (end := self.lockstep.ticks_to_end()) is None else [end]
        if (live := self._prefilling) and (chunk := self.config.token_budget - self.lockstep.batch):
            limits.append((live.length - live.computed - 1) // chunk)
        ticks, free = min(limits, default=0), self.pool.free
        if self._fits(ticks, free):
            return ticks
        return bisect_right(range(ticks), free, key=lambda ahead: self.blocks_ahead(ahead + 1))

    def blocks_ahead(self, ticks: int) -> int:
        """Blocks that the next `ticks` iterations take, all of them silent."""
        live = self._prefilling
        return self.lockstep.opens(ticks) + (self._blocks_for(live, self.tokens_ahead(ticks)) if live else 0)

    def tokens_ahead(self, ticks: int) -> int:
        """Prefill tokens that the next `ticks` iterations compute, all of them silent."""
        return ticks * (self.config.token_budget - self.lockstep.batch) if self._prefilling else 0

    def pass_over(self, ticks: int) -> None:
        """Do at once what the next `ticks` iterations would, all of them silent."""
        fills = [
            (ahead, seq, live, live.request.prompt_tokens + live.offset + self.lockstep.tick + ahead)
            for ahead, seq, live in self.lockstep.filling(ticks)
        ]
        for live, blocks in self.lockstep.opening(ticks):
            self._take_blocks(live, blocks)
        if (prefilling := self._prefilling) is not None:
            chunk, computed = self.tokens_ahead(1), prefilling.computed
            self._take_blocks(prefilling, self._blocks_for(prefilling, ticks * chunk))
            fills += [(ahead, prefilling.seq, prefilling, computed + (ahead + 1) * chunk) for ahead in range(ticks)]
            prefilling.computed += ticks * chunk
            self.stats.computed_tokens += ticks * chunk
        self._make_all_findable(fills)
        if self.lockstep.batch:
            self.lockstep.step(ticks)
            self.stats.output_tokens += ticks * self.lockstep.batch
        self.loads.tier.drain()

    def _make_all_findable(self, fills: list[tuple[int, int, Live, int]]) -> None:
        """Store what requests have filled: (iteration, place in it, request, tokens computed then). Which block holds
        what is nobody's concern, but copies of one key are found oldest first: only then does the order matter."""
        last = {live: computed for _, _, live, computed in fills}
        if len(last) > 1 and self._may_coincide(last):
            for _, _, live, computed in sorted(fills, key=itemgetter(0, 1)):
                self._make_findable(live, computed)
        for live, computed in last.items():
            self._make_findable(live, computed)

    def _may_coincide(self, fills: Mapping[Live, int]) -> bool:
        """Whether two of these requests may fill the same block: if so, they fill the same one next, or one of them
        has filled already what the other fills next."""
        size, starts = self.config.block_tokens, set[int]()
        for live, computed in fills.items():
            first = live.table.keyed
            if first < computed // size:
                key = live.request.block_keys[first]
                if key in starts or self.pool.has(live.request.block_keys, first + 1):
                    return True
                starts.add(key)
        return False

    def may_admit(self, remember: bool) -> bool:
        """Whether the head of the queue has a chance in the next iteration."""
        if not self.waiting or len(self.running) + len(self.loads.waiting) >= self.max_running:
            return False
        if self.lockstep.batch + self._chunk() >= self.config.token_budget:
            return False
        if not remember or self._refused is None:
            return True
        live, releases, missed = self._refused
        if releases != self.pool.releases or live is not self.waiting.head():
            return True
        return missed is not None and self.pool.has(live.request.block_keys, missed + 1)

    def may_preempt(self, ticks_ahead: int) -> bool:
        """Whether the iteration after `ticks_ahead` silent ones could run out of blocks (errs towards yes)."""
        wanted = self.lockstep.batch + self._chunk(ticks_ahead) // self.config.block_tokens
        return not self._fits(ticks_ahead, self.pool.free - wanted - 1)

    def complete(self, iteration: Iteration) -> tuple[list[Live], list[Live]]:
        """Give out the iteration's tokens. Returns the requests with their first token and those that ended, which
        are gone, each in order of admission."""
        if iteration.decodes:
            self.lockstep.step()
        firsts, ended = [], self.lockstep.ended()
        self.stats.output_tokens += iteration.decodes
        for live, _, _ in iteration.chunks:
            if live.computed < live.length:
                continue
            if live.target:
                live.produced += 1
                self.stats.output_tokens += 1
            if live.produced == 1:
                firsts.append(live)
            if live.produced >= live.target:
                ended.append(live)
            else:
                self.lockstep.join(live)
        for live in iteration.stalled:
            if live is not self._prefilling:
                self.lockstep.join(live)
        for live in ended:
            self._vacate(live)
        return firsts, ended

    def clear(self) -> bool:
        """Forget every key. False, and nothing changes, while any block is held."""
        if not self.pool.clear():
            return False
        self.loads.clear()
        return True

    def drop(self, live: Live) -> None:
        """Take an admitted request out; its blocks are free."""
        if live.phase >= 0:
            self.lockstep.leave(live)
        if live is self._prefilling:
            self._prefilling = None
        self._vacate(live)

    def check(self) -> None:
        """Raise AssertionError where the books do not balance."""
        running, size = list(self.running.values()), self.config.block_tokens
        self.pool.check([live.table for live in self.admitted])
        self.loads.tier.check()
        assert not self.loads.tier.contents().keys() & self.pool.contents().keys(), "a block is in both tiers"
        assert len(self.admitted) <= self.max_running, "too many sequences"
        decoding = [live for live in running if live.phase >= 0]
        lengths = {live: live.request.prompt_tokens + live.offset + self.lockstep.tick for live in decoding}
        assert len(decoding) == self.lockstep.batch, "lockstep lost a request"
        assert sum(lengths.values()) == self.lockstep.kv_tokens, "lockstep lost count of its tokens"
        for live in running:
            computed = lengths[live] - 1 if live in lengths else live.computed
            ahead = int(live in lengths)
            if self.pool.lower and not ahead:  # what was loaded from DRAM has all its blocks
                ahead = -(-live.length // size) - computed // size
            assert 0 <= len(live.table) - -(-computed // size) <= ahead, "blocks do not cover the sequence"
            assert live not in self.waiting, "running and waiting"

    def _fits(self, ticks: int, blocks: int) -> bool:
        """Whether the next `ticks` iterations, all of them silent, take `blocks` at most."""
        if not self._prefilling and self.lockstep.opens_at_most(ticks) <= blocks:
            return True
        return self.blocks_ahead(ticks) <= blocks

    def _awaits_a_fill(self) -> bool:
        """Whether a block that decoding will fill is one that the refused head of the queue missed."""
        if not self.waiting or self._refused is None or (missed := self._refused[2]) is None:
            return False
        key = self._refused[0].request.block_keys[missed]
        return any(
            live.table.keyed <= missed < len(live.request.block_keys) and live.request.block_keys[missed] == key
            for live in self.running.values()
        )

    def _chunk(self, ticks_ahead: int = 0) -> int:
        """Tokens that the prefill under way gets in the iteration after `ticks_ahead` silent ones."""
        live, left = self._prefilling, self.config.token_budget - self.lockstep.batch
        return min(live.length - live.computed - ticks_ahead * left, left) if live else 0

    def _open_blocks(self, iteration: Iteration) -> None:
        for live in self.lockstep.needing_block():
            if (seq := live.seq) < 0:  # a victim by now
                continue
            if not self._make_room(live, 1, iteration):
                self._stall_after(seq, iteration)
                return
            self._take_blocks(live, 1, iteration)

    def _fill_blocks(self, iteration: Iteration) -> None:
        for live in self.lockstep.filling_block():
            self._make_findable(live, live.request.prompt_tokens + live.offset + self.lockstep.tick, iteration)

    def _stall_after(self, seq: int, iteration: Iteration) -> None:
        """A request was its own victim: vLLM looks at no running request behind it until the next iteration."""
        iteration.stalled = [live for live in self.running.values() if live.seq > seq]
        for live in iteration.stalled:
            if live.phase >= 0:
                self.lockstep.leave(live)
                live.computed = live.length - 1

    def _make_room_for_prefill(self, iteration: Iteration) -> int:
        """Tokens that the prefill under way gets in this iteration, its blocks being free."""
        live, tokens = self._prefilling, self._chunk()
        if live is None or live in iteration.stalled:
            return 0
        return tokens if self._make_room(live, self._blocks_for(live, tokens), iteration) else 0

    def _make_room(self, live: Live, blocks: int, iteration: Iteration) -> bool:
        """Preempt until `blocks` are free. False if `live` itself had to go, now or before."""
        while live.seq >= 0 and self.pool.free < blocks:
            by_priority = self.config.scheduling == "priority"
            running = self.running.values()
            victim = max(running, key=lambda other: other.urgency) if by_priority else next(reversed(running))
            self.drop(victim)
            self.waiting.push_front(victim)
            self.stats.preemptions += 1
            iteration.preempted.append(victim)
        return live.seq >= 0

    def _admit(self, budget: int, iteration: Iteration, now_s: float) -> int | None:
        """Admit the head of the queue. Returns the tokens it takes of `budget`, None when memory refuses it."""
        live, pool, size = self.waiting.head(), self.pool, self.config.block_tokens
        keys, limit = live.request.block_keys, (live.length - 1) // size
        parts = pool.match(keys, limit) if self.config.prefix_caching else []
        needed, found = -(-live.length // size), depth_of(parts)
        if needed > pool.free and needed - found + count_free(parts) > pool.free:
            self._refused = (live, pool.releases, found if self.config.prefix_caching and found < limit else None)
            return None
        self.waiting.remove(live)
        live.table, live.computed = pool.hold(parts, keys), found * size
        ready_s = self._load(live, found, now_s, iteration) if pool.lower else now_s
        if live.cached_tokens < 0:
            self._count_start(live)
            iteration.started.append(live)
        if ready_s > now_s:
            self.loads.waiting[live] = ready_s
            return 0
        return self._begin(live, budget, iteration)

    def _load(self, live: Live, found: int, now_s: float, iteration: Iteration) -> float:
        """Let what DRAM has beyond the `found` blocks come, if it has any. Returns when all that was found has come."""
        keys, size = live.request.block_keys, self.config.block_tokens
        end, ready_s = self.loads.fetch(keys, found, (live.length - 1) // size, now_s)
        if found < end or ready_s > now_s:
            live.computed = end * size
            self._take_blocks(live, -(-live.length // size) - found, iteration)
            self._make_findable(live, live.computed, iteration)
        return ready_s

    def _begin(self, live: Live, budget: int, iteration: Iteration) -> int:
        """An admitted request runs. Returns the tokens it takes of `budget`."""
        live.seq = self._admissions
        self._admissions += 1
        self.running[live.seq] = live
        taken = min(budget, live.length - live.computed)
        self._prefill(live, taken, iteration)
        return taken

    def _prefill(self, live: Live, tokens: int, iteration: Iteration) -> None:
        self._take_blocks(live, self._blocks_for(live, tokens), iteration)
        iteration.chunks.append((live, tokens, live.computed))
        live.computed += tokens
        self.stats.computed_tokens += tokens
        self._make_findable(live, live.computed, iteration)
        self._prefilling = live if live.computed < live.length else None

    def _blocks_for(self, live: Live, tokens: int) -> int:
        return max(0, -(-(live.computed + tokens) // self.config.block_tokens) - len(live.table))

    def _take_blocks(self, live: Live, count: int, iteration: Iteration | None = None) -> None:
        if not count:
            return
        evicted = self.pool.take(live.table, count)
        if iteration is not None:
            iteration.evicted += evicted

    def _make_findable(self, live: Live, computed: int, iteration: Iteration | None = None) -> None:
        """Store the blocks that are full once `computed` tokens are."""
        first, end = live.table.keyed, computed // self.config.block_tokens
        if self.config.prefix_caching and first < end:
            self.pool.store(live.table, end)
            self.loads.tier.spoil(live.request.block_keys, first, end)
            if iteration is not None:
                iteration.stored.append((live, first, end))

    def _vacate(self, live: Live) -> None:
        self.pool.release(live.table)
        if self.loads.waiting.pop(live, None) is None:
            del self.running[live.seq]
        live.computed, live.seq = 0, -1

    def _count_start(self, live: Live) -> None:
        live.cached_tokens = live.computed
        self.stats.prompt_tokens += live.request.prompt_tokens
        self.stats.cached_tokens += live.cached_tokens
        if self.config.prefix_caching:
            self.stats.query_tokens += live.request.prompt_tokens
            self.stats.hit_tokens += live.cached_tokens
