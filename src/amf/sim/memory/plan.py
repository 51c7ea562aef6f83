"""The pipelines of a run, drawn so that every layout meets the same ones.

A pipeline is a chain of hops on one growing context. A hop is one call, or a group of branches on the same context. How long
a call takes is drawn and priced once: prefill of its context as if cold, then so many seconds a token. So it takes as long on
every layout, and layouts differ in memory alone; compute is not contended for.

Numbers: contexts are lognormal about the study's median; a branch's own prompt has a median of 300 tokens and an answer one
of 600. An answer's declared bound is the power of two that is at least 1.3 times as long, since clients declare round numbers
with some room. Half of the groups want the first success (each attempt with probability one half), the others the best of
all, which a test decides after it has them. Two of three hops are followed by another, after a tool's gap.
"""

from dataclasses import dataclass, replace
from random import Random

from amf.core.cost import Deployment, prefill_s, worker_profile
from amf.core.presets import gpu_preset, model_preset
from amf.core.types import WorkerProfile
from amf.sim.memory.scenario import GPU, MODEL, MemoryScenario, MemoryWorkload
from amf.sim.workload.draws import LogNormal

OWN_TOKENS = LogNormal(300, 0.6, low=32, high=4_000)
OUTPUT_TOKENS = LogNormal(600, 0.8, low=16, high=6_000)
_TEST_S = LogNormal(2.0, 0.6)
_GAP_S = LogNormal(8.0, 1.0)
_CONTEXT_SIGMA = 0.6
_BOUND_ROOM = 1.3
_SUCCESS = 0.5
_FOLLOWED = 2 / 3
_TOKEN_S = 0.025
PROFILE: WorkerProfile = worker_profile(model_preset(MODEL), gpu_preset(GPU), Deployment(tensor_parallel=4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """`own_tokens` of prompt after the shared context, `output_tokens` that come, `bound_tokens` that might. `works`: its
    attempt passes the test."""

    own_tokens: int
    output_tokens: int
    bound_tokens: int
    works: bool

    @property
    def true_tokens(self) -> int:
        return self.own_tokens + self.output_tokens

    @property
    def most_tokens(self) -> int:
        return self.own_tokens + self.bound_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """`gap_s` before it is due. `first_wins`: the first branch that works ends the others; else all end, and after `test_s` one
    is chosen, the longest. `known_tokens`: of its context, those that the hop before left behind."""

    context_tokens: int
    known_tokens: int
    branches: tuple[Branch, ...]
    first_wins: bool
    test_s: float
    gap_s: float

    def seconds(self, branch: Branch) -> float:
        """From its start to its end, undisturbed."""
        prompt = self.context_tokens + branch.own_tokens
        return prefill_s(PROFILE, prompt, 0) + branch.output_tokens * _TOKEN_S

    @property
    def order(self) -> list[int]:
        """Its branches as they would end."""
        return sorted(range(len(self.branches)), key=lambda index: (self.seconds(self.branches[index]), index))

    @property
    def winner(self) -> int:
        """The branch that is committed; the last to end if none works."""
        if self.first_wins:
            order = self.order
            return next((index for index in order if self.branches[index].works), order[-1])
        return max(range(len(self.branches)), key=lambda index: self.branches[index].true_tokens)

    @property
    def decided_s(self) -> float:
        """From its start to the commit."""
        ends = [self.seconds(branch) for branch in self.branches]
        if self.first_wins or len(ends) == 1:
            return ends[self.winner]
        return max(ends) + self.test_s


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPipeline:
    arrival_s: float
    hops: tuple[Hop, ...]


def draw(scenario: MemoryScenario, seed: int) -> tuple[MemoryPipeline, ...]:
    """In order of arrival. The same seed gives the same contexts and first branches whatever the number of branches."""
    chains = [_chain(scenario.workload, Random(f"{seed}/{index}")) for index in range(scenario.workload.pipelines)]
    demand = sum(_page_seconds(hop, scenario) for chain in chains for hop in chain)
    horizon_s = demand / (scenario.workload.load * (scenario.kv_tokens // scenario.page_tokens))
    rng = Random(f"{seed}/arrivals")
    times = sorted(rng.uniform(0, horizon_s) for _ in chains)
    return tuple(MemoryPipeline(arrival_s=at, hops=chain) for at, chain in zip(times, chains, strict=True))


def whole_pages(hop: Hop, page_tokens: int) -> tuple[int, list[int]]:
    """Whole pages of what the branches share, and those of each one's own, which has the rest of the last shared one."""
    before = hop.context_tokens % page_tokens
    return hop.context_tokens // page_tokens, [-(-(before + each.true_tokens) // page_tokens) for each in hop.branches]


def _chain(workload: MemoryWorkload, rng: Random) -> tuple[Hop, ...]:
    context = int(LogNormal(workload.context_tokens, _CONTEXT_SIGMA, 1_000, workload.context_most_tokens).draw(rng))
    hops, known = list[Hop](), 0
    while not hops or rng.random() < _FOLLOWED:
        hops.append(_hop(workload, (context, known), rng))
        left = context + hops[-1].branches[hops[-1].winner].true_tokens
        context = min(context + hops[-1].branches[0].true_tokens, workload.context_most_tokens)
        known = min(left, context)
    return tuple(hops)


def _hop(workload: MemoryWorkload, context: tuple[int, int], rng: Random) -> Hop:
    first, grouped, first_wins = _branch(rng), rng.random() < workload.grouped, rng.random() < 0.5
    test_s, gap_s = _TEST_S.draw(rng), _GAP_S.draw(rng)
    others = Random(rng.random())  # a stream of their own: how many there are changes nothing else
    low, high = workload.branches
    more = others.randint(low, high) - 1 if grouped else 0
    return Hop(
        context_tokens=context[0],
        known_tokens=context[1],
        branches=(first, *(_branch(others) for _ in range(more))),
        first_wins=first_wins,
        test_s=test_s,
        gap_s=gap_s,
    )


def _branch(rng: Random) -> Branch:
    output = int(OUTPUT_TOKENS.draw(rng))
    return Branch(
        own_tokens=int(OWN_TOKENS.draw(rng)),
        output_tokens=output,
        bound_tokens=1 << (int(output * _BOUND_ROOM) - 1).bit_length(),
        works=rng.random() < _SUCCESS,
    )


def _page_seconds(hop: Hop, scenario: MemoryScenario) -> float:
    """Of a shared context once, and of each branch until it ends; with `load_without_branches` of the first alone."""
    if scenario.workload.load_without_branches:
        hop = replace(hop, branches=hop.branches[:1])
    shared, own = whole_pages(hop, scenario.page_tokens)
    decided_s = hop.decided_s
    ends = [min(hop.seconds(branch), decided_s) for branch in hop.branches]
    return shared * decided_s + sum(pages * end_s for pages, end_s in zip(own, ends, strict=True))
