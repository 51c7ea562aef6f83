"""A file of lines that is written while the event loop goes on.

Adding a line is a step in memory; a thread of the writer's own turns what was added into bytes and carries it to the file,
so that neither a slow disk nor costly encoding holds the loop. There is one such thread, hence what is added first is
written first, and closing waits for all of it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, Generic, TypeVar

log = logging.getLogger("amf.lines")

Item = TypeVar("Item")


class LineWriter(Generic[Item]):
    """`encode` makes an item its line, in the writer's thread. `name` is what the log calls the file."""

    def __init__(
        self,
        file: BinaryIO,
        encode: Callable[[Item], bytes],
        *,
        name: str,
        flush_interval_s: float,
        max_buffer_bytes: int,
    ) -> None:
        self._file = file
        self._encode = encode
        self._name = name
        self._flush_interval_s = flush_interval_s
        self._max_buffer_bytes = max_buffer_bytes
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._items: list[Item] = []
        self._bytes = 0
        self._written: Future[None] = Future()
        self._written.set_result(None)

    @property
    def full(self) -> bool:
        return self._bytes > self._max_buffer_bytes

    @property
    def busy(self) -> bool:
        """What was handed over is still on its way to the file."""
        return not self._written.done()

    def add(self, item: Item, size_bytes: int) -> None:
        self._items.append(item)
        self._bytes += size_bytes

    def hand_over(self) -> None:
        """Let the thread write what was added so far."""
        items, self._items, self._bytes = self._items, [], 0
        self._written = self._disk.submit(self._write_through, items)

    def wait(self) -> None:
        """Until what was handed over is in the file. Holds the caller."""
        self._written.result()

    async def flush_forever(self) -> None:
        """Carry what was added to the file, every `flush_interval_s`, until cancelled."""
        while True:
            await asyncio.sleep(self._flush_interval_s)
            if self._items and not self.busy:
                self.hand_over()

    def close(self) -> None:
        """Waits until everything is in the file."""
        self.hand_over()
        self._disk.shutdown()
        with contextlib.suppress(OSError):  # the log says so already
            self._file.close()

    def _write_through(self, items: list[Item]) -> None:
        data = b"".join(self._encode(item) + b"\n" for item in items)
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            log.error("a file cannot be written", extra={"file": self._name, "reason": error.strerror})
