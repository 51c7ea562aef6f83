"""The fabric's urgency as the whole number that an engine takes for its priority."""

import math

MAX_STEPS = 2**31 - 1


def steps(urgency_s: float, steps_per_s: int) -> int:
    """An urgency in seconds, lower sooner, in whole steps, lower sooner too: bounded to either side, NaN last."""
    if math.isnan(urgency_s):
        return MAX_STEPS
    bound_s = MAX_STEPS / steps_per_s
    return max(-MAX_STEPS, min(MAX_STEPS, math.floor(steps_per_s * max(-bound_s, min(bound_s, urgency_s)))))
