"""Laws that hold whatever happens in whatever order: a shell that plays every event at random, with every invariant checked
after each; then the journal of the same run replayed."""

import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from amf.core.config import FabricConfig
from amf.core.decisions import Cancel, Dispatch, Hold, Refuse
from amf.core.events import PrefixesCleared, PrefixEvicted, PrefixStored, WorkerDraining, WorkerReported
from amf.core.fabric import Fabric
from amf.core.journal import decision_to_dict, event_from_dict
from amf.core.policy.bundles import BUNDLES, policies_named
from amf.core.types import Tier
from kit import Room, prefix

NAMES = ("w1", "w2", "w3")
SMALL = {
    "max_live_pipelines": 6,
    "max_waiting_calls": 5,
    "lapse_s": 30.0,
    "reserve_s": 40.0,
    "tier_lapse_s": 40.0,
    "pipeline_idle_s": 50.0,
    "cold_tokens": 20_000,
    "fair_burst_tokens": 20_000,
    "max_idle_tenants": 1,
}


def blocks(run: int) -> tuple[int, ...]:
    return tuple(prefix(("system", 1_024), (f"run{run}", 8_192), block=1_024).keys)


class Shell(RuleBasedStateMachine):
    """Keeps its own account of what was decided, and compares."""

    @initialize(policy=st.sampled_from(sorted(BUNDLES)), dram_tokens=st.sampled_from([0, 0, 50_000, 2_000_000]))
    def begin(self, policy: str, dram_tokens: int) -> None:
        self.policy = policy
        self.dram_tokens = dram_tokens  # of workers that join
        self.room = Room(policy, workers=(), **SMALL)
        for name in NAMES[:2]:
            self.room.join(name, dram_tokens=dram_tokens)
        self.open: dict[str, tuple[str, int] | None] = {}  # call -> where it runs, or None while it waits
        self.ended: set[str] = set()
        self.seen_first: set[str] = set()
        self.calls = 0

    def play(self, decisions) -> None:
        for decision in decisions:
            match decision:
                case Dispatch(call_id=call, worker=worker, attempt=attempt):
                    assert call in self.open and self.open[call] is None, "dispatched while it runs or after it ended"
                    assert self.room.fabric.has_worker(worker), "sent to an absent worker"
                    assert attempt <= FabricConfig().max_attempts
                    self.open[call] = (worker, attempt)
                case Hold(call_id=call):
                    assert self.open[call] is None
                case Cancel(call_id=call, worker=worker, attempt=attempt):
                    assert call in self.ended or self.open[call] == (worker, attempt)
                    if call in self.open:
                        self.open[call] = None
                case Refuse(call_id=call):
                    self.open.pop(call, None)
                    self.ended.add(call)

    @rule(run=st.integers(0, 8), size=st.integers(1, 12), deadline=st.none() | st.floats(-5, 60), last=st.booleans())
    def arrive(self, run: int, size: int, deadline: float | None, last: bool) -> None:
        self.calls += 1
        call = f"c{self.calls}"
        due_s = None if deadline is None else self.room.now_s + deadline
        self.open[call] = None
        prompt = prefix(("system", 1_024), (f"run{run}", size * 8_192), block=1_024)
        changes = {"deadline_s": due_s, "final": last, "streams": size % 3 > 0, "tenant": f"tenant{run % 3}"}
        self.play(self.room.arrive(call, f"r{run}", prompt, **changes))

    @rule(
        pick=st.integers(0, 50),
        happening=st.sampled_from(["first", "finish", "fail", "stream-fail", "reject", "cancel"]),
    )
    def progress(self, pick: int, happening: str) -> None:
        running = [call for call, where in self.open.items() if where or happening == "cancel"]
        if not running:
            return
        call = running[pick % len(running)]
        attempt = self.open[call][1] if self.open[call] else 0
        if happening == "first":
            self.seen_first.add(call)
            self.play(self.room.first_token(call, attempt))
            return
        if happening == "fail" and call not in self.seen_first:
            self.open[call] = None  # it waits again, or is refused by what follows
            self.play(self.room.fail(call, attempt))
            return
        del self.open[call]
        self.ended.add(call)
        if happening == "finish":
            self.play(self.room.finish(call, attempt, prompt=9_000, cached=pick * 100))
        elif happening == "cancel":
            self.play(self.room.cancel(call))
        else:
            self.play(self.room.fail(call, attempt, streamed=happening != "reject", retryable=happening != "reject"))

    @rule(name=st.sampled_from(NAMES), happening=st.sampled_from(["join", "lose", "drain", "report", "clear"]))
    def worker(self, name: str, happening: str) -> None:
        now_s = self.room.now_s
        if happening in ("join", "lose"):
            for call, where in self.open.items():
                if where and where[0] == name and call in self.seen_first and self.room.fabric.has_worker(name):
                    pass  # its stream decides how it ends
            if happening == "lose":
                self.play(self.room.lose(name))
            else:
                self.play(self.room.join(name, kv_tokens=200_000, dram_tokens=self.dram_tokens))
        elif happening == "drain":
            self.play(self.room.send(WorkerDraining(at_s=now_s, name=name)))
        elif happening == "report":
            self.play(self.room.send(WorkerReported(at_s=now_s, name=name, running=1, waiting=0, kv_used_ratio=0.5)))
        else:
            self.play(self.room.send(PrefixesCleared(at_s=now_s, name=name, reason="test")))

    @rule(
        name=st.sampled_from(NAMES),
        run=st.integers(0, 8),
        other=st.none() | st.integers(0, 8),
        stored=st.booleans(),
        tier=st.sampled_from([Tier.HBM, Tier.DRAM]),
    )
    def events(self, name: str, run: int, other: int | None, stored: bool, tier: Tier) -> None:
        keys, now_s = blocks(run), self.room.now_s
        if stored:
            evicted = () if other is None else blocks(other)
            self.play(self.room.send(PrefixStored(at_s=now_s, name=name, keys=keys, evicted=evicted, tier=tier)))
        else:
            self.play(self.room.send(PrefixEvicted(at_s=now_s, name=name, keys=keys, tier=tier)))

    @rule(run=st.integers(0, 8))
    def close(self, run: int) -> None:
        self.play(self.room.close(f"r{run}"))

    @rule(step=st.floats(0.01, 30))
    def time(self, step: float) -> None:
        self.play(self.room.wake(self.room.now_s + step))

    @invariant()
    def conserved(self) -> None:
        if not hasattr(self, "room"):
            return
        live = {state.call.call_id for state in self.room.fabric.book.pipelines.calls()}
        assert live == set(self.open), "every call the shell has open is known, and no other"

    @invariant()
    def nothing_outlives_its_deadline_where_late_runs_are_ended(self) -> None:
        if not hasattr(self, "room"):
            return
        fabric = self.room.fabric
        for pipeline in fabric.book.pipelines.live():
            assert fabric.policies.expire(pipeline) > self.room.now_s

    def teardown(self) -> None:
        if not hasattr(self, "room"):
            return
        records = json.loads(json.dumps(self.room.records))
        again = Fabric(self.room.fabric.config, policies_named(self.policy))
        for record in records:
            decided = [decision_to_dict(decision) for decision in again.handle(event_from_dict(record["event"]))]
            assert decided == record["decisions"]


Shell.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestFabricLaws = Shell.TestCase
