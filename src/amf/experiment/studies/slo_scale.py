"""How long deadlines must be for 99 % to be met: every one multiplied by more and more, at 90 % load in bursts."""

from amf.experiment.studies.fleets import SLO_GRAPHS, dag, with_slack
from amf.experiment.study import OURS, Average, Options, Reaches, Setting, Study, named

_LOAD, _TARGET = 0.9, 0.99
_SCALES = (1.0, 1.5, 2.2, 3.3, 5.0, 7.5, 11.0)
_QUICK = (1.0, 3.3, 11.0)
# How many times longer the rival's deadlines must be, at least: 25 % shorter ones than for fcfs.
_GOALS = (("fcfs", 1 / 0.75), ("edf", 1.0), ("hexgen-flow", 1.0))
_ALL = "all graphs"


def study(options: Options) -> Study:
    graphs = ("dag-4", "rag-verify") if options.quick else SLO_GRAPHS
    scales = _QUICK if options.quick else _SCALES
    policies = named(*(rival for rival, _ in _GOALS), OURS)
    settings = tuple(
        Setting(
            label=_label(graph, scale),
            scenario=with_slack(dag(graph, _LOAD, 100 if options.quick else 200), scale),
            variants=policies,
            x=scale,
            series=graph,
        )
        for graph in graphs
        for scale in scales
    )
    averages = tuple(
        Average(label=_label(_ALL, scale), of=tuple(_label(graph, scale) for graph in graphs), x=scale, series=_ALL)
        for scale in scales
    )
    return Study(
        name="slo-scale",
        question="By how much must every deadline be multiplied until 99 % of pipelines meet theirs?",
        settings=settings,
        averages=averages,
        seeds=options.seed_range(full=3),
        goals=tuple(
            Reaches(
                name=f"{_ALL}: scale that {OURS} needs, against {rival}",
                setting=_ALL,
                along=tuple((scale, _label(_ALL, scale)) for scale in scales),
                figure="slo_attainment",
                target=_TARGET,
                at_least=at_least,
                rivals=(rival,),
            )
            for rival, at_least in _GOALS
        ),
        axis="scale of deadlines",
        drawn=("slo_attainment",),
        notes=(
            "The scale is that at which the mean over the graphs of the share of pipelines in time reaches the target.",
            "A run is a few hundred pipelines and ends: where a fleet cannot keep up with the load, a longer run would need "
            "longer deadlines.",
        ),
    )


def _label(graph: str, scale: float) -> str:
    return f"{graph}, deadlines x {scale:g}"
