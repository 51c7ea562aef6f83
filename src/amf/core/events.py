"""What happened. Every event is frozen data and carries its own time, `at_s`: seconds since the shell's start, never
decreasing. The shell (gateway driver or simulator loop) is the only author of events; late, duplicate and unknown ones
are legal and change nothing. Adding one is a design decision (docs/decisions/).

`attempt` numbers the dispatches of one call from 1, so that news of a dispatch that was given up is recognised as stale.
"""

from dataclasses import dataclass

from amf.core.graph import CallGraph
from amf.core.types import Call, Tier, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphDeclared(Event):
    """A call graph became known (uploaded, configured or imported). Declaring a name again replaces it for new runs."""

    graph: CallGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class CallArrived(Event):
    """A request passed intake. The first call of an unknown `run_id` opens the pipeline."""

    call: Call


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken(Event):
    """The engine produced the first byte of the answer: from here on the call cannot be retried elsewhere."""

    call_id: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFinished(Event):
    """The engine completed the call. Token counts are the engine's own; `cached_tokens` is None if it does not report."""

    call_id: str
    attempt: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailed(Event):
    """An attempt ended without an answer. `streamed`: bytes already reached the client. `retryable`: the fault is the
    worker's (connection, 5xx, stall, garbage), not the request's."""

    call_id: str
    attempt: int
    reason: str
    streamed: bool = False
    retryable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCancelled(Event):
    """The client went away or asked to stop."""

    call_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineClosed(Event):
    """The client declared the run over. Calls still open are cancelled. `cancelled`: it is to do no more, so that later calls
    of it are refused while its summary is kept; otherwise a later call opens it anew."""

    run_id: str
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchDecided(Event):
    """What the client makes of alternatives of one branch group. `group`: its path, `group` or
    `group/alternative/group`. `discarded` ones have lost, or failed their test: what is open of them ends, and nothing more of
    them is done. Once as many as the group wants are `committed`, all others are discarded."""

    run_id: str
    group: str
    committed: tuple[str, ...] = ()
    discarded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined(Event):
    """A worker became usable, for the first time or again. Joining anew forgets what was believed to be warm on it, except
    that one which was draining, and is what it was, takes calls again."""

    worker: Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDraining(Event):
    """The worker takes no new call; what runs there may finish."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(Event):
    """The worker is gone (removed, dead, circuit open). Calls there without a first token are placed again."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReported(Event):
    """A load report scraped from the engine."""

    name: str
    running: int
    waiting: int
    kv_used_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixStored(Event):
    """Engine truth: the worker now holds these blocks. Counted, since engines may hold a block twice. `evicted`: it dropped one
    copy of each of these before, as a `PrefixEvicted` would say."""

    name: str
    keys: tuple[int, ...]
    tier: Tier = Tier.HBM
    evicted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixEvicted(Event):
    """Engine truth: the worker dropped one copy of each of these blocks."""

    name: str
    keys: tuple[int, ...]
    tier: Tier = Tier.HBM


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixesCleared(Event):
    """Nothing believed about this worker's cache holds any more: it was reset, or events were lost (a gap)."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Woke(Event):
    """The answer to a `WakeAt` decision."""
