"""Block keys of planned prompts, as an engine with this block size would compute them: chained over (namespace, id).

A pipeline's prompts mostly extend one another, so the keys of the previous prompt of a lane are reused as far as the
block ids agree.
"""

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
        keys, parent = [], _seed(f"{self._pipeline.pipeline_id}/{call.index}/output")
        for index in range(len(prefix.keys), blocks):
            parent = hash((parent, index))
            keys.append(parent)
        return (*prefix.keys, *keys)

    def _keys(self, lane: tuple[str, str], prompt: PromptPlan) -> tuple[int, ...]:
        runs = owned_runs(prompt)
        before, known = self._lanes.get(lane, ([], ()))
        known = known[: _agreeing_blocks(before, runs)]
        skip, parent = len(known), known[-1] if known else 0
        keys: list[int] = []
        for namespace, first, count in runs:
            if skip >= count:
                skip -= count
                continue
            seed = _seed(namespace)
            for block_id in range(first + skip, first + count):
                parent = hash((parent, seed, block_id))
                keys.append(parent)
            skip = 0
        known = (*known, *keys)
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


def _seed(name: str) -> int:
    """A stable number for a name; the builtin hash of strings differs between processes, that of integers does not."""
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "little")
