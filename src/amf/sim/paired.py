"""Several seeds: means, and whether one policy's gain over another is more than chance.

Runs are paired: under one seed both policies met the same pipelines, so a seed that is hard for one is hard for the other,
and the ratio of the two varies less than either. The gain is the geometric mean of the ratios; its interval is Student's,
95 %, on their logarithms. An interval that covers 1 is inside the noise. The rival is chosen for each figure anew: the one
that is best in it, so that no gain comes from a weak opponent. Choosing the best of several by the same runs flatters the
rival a little, never us.

A 0 against more (as lateness may be) is no ratio. Over runs of which some are such there is no gain, but still a verdict:
better where ours is behind in none of them, worse where it is ahead in none, else inside the noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from statistics import fmean, stdev
from typing import Any, Literal

from amf.core.policy.bundles import BUNDLES
from amf.sim.report import Report, compare

Verdict = Literal[
    "better", "worse", "inside the noise", "the same", "no spread", "one run", "not comparable", "completed fewer"
]  # fmt: skip

# Dotted field of `report.compare` -> what to call it.
FIGURES = {
    "jct_s.mean": "JCT mean",
    "jct_s.p99": "JCT p99",
    "stretch.p95": "stretch p95",
    "stretch.p99": "stretch p99",
    "ttft_s.mean": "TTFT mean",
    "ttft_s.p99": "TTFT p99",
    "slo_attainment": "SLO met",
    "goodput_per_s": "goodput",
    "hit_ratio": "hit ratio",
    "cost_per_pipeline": "$/pipeline",
}
_OF_COMPLETED = ("jct_s", "stretch", "ttft_s", "lateness_s", "speculation.own", "speculation.others")
_FEWER = 0.99  # of what a rival completed: with less, ours cannot be said to be faster
# Where a verdict without a gain ranks among gains.
_WITHOUT_RATIO = {"worse": 0.0, "inside the noise": 1.0, "better": inf}
_NOT_AVERAGED = ("seed", "notes", "comparison")
# Two-sided 95 % points of Student's t for 1 to 30 degrees of freedom; beyond, 1.96 + 2.4 / df is right to 0.003.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`gain` of a policy over `rival` in one figure (a dotted field), above 1 where the policy is better. `low` and `high`
    bound it; None if the runs do not vary or are too few. `gain` is None where a run has no figure or one that is 0; without
    it only zeros have a verdict."""

    figure: str
    rival: str
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: Verdict = "not comparable"

    def line(self) -> str:
        gain = "-" if self.gain is None else f"{self.gain:.2f}x"
        interval = "" if self.low is None else f"[{self.low:.2f}, {self.high:.2f}]"
        return f"{FIGURES[self.figure]:<11}  {gain:>7}  {interval:<15}  {self.verdict:<16}  {self.rival}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "figure": self.figure,
            "rival": self.rival,
            "gain": self.gain,
            "ci95": None if self.low is None else [self.low, self.high],
            "verdict": self.verdict,
        }


def means(reports: Sequence[Report]) -> list[Report]:
    """One report per policy, in order of appearance: its figures averaged over the seeds, in `seeds`. A figure that some
    run lacks is null."""
    return [
        {**_averaged(mine), "policy": policy, "seeds": [report["seed"] for report in mine]}
        for policy, mine in _by_policy(reports).items()
    ]


def together(workload: str, settings: Sequence[Sequence[Report]]) -> list[Report]:
    """The reports of several settings as those of one `workload`: every figure averaged over them, for each policy and seed
    of the first. A figure that some setting lacks is null. Raises KeyError if another lacks a run."""
    runs = [{(report["policy"], report["seed"]): report for report in reports} for reports in settings]
    return [
        {**_averaged([each[key] for each in runs]), "workload": workload, "policy": key[0], "seed": key[1], "notes": []}
        for key in runs[0]
    ]


def comparisons(reports: Sequence[Report], policy: str) -> list[Comparison]:
    """`policy` against the strongest other, figure by figure; empty if there is no other."""
    rivals = rivals_of(policy, reports)
    return [strongest(figure, reports, policy, rivals) for figure in FIGURES] if rivals else []


def rivals_of(policy: str, reports: Sequence[Report]) -> list[str]:
    """All others that could be run: a bundle that is told the future is no rival of one that is not."""
    return [
        name for name in _by_policy(reports) if name != policy and not (name in BUNDLES and BUNDLES[name].clairvoyant)
    ]


def strongest(figure: str, reports: Sequence[Report], policy: str, rivals: Sequence[str]) -> Comparison:
    """`policy` against the one of `rivals` (not empty) that is best in `figure`. Where no ratio is known, the first named
    stands for all. In times, which are of completed pipelines only, nobody is rival who completed fewer: who gives up the
    slow ones is not faster. By the same rule there is no gain where ours refused more than the rival: "completed fewer". Of
    lateness there is: who is admitted and late is what admission is about; read it beside the share that met."""
    by_policy = _by_policy(reports)
    if figure.startswith(_OF_COMPLETED):
        completed = {name: sum(report["completed"] for report in found) for name, found in by_policy.items()}
        rivals = [rival for rival in rivals if completed[rival] >= completed[policy]] or rivals
        most = max(completed[rival] for rival in rivals)
        if 0 < completed[policy] < _FEWER * most and not figure.startswith("lateness_s"):
            return Comparison(figure=figure, rival=max(rivals, key=completed.__getitem__), verdict="completed fewer")
    ours = {report["seed"]: report for report in by_policy[policy]}
    return least([compared(figure, rival, _ratios(figure, by_policy[rival], ours)) for rival in rivals])


def compared(figure: str, rival: str, ratios: Sequence[float | None]) -> Comparison:
    """From the ratios of paired runs, above 1 where ours is better."""
    known = [ratio for ratio in ratios if ratio is not None]
    if not known or len(known) < len(ratios):
        return Comparison(figure=figure, rival=rival)
    if 0.0 in known or inf in known:
        sided: Verdict = "better" if min(known) >= 1 else "worse" if max(known) <= 1 else "inside the noise"
        return Comparison(figure=figure, rival=rival, verdict=sided)
    logs = [log(ratio) for ratio in known]
    bounds = interval(logs)
    return Comparison(
        figure=figure,
        rival=rival,
        gain=exp(fmean(logs)),
        low=exp(bounds[0]) if bounds else None,
        high=exp(bounds[1]) if bounds else None,
        verdict=verdict_on(logs),
    )


def least(every: Sequence[Comparison]) -> Comparison:
    """The one with the smallest gain: the strongest rival's. The first if none is known."""
    known = [each for each in every if each.verdict != "not comparable"]
    return min(known, key=_rank) if known else every[0]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of `values`, or None if there are fewer than two or they do not vary."""
    if len(values) < 2 or max(values) == min(values):
        return None
    freedom = len(values) - 1
    t = _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.4 / freedom
    half = t * stdev(values) / sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def verdict_on(differences: Sequence[float]) -> Verdict:
    """What paired runs say, one difference (or logarithm of a ratio) each, above 0 where ours is better."""
    bounds = interval(differences)
    if bounds is not None:
        return "better" if bounds[0] > 0 else "worse" if bounds[1] < 0 else "inside the noise"
    if not any(differences):
        return "the same"
    return "one run" if len(differences) == 1 else "no spread"


def _ratios(field: str, theirs: Sequence[Report], ours: Mapping[int, Report]) -> list[float | None]:
    return [compare(report, ours[report["seed"]])[field] for report in theirs if report["seed"] in ours]


def _rank(compared: Comparison) -> float:
    return _WITHOUT_RATIO[compared.verdict] if compared.gain is None else compared.gain


def _averaged(reports: Sequence[Report]) -> Report:
    return {name: _mean([report[name] for report in reports]) for name in reports[0] if name not in _NOT_AVERAGED}


def _by_policy(reports: Sequence[Report]) -> dict[str, list[Report]]:
    found: dict[str, list[Report]] = {}
    for report in reports:
        found.setdefault(str(report["policy"]), []).append(report)
    return found


def _mean(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {name: _mean([value[name] for value in values]) for name in first}
    if any(value is None for value in values):
        return None
    if isinstance(first, str):
        return first
    average = fmean(values)
    return int(average) if isinstance(first, int) and average.is_integer() else average
