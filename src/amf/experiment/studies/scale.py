"""From 8 to 2,048 workers at the same number of live sessions a worker: the figures, and what simulating them takes."""

from dataclasses import replace

from amf.experiment.studies.fleets import sessions
from amf.experiment.study import OURS, Limit, Options, Setting, Study, named
from amf.sim.scenario import Scenario

_LIVE_A_WORKER, _KV_TOKENS = 2, 250_000
_GOALS = (("session-affinity", 5_000.0), (OURS, 2_500.0))  # simulated calls a second of one core, on 64 workers
_GOAL_WORKERS = 64


def study(options: Options) -> Study:
    sizes = (4, 16) if options.quick else (8, 64, 512, 2_048)
    settings = tuple(
        Setting(
            label=f"{workers} workers",
            scenario=_once(workers),
            variants=named("session-affinity", OURS),
            x=float(workers),
        )
        for workers in sizes
    )
    done = (
        Limit(name=f"{setting.label}: failed pipelines", setting=setting.label, figure="failed", at_most=0.0)
        for setting in settings
    )
    speed = (
        Limit(
            name=f"{_GOAL_WORKERS} workers, {policy}: simulated calls/s",
            setting=f"{_GOAL_WORKERS} workers",
            figure="measured.calls_per_s",
            at_least=rate,
            policy=policy,
        )
        for policy, rate in _GOALS
    )
    return Study(
        name="scale",
        question="Do the figures hold from 8 to 2,048 workers, and how fast and how large is the simulation?",
        settings=settings,
        seeds=options.seed_range(full=1, quick=1),
        goals=(*done, *(speed if _GOAL_WORKERS in sizes else ())),
        axis="workers",
        drawn=("jct_s.mean", "ttft_s.mean", "measured.calls_per_s", "measured.peak_bytes"),
        notes=(
            f"{_LIVE_A_WORKER} live sessions and {_KV_TOKENS} tokens of KV memory a worker; generated sessions.",
            "Speed and memory are measured, so they differ between runs; all other figures do not. Memory is the most the "
            "process ever held, earlier and smaller fleets included.",
        ),
        measured=True,
    )


def _once(workers: int) -> Scenario:
    """Generated sessions, all live from the start, none replaced."""
    live = _LIVE_A_WORKER * workers
    scenario = sessions(live, workers, _KV_TOKENS)
    return replace(scenario, workload=replace(scenario.workload, pipelines=live))
