"""One emulated worker: the simulated engine, what drives it, what it publishes and how it misbehaves."""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from amf.emulator.config import EmulatorConfig
from amf.emulator.errors import ApiError
from amf.emulator.faults import Dice
from amf.emulator.kv_events import KvPublisher
from amf.emulator.kv_feed import KvFeed
from amf.emulator.live import LiveWorker
from amf.emulator.metrics import CacheInfo, Timings, WorkerMetrics
from amf.emulator.output import Output
from amf.emulator.ticket import Ticket
from amf.emulator.tokenizer import block_keys, count
from amf.sim.worker import QueueFull, RequestTooLarge, SimWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class Levers:
    """What a request says beside its prompt."""

    priority: int = 0
    salt: str = ""
    session_id: str = ""


class Emulator:
    """Raises what `EmulatorConfig.worker` raises. `url` is known once it is served."""

    def __init__(self, config: EmulatorConfig) -> None:
        self.config = config
        self.url = ""
        self.model = config.model_name
        self.worker = SimWorker(config.worker)
        self.worker.speed = config.faults.slow
        self.dice = Dice(config.faults, config.seed)
        self.die: Callable[[], None] = lambda: None
        timings = Timings(config.time_scale)
        cache = CacheInfo(
            block_tokens=config.block_tokens,
            blocks=config.kv_blocks,
            kv_format=config.kv,
            prefix_caching=config.worker.prefix_caching,
        )
        self.metrics = WorkerMetrics(self.worker, timings, self.model, cache)
        self.live = LiveWorker(self.worker, config.time_scale, config.flush_ms / 1000, timings)
        self._publisher: KvPublisher | None = None
        self._serials = itertools.count()

    async def start(self) -> None:
        """Bind the KV event sockets, if any (zmq.ZMQError if a port is taken), and let time run."""
        port = self.config.kv_events_port
        if port is not None:
            self._publisher = KvPublisher(self.config.host, port, self.dice)
            self._publisher.start()
            self.live.kv_feed = KvFeed(self._publisher, self.config.block_tokens)
        self.live.start(self.config.faults, lambda: self.die())

    async def close(self) -> None:
        await self.live.close()
        if self._publisher is not None:
            await self._publisher.close()

    @property
    def kv_endpoint(self) -> str | None:
        """Where to subscribe to KV events."""
        return None if self._publisher is None else f"tcp://{self._address}:{self._publisher.port}"

    @property
    def kv_replay_endpoint(self) -> str | None:
        return None if self._publisher is None else f"tcp://{self._address}:{self._publisher.replay_port}"

    def kv_event_sources(self) -> dict[str, Any]:
        """By data parallel rank, of which there is one; empty without KV events."""
        return {} if self._publisher is None else {"0": self._publisher.describe()}

    def submit(
        self, asked: Sequence[tuple[bytes, Sequence[Output]]], levers: Levers, *, streams: bool = False
    ) -> list[Ticket]:
        """Queue one sequence for each output to each prompt. Raises ApiError (503 queue full, 400 too large); then none is
        queued."""
        changed = asyncio.Event()
        tickets: list[Ticket] = []
        for prompt, outputs in asked:
            for ticket in self._tickets(prompt, outputs, levers, changed):
                ticket.streams = streams
                try:
                    self.live.submit(ticket)
                except (QueueFull, RequestTooLarge) as error:
                    self.abort(tickets)
                    status = 503 if isinstance(error, QueueFull) else 400
                    raise ApiError(status, f"the worker refused the request: {error}") from error
                tickets.append(ticket)
        return tickets

    def _tickets(
        self, prompt: bytes, outputs: Sequence[Output], levers: Levers, changed: asyncio.Event
    ) -> Iterator[Ticket]:
        size = self.config.block_tokens
        caching = self.config.worker.prefix_caching
        shared = block_keys(prompt, size, levers.salt) if caching else []
        for output in outputs:
            content = prompt + output.content
            yield Ticket(
                request_id=str(next(self._serials)).zfill(12),  # in order of arrival: the scheduler's last tie-break
                content=content,
                keys=block_keys(content, size, levers.salt, shared) if caching else [],
                prompt_tokens=count(prompt),
                output_tokens=output.tokens,
                changed=changed,
                finish_reason=output.finish_reason,
                priority=levers.priority,
                salt=levers.salt,
                session_id=levers.session_id,
            )

    def abort(self, tickets: Sequence[Ticket]) -> None:
        """Give up what is not done."""
        for ticket in tickets:
            self.live.abort(ticket)

    async def finish(self, tickets: Sequence[Ticket]) -> None:
        """Wait until all are done. If the wait is cancelled (the client left), the worker is told."""
        try:
            for ticket in tickets:
                while not ticket.done:
                    ticket.changed.clear()
                    await ticket.changed.wait()
        finally:
            self.abort(tickets)

    @property
    def _address(self) -> str:
        return "127.0.0.1" if self.config.host in ("0.0.0.0", "::", "") else self.config.host
