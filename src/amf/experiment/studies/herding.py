"""Agents that share a long system prompt: is the fleet used evenly, and what does that cost in hits?"""

from pathlib import Path
from typing import Any

from amf.experiment.studies.fleets import LARGE, every_bundle
from amf.experiment.study import OURS, Limit, Options, Points, Setting, Study, named
from amf.sim.scenario import Scenario, scenario_from_dict

_GRAPH = Path(__file__).with_name("agents.yaml")
_WORKERS = 4
_QUICK = ("round-robin", "session-affinity", "prefix-affinity", "kv-cost", "llm-d", OURS)
_AT_MOST, _BEHIND = 1.5, 0.02  # calls of the busiest worker over the mean; hit ratio behind the best


def study(options: Options) -> Study:
    bundles = named(*(_QUICK if options.quick else every_bundle()))
    settings = tuple(
        Setting(label=f"{live} agents at once", scenario=_agents(live), variants=bundles) for live in (12, 24)
    )
    even = (
        Limit(
            name=f"{each.label}: busiest worker over the mean",
            setting=each.label,
            figure="call_imbalance",
            at_most=_AT_MOST,
        )
        for each in settings
    )
    warm = (
        Points(
            name=f"{each.label}: hit ratio minus the best", setting=each.label, figure="hit_ratio", at_least=-_BEHIND
        )
        for each in settings
    )
    return Study(
        name="herding",
        question="Does a system prompt that all agents share pile them onto one worker?",
        settings=settings,
        seeds=options.seed_range(),
        goals=(*even, *warm),
        drawn=("call_imbalance", "hit_ratio", "jct_s.mean", "ttft_s.mean"),
    )


def _agents(live: int) -> Scenario:
    workload: dict[str, Any] = {"kind": "graph", "graph": str(_GRAPH), "scale_tokens": 8.0}
    workload |= {"pipelines": 48, "concurrency": live}
    pool = {"model": LARGE, "workers": _WORKERS}
    return scenario_from_dict({"workload": workload, "pool": [pool]}, "agents.toml")
