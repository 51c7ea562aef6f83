"""The workloads and fleets that several studies share, in the form of scenario files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from amf.core.policy.bundles import BUNDLES
from amf.experiment.study import OURS, Options
from amf.sim.scenario import Scenario, scenario_from_dict
from amf.sim.workload.chat import REQUESTS_PER_S
from amf.sim.workload.template import fleet

LARGE = "llama-3.3-70b"
# Who contends where memory is short or load is high; the study `rivals` has all.
SESSION_RIVALS = ("session-affinity", "preble", "llm-d", "thunderagent-fcfs", "thunderagent-decay", "footprint")
DAG_RIVALS = ("session-affinity", "llm-d", "thunderagent-fcfs", "edf", "least-slack", "hexgen-flow")
# Call graphs of several models, short and long, narrow and wide.
SLO_GRAPHS = ("coding-7hop", "dag-4", "dag-10-wide", "map-reduce", "text-to-sql", "rag-verify")
_STRETCHES = (1.5, 8.0)
# Rules that follow the longest warm prefix and give it up where load is too uneven.
PREFIX_RULES = ("prefix-affinity", "kv-cost", "dynamo-agentic", "preble", "llm-d")


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


def mixed(graph: str, load: float, pipelines: int, **workers: int) -> Scenario:
    """A built-in graph and as many plain chain-3 pipelines, at random times on one fleet (`workers` by role), with time enough
    that nobody is refused."""
    parts = [{"kind": "graph", "graph": each} for each in (graph, "chain-3")]
    workload = {"kind": "mix", "pipelines": pipelines, "load": load, "slo_stretch": 100.0, "mix": parts}
    pools = [{"model": pool.model, "workers": pool.workers} for pool in fleet(**workers)]
    return scenario_from_dict({"workload": workload, "pool": pools}, f"{graph}.toml")


def with_slack(scenario: Scenario, scale: float = 1.0) -> Scenario:
    """With deadlines of unequal slack instead: 1.5 to 8 times the pipeline alone, times `scale`. Nothing else changes."""
    low, high = _STRETCHES
    return replace(scenario, workload=replace(scenario.workload, slo_stretch=(scale * low, scale * high)))


def requests(pipelines: int, trace: Path | None = None) -> Scenario:
    """Chat requests on 8 workers, nothing but prompts to tell sessions by. Generated, or recorded ones at their own times."""
    workload: dict[str, Any] = {"pipelines": pipelines, "slo_s": 30.0}
    if trace:
        workload |= {"kind": "mooncake", "path": str(trace), "arrival": "trace"}
    else:
        workload |= {"kind": "chat-requests", "rate_per_s": REQUESTS_PER_S}
    return scenario_from_dict({"workload": workload, "pool": [{"model": LARGE, "workers": 8}]}, "requests.toml")


def recorded_sessions(options: Options) -> Path | None:
    """The first recording of sessions, if there is one."""
    return next(iter(options.recordings("claude-code")), None)
