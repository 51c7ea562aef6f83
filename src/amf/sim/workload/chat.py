"""Synthetic chat requests that say nothing of their sessions, for where recorded ones (kind mooncake) cannot be shipped.

A conversation is a few turns; each turn is a request, a pipeline of one call, whose prompt is the turn before, its answer and
new text. Nothing but its prompt says that it belongs to the conversation. Numbers are quantiles of 12,031 Mooncake requests
(kvcache-ai/Mooncake, FAST'25, conversation trace, Apache-2.0): inputs and outputs as recorded; turns and the time between
them as inferred from prompts that extend earlier ones. How much a turn adds is our choice, and so is one shared block of
system text. Requests come in the order in which the conversations, begun at the trace's rate, would send them; the scenario
says at what times.
"""

from collections.abc import Iterator
from itertools import count as counted
from random import Random

from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.workload.blocks import SHARED_BLOCKS, Run, merged
from amf.sim.workload.draws import LogNormal, Quantiles

GRAPH = "chat-requests"
BLOCK_TOKENS = 512
REQUESTS_PER_S = 3.4

INPUT_TOKENS = Quantiles.of([(0.5, 6_909), (0.9, 27_367), (0.99, 85_401)], low=600, high=120_000)
OUTPUT_TOKENS = Quantiles.of([(0.5, 350), (0.9, 597), (0.99, 1_120)], low=1, high=4_000)
TURNS = Quantiles.of([(0.5, 1), (0.9, 3), (0.99, 7)], low=1, high=20)
TURN_GAP_S = Quantiles.of([(0.5, 123), (0.9, 480)], low=5, high=3_600)
NEW_TOKENS = LogNormal(1_000, 1.0, low=BLOCK_TOKENS, high=20_000)  # of a further turn; not published


def draw_requests(count: int, pool: str, scale_tokens: float, rng: Random) -> tuple[PipelinePlan, ...]:
    """`count` requests. `scale_tokens` multiplies the lengths of prompts."""
    ids = counted(SHARED_BLOCKS)
    sent: list[tuple[float, int, PromptPlan, int]] = []
    begun_s = 0.0
    for number in range(count):  # a conversation sends its first request when it begins: so many are enough
        begun_s += rng.expovariate(REQUESTS_PER_S / _MEAN_TURNS)
        conversation = Random(rng.getrandbits(64))
        sent += [
            (begun_s + at_s, number, prompt, output) for at_s, prompt, output in _turns(ids, scale_tokens, conversation)
        ]
    sent.sort(key=lambda request: request[:2])
    return tuple(
        PipelinePlan(
            pipeline_id=f"{GRAPH}/{index}",
            graph=GRAPH,
            calls=(CallPlan(index=0, hop="request", pool=pool, prompt=prompt, output_tokens=output_tokens),),
        )
        for index, (_, _, prompt, output_tokens) in enumerate(sent[:count])
    )


def _turns(ids: "counted[int]", scale_tokens: float, rng: Random) -> Iterator[tuple[float, PromptPlan, int]]:
    """(seconds since the conversation began, prompt, output tokens) of each turn."""
    at_s = 0.0
    runs: tuple[Run, ...] = ((0, 1),)
    new_tokens = INPUT_TOKENS.draw(rng)
    for _ in range(round(TURNS.draw(rng))):
        runs = merged(
            (*runs, *((next(ids), 1) for _ in range(max(1, round(new_tokens * scale_tokens / BLOCK_TOKENS) - 1))))
        )
        prompt = PromptPlan(
            namespace=f"{GRAPH}/all", block_tokens=BLOCK_TOKENS, runs=runs, tail_tokens=rng.randrange(BLOCK_TOKENS)
        )
        output_tokens = round(OUTPUT_TOKENS.draw(rng))
        yield at_s, prompt, output_tokens
        at_s += TURN_GAP_S.draw(rng)
        new_tokens = BLOCK_TOKENS + output_tokens + NEW_TOKENS.draw(rng)


def _mean(distribution: Quantiles, draws: int = 20_000) -> float:
    rng = Random(GRAPH)
    return sum(round(distribution.draw(rng)) for _ in range(draws)) / draws


_MEAN_TURNS = _mean(TURNS)
