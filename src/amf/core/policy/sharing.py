"""Whose call goes first, before it is asked which: the tenants that wait, in steps by what they were served.

The first step begins at the least counter (`state/shares.py`) and is `fair_burst_tokens` wide; the next begins at the least
counter beyond it, and so on. Inside a step urgency decides, whosever call it is. A call of a later step goes when nothing of
an earlier one could start.

So a tenant that is more than `fair_burst_tokens` ahead of another is in a later step, and of two tenants that both have calls
that could start, neither's counter is further ahead than `fair_burst_tokens`, one call, and what calls in flight turn out to
cost beyond what was expected of them. With no burst the least served always goes first, which is VTC.
"""

from collections.abc import Mapping

from amf.core.config import FabricConfig


def by_service(served: Mapping[str, float], config: FabricConfig) -> Mapping[str, int]:
    """The step of each tenant, from 0. `served`: weighted tokens."""
    steps: dict[str, int] = {}
    step, begins_at = 0, min(served.values(), default=0.0)
    for tenant, tokens in sorted(served.items(), key=lambda each: each[1]):
        if tokens > begins_at + config.fair_burst_tokens:
            step, begins_at = step + 1, tokens
        steps[tenant] = step
    return steps
