"""From what the simulated worker did to its cache to the events an engine publishes about it."""

from collections.abc import Iterator, Mapping, Sequence

from amf.emulator.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent, KvPublisher
from amf.emulator.ticket import Ticket
from amf.emulator.tokenizer import BYTES_PER_TOKEN, to_ids
from amf.sim.messages import BlocksEvicted, BlocksStored, CacheCleared, SimEvent

_MEDIUM = "GPU"
_SPEC = "full_attention"


class KvFeed:
    """Publishes one batch for each call that holds any cache event. One `BlockRemoved` a block, as vLLM does. And as there, an
    engine at rest publishes nothing: of a reset it tells with the next request."""

    def __init__(self, publisher: KvPublisher, block_tokens: int) -> None:
        self.publisher = publisher
        self._block_tokens = block_tokens
        self._kept_back: list[KvEvent] = []

    def publish(self, events: Sequence[SimEvent], tickets: Mapping[str, Ticket]) -> None:
        batch = self._kept_back + [kv_event for event in events for kv_event in self._translate(event, tickets)]
        rests = all(isinstance(event, CacheCleared) for event in events)
        self._kept_back = batch if rests else []
        if batch and not rests:
            self.publisher.publish(batch)

    def _translate(self, event: SimEvent, tickets: Mapping[str, Ticket]) -> Iterator[KvEvent]:
        match event:
            case BlocksStored():
                yield self._stored(event, tickets[event.request_id])
            case BlocksEvicted():
                for key in event.keys:
                    yield BlockRemoved(block_hashes=(key,), medium=_MEDIUM, group_idx=0)
            case CacheCleared():
                yield AllBlocksCleared()

    def _stored(self, event: BlocksStored, ticket: Ticket) -> BlockStored:
        size = self._block_tokens * BYTES_PER_TOKEN
        start = event.first_block * size
        salted = bool(ticket.salt) and event.first_block == 0
        return BlockStored(
            block_hashes=event.keys,
            parent_block_hash=event.parent_key,
            token_ids=to_ids(ticket.content[start : start + len(event.keys) * size]),
            block_size=self._block_tokens,
            lora_id=None,
            medium=_MEDIUM,
            lora_name=None,
            extra_keys=[[ticket.salt], *[None] * (len(event.keys) - 1)] if salted else None,
            group_idx=0,
            kv_cache_spec_kind=_SPEC,
            session_id=ticket.session_id or None,
        )
