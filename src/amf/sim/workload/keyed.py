"""Prompts known as chains of keys, turned into runs of block ids.

Recordings of live traffic name a prompt's parts by keys: a key stands for everything up to the end of its part, so two
prompts share text exactly as far as their keys agree. Parts have any length (a message, a kibibyte of text, an engine's
block), and plans need blocks of one length. A plan's block is therefore named by the key of the part in which it ends:
prompts share it exactly if they share that key. What is lost is less than one block for each prompt.

Where the parts' lengths were estimated and the prompt's length is known, the estimates of the parts that are new are
stretched to fill what the known ones leave: so lengths stay in the engine's own tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from amf.sim.workload.blocks import SHARED_BLOCKS, Run, first_blocks, merged


@dataclass(frozen=True, slots=True)
class _Part:
    end_tokens: float
    first_id: int
    count: int


@dataclass(slots=True)
class KeyedBlocks:
    """Block ids of one namespace, given out as keys are met."""

    block_tokens: int
    _next_id: int = SHARED_BLOCKS
    _parts: dict[int, _Part] = field(default_factory=dict)

    def prompt(
        self, keys: Sequence[int], sizes: Sequence[float], total_tokens: int, *, exact: bool = False
    ) -> tuple[tuple[Run, ...], int]:
        """Runs and tail tokens of a prompt of `total_tokens`. `sizes` are the tokens of each part and, last, of what has no
        key, if anything; unless they are `exact`, only their proportions count."""
        block = self.block_tokens
        known = next((i for i, key in enumerate(keys) if key not in self._parts), len(keys))
        runs = [(part.first_id, part.count) for part in (self._parts[key] for key in keys[:known])]
        end = self._parts[keys[known - 1]].end_tokens if known else 0.0
        estimated = sum(sizes[known:])
        stretch = 1.0 if exact else max(0.0, total_tokens - end) / estimated if estimated else 0.0
        for key, size in zip(keys[known:], sizes[known:], strict=False):
            begin, end = end, end + size * stretch
            run = self._fresh(int(end + 1e-6) // block - int(begin + 1e-6) // block)
            self._parts[key] = _Part(end, *run)
            runs.append(run)
        blocks, tail = divmod(total_tokens, block)
        own = max(0, blocks - sum(count for _, count in runs))
        return first_blocks(merged((*runs, self._fresh(own))), blocks), tail

    def _fresh(self, count: int) -> Run:
        run = (self._next_id, count)
        self._next_id += count
        return run
