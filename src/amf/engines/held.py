"""Whether a block that an engine tells of is news, for engines that hold a block once or not at all.

SGLang's radix cache is such a set, one copy of a block in each medium. Its releases do tell of a block again that is there
already (with FlexKV, of a node whenever something is fetched below it), and remove it once. The fabric counts copies, which
is right for vLLM; what is told twice and removed once would be believed for ever. So each publisher's stream is cut down to
what changes. It is done by publisher, since every data-parallel rank has a cache of its own: the same block on two ranks is
two copies. So a rank's reset, which SGLang's ranks also tell when they begin, does not end what is believed of the others:
it becomes the removal of what the rank held.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from amf.engines.engine import BlocksRemoved, BlocksStored, CacheCleared

Event = BlocksStored | BlocksRemoved | CacheCleared


class HeldBlocks:
    """One publisher's blocks, by medium. `alone`: it is the worker's only one. Holds at most `max_blocks`; what would exceed
    them is left out."""

    def __init__(self, *, alone: bool = True, max_blocks: int = 2_000_000) -> None:
        self._alone = alone
        self._max_blocks = max_blocks
        self._held: dict[str, set[int | bytes]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def news(self, event: Event) -> Iterator[Event]:
        """The part of the event that changes what is held, in pieces where known blocks lie between."""
        match event:
            case BlocksStored():
                yield from self._stored(event)
            case BlocksRemoved():
                held = self._held.get(event.medium, set())
                gone = tuple(name for name in dict.fromkeys(event.block_hashes) if name in held)
                held.difference_update(gone)
                if gone:
                    yield replace(event, block_hashes=gone)
            case CacheCleared():
                held_before, self._held = self._held, {}
                if self._alone:
                    yield event
                else:
                    yield from (BlocksRemoved(block_hashes=tuple(h), medium=m) for m, h in held_before.items() if h)

    def _stored(self, event: BlocksStored) -> Iterator[BlocksStored]:
        hashes = event.block_hashes
        if len(self) + len(hashes) > self._max_blocks:
            return
        held = self._held.setdefault(event.medium, set())
        is_news = []
        for name in hashes:
            is_news.append(name not in held)
            held.add(name)
        if all(is_news):
            yield event
            return
        for fresh, group in groupby(range(len(hashes)), is_news.__getitem__):
            if fresh:
                places = list(group)
                yield _part(event, places[0], places[-1] + 1)


def _part(event: BlocksStored, first: int, end: int) -> BlocksStored:
    return replace(
        event,
        block_hashes=event.block_hashes[first:end],
        parent_hash=event.block_hashes[first - 1] if first else event.parent_hash,
        token_ids=event.token_ids[first * event.block_tokens : end * event.block_tokens],
    )
