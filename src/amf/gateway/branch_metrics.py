"""Branch groups in Prometheus: what clients decided, and which calls that ended."""

from prometheus_client import CollectorRegistry, Counter


class BranchMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._decided = Counter(
            "amf_branches_decided", "Alternatives that clients decided on", ["outcome"], registry=registry
        )
        self._cancelled = Counter(
            "amf_branch_calls_cancelled", "Calls ended because their branch had lost", ["stage"], registry=registry
        )

    def decided(self, committed: int, discarded: int) -> None:
        """How many alternatives a client named as each."""
        self._decided.labels("committed").inc(committed)
        self._decided.labels("discarded").inc(discarded)

    def cancelled(self, stage: str) -> None:
        """`stage`: running at a worker, waiting, or late: it came when its branch had lost."""
        self._cancelled.labels(stage).inc()
