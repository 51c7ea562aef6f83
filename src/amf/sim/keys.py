"""Block keys of planned prompts, as an engine with this block size would compute them: each names its block and all
that is before it.

A run of consecutive block ids begins with a hash of what precedes it and of its first block, and counts up from there:
where a run begins follows from the blocks before, so two prompts have the same key just where they agree up to it. (No
more than a chance of about 1e-4 speaks against that with a million runs, keys being 61 bits wide.) A pipeline's prompts
mostly extend one another, so the keys of the previous prompt of a lane are reused as far as the block ids agree.
"""

from functools import lru_cache
from hashlib import blake2b

from amf.core.types import Prefix
from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.workload.blocks import owned_runs


class PromptKeys:
    """Keys by lane of one pipeline. `prefix` is what intake would know, `chain` what the engine hashes."""

    def __init__(self, pipeline: PipelinePlan) -> None:
        self._pipeline = pipeline
        self._lanes: dict[tuple[str, str], tuple[list[tuple[str, int, int]], tuple[int, ...]]] = {}

    def prefix(self, call: CallPlan) -> Prefix:
        prompt = call.prompt
        keys = self._keys((call.pool, call.lane), prompt)
        size = prompt.block_tokens
        ends = range(size, size * len(keys) + 1, size)
        return Prefix(keys=keys, ends=ends, total_tokens=prompt.total_tokens)

    def chain(self, call: CallPlan, prefix: Prefix) -> tuple[int, ...]:
        """The prompt's keys, then keys that nobody shares for the blocks the output will fill."""
        blocks = (prefix.total_tokens + call.output_tokens) // call.prompt.block_tokens
        first = hash((_seed(f"{self._pipeline.pipeline_id}/{call.index}/output"),))
        return prefix.keys + tuple(range(first, first + blocks - len(prefix.keys)))

    def _keys(self, lane: tuple[str, str], prompt: PromptPlan) -> tuple[int, ...]:
        runs = owned_runs(prompt)
        before, known = self._lanes.get(lane, ([], ()))
        known = known[: _agreeing_blocks(before, runs)]
        skip, key, new = len(known), known[-1] if known else 0, list[int]()
        for namespace, first, count in runs:
            if skip >= count:
                skip -= count
                continue
            key = key + 1 if skip else hash((key, _seed(namespace), first))
            new += range(key, key + count - skip)
            key, skip = new[-1], 0
        known += tuple(new)
        self._lanes[lane] = (runs, known)
        return known


def _agreeing_blocks(one: list[tuple[str, int, int]], other: list[tuple[str, int, int]]) -> int:
    blocks = 0
    for (namespace, first, count), (other_namespace, other_first, other_count) in zip(one, other, strict=False):
        if (namespace, first) != (other_namespace, other_first):
            break
        blocks += min(count, other_count)
        if count != other_count:
            break
    return blocks


@lru_cache(maxsize=4096)
def _seed(name: str) -> int:
    """A stable number for a name; the builtin hash of strings differs between processes, that of integers does not."""
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "little")
