"""Block keys of planned prompts, as an engine with this block size would compute them: each names its block and all
that is before it.

A run of consecutive block ids begins with a hash of what precedes it and of its first block, and counts up from there:
where a run begins follows from the blocks before, so two prompts have the same key just where they agree up to it. (No
more than a chance of about 1e-4 speaks against that with a million runs, keys being 61 bits wide.) A pipeline's prompts
mostly extend one another, so the keys of the previous prompt of a lane are reused as far as the block ids agree.

A prompt has thousands of keys and every call of a conversation has all of those before it, so keys are kept as arrays of
machine integers: to copy and to drop them costs little, and no key is an object of its own.
"""

from array import array
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from amf.core.types import Prefix
from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.workload.blocks import owned_runs


class PromptKeys:
    """Keys by lane of one pipeline. `prefix` is what intake would know, `chain` what the engine hashes."""

    def __init__(self, pipeline: PipelinePlan) -> None:
        self._pipeline = pipeline
        self._lanes: dict[tuple[str, str], tuple[list[tuple[str, int, int]], array[int]]] = {}

    def prefix(self, call: CallPlan) -> Prefix:
        prompt = call.prompt
        keys = self._keys((call.pool, call.lane), prompt)
        size = prompt.block_tokens
        ends = range(size, size * len(keys) + 1, size)
        return Prefix(keys=keys, ends=ends, total_tokens=prompt.total_tokens)

    def chain(self, call: CallPlan, prefix: Prefix) -> "array[int]":
        """The prompt's keys, then keys that nobody shares for the blocks the output will fill."""
        blocks = (prefix.total_tokens + call.output_tokens) // call.prompt.block_tokens
        first = hash((_number(f"{self._pipeline.pipeline_id}/{call.index}/output"),))
        chain = array("q", prefix.keys)
        chain += _counting(first, blocks - len(chain))
        return chain

    def _keys(self, lane: tuple[str, str], prompt: PromptPlan) -> "array[int]":
        runs = owned_runs(prompt)
        before, known = self._lanes.get(lane, ([], array("q")))
        keys = known[: agreeing_blocks(before, runs)]
        skip, key = len(keys), keys[-1] if keys else 0
        for namespace, first, count in runs:
            if skip >= count:
                skip -= count
                continue
            key = key + 1 if skip else hash((key, _seed(namespace), first))
            keys += _counting(key, count - skip)
            key, skip = keys[-1], 0
        self._lanes[lane] = (runs, keys)
        return keys


def _counting(first: int, count: int) -> "array[int]":
    """`count` numbers, from `first` on."""
    numbers = array("q")
    numbers.frombytes(np.arange(first, first + count, dtype=np.int64).tobytes())
    return numbers


def agreeing_blocks(one: list[tuple[str, int, int]], other: list[tuple[str, int, int]]) -> int:
    """Leading blocks that two prompts (as `owned_runs`) have in common."""
    blocks = 0
    for (namespace, first, count), (other_namespace, other_first, other_count) in zip(one, other, strict=False):
        if (namespace, first) != (other_namespace, other_first):
            break
        blocks += min(count, other_count)
        if count != other_count:
            break
    return blocks


def _number(name: str) -> int:
    """A stable number for a name; the builtin hash of strings differs between processes, that of integers does not."""
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "little")


_seed = lru_cache(maxsize=4096)(_number)  # of namespaces, which come again and again
