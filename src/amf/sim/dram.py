"""What a worker keeps in DRAM: the blocks its KV memory has forgotten, until they are asked for again or are the oldest.

The tier is exclusive. A block comes here when HBM reuses its place, and leaves when it is loaded back, so that the two
capacities add up. HBM forgets in order of last use, so the order of coming is that order too, and the first to have come
is the least recently used of all: this queue and HBM's are one long queue. Hence HBM and DRAM together, like HBM alone,
hold a prefix of whatever they hold.

What HBM forgets of one sequence at a time is a *piece*, deepest block first. The index knows the shallowest block of each
piece that can still be found; keys are chained, so bisection says how far a sequence agrees with it.

A block can be computed anew while it lies here (the last block of a prompt always is), and two copies of one block can be
forgotten. Such a copy is *stale*: it cannot be found, but takes its place until it is the oldest. So what is here depends
on what came and what was loaded, and not on when something was computed in between. Of a piece the stale blocks are always
the shallowest, since HBM holds the prefix of whatever it holds.
"""

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence


class Piece:
    """Blocks of one sequence, the deepest first. `gone` of them, at the front, are forgotten; `stale` ones are at the end."""

    __slots__ = ("gone", "keys", "stale")

    def __init__(self, keys: list[int], stale: int) -> None:
        self.keys = keys
        self.gone = 0
        self.stale = stale

    def __len__(self) -> int:
        return len(self.keys) - self.gone

    @property
    def end(self) -> int:
        """Where in `keys` the blocks that can be found end."""
        return len(self.keys) - self.stale

    @property
    def findable(self) -> int:
        return self.end - self.gone

    def agrees(self, keys: Sequence[int], first: int, end: int) -> int:
        """How many blocks from `first` on, before `end`, are the same; the first is."""
        last, most = self.end - 1, min(self.findable, end - first)
        own = self.keys
        return bisect_left(range(most), True, lo=1, key=lambda ahead: keys[first + ahead] != own[last - ahead])


class DramTier:
    """`blocks` places. Where findable blocks come and go is noted until `drain` is asked for it."""

    def __init__(self, blocks: int) -> None:
        if blocks < 0:
            raise ValueError(f"a DRAM tier has 0 blocks or more, not {blocks}")
        self.total = blocks
        self.used = 0
        self._pieces: deque[Piece] = deque()  # the next to forget first
        self._index: dict[int, Piece] = {}
        self._came: list[int] = []
        self._went: list[int] = []

    def put(self, keys: list[int], stale: int) -> None:
        """HBM has forgotten these blocks of a sequence, the deepest first. It still has a copy of the last `stale`."""
        piece = Piece(keys, stale)
        self._pieces.append(piece)
        self.used += len(piece)
        if piece.findable:
            self._index[keys[piece.end - 1]] = piece
            self._came += keys[: piece.end]
        while self.used > self.total:
            self._forget(self.used - self.total)

    def match(self, keys: Sequence[int], first: int, end: int) -> int:
        """Up to which block `keys` can be found here, from block `first` on; `end` at most."""
        while first < end and (piece := self._index.get(keys[first])) is not None:
            first += piece.agrees(keys, first, end)
        return first

    def load(self, keys: Sequence[int], first: int, end: int) -> None:
        """What `match` has just found goes back to HBM."""
        while first < end:
            piece = self._index.pop(keys[first])
            count = piece.agrees(keys, first, end)
            last = piece.end
            self._went += piece.keys[last - count : last]
            del piece.keys[last - count : last]
            self.used -= count
            self._find(piece)
            first += count

    def spoil(self, keys: Sequence[int], first: int, end: int) -> None:
        """HBM has computed these blocks of a sequence itself: what lies here of them is stale."""
        for depth in range(first, end) if self._index else ():
            piece = self._index.pop(keys[depth], None)
            if piece is not None:
                count, last = piece.agrees(keys, depth, end), piece.end
                self._went += piece.keys[last - count : last]
                piece.stale += count
                self._find(piece)

    def clear(self) -> None:
        self._pieces.clear()
        self._index.clear()
        self.used = 0

    def drain(self) -> tuple[list[int], list[int]]:
        """Keys that came to be found here and keys that are found no more, since the last time asked."""
        came, went = self._came, self._went
        self._came, self._went = [], []
        return came, went

    def contents(self) -> Counter[int]:
        """Every key that can be found."""
        return Counter(key for piece in self._pieces for key in piece.keys[piece.gone : piece.end])

    def check(self) -> None:
        """Raise AssertionError where the books do not balance."""
        assert self.used == sum(map(len, self._pieces)) <= self.total, "DRAM holds more than it has room for"
        findable = {piece.keys[piece.end - 1]: piece for piece in self._pieces if piece.findable}
        assert self._index == findable, "the index of DRAM is wrong"
        assert set(self.contents().values()) <= {1}, "DRAM holds a key twice"

    def _find(self, piece: Piece) -> None:
        if piece.findable:
            self._index[piece.keys[piece.end - 1]] = piece

    def _forget(self, count: int) -> None:
        """Up to `count` blocks of the oldest piece."""
        piece = self._pieces[0]
        taken = min(count, len(piece))
        found = min(taken, piece.findable)
        self._went += piece.keys[piece.gone : piece.gone + found]
        if found and found == piece.findable:
            del self._index[piece.keys[piece.end - 1]]
        piece.gone += taken
        piece.stale = min(piece.stale, len(piece))
        self.used -= taken
        if not len(piece):
            self._pieces.popleft()
        elif 2 * piece.gone > len(piece.keys):
            del piece.keys[: piece.gone]
            piece.gone = 0
