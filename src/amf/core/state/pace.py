"""How fast workers really are, as a factor on their profile's seconds (2.0: half as fast).

A pool learns one factor from all its workers, so that a profile that is wrong for the model does not make the workers we
have tried look better, or worse, than those we have not. Each worker's own factor is drawn towards the pool's until it
has shown enough, and differs from it only beyond the noise. Both are ratios of sums, observed over expected seconds, so
long prefills count for more.
"""

from dataclasses import dataclass

_DECAY = 0.98  # per observation: the memory is about fifty of them
_POOL_PRIOR_S = 0.1  # expected seconds of evidence that the profile itself counts for
_WORKER_PRIOR_S = 5.0  # the same for the pool's factor, against a worker's own
_NOISE = 0.2  # a worker within this share of its pool's factor is as fast as its pool
_SLOWEST, _FASTEST = 50.0, 0.02


@dataclass(slots=True)
class Pace:
    """Observed against expected seconds, recent ones weighing most."""

    observed_s: float = 0.0
    expected_s: float = 0.0
    factor: float = 1.0  # as a pool's: drawn towards 1

    def observe(self, observed_s: float, expected_s: float) -> None:
        self.observed_s = self.observed_s * _DECAY + observed_s
        self.expected_s = self.expected_s * _DECAY + expected_s
        ratio = (self.observed_s + _POOL_PRIOR_S) / (self.expected_s + _POOL_PRIOR_S)
        self.factor = min(max(ratio, _FASTEST), _SLOWEST)

    def within(self, pool: "Pace") -> float:
        """A worker's factor, drawn towards its pool's."""
        usual = pool.factor
        factor = (self.observed_s + _WORKER_PRIOR_S * usual) / (self.expected_s + _WORKER_PRIOR_S)
        return usual if -_NOISE * usual <= factor - usual <= _NOISE * usual else factor


class Paces:
    """Prefill and decode apart: one is bound by arithmetic, the other by memory. `stamp` changes when a factor has moved by
    more than a hundredth, so that who keeps a copy knows when to renew it."""

    __slots__ = ("_stamped", "decode", "prefill", "stamp")

    def __init__(self) -> None:
        self.prefill = Pace()
        self.decode = Pace()
        self.stamp = 0
        self._stamped = (1.0, 1.0)

    def observe(self, pace: Pace, observed_s: float, expected_s: float) -> None:
        """One observation for `pace`, which is one of the two."""
        pace.observe(observed_s, expected_s)
        prefill, decode = self._stamped
        if abs(self.prefill.factor - prefill) > 0.01 * prefill or abs(self.decode.factor - decode) > 0.01 * decode:
            self._stamped = (self.prefill.factor, self.decode.factor)
            self.stamp += 1
