"""Streams of requests whose every effect on an engine is determined: token-id prompts, output lengths set, arrivals in waves.

A wave's first group is queued as a whole, in order, before the engine schedules the first of it. Later groups are queued the
same way while the engine is halted between two iterations; which two is read from its log, so the simulated worker can be
given them at the same one. The next wave comes when the last of a wave has ended. So nothing depends on how fast the machine
is. A session's next prompt is its whole history, the engine's own
answers among it, and new tokens; sessions share system prompts; now and then a prompt is sent twice in one wave, so that two
requests fill two blocks with the same content.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from real.tiny_model import VOCABULARY

_FIRST_ORDINARY_TOKEN = 3


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request. `priority`: lower is sooner; counts under priority scheduling only. `group`: within its wave; it comes
    when the first request of the group before has had `after_tokens` of its answer."""

    name: str
    prompt: tuple[int, ...]
    output_tokens: int
    priority: int = 0
    group: int = 0
    after_tokens: int = 0


Wave = tuple[Ask, ...]
Answers = Mapping[str, Sequence[int]]  # request -> the token ids that the engine generated


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a stream looks like; pairs are bounds of a uniform draw."""

    seed: int
    waves: int
    width: tuple[int, int]  # requests in a group
    groups: int = 1  # in a wave
    system_prompts: int = 3
    system_tokens: tuple[int, int] = (40, 300)
    turn_tokens: tuple[int, int] = (5, 200)
    output_tokens: tuple[int, int] = (1, 40)
    new_session: float = 0.3  # probability; else a session of before goes on
    twice: float = 0.1
    priorities: int = 1
    context_tokens: int = 4096


@dataclass
class Stream:
    """Waves one after another; each is made when the answers to all before it are known. Iterate by `next_wave`."""

    shape: Shape
    _random: Random = field(init=False)
    systems: list[tuple[int, ...]] = field(init=False)
    _history: list[tuple[int, ...]] = field(default_factory=list)  # one for each session
    _open: list[tuple[Ask, int]] = field(default_factory=list)  # asked in the last wave, by session
    _made: int = 0

    def __post_init__(self) -> None:
        self._random = Random(self.shape.seed)
        self.systems = [self.tokens(self.shape.system_tokens) for _ in range(self.shape.system_prompts)]

    def next_wave(self, answers: Answers) -> Wave | None:
        """The next wave, or None at the end. `answers` holds those to all waves before it."""
        for ask, session in self._open:
            self._history[session] = ask.prompt + tuple(answers[ask.name])
        self._open.clear()
        if self._made == self.shape.waves:
            return None
        wave: list[Ask] = []
        busy: set[int] = set()
        for group in range(self.shape.groups):
            leader = next((ask for ask in wave if ask.group == group - 1), None)
            after = self._random.randint(1, leader.output_tokens) if leader else 0
            for _ in range(self._random.randint(*self.shape.width)):
                self._add(wave, busy, group, after)
        self._made += 1
        return tuple(wave)

    def _add(self, wave: list[Ask], busy: set[int], group: int, after_tokens: int) -> None:
        again = bool(wave) and self._random.random() < self.shape.twice
        session = -1 if again else self._session(busy)
        ask = Ask(
            name=f"w{self._made:03}-{len(wave):02}",
            prompt=self._random.choice(wave).prompt
            if again
            else self._history[session] + self.tokens(self.shape.turn_tokens),
            output_tokens=self._random.randint(*self.shape.output_tokens),
            priority=self._random.randrange(self.shape.priorities),
            group=group,
            after_tokens=after_tokens,
        )
        wave.append(ask)
        if not again:
            busy.add(session)
            self._open.append((ask, session))

    def _session(self, busy: set[int]) -> int:
        longest = self.shape.context_tokens - self.shape.turn_tokens[1] - self.shape.output_tokens[1]
        free = [index for index, tokens in enumerate(self._history) if index not in busy and len(tokens) <= longest]
        if free and self._random.random() >= self.shape.new_session:
            return self._random.choice(free)
        self._history.append(self._random.choice(self.systems))
        return len(self._history) - 1

    def tokens(self, bounds: tuple[int, int]) -> tuple[int, ...]:
        """Random tokens, of a random number within the bounds."""
        return tuple(self._random.choices(range(_FIRST_ORDINARY_TOKEN, VOCABULARY), k=self._random.randint(*bounds)))
