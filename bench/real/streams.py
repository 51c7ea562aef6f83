"""The streams that are compared, each with the server it runs on and what it is there to show."""

from dataclasses import dataclass

from real.server import Setup
from real.traffic import Shape

FCFS = Setup(kv_blocks=33, max_running=8, token_budget=160)
PRIORITY = Setup(kv_blocks=33, max_running=8, token_budget=160, scheduling="priority")
SETUPS = {"fcfs": FCFS, "priority": PRIORITY}

_SHORT = {"context_tokens": 900, "turn_tokens": (5, 120), "system_tokens": (40, 200)}
_LONG_ANSWERS = {"width": (2, 4), "groups": 4, "output_tokens": (30, 250), "priorities": 3, **_SHORT}


@dataclass(frozen=True, kw_only=True)
class Case:
    shows: str
    setup: str
    shape: Shape


def cases(seed: int, share: float = 1.0) -> dict[str, Case]:
    """By name. `share`: of the waves, for a shorter run."""

    def shape(waves: int, **rest: object) -> Shape:
        return Shape(seed=seed, waves=max(2, round(share * waves)), **rest)  # type: ignore[arg-type]

    return {
        "one-by-one": Case(
            shows="shared prefixes, further turns, eviction; no two requests at once",
            setup="fcfs",
            shape=shape(60, width=(1, 1), **_SHORT),
        ),
        "waves": Case(
            shows="2 to 12 requests queued together: admission, chunks, blocks shared within an iteration",
            setup="fcfs",
            shape=shape(16, width=(2, 12), **_SHORT),
        ),
        "late": Case(
            shows="requests that come in mid-run, long answers, KV memory short while decoding: preemption",
            setup="fcfs",
            shape=shape(6, **_LONG_ANSWERS),
        ),
        "priority-waves": Case(
            shows="2 to 12 requests of four priorities queued together",
            setup="priority",
            shape=shape(16, width=(2, 12), priorities=4, **_SHORT),
        ),
        "priority-late": Case(
            shows="three priorities, requests in mid-run, KV memory short while decoding: the least urgent is preempted",
            setup="priority",
            shape=shape(6, **_LONG_ANSWERS),
        ),
    }
