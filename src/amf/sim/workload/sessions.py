"""Synthetic coding-agent sessions for where the recorded ones cannot be shipped.

A session is one chain of calls on one model. Every number below is a quantile of 676 recorded Claude Code sessions
(callanjfox/kv-cache-tester, Apache-2.0: 44,758 calls) or, for first inputs, growth and context resets, of 144 of them.
Each call's input is the previous one plus what is new; 1.8 % of calls are context resets (edits, rewinds, compactions)
that keep a tenth of the context and write the rest anew. All sessions begin with the same tools and system text (15 K
tokens), whose blocks they share.

Left out on purpose: sub-agents (2.5 % of sessions), second models (7 %), and contexts beyond a 200 K window (9 % of calls):
at the window the context is reset as above. Gaps and lengths are drawn independently.
"""

from dataclasses import dataclass
from random import Random

from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.workload.blocks import SHARED_BLOCKS, Run, first_blocks, merged
from amf.sim.workload.draws import Quantiles

GRAPH = "coding-sessions"
BLOCK_TOKENS = 64
STATIC_TOKENS = 15_034  # median tools + system
WINDOW_TOKENS = 200_000
RESET_SHARE = 0.018

CALLS = Quantiles.of([(0.1, 7), (0.5, 44), (0.9, 150), (0.99, 346)], low=1, high=600)
FIRST_INPUT_TOKENS = Quantiles.of(
    [(0.1, 16_500), (0.25, 18_400), (0.5, 41_900), (0.75, 117_000)], low=STATIC_TOKENS + 200, high=180_000
)
NEW_TOKENS = Quantiles.of([(0.1, 192), (0.5, 704), (0.9, 4_160), (0.99, 15_300)], low=64, high=60_000)
OUTPUT_TOKENS = Quantiles.of([(0.1, 104), (0.5, 217), (0.9, 878), (0.99, 3_694)], low=1, high=16_000)
TOOL_GAP_S = Quantiles.of([(0.1, 4), (0.5, 9), (0.9, 76), (0.99, 906)], low=0.1, high=3_600)
THINK_GAP_S = Quantiles.of([(0.1, 16), (0.5, 120), (0.9, 1_366), (0.99, 6_551)], low=1, high=14_400)
TURN_CALLS = Quantiles.of([(0.5, 1), (0.9, 14), (0.99, 75)], low=1, high=300)  # model calls per user turn
RESET_KEEP = Quantiles.of([(0.25, 0.076), (0.5, 0.107), (0.75, 0.22), (0.9, 0.52)], low=0.01, high=0.95)
RESET_SIZE = Quantiles.of([(0.1, 0.34), (0.25, 0.70), (0.5, 1.0), (0.9, 1.24)], low=0.15, high=1.5)


@dataclass(slots=True)
class _Context:
    """What the next prompt consists of: runs of blocks, and the next unused id."""

    runs: tuple[Run, ...]
    next_id: int = SHARED_BLOCKS

    @property
    def blocks(self) -> int:
        return sum(count for _, count in self.runs)

    def grow(self, blocks: int) -> None:
        self.runs = merged((*self.runs, (self.next_id, blocks)))
        self.next_id += blocks

    def rewrite(self, keep: int, total: int) -> None:
        self.runs = first_blocks(self.runs, keep)
        self.grow(max(1, total - keep))


def draw_session(number: int, pool: str, think_cap_s: float, scale_tokens: float, rng: Random) -> PipelinePlan:
    """One session. `scale_tokens` multiplies all context lengths; outputs, gaps and the number of calls stay."""
    identity = f"{GRAPH}/{number}"
    static = _blocks(STATIC_TOKENS * scale_tokens)
    context = _Context(runs=((0, static),))
    context.grow(max(1, _blocks(FIRST_INPUT_TOKENS.draw(rng) * scale_tokens) - static))
    calls: list[CallPlan] = []
    left_in_turn = round(TURN_CALLS.draw(rng))
    for index in range(round(CALLS.draw(rng))):
        gap_s = 0.0
        if index:
            _advance(context, static, scale_tokens, rng)
            gap_s = TOOL_GAP_S.draw(rng) if left_in_turn else min(THINK_GAP_S.draw(rng), think_cap_s)
            left_in_turn = left_in_turn or round(TURN_CALLS.draw(rng))
        left_in_turn -= 1
        prompt = PromptPlan(
            namespace=identity, block_tokens=BLOCK_TOKENS, runs=context.runs, tail_tokens=rng.randrange(BLOCK_TOKENS)
        )
        calls.append(
            CallPlan(
                index=index,
                hop="main",
                pool=pool,
                prompt=prompt,
                output_tokens=round(OUTPUT_TOKENS.draw(rng)),
                parents=(index - 1,) if index else (),
                gap_s=gap_s,
            )
        )
    return PipelinePlan(pipeline_id=identity, graph=GRAPH, calls=tuple(calls))


def _advance(context: _Context, static: int, scale_tokens: float, rng: Random) -> None:
    new = max(1, _blocks(NEW_TOKENS.draw(rng) * scale_tokens))
    window = _blocks(WINDOW_TOKENS * scale_tokens)
    full = context.blocks + new > window
    if not full and rng.random() >= RESET_SHARE:
        context.grow(new)
        return
    keep = max(static, round(context.blocks * RESET_KEEP.draw(rng)))
    size = RESET_SIZE.draw(rng)
    total = min(round(context.blocks * (min(size, RESET_SIZE.low * 2) if full else size)), window)
    context.rewrite(min(keep, context.blocks), max(total, keep + new))


def _blocks(tokens: float) -> int:
    return max(1, round(tokens / BLOCK_TOKENS))
