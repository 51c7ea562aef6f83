"""Predicted warmth: which prefixes each worker of a pool should still hold, if it evicts in LRU order.

Theory. A chain of block keys is stored in a radix tree whose edges are *runs* of keys, so that touching a 100 K-token
context costs a few nodes and not thousands of blocks. Keys are chained hashes: if key j of a run agrees, so do all before
it; the point where two chains part is found by bisection. Each node says, per worker, how many of its leading keys the
worker holds (`Hold`). A use of a chain touches every node from the root, so a parent is never older than its child, what
a worker holds is always closed under "prefix of", and LRU with the deepest node first evicts like an engine: the tail
of the least recently used sequence first.

A hold is *pinned* while a call that covers it is in flight: it counts as warm already (in-flight warmth) and cannot be
evicted, as in the engine. Every other hold has an expiry, since a prediction must not be believed for ever. A system prompt
is held by every worker: `whole_until_s` of its node spares looking at each hold while all are whole and believed.
"""

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import TypeVar

from amf.core.types import Prefix

T = TypeVar("T")


class Hold:
    """One worker's share of a node: its first `count` keys, last used at `used_s`."""

    __slots__ = ("count", "expires_s", "pins", "used_s")

    def __init__(self, count: int, used_s: float, expires_s: float, pins: int) -> None:
        self.count = count
        self.used_s = used_s
        self.expires_s = expires_s
        self.pins = pins


class Node:
    """A run of keys below `parent`. `ends` are tokens from the root; `start` is where the run begins."""

    __slots__ = ("children", "ends", "holds", "keys", "parent", "start", "whole_until_s")

    def __init__(self, keys: tuple[int, ...], ends: Sequence[int], start: int, parent: "Node | None") -> None:
        self.keys = keys
        self.ends = ends
        self.start = start
        self.parent = parent
        self.children: dict[int, Node] = {}
        self.holds: dict[str, Hold] = {}
        self.whole_until_s = inf

    def believed(self, now_s: float) -> tuple[list[str], list[tuple[str, int]]]:
        """Workers that hold all of the run, and (worker, count) of those that hold its beginning."""
        whole, part, until_s = [], [], inf
        for worker, hold in self.holds.items():
            if not hold.pins and hold.expires_s <= now_s:
                until_s = -inf
            elif hold.count < len(self.keys):
                part.append((worker, hold.count))
                until_s = -inf
            else:
                whole.append(worker)
                if not hold.pins:
                    until_s = min(until_s, hold.expires_s)
        self.whole_until_s = until_s
        return whole, part

    def tokens(self, count: int) -> int:
        return self.ends[count - 1] - self.start if count else 0


def _common(run: tuple[int, ...], keys: tuple[int, ...], at: int) -> int:
    """How many leading keys of `run` equal keys[at:]; at least one, by how the child was found."""
    low, high = 1, min(len(run), len(keys) - at)
    if run[high - 1] == keys[at + high - 1]:
        return high
    while low < high - 1:
        middle = (low + high) // 2
        if run[middle - 1] == keys[at + middle - 1]:
            low = middle
        else:
            high = middle
    return low


class PrefixTree:
    """One pool's predictions. `max_blocks` bounds the keys stored; beyond it the fullest worker forgets first."""

    def __init__(self, max_blocks: int) -> None:
        self._root = Node((), (), 0, None)
        self._max_blocks = max_blocks
        self._blocks = 0
        self._held: dict[str, dict[Node, None]] = {}
        self.tokens: dict[str, int] = {}  # worker -> tokens it is believed to hold
        self._capacity: dict[str, int] = {}

    def add_worker(self, worker: str, capacity_tokens: int) -> None:
        self.drop_worker(worker)
        self._held[worker] = {}
        self.tokens[worker] = 0
        self._capacity[worker] = capacity_tokens

    def drop_worker(self, worker: str) -> None:
        for node in list(self._held.get(worker, ())):
            self._release(node, worker)
        for table in (self._held, self.tokens, self._capacity):
            table.pop(worker, None)

    def clear_worker(self, worker: str) -> None:
        """Forget what is not in flight."""
        for node in list(self._held.get(worker, ())):
            if not node.holds[worker].pins:
                self._release(node, worker)

    def hits(self, prefix: Prefix, now_s: float, wrap: Callable[[int], T]) -> dict[str, T]:
        """Worker -> `wrap`(tokens of the prompt expected to be warm there). Workers with none are absent. `wrap` is called
        once per depth and not per worker: many workers share the depth of a common system prompt."""
        found: dict[str, T] = {}
        for node, matched in self._walk(prefix.keys):
            whole = wrap(node.ends[matched - 1])
            if node.whole_until_s > now_s:
                found.update(dict.fromkeys(node.holds, whole))
                continue
            holders, partly = node.believed(now_s)
            found.update(dict.fromkeys(holders, whole))
            for worker, count in partly:
                found[worker] = whole if count >= matched else wrap(node.ends[count - 1])
        return found

    def pin(self, worker: str, prefix: Prefix, now_s: float) -> float:
        """A call with this prompt was sent to the worker: all of it is, or is about to be, warm there. Returns when the
        deepest part that it held already was last used; -inf if it held none."""
        last_s = -inf
        held = self._held.get(worker)
        if held is None:
            return last_s
        added_tokens = 0
        for node in self._grow(prefix):
            hold, size = node.holds.get(worker), len(node.keys)
            if hold is None:
                node.holds[worker] = Hold(size, now_s, now_s, 1)
                held[node] = None
                added_tokens += node.tokens(size)
                continue
            last_s = hold.used_s
            if hold.count < size:
                added_tokens += node.tokens(size) - node.tokens(hold.count)
                hold.count = size
            hold.used_s = now_s
            hold.pins += 1
        self.tokens[worker] += added_tokens
        capacity_tokens = self._capacity[worker]
        if self.tokens[worker] > capacity_tokens:
            self._evict(worker, capacity_tokens * 63 // 64)  # further than needed, so as not to sort at every call
        if self._blocks > self._max_blocks:
            self._shrink()
        return last_s

    def unpin(self, worker: str, prefix: Prefix, now_s: float, expires_s: float) -> None:
        """The call ended: its prompt stays warm until evicted or `expires_s`; an unfinished prefill passes now."""
        for node, matched in self._walk(prefix.keys):
            hold = node.holds.get(worker)
            if hold is None or matched < len(node.keys):
                break
            hold.pins = max(0, hold.pins - 1)
            hold.used_s = now_s
            hold.expires_s = max(hold.expires_s, expires_s)
            node.whole_until_s = min(node.whole_until_s, hold.expires_s)

    def forget_older(self, worker: str, used_s: float) -> int:
        """The engine was seen to have evicted what was last used at `used_s`: under LRU all older is gone too. Returns
        the tokens forgotten."""
        before = self.tokens.get(worker, 0)
        for node in list(self._held.get(worker, ())):
            hold = node.holds.get(worker)
            if hold is not None and not hold.pins and hold.used_s <= used_s:
                self._release(node, worker)
        return before - self.tokens.get(worker, 0)

    def check_invariants(self) -> None:
        blocks = 0
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            blocks += len(node.keys)
            stack.extend(node.children.values())
            assert node.holds or node.children, "a node nobody holds was kept"
            if node.whole_until_s > -inf:
                assert all(hold.count == len(node.keys) for hold in node.holds.values())
                assert all(hold.pins or hold.expires_s >= node.whole_until_s for hold in node.holds.values())
            for worker, hold in node.holds.items():
                assert 0 < hold.count <= len(node.keys)
                assert node in self._held[worker]
                above = node.parent.holds.get(worker) if node.parent and node.parent.keys else None
                if node.parent and node.parent.keys:
                    assert above is not None and above.count == len(node.parent.keys), "a hold without its prefix"
                    assert above.used_s >= hold.used_s and above.pins >= hold.pins
        assert blocks == self._blocks
        for worker, nodes in self._held.items():
            assert self.tokens[worker] == sum(node.tokens(node.holds[worker].count) for node in nodes)

    def _walk(self, keys: tuple[int, ...]) -> Iterator[tuple[Node, int]]:
        node, at = self._root, 0
        while at < len(keys):
            child = node.children.get(keys[at])
            if child is None:
                return
            matched = _common(child.keys, keys, at)
            yield child, matched
            if matched < len(child.keys):
                return
            node, at = child, at + matched

    def _grow(self, prefix: Prefix) -> list[Node]:
        """The nodes that cover exactly this chain, made or split as needed."""
        keys, ends = prefix.keys, prefix.ends
        path: list[Node] = []
        node, at = self._root, 0
        while at < len(keys):
            child = node.children.get(keys[at])
            if child is None:
                child = Node(keys[at:], ends[at:], node.ends[-1] if node.keys else 0, node)
                node.children[keys[at]] = child
                self._blocks += len(child.keys)
                path.append(child)
                break
            matched = _common(child.keys, keys, at)
            if matched < len(child.keys):
                child = self._split(child, matched)
            path.append(child)
            node, at = child, at + matched
        return path

    def _split(self, node: Node, at: int) -> Node:
        """Cut a run after `at` keys; returns the new upper part."""
        parent = node.parent
        assert parent is not None
        upper = Node(node.keys[:at], node.ends[:at], node.start, parent)
        parent.children[upper.keys[0]] = upper
        node.keys, node.ends, node.start, node.parent = node.keys[at:], node.ends[at:], upper.ends[-1], upper
        upper.children[node.keys[0]] = node
        upper.whole_until_s = node.whole_until_s = -inf
        for worker, hold in list(node.holds.items()):
            upper.holds[worker] = Hold(min(hold.count, at), hold.used_s, hold.expires_s, hold.pins)
            self._held[worker][upper] = None
            hold.count -= at
            if hold.count <= 0:
                del node.holds[worker], self._held[worker][node]
        if not node.holds and not node.children:  # only the part above was still held
            del upper.children[node.keys[0]]
            self._blocks -= len(node.keys)
        return upper

    def _evict(self, worker: str, target_tokens: int) -> None:
        """Bring the worker's believed content down to the target, as its LRU would."""
        excess = self.tokens[worker] - target_tokens
        if excess <= 0:
            return
        free = [
            (node.holds[worker].used_s, -node.start, node) for node in self._held[worker] if not node.holds[worker].pins
        ]
        for _, _, node in sorted(free, key=lambda entry: entry[:2]):
            if excess <= 0:
                return
            hold = node.holds[worker]
            held = node.tokens(hold.count)
            if held <= excess:
                excess -= held
                self._release(node, worker)
                continue
            keep = held - excess
            count = next(i for i in range(hold.count, -1, -1) if node.tokens(i) <= keep)
            self.tokens[worker] -= held - node.tokens(count)
            hold.count = count
            node.whole_until_s = -inf
            if not count:
                self._release(node, worker)
            return

    def _shrink(self) -> None:
        """The registry itself is full: the worker believed to hold most gives up a tenth of it."""
        worker = max(sorted(self.tokens), key=lambda name: self.tokens[name])
        self._evict(worker, int(self.tokens[worker] * 0.9))

    def _release(self, node: Node, worker: str) -> None:
        hold = node.holds.pop(worker)
        del self._held[worker][node]
        self.tokens[worker] -= node.tokens(hold.count)
        while not node.holds and not node.children and node.parent is not None:
            self._blocks -= len(node.keys)
            del node.parent.children[node.keys[0]]
            node = node.parent
