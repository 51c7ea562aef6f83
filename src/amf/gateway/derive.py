"""Which run does a request belong to, when nothing says so? Agents resend their whole history, and that is identity enough.

A chain key names everything up to a message's end. Every prompt seen leaves its last key, its *tip*, with the run it came
from. A request one of whose inner boundaries is a known tip goes on where that prompt ended: it is the same run. The
deepest such boundary wins, since shallow ones may be shared.

Two clients may send the same first prompt. Nothing distinguishes them, so each is a run of its own, and both leave the
same tip. Of the runs that wait at a tip the first to be continued moves on; once all have moved on, the last active one
takes further continuations (a fan-out). Histories that were cut (compaction) lose their tip: an assistant's turn says
that the prompt is no beginning, and the run with the same root, system and first user message, takes it while it is not
idle. Everything here is bounded: the least recently used entry goes first.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from amf.gateway.body import Message

_MAX_WAITING = 256  # runs remembered at one tip


@dataclass(slots=True)
class _Tip:
    waiting: list[str] = field(default_factory=list)  # runs whose newest prompt ends here, oldest first
    last_run: str = ""


@dataclass(frozen=True, slots=True)
class Trail:
    """What a chat prompt says about where it comes from. Scoped by tenant, so that nobody joins another's run."""

    tenant: str
    boundaries: tuple[int, ...]
    root: int | None  # key at the end of the first user message
    has_history: bool  # an assistant or tool turn lies inside
    retried: bool  # the client's SDK says that it sends this again


def trail(messages: list[Message], boundaries: tuple[int, ...], tenant: str, *, retried: bool = False) -> Trail:
    first_user = next((i for i, m in enumerate(messages) if m.role == "user"), None)
    return Trail(
        tenant=tenant,
        boundaries=boundaries,
        root=boundaries[first_user] if first_user is not None else None,
        has_history=any(m.role in ("assistant", "tool") for m in messages),
        retried=retried,
    )


class DerivedRuns:
    """Bounded memory of tips and roots. `find` only reads; `note` is called once the request is accepted."""

    def __init__(self, max_entries: int = 50_000, idle_s: float = 900.0) -> None:
        self._tips: OrderedDict[tuple[str, int], _Tip] = OrderedDict()
        self._roots: OrderedDict[tuple[str, int], tuple[str, float]] = OrderedDict()
        self._max_entries = max_entries
        self._idle_s = idle_s

    def find(self, request: Trail, now_s: float) -> str | None:
        """The run this prompt continues, or None for a new one. `now_s`: real seconds, any origin."""
        known_from = request.boundaries if request.retried else request.boundaries[:-1]
        for key in reversed(known_from):
            tip = self._tips.get((request.tenant, key))
            if tip is not None:
                return tip.waiting[0] if tip.waiting else tip.last_run
        if request.has_history and request.root is not None:
            known = self._roots.get((request.tenant, request.root))
            if known is not None and now_s - known[1] <= self._idle_s:
                return known[0]
        return None

    def note(self, request: Trail, run_id: str, now_s: float) -> None:
        """Remember that `run_id` now ends at this prompt's last boundary."""
        for key in reversed(request.boundaries[:-1]):
            tip = self._tips.get((request.tenant, key))
            if tip is not None:
                if run_id in tip.waiting:
                    tip.waiting.remove(run_id)
                tip.last_run = run_id
                break
        if request.boundaries:
            end = (request.tenant, request.boundaries[-1])
            tip = self._tips.setdefault(end, _Tip())
            self._tips.move_to_end(end)
            if run_id not in tip.waiting:
                tip.waiting.append(run_id)
                del tip.waiting[:-_MAX_WAITING]
            tip.last_run = run_id
        if request.root is not None:
            root = (request.tenant, request.root)
            self._roots[root] = (run_id, now_s)
            self._roots.move_to_end(root)
        for entries in (self._tips, self._roots):
            while len(entries) > self._max_entries:
                entries.popitem(last=False)
