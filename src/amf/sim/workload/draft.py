"""Drawing one pipeline of a synthetic graph.

A prompt is: the static text of its thread (system prompt and tools, shared by all pipelines of the graph), what the thread
has said and read so far, and the hop's own new text. A *thread* is one conversation with one model; hops that continue a
thread share its whole prefix, a fork shares it up to the fork. Text made by one model reaches another model's thread by
`read`, as blocks of the same content.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from amf.core.types import CallKind
from amf.sim.plan import CallPlan, GroupPlan, GuessPlan, PipelinePlan, PromptPlan
from amf.sim.workload.blocks import SHARED_BLOCKS, Run, merged
from amf.sim.workload.draws import LogNormal, LogUniform

BLOCK_TOKENS = 64
DIFFICULTY_SIGMA = 0.3

Length = LogNormal | LogUniform


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a hop looks: its pool, the static text it starts from (hops of the same `static` share it), its own new text,
    its answer (tokens) and the tool time before it (seconds)."""

    pool: str
    static: str
    own: Length
    output: Length | None = None  # None: an encoder, which generates nothing
    gap: Length | None = None
    kind: CallKind = CallKind.GENERATE


@dataclass(frozen=True, slots=True)
class Thread:
    """One conversation with one model: the runs its next prompt starts with. Immutable: reading gives a new thread."""

    runs: tuple[Run, ...]

    def read(self, *texts: Run) -> "Thread":
        return Thread(merged((*self.runs, *texts)))


@dataclass(frozen=True, slots=True)
class Reply:
    """A call that was drawn: its index, its text, and its thread including prompt and text."""

    index: int
    text: Run
    thread: Thread


class Draft:
    """The calls of one pipeline so far. All draws come from `rng`; one difficulty factor per pipeline makes the lengths
    of its answers and tools correlate."""

    def __init__(self, graph: str, number: int, statics: Mapping[str, Run], scale_tokens: float, rng: Random) -> None:
        self.rng = rng
        self._graph = graph
        self._identity = f"{graph}/{number}"
        self._statics = statics
        self._scale = scale_tokens
        self._difficulty = LogNormal(1.0, DIFFICULTY_SIGMA).draw(rng)
        self._next_id = SHARED_BLOCKS
        self._calls: list[CallPlan] = []
        self.groups: list[GroupPlan] = []
        self.guesses: list[GuessPlan] = []

    def thread(self, static: str) -> Thread:
        return Thread((self._statics[static],))

    def text(self, length: Length) -> Run:
        """New context text (a task, retrieved documents) of a drawn length."""
        return self._fresh(length.draw(self.rng, self._scale))

    def like(self, reply: Reply) -> Run:
        """New text, as long as the reply's."""
        return self._fresh(reply.text[1] * BLOCK_TOKENS)

    def ask(self, hop: str, shape: Shape, thread: Thread, after: Iterable[Reply] = ()) -> Reply:
        """Draw one call of `hop` on `thread`, ready when all of `after` have finished and its tool time is over."""
        asked = thread.read(self._fresh(shape.own.draw(self.rng, self._scale)))
        output_tokens = round(shape.output.draw(self.rng, self._difficulty)) if shape.output else 0
        text = self._fresh(output_tokens)
        self._calls.append(
            CallPlan(
                index=len(self._calls),
                hop=hop,
                pool=shape.pool,
                prompt=PromptPlan(
                    namespace=self._identity,
                    block_tokens=BLOCK_TOKENS,
                    runs=asked.runs,
                    tail_tokens=self.rng.randrange(BLOCK_TOKENS),
                ),
                output_tokens=output_tokens if shape.kind is not CallKind.GENERATE else max(1, output_tokens),
                parents=tuple(sorted({reply.index for reply in after})),
                gap_s=shape.gap.draw(self.rng, self._difficulty) if shape.gap else 0.0,
                kind=shape.kind,
            )
        )
        return Reply(len(self._calls) - 1, text, asked.read(text))

    def ask_each(self, hop: str, shape: Shape, thread: Thread, count: int, after: Sequence[Reply]) -> list[Reply]:
        """`count` parallel calls on forks of `thread`: hops `hop-1`, `hop-2`, …"""
        return [self.ask(f"{hop}-{number}", shape, thread, after) for number in range(1, count + 1)]

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def pipeline(self) -> PipelinePlan:
        return PipelinePlan(
            pipeline_id=self._identity,
            graph=self._graph,
            calls=tuple(self._calls),
            declared=True,
            groups=tuple(self.groups),
            guesses=tuple(self.guesses),
            speculates=bool(self.groups or self.guesses),
        )

    def _fresh(self, tokens: float) -> Run:
        blocks = max(1, round(tokens / BLOCK_TOKENS)) if tokens > 0 else 0
        run = (self._next_id, blocks)
        self._next_id += blocks
        return run


def static_runs(tokens_by_name: Mapping[str, int], scale_tokens: float) -> dict[str, Run]:
    """Shared block ids for every static text of a graph, side by side below SHARED_BLOCKS."""
    runs: dict[str, Run] = {}
    first = 0
    for name in sorted(tokens_by_name):
        blocks = max(1, round(tokens_by_name[name] * scale_tokens / BLOCK_TOKENS))
        runs[name] = (first, blocks)
        first += blocks
    if first > SHARED_BLOCKS:
        raise ValueError(f"static texts of {first} blocks exceed the {SHARED_BLOCKS} shared ids")
    return runs
