"""What the fabric would believe of an engine's cache, from observation alone. For tests of adapters, emulated and live."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from amf.engines.blockindex import BlockIndex
from amf.engines.engine import BlocksRemoved, BlocksStored, CacheCleared, Engine, LoadReport


class Belief:
    """The copies of each key, and what else was told."""

    def __init__(self) -> None:
        self.index = BlockIndex()
        self.copies: Counter[int] = Counter()
        self.clears: list[str] = []
        self.sessions: set[str] = set()
        self.loads: list[LoadReport] = []

    async def follow(self, engine: Engine) -> None:
        async for seen in engine.observe():
            match seen:
                case BlocksStored():
                    self.copies.update(self.index.stored(seen))
                    self.sessions.add(seen.session_id)
                case BlocksRemoved():
                    self.copies.subtract(self.index.removed(seen))
                case CacheCleared():
                    self.index.clear()
                    self.copies.clear()
                    self.clears.append(seen.reason)
                case LoadReport():
                    self.loads.append(seen)


@asynccontextmanager
async def believing(engine: Engine) -> AsyncIterator[Belief]:
    """Follows the engine from its first report of load until it is closed."""
    belief = Belief()
    async with asyncio.TaskGroup() as group:
        group.create_task(belief.follow(engine))
        await until(lambda: belief.loads)
        yield belief
        await engine.close()


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)
