"""What is compared: one account of a stream, in the same form whether a real engine or the simulated worker gave it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, takewhile


@dataclass(frozen=True)
class Step:
    """Blocks that one iteration of the engine stored and removed, by our keys, in order."""

    stored: tuple[int, ...]
    removed: tuple[int, ...]


@dataclass
class Seen:
    """By request name: cached tokens as in `usage`, time of its end on any clock, output token ids, iterations before it
    arrived, how many of its last tokens came faster than they can have been made. `iteration_tokens`: how many tokens each
    iteration computed."""

    cached: dict[str, int] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    arrivals: dict[str, int] = field(default_factory=dict)
    held_up: dict[str, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    iteration_tokens: list[int] = field(default_factory=list)
    preemptions: int = 0

    @property
    def stored(self) -> list[int]:
        return [key for step in self.steps for key in step.stored]

    @property
    def removed(self) -> list[int]:
        return [key for step in self.steps for key in step.removed]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How much of two accounts is the same. Of two numbers the first is the real engine's.

    Pairs are requests of one wave of which the simulated worker ends one in an earlier iteration than the other. A pair is
    *together* if the real engine's answers ended the other way round, but the later one's last tokens came faster than
    iterations can make them and reach back to before the earlier one's end: its API server had held them up, and which
    was first cannot be seen.
    """

    requests: int
    cached_equal: int
    cached_tokens: tuple[int, int]
    pairs: int
    pairs_in_order: int
    pairs_together: int
    evictions: tuple[int, int]
    evictions_equal: int  # how far the two orders of eviction are the same
    stores: tuple[int, int]
    stores_equal: int  # stored by both, as often
    steps: tuple[int, int]  # iterations that store or remove blocks
    steps_equal: int  # how far the iterations are the same, block for block
    iterations: tuple[int, int]
    iterations_equal: int  # how far they compute as many tokens
    preemptions: tuple[int, int]

    @property
    def exact(self) -> bool:
        """Whether nothing at all differs."""
        return self.exact_inside and self.pairs_in_order + self.pairs_together == self.pairs

    @property
    def exact_inside(self) -> bool:
        """Whether nothing differs but, perhaps, the order in which answers were seen to end. On a busy machine a last token
        can be delivered late, and nothing tells of it."""
        return (
            self.cached_equal == self.requests
            and self.evictions == (self.evictions_equal,) * 2
            and self.stores == (self.stores_equal,) * 2
            and self.steps == (self.steps_equal,) * 2
            and self.iterations == (self.iterations_equal,) * 2
            and self.preemptions[0] == self.preemptions[1]
        )


def compare(real: Seen, simulated: Seen) -> Agreement:
    """Both accounts of one stream, side by side."""
    pairs = [
        (one, other)
        for one, other in combinations(sorted(simulated.ends, key=lambda name: simulated.ends[name]), 2)
        if wave_of(one) == wave_of(other) and simulated.ends[one] < simulated.ends[other]
    ]
    return Agreement(
        requests=len(real.cached),
        cached_equal=sum(simulated.cached.get(name) == tokens for name, tokens in real.cached.items()),
        cached_tokens=(sum(real.cached.values()), sum(simulated.cached.values())),
        pairs=len(pairs),
        pairs_in_order=sum(real.ends[one] < real.ends[other] for one, other in pairs),
        pairs_together=sum(
            real.ends[one] >= real.ends[other]
            and simulated.ends[other] - real.held_up[other] + 1 <= simulated.ends[one]
            for one, other in pairs
        ),
        evictions=(len(real.removed), len(simulated.removed)),
        evictions_equal=_common(real.removed, simulated.removed),
        stores=(len(real.stored), len(simulated.stored)),
        stores_equal=(Counter(real.stored) & Counter(simulated.stored)).total(),
        steps=(len(real.steps), len(simulated.steps)),
        steps_equal=_common(real.steps, simulated.steps),
        iterations=(len(real.iteration_tokens), len(simulated.iteration_tokens)),
        iterations_equal=_common(real.iteration_tokens, simulated.iteration_tokens),
        preemptions=(real.preemptions, simulated.preemptions),
    )


def wave_of(name: str) -> str:
    return name.partition("-")[0]


def _common(one: Sequence[object], other: Sequence[object]) -> int:
    """The length of the longest common beginning."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
