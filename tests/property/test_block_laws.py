"""A pool of stretches does exactly what a pool of single blocks does, written down naively: every block an entry of its
own, every list scanned."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from amf.sim.blocks import BlockPool, BlockTable, count_free, depth_of


@dataclass(eq=False)
class Block:
    key: int | None = None
    holders: int = 1


@dataclass
class NaivePool:
    blank: int
    idle: list[Block] = field(default_factory=list)  # next to forget first
    by_key: dict[int, list[Block]] = field(default_factory=dict)  # copies, oldest first

    def match(self, keys: list[int]) -> list[Block]:
        found = []
        for key in keys:
            if not self.by_key.get(key):
                break
            found.append(self.by_key[key][0])
        return found

    def hold(self, blocks: list[Block]) -> None:
        for block in blocks:
            if not block.holders:
                self.idle.remove(block)
            block.holders += 1

    def take(self, count: int) -> tuple[list[Block], list[int]]:
        keys = []
        for _ in range(count):
            if self.blank:
                self.blank -= 1
            else:
                keys += self.forget()
        return [Block() for _ in range(count)], keys

    def forget(self) -> list[int]:
        block = self.idle.pop(0)
        assert block.key is not None
        self.by_key[block.key].remove(block)
        return [block.key]

    def store(self, blocks: list[Block], keys: list[int]) -> None:
        for block, key in zip(blocks, keys, strict=True):
            block.key = key
            self.by_key.setdefault(key, []).append(block)

    def release(self, blocks: list[Block]) -> None:
        for block in reversed(blocks):
            block.holders -= 1
            if block.holders:
                continue
            if block.key is None:
                self.blank += 1
            else:
                self.idle.append(block)

    def lose(self, count: int) -> int:
        lost = min(count, len(self.idle))
        for _ in range(lost):
            self.forget()
        self.blank += lost
        return lost


@dataclass
class Held:
    """One request in both pools."""

    keys: list[int]
    table: BlockTable
    blocks: list[Block]


@dataclass(frozen=True)
class Op:
    kind: str
    who: int
    count: int
    keys: tuple[int, ...] = ()


def chain(family: int, fork: int, other: int, length: int) -> tuple[int, ...]:
    """Keys of a sequence that follows `family` and, from block `fork` on, `other`."""
    keys, key = [], 0
    for index in range(length):
        key = hash((key, family if index < fork else other))
        keys.append(key)
    return tuple(keys)


CHAINS = st.one_of(
    st.just(chain(0, 4, 0, 4)),  # so often that several copies of its blocks exist
    st.builds(chain, st.integers(0, 1), st.integers(0, 12), st.integers(0, 3), st.integers(1, 14)),
)
OPS = st.lists(
    st.builds(
        Op,
        st.sampled_from(["begin", "begin", "begin", "grow", "grow", "end", "lose"]),
        st.integers(0, 9),
        st.integers(0, 6),
        CHAINS,
    ),
    max_size=60,
)


@settings(max_examples=400)
@given(st.integers(6, 40), OPS)
def test_stretches_do_what_single_blocks_do(size: int, ops: list[Op]) -> None:
    pool, naive, held = BlockPool(size), NaivePool(size), list[Held]()
    for op in ops:
        if op.kind == "begin":
            begin(pool, naive, held, op)
        elif op.kind == "lose":
            assert pool.lose(op.count) == naive.lose(op.count)
        elif held and op.kind == "grow":
            grow(pool, naive, held[op.who % len(held)], op.count)
        elif held:
            ended = held.pop(op.who % len(held))
            pool.release(ended.table)
            naive.release(ended.blocks)
        pool.check([each.table for each in held])
        assert pool.contents() == {key: len(copies) for key, copies in naive.by_key.items() if copies}
        assert (pool.free, pool.cached_free) == (naive.blank + len(naive.idle), len(naive.idle))
    for each in held:
        pool.release(each.table)
        naive.release(each.blocks)
    assert pool.take(BlockTable(), size) == naive.take(size)[1]


def begin(pool: BlockPool, naive: NaivePool, held: list[Held], op: Op) -> None:
    """As an engine admits: what is found is held if the rest has room."""
    keys = list(op.keys)
    parts, blocks = pool.match(keys), naive.match(keys)
    assert depth_of(parts) == len(blocks)
    assert count_free(parts) == sum(not block.holders for block in blocks)
    if len(keys) - len(blocks) + count_free(parts) > pool.free:
        return
    naive.hold(blocks)
    held.append(Held(keys, pool.hold(parts, keys), blocks))


def grow(pool: BlockPool, naive: NaivePool, request: Held, count: int) -> None:
    """Some more blocks, all of them full but perhaps the last."""
    first, length = request.table.keyed, len(request.table)
    more = min(count, pool.free, len(request.keys) - length)
    blocks, forgotten = naive.take(more)
    assert pool.take(request.table, more) == forgotten
    request.blocks += blocks
    end = length + more - count % 2
    if first < end:
        pool.store(request.table, end)
        naive.store(request.blocks[first:end], request.keys[first:end])
