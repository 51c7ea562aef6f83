"""Asks LMCache's controller where prompts lie, and sets right what the fabric believes of its workers' lower tiers.

When. A prompt's lower-tier copy matters when KV memory has forgotten it: at the start of a run that shares a long prefix, and
after a long pause. Just then a large part of it was not asked about lately; on the next hop of a busy run only the last turn
was not. So one rule asks seldom and when it counts: at least `min_tokens` of the prompt were not asked about within `fresh_s`.
Calls with the same prompt share one question.

How long. The call waits `delay_s` at most, which is little against computing `min_tokens`. A later answer still counts, for the
calls after it. A controller that fails several times in a row is left alone for a while, then asked by one call at a time
until it answers.

What is believed follows from what an answer means (engines/lmcache.py): a listed instance holds so much; beyond the longest
length nobody holds anything; between, what was believed stays. Prompts with a cache salt or for an adapter are not asked about:
the controller knows tokens only. docs/decisions/009-ask-where-a-prompt-lies.md has the reasons.
"""

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from amf.core.events import PrefixEvicted, PrefixStored
from amf.core.types import Prefix, Tier
from amf.engines.lmcache import Controller, ControllerError, Lookup
from amf.engines.options import ResidencyOptions
from amf.gateway.driver import Driver
from amf.gateway.fleet import Fleet
from amf.gateway.link import Link, LinkStatus
from amf.gateway.metrics import Metrics
from amf.gateway.offloaded import News, Offloaded

log = logging.getLogger("amf.residency")

_MAX_ASKED = 10_000  # prompts of one pool that are remembered as asked about


@dataclass(slots=True)
class _Book:
    """What was told of one worker, in one life of its cache."""

    life: int
    offloaded: Offloaded


@dataclass(slots=True)
class _Asked:
    """The prompts of one pool that were asked about within `fresh_s`, the oldest first: the key of their last block, when,
    and the question, which may still be open."""

    questions: dict[int, tuple[float, asyncio.Task[None]]] = field(default_factory=dict)

    def forget_before(self, at_s: float) -> None:
        while self.questions:
            oldest = next(iter(self.questions))
            if len(self.questions) <= _MAX_ASKED and self.questions[oldest][0] >= at_s:
                return
            del self.questions[oldest]

    def last(self, prefix: Prefix, from_tokens: int) -> asyncio.Task[None] | None:
        """About the longest beginning of the prompt, if it is longer than `from_tokens`."""
        first = bisect_right(prefix.ends, from_tokens)
        found = (self.questions.get(prefix.keys[at]) for at in range(len(prefix.keys) - 1, first - 1, -1))
        return next((asked[1] for asked in found if asked is not None), None)


class Residency:
    """Satisfies `Inquirer`."""

    def __init__(
        self, options: ResidencyOptions, controller: Controller, fleet: Fleet, driver: Driver, metrics: Metrics
    ) -> None:
        self._options = options
        self._controller = controller
        self._fleet = fleet
        self._driver = driver
        self._metrics = metrics
        self._books: WeakKeyDictionary[Link, _Book] = WeakKeyDictionary()
        self._asked: dict[str, _Asked] = {}  # by pool
        self._open: set[asyncio.Task[None]] = set()
        self._failures = 0  # in a row
        self._alone_until_s = 0.0

    async def look(self, pool: str, prefix: Prefix, tokens: Sequence[int]) -> bool:
        """Find out where the prompt lies, if that is worth it. Returns whether it waited. Raises nothing."""
        links = self._fleet.offloading(pool)
        if not links or not prefix.keys:
            return False
        now_s = asyncio.get_running_loop().time()
        asked = self._asked.setdefault(pool, _Asked())
        if self._renew(links):
            asked.questions.clear()
        asked.forget_before(now_s - self._options.fresh_s)
        question = asked.last(prefix, prefix.total_tokens - self._options.min_tokens)
        if question is None and prefix.total_tokens >= self._options.min_tokens:
            question = self._ask(links, prefix, tokens, now_s)
            if question is not None:
                asked.questions.pop(prefix.keys[-1], None)
                asked.questions[prefix.keys[-1]] = (now_s, question)
        if question is None or question.done():
            return False
        await asyncio.wait((question,), timeout=self._options.delay_s)
        return True

    async def close(self) -> None:
        """Give up what is still asked."""
        for question in self._open:
            question.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _ask(
        self, links: Sequence[Link], prefix: Prefix, tokens: Sequence[int], now_s: float
    ) -> asyncio.Task[None] | None:
        """None: the controller is left alone, or asked enough."""
        failing = self._failures >= self._options.breaker_failures
        if now_s < self._alone_until_s or len(self._open) >= (1 if failing else self._options.max_questions):
            self._metrics.lookups.labels("skipped").inc()
            return None
        question = asyncio.create_task(
            self._find_out([(link, link.life) for link in links], prefix, tokens), name="lookup"
        )
        self._open.add(question)
        question.add_done_callback(self._open.discard)
        return question

    async def _find_out(self, lives: Sequence[tuple[Link, int]], prefix: Prefix, tokens: Sequence[int]) -> None:
        """`lives`: whom it concerns, if his cache is the same when the answer comes."""
        now_s = asyncio.get_running_loop().time
        asked_s = now_s()
        try:
            lookup = await self._controller.lookup(tokens)
        except ControllerError as error:
            self._metrics.lookups.labels("failed").inc()
            self._failed(str(error), now_s())
            return
        late = now_s() - asked_s > self._options.delay_s
        self._metrics.lookups.labels("late" if late else "in_time").inc()
        if self._failures >= self._options.breaker_failures:
            log.info("LMCache's controller answers again")
        self._failures = 0
        for link, life in lives:
            if link.life == life and link.status is LinkStatus.UP:
                self._told(link, prefix, lookup, now_s())

    def _failed(self, reason: str, now_s: float) -> None:
        self._failures += 1
        if self._failures >= self._options.breaker_failures:
            if self._failures == self._options.breaker_failures:
                log.warning("LMCache's controller is left alone", extra={"reason": reason})
            self._alone_until_s = now_s + self._options.retry_s

    def _told(self, link: Link, prefix: Prefix, lookup: Lookup, now_s: float) -> None:
        held = lookup.of(link.config.lmcache_instance or "")
        keys, ends = prefix.keys, prefix.ends
        present = keys[: bisect_right(ends, held.tokens)] if held is not None else ()
        absent = keys[bisect_right(ends, lookup.longest_tokens) :]
        tier = held.tier if held is not None else Tier.DRAM
        self._tell(link, self._books[link].offloaded.told(present, absent, tier, now_s))

    def _tell(self, link: Link, news: News) -> None:
        block_tokens = link.worker.block_tokens if link.worker is not None else 0
        for tier, keys in news.stored.items():
            self._driver.submit(PrefixStored, name=link.name, keys=tuple(keys), tier=tier)
            self._metrics.told_tokens.labels(link.name, "found").inc(len(keys) * block_tokens)
        for tier, keys in news.evicted.items():
            self._driver.submit(PrefixEvicted, name=link.name, keys=tuple(keys), tier=tier)
            self._metrics.told_tokens.labels(link.name, "gone").inc(len(keys) * block_tokens)

    def _renew(self, links: Sequence[Link]) -> bool:
        """Begin a new book for every worker whose cache may have been lost. Returns whether there was one."""
        options, renewed = self._options, False
        for link in links:
            book = self._books.get(link)
            if book is not None and book.life == link.life:
                continue
            if book is not None:
                self._tell(link, book.offloaded.forget())
            offloaded = Offloaded(max_blocks=options.max_blocks, believe_s=options.believe_s)
            self._books[link] = _Book(link.life, offloaded)
            renewed = True
        return renewed
