"""The memory that calls in flight take on one worker, in tokens of whole blocks, with what siblings share counted once.

Calls of one pipeline that run side by side mostly go on from one context, as the alternatives of a branch group do: a paged
engine holds that once. The first of them is the *base*; of each, the blocks that it has in common with the base are shared, the
rest and its answer are its own. So a pipeline takes

    max(shared tokens of its calls)  +  sum(own tokens of its calls)

which is exact where they share prefixes of the base. When a call ends, its own part is free at once; the shared part stays for
as long as one that shares it runs. Nothing else is kept: what is reserved is a function of who runs, so that nothing can leak.
"""

from dataclasses import dataclass, field

from amf.core.state.shared import shared_tokens
from amf.core.types import Prefix


@dataclass(slots=True)
class _Run:
    base: Prefix
    shared_tokens: dict[str, int] = field(default_factory=dict)  # by call
    own_tokens: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return max(self.shared_tokens.values(), default=0) + sum(self.own_tokens.values())


class Reservations:
    def __init__(self, block_tokens: int) -> None:
        self.tokens = 0
        self._block_tokens = block_tokens
        self._runs: dict[str, _Run] = {}

    def add(self, run_id: str, call_id: str, prefix: Prefix, footprint_tokens: int) -> None:
        """A call starts that will hold so much in the end, its prompt included."""
        run = self._runs.setdefault(run_id, _Run(prefix))
        before_tokens = run.tokens
        shared, own = self._parts(run, prefix, footprint_tokens)
        run.shared_tokens[call_id], run.own_tokens[call_id] = shared, own
        self.tokens += run.tokens - before_tokens

    def remove(self, run_id: str, call_id: str) -> None:
        run = self._runs[run_id]
        before_tokens = run.tokens
        del run.shared_tokens[call_id], run.own_tokens[call_id]
        self.tokens += run.tokens - before_tokens
        if not run.own_tokens:
            del self._runs[run_id]

    def needed(self, run_id: str, prefix: Prefix, footprint_tokens: int) -> int:
        """What `add` would add."""
        run = self._runs.get(run_id)
        if run is None:
            return self._whole_blocks(footprint_tokens)
        shared, own = self._parts(run, prefix, footprint_tokens)
        return own + max(0, shared - max(run.shared_tokens.values()))

    def check_invariants(self, calls: set[str]) -> None:
        assert self.tokens == sum(run.tokens for run in self._runs.values())
        assert sorted(calls) == sorted(call_id for run in self._runs.values() for call_id in run.own_tokens)

    def _parts(self, run: _Run, prefix: Prefix, footprint_tokens: int) -> tuple[int, int]:
        """Shared tokens, whole blocks, and own ones."""
        shared = shared_tokens(run.base, prefix) if run.own_tokens else prefix.total_tokens
        shared -= shared % self._block_tokens
        return shared, self._whole_blocks(footprint_tokens - shared)

    def _whole_blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens) * self._block_tokens
