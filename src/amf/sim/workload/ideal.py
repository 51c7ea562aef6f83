"""What an infinite cache would have given: per pool, the longest prefix of each prompt that some earlier prompt had.

The prompts seen so far form a tree of runs: an edge is a run of consecutive block ids of one namespace. Following or
inserting a prompt costs its runs, not its blocks.
"""

from dataclasses import dataclass, field

from amf.core.types import CallKind
from amf.sim.plan import PromptPlan, Workload
from amf.sim.workload.blocks import owned_runs


@dataclass(slots=True)
class _Node:
    """The run that leads here, as its length, and the runs that follow, by (namespace, first id)."""

    count: int = 0
    children: dict[tuple[str, int], "_Node"] = field(default_factory=dict)


class PrefixTree:
    """All prompts seen by one cache. Prompts of different block lengths share nothing."""

    def __init__(self) -> None:
        self._roots: dict[int, _Node] = {}

    def add(self, prompt: PromptPlan) -> int:
        """Remember the prompt; return how many of its leading blocks were known."""
        node = self._roots.setdefault(prompt.block_tokens, _Node())
        known, new = 0, False
        for namespace, first, count in owned_runs(prompt):
            while count:
                child = node.children.get((namespace, first))
                if child is None:
                    child = node.children[namespace, first] = _Node(count=count)
                    new = True
                step = min(count, child.count)
                if step < child.count:
                    _split(child, namespace, first, step)
                known += 0 if new else step
                node, first, count = child, first + step, count - step
        return known


def _split(node: _Node, namespace: str, first: int, at: int) -> None:
    """Cut the run leading to `node` after `at` blocks; `node` keeps the first part."""
    rest = _Node(count=node.count - at, children=node.children)
    node.count, node.children = at, {(namespace, first + at): rest}


def ideal_cached_by_call(workload: Workload) -> dict[tuple[str, int], int]:
    """Tokens of each call (pipeline id, index) that an infinite cache per pool would hold when pipelines run one after
    the other in order. The total does not depend on that order. An engine computes at least one token of a prompt, and
    encoders (embedding, reranking) cache nothing."""
    trees: dict[str, PrefixTree] = {}
    ideal: dict[tuple[str, int], int] = {}
    for pipeline in workload.pipelines:
        for call in pipeline.calls:
            if call.kind is not CallKind.GENERATE:
                ideal[pipeline.pipeline_id, call.index] = 0
                continue
            blocks = trees.setdefault(call.pool, PrefixTree()).add(call.prompt)
            tokens = min(blocks * call.prompt.block_tokens, call.prompt.total_tokens - 1)
            ideal[pipeline.pipeline_id, call.index] = max(0, tokens)
    return ideal


def ideal_cached_tokens(workload: Workload) -> int:
    """Prompt tokens of the whole workload that an infinite cache per pool would spare."""
    return sum(ideal_cached_by_call(workload).values())
