"""Prometheus metrics of the gateway, all named `amf_*`, in a registry of their own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from amf.core.decisions import Cancel, Decision, Dispatch, Hold, Refuse
from amf.core.events import Event
from amf.gateway.branch_metrics import BranchMetrics
from amf.gateway.slo_metrics import SloMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MICRO = (10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3)
_MILLI = (0.25e-3, 0.5e-3, 1e-3, 1.5e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3)
_SECONDS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class _Counters:
    """A counter with labels. Its children are kept here, since looking one up costs more than counting."""

    def __init__(self, name: str, help_text: str, labels: list[str], registry: CollectorRegistry) -> None:
        self._counter = Counter(name, help_text, labels, registry=registry)
        self._children: dict[tuple[str, ...], Counter] = {}

    def labels(self, *values: str) -> Counter:
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._counter.labels(*values)
        return child


class Metrics:
    def __init__(self, max_positions: int = 200) -> None:
        """`max_positions`: how many pairs of graph and hop get series of their own."""
        self.registry = CollectorRegistry()
        r = self.registry
        self.slo = SloMetrics(r, max_positions)
        self.branches = BranchMetrics(r)
        self.requests = _Counters("amf_requests", "Requests answered", ["route", "status"], r)
        self.dispatched = _Counters("amf_dispatched_calls", "Attempts sent", ["worker"], r)
        self.retries = Counter("amf_retries", "Attempts after a call's first", registry=r)
        self.attempt_failures = _Counters("amf_failed_attempts", "Attempts without an answer", ["worker"], r)
        self.aborted = Counter("amf_cancelled_attempts", "Attempts taken back by the fabric", registry=r)
        self.holds = Counter("amf_held_calls", "Waits in the fabric's queue", registry=r)
        self.refusals = _Counters("amf_refused_calls", "Calls refused", ["code"], r)
        self.disconnects = Counter("amf_client_disconnects", "Calls whose client went away", registry=r)
        self.queue_s = Histogram("amf_queue_seconds", "Real seconds in our queue", buckets=_SECONDS, registry=r)
        self.overhead_s = Histogram("amf_overhead_seconds", "Intake and decision", buckets=_MILLI, registry=r)
        self.decision_s = Histogram("amf_decision_seconds", "Fabric.handle", buckets=_MICRO, registry=r)
        self.events = _Counters("amf_events", "Events handled", ["kind"], r)
        self.fabric_errors = Counter("amf_fabric_errors", "Events the fabric failed on", registry=r)
        self.prompt_tokens = _Counters("amf_prompt_tokens", "Prompt tokens, as engines report", ["pool"], r)
        self.cached_tokens = _Counters("amf_cached_tokens", "Of these, served from cache", ["pool"], r)
        self.recomputed_tokens = _Counters("amf_recomputed_tokens", "Of these, computed", ["pool"], r)
        self.lookups = _Counters("amf_residency_lookups", "Questions to LMCache's controller", ["outcome"], r)
        self.told_tokens = _Counters(
            "amf_residency_tokens", "What its answers changed in belief", ["worker", "kind"], r
        )
        self.output_tokens = _Counters("amf_output_tokens", "Output tokens", ["pool"], r)
        self.worker_up = Gauge("amf_worker_up", "1 while the worker takes calls", ["worker"], registry=r)

    def request(self, route: str, status: int) -> None:
        self.requests.labels(route, str(status)).inc()

    def handled(self, event: Event, seconds: float) -> None:
        self.events.labels(type(event).__name__).inc()
        self.decision_s.observe(seconds)

    def decided(self, decision: Decision) -> None:
        match decision:
            case Dispatch(worker=worker, attempt=attempt):
                self.dispatched.labels(worker).inc()
                if attempt > 1:
                    self.retries.inc()
            case Hold():
                self.holds.inc()
            case Refuse(code=code):
                self.refusals.labels(code).inc()
            case Cancel():
                self.aborted.inc()

    def fabric_failed(self) -> None:
        self.fabric_errors.inc()

    def answered(self, pool: str, prompt_tokens: int, output_tokens: int, cached_tokens: int | None) -> None:
        """Tokens of a finished call. What an engine does not report as cached counts as recomputed."""
        cached = min(cached_tokens or 0, prompt_tokens)
        self.prompt_tokens.labels(pool).inc(prompt_tokens)
        self.cached_tokens.labels(pool).inc(cached)
        self.recomputed_tokens.labels(pool).inc(prompt_tokens - cached)
        self.output_tokens.labels(pool).inc(output_tokens)

    def render(self) -> bytes:
        return generate_latest(self.registry)
