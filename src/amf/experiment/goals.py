"""Judging a study's goals.

A goal is met if its value is on the right side of its limit. A gain is the paired ratio against the strongest rival, chosen
for that figure by the same runs: the one over which the gain is smallest, so nobody can be picked for being weak. Its interval
is Student's, 95 %, on the logarithms of the ratios; where it covers 1 the difference is inside the noise, and the goal says
so whether it is met or not. Where a run's figure is 0 there may be no ratio but only a verdict: then better is met, worse is
missed. The places on an axis where two policies reach a target are judged as a gain is; where a run shows no such place,
the goal is unknown.

A difference in points is paired likewise, against the rival that is best on average; its interval is on the differences, and
noise where it covers 0. A limit's interval is Student's on the runs' own figures. A goal whose figure some run lacks is
neither met nor missed: `met` is null.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, geometric_mean
from typing import Any

from amf.experiment.crossing import crossing
from amf.experiment.study import OURS, Gain, Goal, Limit, Points, Reaches
from amf.sim.paired import Comparison, compared, interval, least, rivals_of, strongest, verdict_on
from amf.sim.report import Report

Judged = dict[str, Any]
_MET_WITHOUT_RATIO = {"better": True, "worse": False}
Reports = Mapping[str, Sequence[Report]]  # by setting: every variant on every seed


def judge(goal: Goal, reports: Reports) -> Judged:
    """The goal as it stands in a study's JSON."""
    match goal:
        case Gain():
            return _gain(goal, reports)
        case Limit():
            return _limit(goal, reports)
        case Points():
            return _points(goal, reports)
        case Reaches():
            return _reaches(goal, reports)


def figure_of(row: Mapping[str, Any], figure: str) -> float | None:
    """A dotted field."""
    value: Any = row
    for part in figure.split("."):
        value = value[part]
    return None if value is None else float(value)


def others(policy: str, reports: Sequence[Report]) -> list[str]:
    """Who is compared with `policy` if nobody is named: its rivals, but not the fabric in another form (`fabric-hard`, "fabric,
    no refusals") where there are real ones."""
    rivals = rivals_of(policy, reports)
    return [rival for rival in rivals if not rival.startswith(OURS)] or rivals


def _gain(goal: Gain, reports: Reports) -> Judged:
    ours = [report for report in reports[goal.setting] if report["policy"] == goal.policy]
    if goal.than:
        theirs = [{**report, "policy": f"{report['policy']}, {goal.than}"} for report in reports[goal.than]]
        wanted = [f"{rival}, {goal.than}" for rival in goal.rivals]
    else:
        theirs, wanted = [report for report in reports[goal.setting] if report["policy"] != goal.policy], [*goal.rivals]
    rivals = wanted or others(goal.policy, theirs)
    return _compared(goal, strongest(goal.figure, [*ours, *theirs], goal.policy, rivals))


def _compared(goal: Gain | Reaches, found: Comparison) -> Judged:
    ci95 = None if found.low is None or found.high is None else (found.low, found.high)
    judged = _judged(goal, found.gain, ci95, at_least=goal.at_least)
    if found.gain is None:
        judged["met"] = _MET_WITHOUT_RATIO.get(found.verdict)
    return {**judged, "rival": found.rival, "verdict": found.verdict}


def _limit(goal: Limit, reports: Reports) -> Judged:
    values = _values(goal.figure, goal.policy, reports[goal.setting])
    if values is None:
        return _judged(goal, None, None, at_most=goal.at_most, at_least=goal.at_least)
    return _judged(goal, fmean(values), interval(values), at_most=goal.at_most, at_least=goal.at_least)


def _points(goal: Points, reports: Reports) -> Judged:
    here = reports[goal.setting]
    rivals = goal.rivals or others(goal.policy, here)
    ours = _values(goal.figure, goal.policy, here)
    known = {rival: values for rival in rivals if (values := _values(goal.figure, rival, here)) is not None}
    if ours is None or not known:
        return _judged(goal, None, None, at_least=goal.at_least)
    best = max(known, key=lambda rival: fmean(known[rival]))
    ahead = [own - theirs for theirs, own in zip(known[best], ours, strict=True)]
    judged = _judged(goal, fmean(ahead), interval(ahead), at_least=goal.at_least)
    return {**judged, "rival": best, "verdict": verdict_on(ahead)}


def _reaches(goal: Reaches, reports: Reports) -> Judged:
    ours = _needed(goal, goal.policy, reports)
    theirs = {rival: _needed(goal, rival, reports) for rival in goal.rivals}
    every = [compared(goal.figure, rival, _ratios(needed, ours)) for rival, needed in theirs.items()]
    said = [_said(policy, needed) for policy, needed in ((goal.policy, ours), *theirs.items())]
    first, last = goal.along[0][0], goal.along[-1][0]
    note = f"{goal.name}: {goal.figure} reaches {goal.target:g} between {first:g} and {last:g} at {'; '.join(said)}"
    return {**_compared(goal, least(every)), "note": note}


def _needed(goal: Reaches, policy: str, reports: Reports) -> list[float | None]:
    """By seed: the x at which the target is reached."""
    figures = [_values(goal.figure, policy, reports[label]) for _, label in goal.along]
    known = [values for values in figures if values is not None]
    if len(known) < len(figures):
        return [None]
    places = [x for x, _ in goal.along]
    return [crossing(list(zip(places, by_x, strict=True)), goal.target) for by_x in zip(*known, strict=True)]


def _ratios(above: Sequence[float | None], below: Sequence[float | None]) -> list[float | None]:
    return [a / b if a and b else None for a, b in zip(above, below, strict=False)]


def _said(policy: str, needed: Sequence[float | None]) -> str:
    """The geometric mean over the seeds, or on how many of them the grid does not show it."""
    known = [x for x in needed if x is not None]
    if len(known) < len(needed):
        return f"{policy} not there on {len(needed) - len(known)} of {len(needed)} seeds"
    return f"{policy} {geometric_mean(known):.3g}"


def _values(figure: str, policy: str, reports: Sequence[Report]) -> list[float] | None:
    """By seed; None if some run has none."""
    values = [figure_of(report, figure) for report in reports if report["policy"] == policy]
    return None if None in values or not values else [value for value in values if value is not None]


def _judged(
    goal: Goal,
    value: float | None,
    ci95: tuple[float, float] | None,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Judged:
    met: bool | None = None
    if value is not None:
        met = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    bounds = ((">=", at_least), ("<=", at_most))
    said = " and ".join(f"{sign} {bound:.4g}" for sign, bound in bounds if bound is not None)
    return {
        "name": goal.name,
        "goal": said,
        "value": value,
        "ci95": None if ci95 is None else list(ci95),
        "met": met,
        "setting": goal.setting,
        "figure": goal.figure,
        "policy": goal.policy,
        "rival": None,
        "verdict": None,
        "note": None,
    }
