"""Cache truth for prompts that are known by their text: which call stored a block, and so which text lies in it.

In text mode a prompt's keys are hashes of its text, and an engine's blocks cannot be matched with them by their tokens. But
some engines say which request stored a block. Each block has a parent, so it has a place in its chain, counted from the
start of a prompt; the request's prompt has, by the gateway's estimate, a key every so many tokens. Scaled so that the
whole prompt is as long as the engine says it is, the estimate tells which blocks a key's text lies in.

A key is resident from the end of the call that brought it, if all its blocks are there, until one of them is removed. What
was resident before the call (its prefix, stored by others) counts as well: the chain leads there. Not resident is what lies
behind a block whose parent was stored before we listened, and what ends in a block that the answer did not fill: the fabric
then believes less than is true. By how much text and blocks disagree where an estimate is uneven within a prompt shows in
the worker's drift.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor

from amf.engines.engine import BlocksRemoved, BlocksStored

Hash = int | bytes
_HBM = "GPU"


@dataclass(slots=True)
class _Block:
    parent: Hash | None
    depth: int  # blocks before it in its chain
    copies: int = 1
    keys: set[int] = field(default_factory=set)  # whose text lies in it, at least in part


@dataclass(slots=True)
class _Call:
    keys: Sequence[int]
    ends_tokens: Sequence[int]  # by estimate, as all of the prompt
    estimate_tokens: int
    leaf: Hash | None = None  # the last block that it stored
    prompt_tokens: int = 0  # as the engine says; 0: not yet answered


class Attribution:
    """One worker's blocks and the keys that lie in them. Holds at most `max_blocks` blocks and the last `max_calls` calls;
    what would exceed them is left out. `orphans`: stored blocks that have no place in a chain."""

    def __init__(self, max_blocks: int = 2_000_000, max_calls: int = 4_096) -> None:
        self._max_blocks, self._max_calls = max_blocks, max_calls
        self._blocks: dict[Hash, _Block] = {}
        self._lies_in: dict[int, tuple[Hash, ...]] = {}  # resident key -> its blocks
        self._calls: OrderedDict[str, _Call] = OrderedDict()
        self._block_tokens = 0
        self.orphans = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def sent(self, tag: str, keys: Sequence[int], ends_tokens: Sequence[int], estimate_tokens: int) -> None:
        """A call goes to the worker; its blocks will be tagged so."""
        self._calls[tag] = _Call(keys, ends_tokens, max(estimate_tokens, 1))
        if len(self._calls) > self._max_calls:
            self._calls.popitem(last=False)

    def answered(self, tag: str, prompt_tokens: int) -> tuple[int, ...]:
        """Its answer is whole; its prompt had so many tokens. Returns the keys that are resident now and were not."""
        call = self._calls.get(tag)
        if call is None:
            return ()
        call.prompt_tokens = max(prompt_tokens, 1)
        return self._settle(call)

    def stored(self, event: BlocksStored) -> tuple[int, ...]:
        """Returns keys that are resident now and were not: of a call that was answered before its last event came."""
        if event.medium != _HBM:
            return ()
        if event.block_tokens != self._block_tokens:
            self.clear()
            self._block_tokens = event.block_tokens
        parent, depth = event.parent_hash, 0
        if parent is not None:
            known = self._blocks.get(parent)
            if known is None:
                self.orphans += len(event.block_hashes)
                return ()
            depth = known.depth + 1
        for name in event.block_hashes:
            block = self._blocks.get(name)
            if block is not None:
                block.copies += 1
            elif len(self._blocks) < self._max_blocks:
                self._blocks[name] = _Block(parent, depth)
            else:
                self.orphans += 1
                return ()
            parent, depth = name, depth + 1
        call = self._calls.get(event.session_id) if event.session_id else None
        if call is None:
            return ()
        call.leaf = parent
        return self._settle(call) if call.prompt_tokens else ()

    def removed(self, event: BlocksRemoved) -> tuple[int, ...]:
        """Returns the keys that are resident no more."""
        gone: list[int] = []
        for name in event.block_hashes if event.medium == _HBM else ():
            block = self._blocks.get(name)
            if block is None:
                continue
            block.copies -= 1
            if block.copies:
                continue
            for key in tuple(block.keys):
                gone.append(key)
                for other in self._lies_in.pop(key):
                    self._blocks[other].keys.discard(key)
            del self._blocks[name]
        return tuple(gone)

    def clear(self) -> None:
        """Forget every block: the engine's cache was reset, or its events were lost."""
        self._blocks.clear()
        self._lies_in.clear()
        for call in self._calls.values():
            call.leaf = None

    def check_invariants(self) -> None:
        lies_in: dict[int, set[Hash]] = {}
        for name, block in self._blocks.items():
            assert block.copies > 0
            for key in block.keys:
                lies_in.setdefault(key, set()).add(name)
        assert lies_in == {key: set(names) for key, names in self._lies_in.items()}

    def _settle(self, call: _Call) -> tuple[int, ...]:
        """Put those of the call's keys that are not resident into the blocks of its chain."""
        leaf = self._blocks.get(call.leaf) if call.leaf is not None else None
        first = next((i for i, key in enumerate(call.keys) if key not in self._lies_in), len(call.keys))
        if leaf is None or first == len(call.keys):
            return ()
        scale = call.prompt_tokens / call.estimate_tokens / self._block_tokens  # from estimated tokens to blocks
        chain, offset = self._chain(call.leaf, floor(scale * call.ends_tokens[first - 1]) if first else 0)
        fresh: list[int] = []
        for index in range(first, len(call.keys)):
            begin = floor(scale * call.ends_tokens[index - 1]) if index else 0
            end = ceil(scale * call.ends_tokens[index])
            if end - offset > len(chain):
                break
            if begin >= offset and call.keys[index] not in self._lies_in:
                self._put(call.keys[index], chain[begin - offset : end - offset])
                fresh.append(call.keys[index])
        return tuple(fresh)

    def _put(self, key: int, blocks: tuple[Hash, ...]) -> None:
        self._lies_in[key] = blocks
        for name in blocks:
            self._blocks[name].keys.add(key)

    def _chain(self, leaf: Hash | None, first: int) -> tuple[tuple[Hash, ...], int]:
        """The chain up to `leaf` from its block number `first` on, or from where it is known; and the number it begins with."""
        names: list[Hash] = []
        name, depth = leaf, 0
        while name is not None and (block := self._blocks.get(name)) is not None and block.depth >= first:
            names.append(name)
            name, depth = block.parent, block.depth
        return tuple(reversed(names)), depth
