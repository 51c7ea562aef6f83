"""All prompts of one pool as a tree of runs, cut so that every node is used by whole: a call uses all blocks of a node or
none. What two calls share is then the nodes their paths have in common, and a path costs its nodes, not its blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from amf.sim.plan import PromptPlan
from amf.sim.workload.blocks import owned_runs


@dataclass(slots=True, eq=False)
class Node:
    """`count` blocks after the first `start` of a prompt. The rest is what the passes over the paths note down: the
    pipeline that uses it (`shared`: more than one does) and which of its calls do, as bits."""

    start: int
    count: int
    children: dict[tuple[str, int], "Node"] = field(default_factory=dict)
    owner: str | None = None
    shared: bool = False
    calls: int = 0

    @property
    def end(self) -> int:
        return self.start + self.count


def paths(prompts: Sequence[PromptPlan]) -> list[list[Node]]:
    """The nodes of each prompt, from the first block on. Prompts of different block lengths share nothing."""
    roots: dict[int, Node] = {}
    split = [(owned_runs(prompt), roots.setdefault(prompt.block_tokens, Node(0, 0))) for prompt in prompts]
    for runs, root in split:
        _insert(root, runs)
    return [_walk(root, runs) for runs, root in split]


def _insert(root: Node, runs: Sequence[tuple[str, int, int]]) -> None:
    node = root
    for namespace, first, count in runs:
        while count:
            child = node.children.get((namespace, first))
            if child is None:
                child = node.children[namespace, first] = Node(node.end, count)
            elif count < child.count:
                rest = Node(child.start + count, child.count - count, child.children)
                child.count, child.children = count, {(namespace, first + count): rest}
            node, first, count = child, first + child.count, count - child.count


def _walk(root: Node, runs: Sequence[tuple[str, int, int]]) -> list[Node]:
    node, path = root, []
    for namespace, first, count in runs:
        while count:
            node = node.children[namespace, first]
            first, count = first + node.count, count - node.count
            path.append(node)
    return path
