"""What the fabric believes of its workers, and how wrong that has been, read from its reports when `/metrics` is asked for."""

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_DRIFT = ("overestimated", "underestimated", "forgotten")


class BeliefCollector(Collector):
    """`reports`: the fabric's workers, as `Fabric.worker_reports` says them."""

    def __init__(self, reports: Callable[[], list[dict[str, Any]]]) -> None:
        self._reports = reports

    def describe(self) -> list[Metric]:
        """Nothing beforehand, so that registering it asks nobody."""
        return []

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily(
            "amf_drift_calls", "Calls whose cached tokens an engine reported", labels=["worker"]
        )
        drift = CounterMetricFamily(
            "amf_drift_tokens", "Belief against what engines reported as cached", labels=["worker", "kind"]
        )
        warm = GaugeMetricFamily("amf_believed_warm_tokens", "Tokens believed warm", labels=["worker"])
        kept = GaugeMetricFamily("amf_protected_tokens", "Of contexts that are protected", labels=["worker"])
        pace = GaugeMetricFamily(
            "amf_pace_ratio", "Seconds it takes over those of its profile", labels=["worker", "phase"]
        )
        for report in self._reports():
            name, seen = report["name"], report["drift"]
            calls.add_metric([name], seen["calls"])
            for kind in _DRIFT:
                drift.add_metric([name, kind], seen[f"{kind}_tokens"])
            warm.add_metric([name], report["believed_warm_tokens"])
            kept.add_metric([name], report["protected_tokens"])
            for phase in ("prefill", "decode"):
                pace.add_metric([name, phase], report[f"{phase}_scale"])
        yield from (calls, drift, warm, kept, pace)
