"""The prefix registry: per pool, which prefixes are warm on which worker, how sure that is, and how wrong it has been.

Two sources, kept apart. *Observed* blocks are engine truth from KV events. *Predicted* prefixes are what our own dispatches
must have left behind. On a worker whose events we see, a prediction only bridges the lag until truth arrives
(`event_lag_s` after the call's end); elsewhere it lives until the LRU estimate evicts it, it expires, or the engine's
reported `cached_tokens` disproves it (`correct`). Belief is never more than a belief: `drift` records its error.

A worker with a DRAM tier is predicted twice: by an LRU over both tiers, which says what is warm at all, and by one over HBM
alone, which says what need not be loaded back. What HBM forgets lies in DRAM, so the second is a part of the first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from amf.core.config import FabricConfig
from amf.core.state.observed import Observed
from amf.core.state.prefix_tree import PrefixTree
from amf.core.types import Prefix, Tier, Worker


@dataclass(frozen=True, slots=True)
class Hit:
    """Tokens of a prompt warm on a worker: in any tier, and of these in HBM. The rest must be loaded back."""

    tokens: int
    hbm_tokens: int


COLD = Hit(0, 0)


@dataclass(slots=True)
class Drift:
    """How belief compared with what a worker reported. Tokens."""

    calls: int = 0
    overestimated_tokens: int = 0
    underestimated_tokens: int = 0
    forgotten_tokens: int = 0


class Warmth:
    def __init__(self, config: FabricConfig) -> None:
        self._config = config
        self._predicted = PrefixTree(config.max_warm_blocks)
        self._predicted_hbm = PrefixTree(config.max_warm_blocks)  # of workers with a lower tier
        self._tiered: dict[str, None] = {}
        self._observed = Observed()
        self._has_events: dict[str, bool] = {}
        self._block_tokens: dict[str, int] = {}
        self.drift: dict[str, Drift] = {}
        self._memo: tuple[Prefix, float, dict[str, Hit]] | None = None  # the last answer, until anything changes

    def add_worker(self, worker: Worker) -> None:
        self._memo = None
        self._predicted.add_worker(worker.name, worker.kv_tokens + worker.dram_tokens)
        self._predicted_hbm.drop_worker(worker.name)
        self._tiered.pop(worker.name, None)
        if worker.dram_tokens:
            self._tiered[worker.name] = None
            self._predicted_hbm.add_worker(worker.name, worker.kv_tokens)
        self._observed.add_worker(worker.name)
        self._has_events[worker.name] = worker.has_kv_events
        self._block_tokens[worker.name] = worker.block_tokens
        self.drift[worker.name] = Drift()

    def drop_worker(self, name: str) -> None:
        self._memo = None
        self._predicted.drop_worker(name)
        self._predicted_hbm.drop_worker(name)
        self._observed.drop_worker(name)
        for table in (self._tiered, self._has_events, self._block_tokens, self.drift):
            table.pop(name, None)

    def clear_worker(self, name: str) -> None:
        """Events were lost or the cache was reset: nothing but what is in flight is believed."""
        self._memo = None
        self._observed.clear_worker(name)
        self._predicted.clear_worker(name)
        self._predicted_hbm.clear_worker(name)

    def stored(self, name: str, keys: tuple[int, ...], tier: Tier) -> None:
        self._memo = None
        self._observed.stored(name, keys, tier)

    def evicted(self, name: str, keys: tuple[int, ...], tier: Tier) -> None:
        self._memo = None
        self._observed.evicted(name, keys, tier)

    def hits(self, prefix: Prefix, now_s: float) -> dict[str, Hit]:
        """Worker -> warm tokens of this prompt. In-flight warmth counts; workers without any are absent. At least one
        token is always left to compute, as in every engine."""
        if self._memo is not None and self._memo[0] is prefix and self._memo[1] == now_s:
            return self._memo[2]
        most = max(prefix.total_tokens - 1, 0)

        def predicted(tokens: int) -> Hit:
            return Hit(min(tokens, most), min(tokens, most))

        found = self._predicted.hits(prefix, now_s, predicted)
        if self._tiered:
            in_hbm = self._predicted_hbm.hits(prefix, now_s, lambda tokens: min(tokens, most))
            for name in self._tiered.keys() & found.keys():
                found[name] = Hit(found[name].tokens, min(in_hbm.get(name, 0), found[name].tokens))
        seen: dict[str, Hit] = {}
        for (tokens, hbm_tokens), names in self._observed.hits(prefix):
            seen.update(dict.fromkeys(names, Hit(min(tokens, most), min(hbm_tokens, most))))
        if seen:
            for name, known in found.items():
                hit = seen.get(name, COLD)
                if hit.tokens <= known.tokens:
                    seen[name] = known if hit.hbm_tokens <= known.hbm_tokens else Hit(known.tokens, hit.hbm_tokens)
                elif hit.hbm_tokens < known.hbm_tokens:
                    seen[name] = Hit(hit.tokens, known.hbm_tokens)
            found = seen
        self._memo = (prefix, now_s, found)
        return found

    def hit(self, name: str, prefix: Prefix, now_s: float) -> Hit:
        """The same for one worker."""
        most = max(prefix.total_tokens - 1, 0)
        known = known_hbm = min(self._predicted.hit(name, prefix, now_s), most)
        if name in self._tiered:
            known_hbm = min(self._predicted_hbm.hit(name, prefix, now_s), known)
        tokens, hbm_tokens = self._observed.hit(name, prefix)
        if tokens <= known:
            return Hit(known, max(known_hbm, hbm_tokens))
        return Hit(min(tokens, most), min(max(hbm_tokens, known_hbm), most))

    def dispatched(self, name: str, prefix: Prefix, now_s: float) -> float:
        """A call was sent. Returns when its warm part was last used before (for `correct`)."""
        self._memo = None
        if name in self._tiered:
            self._predicted_hbm.pin(name, prefix, now_s)
        return self._predicted.pin(name, prefix, now_s)

    def ended(self, name: str, prefix: Prefix, now_s: float, completed: bool) -> None:
        """The call ended there. Only a completed prefill is believed to have left the whole prompt behind."""
        self._memo = None
        lag_s = self._config.event_lag_s if self._has_events.get(name) else self._config.prediction_ttl_s
        until_s = now_s + lag_s if completed else now_s
        self._predicted.unpin(name, prefix, now_s, until_s)
        if name in self._tiered:
            self._predicted_hbm.unpin(name, prefix, now_s, until_s)

    def correct(self, name: str, believed_tokens: int, reported_tokens: int, used_s: float) -> None:
        """Compare a hit believed at dispatch with the engine's report. A miss beyond rounding means the engine evicted what
        was last used at `used_s`, so under LRU all that is older is gone as well."""
        drift = self.drift.get(name)
        if drift is None:
            return
        drift.calls += 1
        gap_tokens = believed_tokens - reported_tokens
        if gap_tokens <= 0:
            drift.underestimated_tokens -= gap_tokens
            return
        drift.overestimated_tokens += gap_tokens
        # Text blocks, token estimates and whole engine blocks round differently: 1/16 and two blocks are not a miss.
        if gap_tokens > believed_tokens // 16 + 2 * max(self._block_tokens[name], 256) and not self._has_events[name]:
            self._memo = None
            drift.forgotten_tokens += self._predicted.forget_older(name, used_s)
            self._predicted_hbm.forget_older(name, used_s)

    @property
    def predicted_tokens(self) -> Mapping[str, int]:
        """Worker -> tokens it should hold by our own dispatches and LRU, whatever is known of its events."""
        return self._predicted.tokens

    def resident_tokens(self, name: str) -> int:
        """What the worker is believed to hold, by prediction; where events tell, by observation."""
        if self._has_events.get(name):
            return self._observed.blocks(name) * self._block_tokens[name]
        return self._predicted.tokens.get(name, 0)

    def check_invariants(self) -> None:
        self._predicted.check_invariants()
        self._predicted_hbm.check_invariants()
