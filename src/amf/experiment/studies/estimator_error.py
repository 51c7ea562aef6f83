"""Predictions wrong by a known amount: how good must an estimator be before the fabric suffers from it?"""

from collections.abc import Iterator

from amf.experiment.studies.fleets import dag, recorded_sessions, sessions
from amf.experiment.study import OURS, Gain, Options, Setting, Study, Variant, named
from amf.sim.scenario import Scenario

_CLAIRVOYANT = "fabric-clairvoyant"
_FIGURE = "jct_s.mean"
_KEPT = 0.95  # of what predictions as learned give, at least
_KEPT_UP_TO = 0.5  # sigma: nine of ten predictions are within a factor of 2.3


def study(options: Options) -> Study:
    sigmas = (0.0, 0.5) if options.quick else (0.0, 0.25, 0.5, 1.0)
    settings: list[Setting] = []
    wanted: list[Gain] = []
    for name, scenario in _workloads(options):
        for sigma in sigmas:
            label = _label(name, sigma)
            variants = (*named(*_blind(name)), *(_erring(policy, sigma) for policy in (_CLAIRVOYANT, OURS)))
            settings.append(Setting(label=label, scenario=scenario, variants=variants, x=sigma, series=name))
            if sigma:
                wanted += _goals(name, sigma)
    return Study(
        name="estimator-error",
        question="Predicted lengths, seconds and returns wrong by a lognormal factor: what does the fabric lose?",
        settings=tuple(settings),
        seeds=options.seed_range(full=3),
        goals=tuple(wanted),
        axis="sigma of the error",
        drawn=("jct_s.mean", "jct_s.p99", "slo_attainment", "ttft_s.mean"),
        notes=(
            "Only the fabric and the clairvoyant fabric err; sigma 0 is what they have learned, or the truth. The other "
            "policies are as ever, and the clairvoyant fabric is nobody's rival.",
        ),
    )


def _workloads(options: Options) -> Iterator[tuple[str, Scenario]]:
    workers, live = (2, 20) if options.quick else (4, 48)
    yield "sessions", sessions(live, workers, 500_000, recorded_sessions(options))
    for graph in ("coding-7hop",) if options.quick else ("coding-7hop", "rag-verify"):
        yield graph, dag(graph, 0.9, 40 if options.quick else 200)


def _blind(workload: str) -> tuple[str, ...]:
    """Rivals that predict nothing."""
    return ("thunderagent-fcfs",) if workload == "sessions" else ("llm-d",)


def _erring(policy: str, sigma: float) -> Variant:
    return Variant(name=policy, error_sigma=sigma)


def _label(workload: str, sigma: float) -> str:
    return f"{workload}, sigma {sigma:g}"


def _goals(workload: str, sigma: float) -> Iterator[Gain]:
    here = _label(workload, sigma)
    yield Gain(name=f"{here}: JCT mean, against the rival", setting=here, figure=_FIGURE, at_least=1.0)
    if sigma <= _KEPT_UP_TO:
        yield Gain(
            name=f"{here}: JCT mean, against sigma 0",
            setting=here,
            figure=_FIGURE,
            at_least=_KEPT,
            rivals=(OURS,),
            than=_label(workload, 0.0),
        )
