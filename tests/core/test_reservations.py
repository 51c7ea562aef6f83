"""What calls in flight take of a worker's memory: siblings' common context once, and nothing after the last has ended."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from amf.core.decisions import Hold
from amf.core.events import WorkerJoined
from amf.core.state.reservations import Reservations
from amf.core.types import Prefix
from kit import Room, prefix, worker

BLOCK = 16


def pages(tokens: int) -> int:
    return -(-tokens // BLOCK)


def test_siblings_take_their_common_context_once() -> None:
    reserved = Reservations(BLOCK)
    context = ("context", 1_600)
    reserved.add("r", "a", prefix(context, ("a", 160)), 2_000)
    assert reserved.tokens == 2_000
    sibling = prefix(context, ("b", 160))
    assert reserved.needed("r", sibling, 2_000) == 400, "its own 160, and 240 of an answer"
    assert reserved.needed("other", sibling, 2_000) == 2_000, "nothing is known of other pipelines' prompts"
    reserved.add("r", "b", sibling, 2_000)
    assert reserved.tokens == 2_400
    reserved.remove("r", "a")
    assert reserved.tokens == 2_000, "the context stays for the sibling"
    reserved.remove("r", "b")
    assert reserved.tokens == 0


def test_whole_blocks_are_taken() -> None:
    reserved = Reservations(BLOCK)
    reserved.add("r", "a", prefix(("a", 32), tail=3), 40)
    assert reserved.tokens == 48


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 100)), min_size=1, max_size=8))
def test_needed_is_what_is_added(calls: list[tuple[int, int, int]]) -> None:
    reserved = Reservations(BLOCK)
    for number, (shared, own, answer) in enumerate(calls):
        prompt = prefix(("context", shared * BLOCK), (f"own-{number}", own * BLOCK))
        footprint_tokens = prompt.total_tokens + answer
        before_tokens, needed_tokens = reserved.tokens, reserved.needed("r", prompt, footprint_tokens)
        reserved.add("r", str(number), prompt, footprint_tokens)
        assert reserved.tokens == before_tokens + needed_tokens
        assert needed_tokens <= pages(footprint_tokens) * BLOCK


class Machine(RuleBasedStateMachine):
    """Against the union of pages, computed anew: exact where prompts share prefixes of their first sibling's."""

    def __init__(self) -> None:
        super().__init__()
        self.reserved = Reservations(BLOCK)
        self.runs: dict[str, dict[str, tuple[int, int]]] = {}  # run -> call -> shared pages, own pages
        self.base: dict[str, int] = {}
        self.sent = 0

    def prompt(self, run: str, shared: int, own: int) -> Prefix:
        return prefix((f"context-{run}", shared * BLOCK), (f"own-{self.sent}", own * BLOCK))

    @rule(run=st.sampled_from("rst"), shared=st.integers(0, 6), own=st.integers(0, 4), answer=st.integers(0, 50))
    def start(self, run: str, shared: int, own: int, answer: int) -> None:
        prompt = self.prompt(run, shared, own)
        calls = self.runs.setdefault(run, {})
        if not calls:
            self.base[run] = shared
            in_base = shared + own
        else:
            in_base = min(shared, self.base[run])
        total = pages(prompt.total_tokens + answer)
        calls[str(self.sent)] = (in_base, total - in_base)
        self.reserved.add(run, str(self.sent), prompt, prompt.total_tokens + answer)
        self.sent += 1

    @precondition(lambda self: any(self.runs.values()))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        run, call = data.draw(st.sampled_from([(run, call) for run, calls in self.runs.items() for call in calls]))
        del self.runs[run][call]
        self.reserved.remove(run, call)

    @invariant()
    def takes_what_runs(self) -> None:
        self.reserved.check_invariants({call for calls in self.runs.values() for call in calls})
        expected = sum(
            max((shared for shared, _ in calls.values()), default=0) + sum(own for _, own in calls.values())
            for calls in self.runs.values()
        )
        assert self.reserved.tokens == expected * BLOCK


TestAnyOrder = Machine.TestCase


def test_siblings_fit_where_strangers_do_not() -> None:
    """A worker with room for one context and a half takes eight readers of that context at once."""
    for run, launched in (("one", 8), ("", 1)):
        room = Room(workers=())
        room.send(WorkerJoined(at_s=0.0, worker=worker("w1", kv_tokens=30_000)))
        shared = prefix(("context", 20_000))
        held = 0
        for number in range(8):
            prompt = shared if run else prefix((f"context-{number}", 20_000))
            decisions = room.arrive(
                f"c{number}", run or f"run-{number}", prompt, hop=f"h{number}", max_output_tokens=100
            )
            held += any(isinstance(each, Hold) for each in decisions)
            room.first_token(f"c{number}")
        assert 8 - held == launched
