"""Coding sessions on 8 workers with a DRAM tier, where it holds them all and where it does not."""

from collections.abc import Iterator
from dataclasses import replace

from amf.experiment.studies.fleets import recorded_sessions, sessions
from amf.experiment.studies.regimes import CONTEXT_TOKENS
from amf.experiment.study import OURS, Gain, Options, Setting, Study, named
from amf.sim.scenario import Scenario

_KV_TOKENS = 500_000
_WORKERS = 8
# DRAM over KV memory, and live sessions. The last two do not fit in both together.
_REGIMES = ((4, 64), (4, 128), (1, 128), (4, 256))
_QUICK = ((4, 64), (1, 128))
_RIVALS = ("session-affinity", "preble", "thunderagent-fcfs", "footprint", "fcfs", "continuum")

_WHERE_IT_FITS = (("jct_s.mean", "JCT mean", 0.99), ("ttft_s.mean", "TTFT mean", 1.0))
_WHERE_SHORT = (("jct_s.mean", "JCT mean", 1.0), ("stretch.p95", "stretch p95", 1.5))


def study(options: Options) -> Study:
    trace = recorded_sessions(options)
    regimes, share = (
        (_QUICK, 4) if options.quick else (_REGIMES, 1)
    )  # quick: a quarter of the fleet and of the sessions
    rivals = ("session-affinity", "footprint") if options.quick else _RIVALS
    workers, settings, goals = _WORKERS // share, list[Setting](), list[Gain]()
    for times, live in regimes:
        label = f"DRAM {times} x memory, {live // share} live"
        scenario = _with_dram(sessions(live // share, workers, _KV_TOKENS, trace), times * _KV_TOKENS)
        settings.append(Setting(label=label, scenario=scenario, variants=named(*rivals, OURS)))
        goals += _goals(label, live * CONTEXT_TOKENS / (_WORKERS * (1 + times) * _KV_TOKENS))
    return Study(
        name="tiers",
        question="What is a DRAM tier worth, and to whom: where it holds all live sessions, and where it does not?",
        settings=tuple(settings),
        seeds=options.seed_range(full=3),
        goals=tuple(goals),
        notes=(f"{workers} workers of {_KV_TOKENS} tokens; {'recorded' if trace else 'generated'} sessions",),
    )


def _with_dram(scenario: Scenario, dram_tokens: int) -> Scenario:
    return replace(scenario, pools=tuple(replace(pool, dram_tokens=dram_tokens) for pool in scenario.pools))


def _goals(label: str, pressure: float) -> Iterator[Gain]:
    """By the contexts of all live sessions over both tiers of the fleet."""
    for figure, what, at_least in _WHERE_SHORT if pressure > 1 else _WHERE_IT_FITS:
        yield Gain(name=f"{label}: {what}", setting=label, figure=figure, at_least=at_least)
