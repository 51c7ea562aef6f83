"""What a worker's blocks did at one time, as the fabric hears of it: one event for each time that room was made and filled."""

from collections.abc import Iterator, Sequence

from amf.core.events import PrefixEvicted, PrefixStored
from amf.core.types import Tier
from amf.sim.messages import BlocksDropped, BlocksEvicted, BlocksOffloaded, BlocksStored

BlockEvent = BlocksStored | BlocksEvicted | BlocksOffloaded | BlocksDropped


def kv_events(now_s: float, name: str, blocks: Sequence[BlockEvent]) -> Iterator[PrefixStored | PrefixEvicted]:
    """In the order in which it happened; a lower tier's events stand for themselves."""
    evicted: tuple[int, ...] = ()
    stored: tuple[int, ...] = ()
    for event in blocks:
        if (stored and not isinstance(event, BlocksStored)) or (
            evicted and isinstance(event, BlocksOffloaded | BlocksDropped)
        ):
            yield _told(now_s, name, stored, evicted)
            evicted, stored = (), ()
        match event:
            case BlocksStored(keys=keys):
                stored += keys
            case BlocksEvicted(keys=keys):
                evicted += keys
            case BlocksOffloaded(keys=keys):
                yield PrefixStored(at_s=now_s, name=name, keys=keys, tier=Tier.DRAM)
            case BlocksDropped(keys=keys):
                yield PrefixEvicted(at_s=now_s, name=name, keys=keys, tier=Tier.DRAM)
    if stored or evicted:
        yield _told(now_s, name, stored, evicted)


def _told(now_s: float, name: str, stored: tuple[int, ...], evicted: tuple[int, ...]) -> PrefixStored | PrefixEvicted:
    if stored:
        return PrefixStored(at_s=now_s, name=name, keys=stored, evicted=evicted)
    return PrefixEvicted(at_s=now_s, name=name, keys=evicted)
