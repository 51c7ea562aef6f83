"""Who shares which block of a prompt.

A plan names blocks by number. Numbers below SHARED_BLOCKS are a graph's static text (system prompt, tool definitions),
the same in all of its pipelines: they belong to the global namespace `shared:<graph>`. All others belong to the prompt's
own namespace, written `<graph>/<whose>`, which two prompts share only if one pipeline (or one global trace) issued both.
Whoever turns block ids into text or keys must ask `block_namespace`, or split a prompt with `owned_runs`.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from amf.sim.plan import PromptPlan

SHARED_BLOCKS = 1 << 20

Run = tuple[int, int]  # (first id, count)


def block_namespace(prompt: PromptPlan, block_id: int) -> str:
    """The namespace in which `block_id` is unique; two blocks are the same text if namespace and id agree."""
    if block_id < SHARED_BLOCKS:
        return f"shared:{prompt.namespace.partition('/')[0]}"
    return prompt.namespace


def owned_runs(prompt: PromptPlan) -> list[tuple[str, int, int]]:
    """The prompt's runs as (namespace, first id, count): none crosses SHARED_BLOCKS, neighbours are merged."""
    owned: list[tuple[str, int, int]] = []
    for first, count in merged(prompt.runs):
        below = min(count, max(0, SHARED_BLOCKS - first))
        if below:
            owned.append((block_namespace(prompt, first), first, below))
        if count > below:
            owned.append((prompt.namespace, first + below, count - below))
    return owned


def merged(runs: Iterable[Run]) -> tuple[Run, ...]:
    """The same ids in as few runs as possible."""
    result: list[Run] = []
    for first, count in runs:
        if not count:
            continue
        if result and result[-1][0] + result[-1][1] == first:
            result[-1] = (result[-1][0], result[-1][1] + count)
        else:
            result.append((first, count))
    return tuple(result)


def first_blocks(runs: Sequence[Run], blocks: int) -> tuple[Run, ...]:
    """The first `blocks` blocks of `runs`."""
    result: list[Run] = []
    for first, count in runs:
        if blocks <= 0:
            break
        result.append((first, min(count, blocks)))
        blocks -= count
    return tuple(result)


def blocks_from(runs: Sequence[Run], blocks: int) -> tuple[Run, ...]:
    """`runs` without their first `blocks` blocks."""
    result: list[Run] = []
    for first, count in runs:
        skip = min(count, blocks)
        blocks -= skip
        if count > skip:
            result.append((first + skip, count - skip))
    return tuple(result)


def compressed(ids: Sequence[int]) -> tuple[Run, ...]:
    """A list of ids as runs."""
    if not ids:
        return ()
    numbers = np.asarray(ids, dtype=np.int64)
    starts = np.concatenate(([0], np.flatnonzero(np.diff(numbers) != 1) + 1, [len(numbers)]))
    return tuple(zip(numbers[starts[:-1]].tolist(), np.diff(starts).tolist(), strict=True))
