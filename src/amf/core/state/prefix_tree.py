"""Predicted warmth: which prefixes each worker of a pool should still hold, if it evicts in LRU order.

Theory. A chain of block keys is stored in a radix tree whose edges are *runs* of keys, so that touching a 100 K-token
context costs a few nodes and not thousands of blocks. Keys are chained hashes: if key j of a run agrees, so do all before
it; the point where two chains part is found by bisection. Each node says, per worker, how many of its leading keys the
worker holds (`Hold`). A use of a chain touches every node from the root, so a parent is never older than its child, what
a worker holds is always closed under "prefix of", and LRU with the deepest node first evicts like an engine: the tail
of the least recently used sequence first.

A conversation grows by a run at each call. Once a call has ended, a run that is the only one below its parent, and is held
as the parent is, by the same workers, is *joined* to it: a session is one node however many calls it had. Eviction still
goes run by run, the deepest first and then the one that came first, so a node remembers where its runs begin (`cuts`) and
a hold when each of them came (`orders`).

A hold is *pinned* while a call that covers it is in flight: it counts as warm already (in-flight warmth) and cannot be
evicted, as in the engine. Every other hold has an expiry, since a prediction must not be believed for ever. A system prompt
is held by every worker: `whole_until_s` of its node spares looking at each hold while all are whole and believed.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import count, groupby
from math import inf
from operator import itemgetter
from typing import TypeVar

from amf.core.types import Prefix

T = TypeVar("T")


class Hold:
    """One worker's share of a node: its first `count` keys, last used at `used_s`; `orders` has a number for each run in it."""

    __slots__ = ("count", "expires_s", "orders", "pins", "used_s")

    def __init__(self, count: int, used_s: float, expires_s: float, pins: int, orders: list[int]) -> None:
        self.count = count
        self.used_s = used_s
        self.expires_s = expires_s
        self.pins = pins
        self.orders = orders

    def like(self, other: "Hold") -> bool:
        return self.used_s == other.used_s and self.pins == other.pins and self.expires_s == other.expires_s


class Node:
    """Keys below `parent`. `ends` are tokens from the root; `start` is where they begin; `cuts` are the indices of `keys`
    where its runs begin, from 0."""

    __slots__ = ("children", "cuts", "ends", "holds", "keys", "parent", "start", "whole_until_s")

    def __init__(self, keys: Sequence[int], ends: Sequence[int], start: int, parent: "Node | None") -> None:
        self.keys = keys
        self.ends = ends
        self.start = start
        self.parent = parent
        self.cuts = [0]
        self.children: dict[int, Node] = {}
        self.holds: dict[str, Hold] = {}
        self.whole_until_s = inf

    def believed(self, now_s: float) -> tuple[list[str], list[tuple[str, int]]]:
        """Workers that hold all of the keys, and (worker, count) of those that hold the first."""
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

    def runs(self, worker: str) -> Iterator[tuple[int, int, int, "Node"]]:
        """The worker's runs here in the order of eviction: (-tokens before it, order, cut, node)."""
        cuts, orders = self.cuts, self.holds[worker].orders
        for index in range(len(orders) - 1, -1, -1):
            yield -self.start - self.tokens(cuts[index]), orders[index], cuts[index], self


def _common(run: Sequence[int], keys: Sequence[int], at: int) -> int:
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


def _joined(ends: Sequence[int], more: Sequence[int]) -> Sequence[int]:
    if isinstance(ends, range) and isinstance(more, range) and ends.step == more.step == more[0] - ends[-1]:
        return range(ends[0], more[-1] + 1, ends.step)
    return (*ends, *more)


class PrefixTree:
    """One pool's predictions. `max_blocks` bounds the keys stored; beyond it the fullest worker forgets first."""

    def __init__(self, max_blocks: int) -> None:
        self._root = Node((), (), 0, None)
        self._max_blocks = max_blocks
        self._blocks = 0
        self._order = count()
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
            for worker, held in partly:
                found[worker] = whole if held >= matched else wrap(node.ends[held - 1])
        return found

    def hit(self, worker: str, prefix: Prefix, now_s: float) -> int:
        """Tokens of the prompt expected to be warm on this worker."""
        tokens = 0
        for node, matched in self._walk(prefix.keys):
            hold = node.holds.get(worker)
            if hold is not None and (hold.pins or hold.expires_s > now_s):
                tokens = node.ends[min(hold.count, matched) - 1]
        return tokens

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
                hold = node.holds[worker] = Hold(0, now_s, now_s, 0, [])
                held[node] = None
            else:
                last_s = hold.used_s
            if hold.count < size:
                added_tokens += node.tokens(size) - node.tokens(hold.count)
                hold.count = size
                hold.orders += (next(self._order) for _ in range(len(node.cuts) - len(hold.orders)))
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
        path: list[Node] = []
        for node, matched in self._walk(prefix.keys):
            hold = node.holds.get(worker)
            if hold is None or matched < len(node.keys):
                break
            hold.pins = max(0, hold.pins - 1)
            hold.used_s = now_s
            hold.expires_s = max(hold.expires_s, expires_s)
            node.whole_until_s = min(node.whole_until_s, hold.expires_s)
            path.append(node)
        for upper, lower in zip(path[-2::-1], path[:0:-1], strict=True):  # from the tail on
            if len(upper.children) == 1:
                self._join(upper, lower)

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
            assert len(node.keys) == len(node.ends) and node.cuts[0] == 0
            assert node.cuts == sorted(set(node.cuts)) and node.cuts[-1] < len(node.keys)
            assert all(child.parent is node and child.start == node.ends[-1] for child in node.children.values())
            if node.whole_until_s > -inf:
                assert all(hold.count == len(node.keys) for hold in node.holds.values())
                assert all(hold.pins or hold.expires_s >= node.whole_until_s for hold in node.holds.values())
            for worker, hold in node.holds.items():
                assert 0 < hold.count <= len(node.keys)
                assert len(hold.orders) == bisect_left(node.cuts, hold.count)
                assert node in self._held[worker]
                above = node.parent.holds.get(worker) if node.parent and node.parent.keys else None
                if node.parent and node.parent.keys:
                    assert above is not None and above.count == len(node.parent.keys), "a hold without its prefix"
                    assert above.used_s >= hold.used_s and above.pins >= hold.pins
        assert blocks == self._blocks
        for worker, nodes in self._held.items():
            assert self.tokens[worker] == sum(node.tokens(node.holds[worker].count) for node in nodes)

    def _walk(self, keys: Sequence[int]) -> Iterator[tuple[Node, int]]:
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
        """Cut a node after `at` keys; returns the new upper part. Of a run that is cut, the lower half is the old one."""
        parent = node.parent
        assert parent is not None
        upper = Node(node.keys[:at], node.ends[:at], node.start, parent)
        parent.children[upper.keys[0]] = upper
        runs = bisect_left(node.cuts, at)  # that begin in the upper part
        within = runs == len(node.cuts) or node.cuts[runs] > at
        upper.cuts, below = node.cuts[:runs], [cut - at for cut in node.cuts[runs:]]
        node.cuts = [0, *below] if within else below
        node.keys, node.ends, node.start, node.parent = node.keys[at:], node.ends[at:], upper.ends[-1], upper
        upper.children[node.keys[0]] = node
        upper.whole_until_s = node.whole_until_s = -inf
        for worker, hold in list(node.holds.items()):
            orders, kept = hold.orders[:runs], hold.orders[runs - within :]
            if within and len(orders) == runs:
                orders[-1] = next(self._order)
            upper.holds[worker] = Hold(min(hold.count, at), hold.used_s, hold.expires_s, hold.pins, orders)
            self._held[worker][upper] = None
            hold.count, hold.orders = hold.count - at, kept
            if hold.count <= 0:
                del node.holds[worker], self._held[worker][node]
        if not node.holds and not node.children:  # only the part above was still held
            del upper.children[node.keys[0]]
            self._blocks -= len(node.keys)
        return upper

    def _join(self, node: Node, child: Node) -> None:
        """Make an only child part of its parent, if whoever holds the one holds the other in the same way."""
        if len(node.holds) != len(child.holds):
            return
        for worker, hold in child.holds.items():
            above = node.holds.get(worker)
            if above is None or not above.like(hold) or hold.count < len(child.keys):
                return
        size = len(node.keys)
        for worker, hold in child.holds.items():
            above = node.holds[worker]
            above.count += hold.count
            above.orders += hold.orders
            del self._held[worker][child]
        node.keys += child.keys  # type: ignore[operator]
        node.ends = _joined(node.ends, child.ends)
        node.cuts += [size + cut for cut in child.cuts]
        node.whole_until_s = min(node.whole_until_s, child.whole_until_s)
        node.children = child.children
        for grandchild in node.children.values():
            grandchild.parent = node

    def _evict(self, worker: str, target_tokens: int) -> None:
        """Bring the worker's believed content down to the target, as its LRU would."""
        excess = self.tokens[worker] - target_tokens
        if excess <= 0:
            return
        free = [(hold.used_s, node) for node in self._held[worker] if not (hold := node.holds[worker]).pins]
        free.sort(key=itemgetter(0))
        for _, equals in groupby(free, key=itemgetter(0)):
            excess = self._evict_among(worker, [node for _, node in equals], excess)
            if excess <= 0:
                return

    def _evict_among(self, worker: str, nodes: list[Node], excess: int) -> int:
        """Evict runs of these nodes, all last used at one time, the deepest first. Returns the excess that is left."""
        left: dict[Node, int] = {}  # keys that stay
        for _, _, cut, node in merge(*(node.runs(worker) for node in nodes)):
            if excess <= 0:
                break
            has, before = left.get(node, node.holds[worker].count), node.tokens(cut)
            held = node.tokens(has) - before
            if held <= excess:
                excess -= held
                left[node] = min(cut, has)
                continue
            left[node] = bisect_right(node.ends, node.start + before + held - excess, cut, has)
            excess = 0
        for node, size in left.items():
            self._trim(node, worker, size)
        return excess

    def _trim(self, node: Node, worker: str, size: int) -> None:
        """Let the worker hold only the first `size` keys, and forget the runs that nobody holds any more."""
        if not size:
            return self._release(node, worker)
        hold = node.holds[worker]
        self.tokens[worker] -= node.tokens(hold.count) - node.tokens(size)
        runs = bisect_left(node.cuts, size)
        hold.count = size
        del hold.orders[runs:]
        node.whole_until_s = -inf
        if runs < len(node.cuts):
            self._split(node, node.cuts[runs])
        return None

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
