"""What a table does not show: pipelines cut off, never started or failed, and why."""

from amf.sim.report import Report


def remarks(report: Report) -> list[str]:
    """In words, for one report of a real run; empty when everything was completed."""
    who = f"{report['policy']}, {report['workload']}"
    lines: list[str] = []
    if report["unfinished"]:
        ages = report["unfinished_age_s"]
        lines.append(
            f"{who}: {report['unfinished']} pipelines were cut off unfinished, {ages[0]:,.0f} to {ages[-1]:,.0f} s old; "
            "its completion times are of the others only"
        )
    if report["not_started"]:
        lines.append(f"{who}: {report['not_started']} pipelines were not started in the time given")
    lines += [f"{who}: {count} pipelines ended with {code}" for code, count in sorted(report["errors"].items())]
    return lines
