"""The workloads and fleets that several studies share, in the form of scenario files."""

from pathlib import Path
from typing import Any

from amf.core.policy.bundles import BUNDLES
from amf.experiment.study import OURS, Options
from amf.sim.scenario import Scenario, scenario_from_dict

LARGE, SMALL = "llama-3.3-70b", "llama-3.1-8b"
# Who contends where memory is short or load is high; the study `rivals` has all.
SESSION_RIVALS = ("session-affinity", "kv-cost", "continuum", "thunderagent", "thunderagent-fcfs")
DAG_RIVALS = ("session-affinity", "llm-d", "thunderagent-fcfs", "edf", "least-slack", "hexgen-flow")
# Rules that follow the longest warm prefix and give it up where load is too uneven.
PREFIX_RULES = ("prefix-affinity", "kv-cost", "dynamo-agentic", "llm-d")


def every_bundle() -> tuple[str, ...]:
    """All, ours last."""
    return (*(name for name in BUNDLES if name != OURS), OURS)


def sessions(live: int, workers: int, kv_tokens: int, trace: Path | None = None, **tables: dict[str, Any]) -> Scenario:
    """So many live coding sessions on one pool, each finished one replaced until half as many again (at least 64 more, or 8
    more on a small fleet) have run. Generated, or recorded ones from `trace`. `tables`: others of a scenario file."""
    spare = max(live // 2, 64 if workers >= 8 else 8)
    workload: dict[str, Any] = {"pipelines": live + spare, "concurrency": live, "think_cap_s": 300}
    workload |= {"kind": "claude-code", "path": str(trace)} if trace else {"kind": "coding-sessions"}
    pool = {"model": LARGE, "workers": workers, "kv_tokens": kv_tokens}
    return scenario_from_dict({"workload": workload, "pool": [pool], **tables}, "sessions.toml")


def dag(graph: str, load: float, pipelines: int, arrival: str = "bursty", **tables: dict[str, Any]) -> Scenario:
    """A built-in graph on its own fleet, in an open loop; deadlines of three times the pipeline alone."""
    workload = {"kind": "graph", "graph": graph, "pipelines": pipelines, "load": load, "arrival": arrival}
    return scenario_from_dict({"workload": workload, **tables}, f"{graph}.toml")


def mooncake(trace: Path, pipelines: int) -> Scenario:
    """Recorded requests at their own times on 8 workers, nothing to tell sessions by."""
    workload = {"kind": "mooncake", "path": str(trace), "pipelines": pipelines, "arrival": "trace", "slo_s": 30.0}
    return scenario_from_dict({"workload": workload, "pool": [{"model": SMALL, "workers": 8}]}, "mooncake.toml")


def recorded_sessions(options: Options) -> Path | None:
    """The first recording of sessions, if there is one."""
    return next(iter(options.recordings("claude-code")), None)
