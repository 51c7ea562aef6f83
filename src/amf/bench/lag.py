"""How late the driver itself was: when it matters, the numbers measure the driving machine and not the target."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, quantiles

from amf.bench.driver import CallRun

_WORRYING_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """Seconds from a call's due time to its send, and the mean lag as a share of the mean call (send to end)."""

    mean_s: float = 0.0
    p99_s: float = 0.0
    max_s: float = 0.0
    share: float = 0.0

    @property
    def worrying(self) -> bool:
        return self.share > _WORRYING_SHARE

    def line(self, time_scale: float) -> str:
        """In words; real seconds, and modelled ones where they differ."""
        modelled = f" ({self.max_s * time_scale:.1f} s modelled)" if time_scale != 1 else ""
        text = (
            f"driver lag: p99 {self.p99_s * 1000:.0f} ms, max {self.max_s * 1000:.0f} ms{modelled}, "
            f"{self.share:.1%} of a call on average"
        )
        return f"{text} - TOO HIGH: this machine was the bottleneck, lower --time-scale" if self.worrying else text


def lag_of(calls: Iterable[CallRun]) -> Lag:
    runs = list(calls)
    if not runs:
        return Lag()
    lags = [max(0.0, call.lag_s) for call in runs]
    duration_s = fmean(call.end_s - call.sent_s for call in runs)
    return Lag(
        mean_s=fmean(lags),
        p99_s=quantiles(lags, n=100, method="inclusive")[-1] if len(lags) > 1 else lags[0],
        max_s=max(lags),
        share=fmean(lags) / duration_s if duration_s else 0.0,
    )
