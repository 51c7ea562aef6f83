"""What the simulated worker's parts share: a request inside the engine, an iteration in flight, the counters, the
refusals."""

from dataclasses import dataclass, field

from amf.sim.blocks import BlockTable
from amf.sim.messages import SimRequest


class QueueFull(Exception):
    """The waiting queue is at `max_waiting`."""


class RequestTooLarge(Exception):
    """The request cannot fit in this worker's KV memory, even alone."""


@dataclass(slots=True, eq=False)
class Live:
    """A request between submit and its end.

    `computed` tokens lie in KV while it prefills; when it decodes it makes a token with every tick of the lockstep,
    so that `offset` + tick is what it has produced, and `produced` is only brought up to date when it leaves the
    lockstep.
    """

    request: SimRequest
    arrival_s: float
    target: int  # output tokens after which it ends
    table: BlockTable = field(default_factory=BlockTable)
    computed: int = 0
    produced: int = 0
    offset: int = 0
    seq: int = -1  # order of admission; -1: not running
    phase: int = -1  # ticks = phase (mod block) need a new block; -1: not decoding
    cached_tokens: int = -1  # found at its first start; -1: not started yet
    aborted: bool = False

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def length(self) -> int:
        """Tokens known so far: the prompt and what was produced (outside the lockstep)."""
        return self.request.prompt_tokens + self.produced

    @property
    def urgency(self) -> tuple[int, float, str]:
        return (self.request.priority, self.arrival_s, self.request.request_id)


@dataclass(slots=True, eq=False)
class Iteration:
    """One step of the engine from its start until its results come out at `end_s`."""

    decodes: int = 0
    decode_kv_tokens: int = 0
    chunks: list[tuple[Live, int, int]] = field(default_factory=list)  # request, new tokens, tokens before them
    started: list[Live] = field(default_factory=list)
    preempted: list[Live] = field(default_factory=list)
    stalled: list[Live] = field(default_factory=list)  # running, but left out of this iteration
    stored: list[tuple[Live, int, int]] = field(default_factory=list)  # request, first block, end block
    evicted: list[int] = field(default_factory=list)
    offloaded: list[int] = field(default_factory=list)  # to DRAM
    dropped: list[int] = field(default_factory=list)  # from DRAM
    end_s: float = 0.0

    @property
    def tokens(self) -> int:
        return self.decodes + sum(new for _, new, _ in self.chunks)


@dataclass(slots=True, kw_only=True)
class WorkerStats:
    """Counters since the start (tokens, requests) and gauges of the moment.

    Prompt, cached, query and hit tokens count a request once, when it first starts; computed tokens include
    recomputation after a preemption. `kv_used_ratio` is the share of blocks that live requests hold: cached but free
    blocks are free.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    query_tokens: int = 0
    hit_tokens: int = 0
    computed_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    finished: int = 0
    aborted: int = 0
    running: int = 0
    waiting: int = 0
    kv_used_ratio: float = 0.0
    cached_free_blocks: int = 0
