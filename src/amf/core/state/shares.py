"""How much each tenant was served of one pool while calls wait there, so that tenants can share what is scarce.

A counter for each tenant, in tokens of work over the tenant's weight: prompt tokens that were not cached, and answer tokens
`fair_output_weight` times. What is cached costs next to nothing and counts nothing, so a tenant gains by keeping its
prefixes stable. A call counts when it is dispatched, as it is believed to turn out, so that a burst counts before its first
answer; when it finishes, what was wrong about that is put right. An attempt that ends without an answer stays as it counted:
it took the time all the same.

Who wants nothing gains nothing:

- A tenant whose first call comes to wait is lifted to the least counter among those that wait already.
- When no call waits any more everybody has had what it asked for, and all counters begin anew.
- A call is dispatched although its tenant is ahead of another by more than `fair_burst_tokens` only when nothing of the
  other's could start. What the other could not use is lost beyond that: it is lifted to that distance.

So the counter of no tenant is further above that of one that waits than `fair_burst_tokens`, plus one call, plus what the
calls in flight were put right by. Of tenants that do not wait, as many as `max_idle_tenants` are remembered, and only while
others wait; without this memory a tenant could undo its counter by never having two calls in the queue.

Source: the virtual token counter (VTC) of Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, which has no
burst, lifts by the last tenant to leave where nobody waits, and never forgets. The rule that reads the counters is
`policy/sharing.py`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from amf.core.config import FabricConfig


class Shares:
    """Of one pool."""

    def __init__(self, config: FabricConfig) -> None:
        self._config = config
        self._served: dict[str, float] = {}  # weighted tokens; who stopped waiting longest ago stands first of the idle
        self._waiting: dict[str, int] = {}  # tenant -> its calls that wait

    @property
    def contended(self) -> bool:
        """Do calls of several tenants wait?"""
        return len(self._waiting) > 1

    def served(self) -> Mapping[str, float]:
        """Weighted tokens of the tenants that have calls waiting."""
        return {tenant: self._served[tenant] for tenant in self._waiting}

    def within_part(self, tenant: str, places: int) -> bool:
        """Has the tenant fewer calls waiting than `places` divided by all tenants that wait, itself included?"""
        own = self._waiting.get(tenant, 0)
        return own * (len(self._waiting) + (own == 0)) < places

    def arrive(self, tenant: str) -> None:
        """A call of the tenant begins to wait."""
        if tenant in self._waiting:
            self._waiting[tenant] += 1
            return
        least = min((self._served[other] for other in self._waiting), default=0.0)
        self._served[tenant] = max(self._served.get(tenant, 0.0), least)
        self._waiting[tenant] = 1

    def leave(self, tenant: str) -> None:
        """A call of the tenant waits no more, whatever became of it."""
        self._waiting[tenant] -= 1
        if self._waiting[tenant]:
            return
        del self._waiting[tenant]
        if not self._waiting:
            self._served.clear()
            return
        self._served[tenant] = self._served.pop(tenant)
        if len(self._served) - len(self._waiting) > self._config.max_idle_tenants:
            del self._served[next(other for other in self._served if other not in self._waiting)]

    def serve(self, tenant: str, uncached_tokens: int, output_tokens: int) -> None:
        """A call that waited until now was sent to a worker, with so much to compute as far as is known."""
        before = self._served.get(tenant)
        if before is None:  # it was the last to wait
            return
        for other in self._waiting:
            self._served[other] = max(self._served[other], before - self._config.fair_burst_tokens)
        self._served[tenant] = self._served[tenant] + self._work(tenant, uncached_tokens, output_tokens)

    def settle(self, tenant: str, uncached_tokens: int, output_tokens: int) -> None:
        """A call was so many tokens more, or less, than it counted when it was sent."""
        if tenant in self._served:
            more = self._work(tenant, uncached_tokens, output_tokens)
            self._served[tenant] = max(0.0, self._served[tenant] + more)

    def check_invariants(self, waiting: Iterable[str]) -> None:
        """`waiting`: the tenant of each call that waits."""
        assert self._waiting == dict(Counter(waiting))
        assert self._served.keys() >= self._waiting.keys()
        assert bool(self._served) == bool(self._waiting), "counters outlive the queue"
        assert len(self._served) - len(self._waiting) <= self._config.max_idle_tenants
        assert all(tokens >= 0.0 for tokens in self._served.values())

    def _work(self, tenant: str, uncached_tokens: int, output_tokens: int) -> float:
        tokens = uncached_tokens + self._config.fair_output_weight * output_tokens
        return tokens / self._config.tenant_weights.get(tenant, 1.0)
