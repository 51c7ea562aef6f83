"""What a simulated study says: one group of runs for each load (or one in all), every policy on every seed in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from amf.sim.paired import comparisons, means
from amf.sim.report import Report
from amf.sim.scenario import Scenario, ScenarioError
from amf.simulate.play import Played

_OURS = "fabric"


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of one scenario. `load` is set if the study varies it."""

    load: float | None
    played: Sequence[Played]

    @property
    def reports(self) -> list[Report]:
        """Those of `ours` carry the comparison over all seeds."""
        reports = [self._named(each.report) for each in self.played]
        ours = self.ours
        found = [each.to_dict() for each in comparisons(reports, ours)]
        return [{**report, "comparison": found} if report["policy"] == ours else report for report in reports]

    @property
    def rows(self) -> list[Report]:
        """Means over the seeds, one for each policy."""
        return means([self._named(each.report) for each in self.played])

    @property
    def ours(self) -> str:
        """The fabric, or else the policy named last."""
        policies = [str(each.report["policy"]) for each in self.played]
        return _OURS if _OURS in policies else policies[-1]

    def _named(self, report: Report) -> Report:
        if self.load is None:
            return report
        return {**report, "workload": f"{report['workload']} at load {self.load:g}", "load": self.load}


def at_loads(scenario: Scenario, loads: Sequence[float]) -> list[Scenario]:
    """The scenario in an open loop at each load. Raises ScenarioError if its arrivals are recorded times."""
    if scenario.workload.arrival == "trace":
        raise ScenarioError(
            '--loads: [workload] arrival = "trace" has times of its own; choose poisson, gamma or bursty'
        )
    spec = replace(scenario.workload, concurrency=None, rate_per_s=None)
    return [replace(scenario, workload=replace(spec, load=load)) for load in loads]


def loads_of(text: str) -> list[float]:
    """Numbers above 0 from a comma-separated list, ascending. Raises ScenarioError."""
    try:
        loads = sorted({float(each) for each in text.split(",")})
    except ValueError:
        raise ScenarioError(f"--loads {text}: is no list of numbers such as 0.5,0.7,0.9") from None
    if not 0 < loads[0] <= loads[-1] < float("inf"):
        raise ScenarioError(f"--loads {text}: loads are shares of the saturation rate, above 0")
    return loads


def seeds_line(rows: Sequence[Report]) -> str:
    seeds = rows[0]["seeds"]
    return f"means over {len(seeds)} seeds, {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"


def note_lines(group: Group) -> list[str]:
    """What the table does not show."""
    reports, rows = group.reports, group.rows
    everywhere = [note for note in reports[0]["notes"] if all(note in report["notes"] for report in reports)]
    only = {
        f"workload, seed {report['seed']}: {note}": None
        for report in reports
        for note in report["notes"]
        if note not in everywhere
    }
    lines = [*(f"workload: {note}" for note in everywhere), *only]
    if len({(row["completed"], row["pipelines"]) for row in rows}) > 1:
        lines.append("NOTE: not all policies completed the same pipelines; completion times are of completed ones only")
    return lines


def comparison_lines(group: Group) -> list[str]:
    """`ours` against the strongest rival; nothing if there is none."""
    reports, rows = group.reports, group.rows
    compared = comparisons(reports, group.ours)
    if not compared:
        return []
    count = len(rows[0]["seeds"])
    runs = f"95 % interval over {count} paired runs" if count > 1 else "one run, use --seeds for intervals"
    where = "" if group.load is None else f" at load {group.load:g}"
    return [
        f"{group.ours} against the strongest rival{where}, above 1 it is better; {runs}:",
        *(f"  {each.line()}" for each in compared),
    ]
