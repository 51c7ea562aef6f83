"""How an emulated worker misbehaves, on purpose and by seed."""

import math
import random
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """All off by default. `_s` are real seconds since the start, except that eviction is per second of the worker's time.

    evict_silently_tokens_per_s: cached blocks vanish without an event.
    drop_events: probability that a batch of KV events is lost; its sequence number is used up and it cannot be replayed.
    die_after_s, die_after_tokens: the process ends in mid-stream, after so many seconds or generated tokens.
    slow: the worker takes this many times as long as its model of the hardware says.
    stall_after_s: generation stops for good while the HTTP server goes on accepting requests, and answers /health.
    garbage: probability that a response is cut off in its middle or is not JSON.
    """

    evict_silently_tokens_per_s: float = 0.0
    drop_events: float = 0.0
    die_after_s: float | None = None
    die_after_tokens: int | None = None
    slow: float = 1.0
    stall_after_s: float | None = None
    garbage: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for a probability outside 0..1, a factor that is not positive, or an amount that is negative or
        not finite."""
        if not (0 <= self.drop_events <= 1 and 0 <= self.garbage <= 1):
            raise ValueError("drop-events and garbage are probabilities: between 0 and 1")
        if not 0 < self.slow < math.inf:
            raise ValueError("slow is a factor: above 0")
        amounts = (self.evict_silently_tokens_per_s, self.die_after_s, self.die_after_tokens, self.stall_after_s)
        if any(amount is not None and not 0 <= amount < math.inf for amount in amounts):
            raise ValueError("a fault's seconds and tokens are numbers of at least 0")


Garbage = Literal["cut", "noise"]


class Dice:
    """The seeded draws. Each kind of fault has its own stream, so that one does not shift another's."""

    def __init__(self, faults: Faults, seed: int) -> None:
        self._faults = faults
        self._events = random.Random(f"{seed}/events")
        self._garbage = random.Random(f"{seed}/garbage")

    def loses_batch(self) -> bool:
        return self._events.random() < self._faults.drop_events

    def garbage(self) -> Garbage | None:
        """How the next response is spoilt, or None."""
        draw, cut = self._garbage.random(), self._garbage.random() < 0.5
        if draw >= self._faults.garbage:
            return None
        return "cut" if cut else "noise"
