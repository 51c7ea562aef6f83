"""From 8 to 2,048 workers at the same number of live sessions a worker: the figures, and what simulating them takes."""

from amf.experiment.studies.fleets import recorded_sessions, sessions
from amf.experiment.study import OURS, Limit, Options, Setting, Study, named

_LIVE_A_WORKER = 4
_GOALS = (("session-affinity", 5_000.0), (OURS, 2_500.0))  # simulated calls a second of one core, on 64 workers
_GOAL_WORKERS = 64


def study(options: Options) -> Study:
    sizes = (2, 8) if options.quick else (8, 64, 512, 2_048)
    trace = recorded_sessions(options)
    settings = tuple(
        Setting(
            label=f"{workers} workers",
            scenario=sessions(_LIVE_A_WORKER * workers, workers, 500_000, trace),
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
            "Speed and memory are measured, so they differ between runs; all other figures do not. Memory is the most the "
            "process ever held, earlier and smaller fleets included.",
        ),
        measured=True,
    )
