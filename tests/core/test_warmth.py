"""The registry: predictions against a naive LRU, observations against a counter, and how the two are told apart."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from amf.core.config import FabricConfig
from amf.core.state.observed import Observed
from amf.core.state.prefix_tree import Node, PrefixTree
from amf.core.state.warmth import Warmth
from amf.core.types import Prefix, Tier
from kit import prefix, worker

CHAINS = [
    prefix(*parts)
    for parts in (
        (("s", 64),),
        (("s", 64), ("a", 96)),
        (("s", 64), ("a", 96), ("a2", 160)),
        (("s", 64), ("b", 128)),
        (("s", 32), ("c", 64)),
        (("t", 320),),
        (("t", 320), ("t2", 16)),
    )
]


class NaiveLru:
    """Blocks one by one, as an engine keeps them: least recently used first, tails before heads."""

    def __init__(self, capacity_blocks: int) -> None:
        self.capacity = capacity_blocks
        self.used: dict[int, tuple[float, int]] = {}

    def touch(self, chain: Prefix, now_s: float) -> None:
        for depth, key in enumerate(chain.keys):
            self.used[key] = (now_s, -depth)
        while len(self.used) > self.capacity:
            del self.used[min(self.used, key=self.used.__getitem__)]

    def hit_tokens(self, chain: Prefix) -> int:
        depth = next((i for i, key in enumerate(chain.keys) if key not in self.used), len(chain.keys))
        return chain.tokens_at(depth)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(CHAINS) - 1), max_size=30), st.integers(25, 60))
def test_predictions_never_claim_more_than_an_lru_cache_would_hold(order: list[int], capacity_blocks: int):
    tree, naive = PrefixTree(max_blocks=10_000), NaiveLru(capacity_blocks)
    tree.add_worker("w", capacity_blocks * 16)
    for step, index in enumerate(order):
        now_s = float(step)
        tree.pin("w", CHAINS[index], now_s)
        tree.unpin("w", CHAINS[index], now_s, now_s + 1e9)
        naive.touch(CHAINS[index], now_s)
        tree.check_invariants()
        for chain in CHAINS:
            assert tree.hits(chain, now_s, int).get("w", 0) <= naive.hit_tokens(chain)
        assert tree.hits(CHAINS[index], now_s, int)["w"] == CHAINS[index].ends[-1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["u", "v"]), st.integers(0, len(CHAINS) - 1), st.booleans()), max_size=40))
def test_pins_balance_and_dropping_workers_leaves_nothing(steps: list[tuple[str, int, bool]]):
    tree = PrefixTree(max_blocks=10_000)
    for name in ("u", "v"):
        tree.add_worker(name, 512)
    flying: list[tuple[str, Prefix]] = []
    for at, (name, index, land) in enumerate(steps):
        if land and flying:
            where, chain = flying.pop(0)
            tree.unpin(where, chain, float(at), float(at) + 10.0)
        else:
            tree.pin(name, CHAINS[index], float(at))
            flying.append((name, CHAINS[index]))
        tree.check_invariants()
        for where, chain in flying:
            assert tree.hits(chain, float(at), int)[where] == chain.ends[-1], "what is in flight is warm"
    tree.drop_worker("u")
    tree.drop_worker("v")
    tree.check_invariants()
    assert not any(tree.hits(chain, 0.0, int) for chain in CHAINS)


class Unjoined(PrefixTree):
    """Every run stays a node of its own, as it was made."""

    def _join(self, node: Node, child: Node) -> None:
        pass


def session(number: int, calls: int) -> Prefix:
    """A conversation after so many calls: each adds a run to the last prompt."""
    return prefix(("s", 64), *((f"session {number}, call {call}", 48) for call in range(calls)))


tree_steps = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "send", "end", "end", "break off", "pass", "forget", "clear"]),
        st.sampled_from(["u", "v"]),
        st.integers(0, 3),
        st.integers(0, 9),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(tree_steps, st.integers(300, 900), st.integers(30, 90))
def test_joining_a_sessions_runs_changes_no_answer(
    steps: list[tuple[str, str, int, int]], capacity_tokens: int, max_blocks: int
):
    joined, plain = PrefixTree(max_blocks), Unjoined(max_blocks)
    for tree in (joined, plain):
        tree.add_worker("u", capacity_tokens)
        tree.add_worker("v", capacity_tokens)
    flying: list[tuple[str, Prefix]] = []
    calls, now_s = Counter[int](), 0.0
    for what, name, number, pick in steps:
        if what == "send":
            calls[number] = (
                pick % 3 if pick > 7 else calls[number] + (pick > 1)
            )  # anew, one more run, or the same again
            flying.append((name, session(number, calls[number])))
            assert joined.pin(*flying[-1], now_s) == plain.pin(*flying[-1], now_s)
        elif what in ("end", "break off") and flying:
            where, chain = flying.pop(pick % len(flying))
            for tree in (joined, plain):
                tree.unpin(where, chain, now_s, now_s + 20.0 if what == "end" else now_s)
        elif what == "pass":  # several calls end at one time, so that eviction has ties to break
            now_s += pick
        elif what == "forget":
            assert joined.forget_older(name, now_s - pick) == plain.forget_older(name, now_s - pick)
        elif what == "clear" and not pick:
            joined.clear_worker(name)
            plain.clear_worker(name)
        joined.check_invariants()
        plain.check_invariants()
        assert joined.tokens == plain.tokens
        for chain in (session(number, count) for number in range(4) for count in (1, calls[number])):
            found = joined.hits(chain, now_s, int)
            assert found == plain.hits(chain, now_s, int)
            assert all(joined.hit(worker, chain, now_s) == found.get(worker, 0) for worker in ("u", "v"))


def test_a_session_is_one_node_however_many_calls_it_had():
    tree = PrefixTree(max_blocks=10_000)
    tree.add_worker("w", 1_000_000)
    for calls in range(1, 30):
        tree.pin("w", session(1, calls), float(calls))
        tree.unpin("w", session(1, calls), float(calls), calls + 100.0)
        assert len(tree._held["w"]) == 1
    tree.pin("w", session(2, 1), 30.0)
    assert len(tree._held["w"]) == 3, "where two sessions part, the node is cut"
    tree.check_invariants()


def test_the_registry_is_bounded():
    tree = PrefixTree(max_blocks=500)
    tree.add_worker("w", 10_000_000)
    for number in range(100):
        chain = prefix((f"x{number}", 320))
        tree.pin("w", chain, float(number))
        tree.unpin("w", chain, float(number), 1e9)
    assert tree.tokens["w"] <= 500 * 16
    tree.check_invariants()


def test_predictions_expire():
    tree = PrefixTree(max_blocks=1_000)
    tree.add_worker("w", 1_000_000)
    tree.pin("w", CHAINS[2], 0.0)
    tree.unpin("w", CHAINS[2], 0.0, expires_s=10.0)
    assert tree.hits(CHAINS[2], 9.9, int) and not tree.hits(CHAINS[2], 10.0, int)


block_events = st.lists(
    st.tuples(st.sampled_from(["u", "v", "w"]), st.booleans(), st.integers(0, len(CHAINS) - 1), st.integers(1, 8)),
    max_size=60,
)


def observed_hits(observed: Observed, chain: Prefix) -> dict[str, tuple[int, int]]:
    """By worker; each asked alone must get the same answer."""
    hits = {name: tokens for tokens, names in observed.hits(chain) for name in names}
    assert all(observed.hit(name, chain) == hits.get(name, (0, 0)) for name in ("u", "v", "w"))
    return hits


@settings(max_examples=200, deadline=None)
@given(block_events)
def test_observed_hits_equal_a_counter_of_copies(steps: list[tuple[str, bool, int, int]]):
    observed = Observed()
    truth = {name: Counter[int]() for name in ("u", "v", "w")}
    for name in truth:
        observed.add_worker(name)
    for name, store, index, count in steps:
        keys = CHAINS[index].keys[:count] if store else CHAINS[index].keys[-count:]
        if store:
            observed.stored(name, keys, Tier.HBM)
            truth[name].update(keys)
        else:
            observed.evicted(name, keys, Tier.HBM)
            truth[name] -= Counter(keys)
        assert observed.blocks(name) == len(truth[name])
    for chain in CHAINS:
        hits = observed_hits(observed, chain)
        for name, copies in truth.items():
            depth = next((i for i, key in enumerate(chain.keys) if not copies[key]), len(chain.keys))
            found = hits.get(name, (0, 0))[0]
            assert found <= chain.ends[-1]
            closed = all(copies[key] for key in chain.keys[:depth]) and not any(
                copies[key] for key in chain.keys[depth:]
            )
            if closed:
                assert found == chain.tokens_at(depth)


def test_an_interior_block_missing_ends_the_match_there():
    observed = Observed()
    observed.add_worker("w")
    chain = prefix(("a", 16 * 64))
    observed.stored("w", chain.keys, Tier.HBM)
    observed.evicted("w", (chain.keys[32],), Tier.HBM)
    assert observed_hits(observed, chain)["w"] == (32 * 16, 32 * 16)


def test_lower_tiers_count_as_warm_but_not_as_hbm():
    observed = Observed()
    observed.add_worker("w")
    chain = prefix(("a", 16 * 10))
    observed.stored("w", chain.keys[:4], Tier.HBM)
    observed.stored("w", chain.keys, Tier.DRAM)
    assert observed_hits(observed, chain)["w"] == (160, 64)


def registry(**changes: object) -> Warmth:
    warmth = Warmth(FabricConfig())
    warmth.add_worker(worker("w", **changes))
    return warmth


def test_on_a_worker_with_events_a_prediction_only_bridges_the_lag():
    warmth = registry(has_kv_events=True)
    chain = prefix(("a", 1_600), tail=5)
    warmth.dispatched("w", chain, 0.0)
    assert warmth.hits(chain, 0.0)["w"].tokens == 1_600
    warmth.ended("w", chain, 1.0, completed=True)
    assert warmth.hits(chain, 2.0) and not warmth.hits(chain, 1.0 + FabricConfig().event_lag_s)
    warmth.stored("w", chain.keys, Tier.HBM)
    assert warmth.hits(chain, 1e6)["w"].tokens == 1_600


def test_an_event_gap_forgets_all_but_what_is_in_flight():
    warmth = registry(has_kv_events=True)
    old, flying = prefix(("a", 1_600)), prefix(("b", 1_600), tail=1)
    warmth.stored("w", old.keys, Tier.HBM)
    warmth.dispatched("w", flying, 0.0)
    warmth.clear_worker("w")
    assert not warmth.hits(old, 0.0) and warmth.hits(flying, 0.0)["w"].tokens == 1_600


def test_an_unfinished_prefill_is_not_believed_warm():
    warmth = registry()
    chain = prefix(("a", 1_600))
    warmth.dispatched("w", chain, 0.0)
    warmth.ended("w", chain, 1.0, completed=False)
    assert not warmth.hits(chain, 1.0)


def test_a_whole_prompt_in_the_cache_still_leaves_a_token_to_compute():
    warmth = registry()
    chain = prefix(("a", 1_600))
    warmth.dispatched("w", chain, 0.0)
    assert warmth.hits(chain, 0.0)["w"].tokens == 1_599
