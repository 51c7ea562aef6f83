"""Deadlines of unequal slack over call graphs: who meets most of them as load grows, and how late are the others?"""

from collections.abc import Iterator
from dataclasses import replace

from amf.core.policy import admission
from amf.core.policy.bundles import BUNDLES
from amf.experiment.studies.fleets import SLO_GRAPHS, dag, with_slack
from amf.experiment.study import OURS, Average, Gain, Goal, Options, Points, Setting, Study, Variant, named

_RIVALS = (
    "fcfs", "edf", "edf-cancel", "static-split", "least-slack", "hexgen-flow", "heft", "atlas", "llm-d-las",
)  # fmt: skip
# For deadlines after which an answer is worth nothing: it ends what is late, which gives the capacity back.
_HARD = "fabric-hard"
# What of the difference is warmth and order, and not admission.
_ADMITS_ALL = Variant(name="fabric, no refusals", bundle=replace(BUNDLES[OURS], admit=admission.by_bounds))
_VARIANTS = (*named(*_RIVALS), _ADMITS_ALL, *named(OURS, _HARD))
_UNLOADED, _FULL = 0.5, 1.0


def study(options: Options) -> Study:
    graphs = ("dag-4", "rag-verify") if options.quick else SLO_GRAPHS
    points = [("bursty", load) for load in ((_UNLOADED, _FULL) if options.quick else (_UNLOADED, 0.8, _FULL, 1.2))]
    points += [] if options.quick else [("poisson", _UNLOADED), ("poisson", _FULL)]
    settings = tuple(
        Setting(
            label=_label(graph, arrival, load),
            scenario=with_slack(dag(graph, load, 100 if options.quick else 200, arrival)),
            variants=_VARIANTS,
            x=load,
            series=f"{graph}, {arrival}",
        )
        for graph in graphs
        for arrival, load in points
    )
    averages = tuple(
        Average(
            label=_label("all graphs", arrival, load),
            of=tuple(_label(graph, arrival, load) for graph in graphs),
            x=load,
            series=f"all graphs, {arrival}",
        )
        for arrival, load in points
    )
    return Study(
        name="deadlines",
        question="How many pipelines meet deadlines of unequal slack as load grows, and how late are those that do not?",
        settings=settings,
        averages=averages,
        seeds=options.seed_range(full=3),
        goals=tuple(_goals()),
        axis="load",
        drawn=("slo_attainment", "lateness_s.p99"),
        notes=(
            "Refused and cancelled pipelines missed their deadlines; lateness is of completed ones only.",
            "Lateness of all graphs is a mean of seconds: graphs that take long weigh most.",
            f"{_HARD} and edf-cancel end a pipeline at its deadline; the others finish late ones.",
        ),
    )


def _goals() -> Iterator[Goal]:
    busy = _label("all graphs", "bursty", _FULL)
    met, late = "slo_attainment", "lateness_s.p99"
    for policy, rival, at_least in ((OURS, "edf", 0.12), (_HARD, "edf-cancel", 0.04), (OURS, "hexgen-flow", 0.03)):
        name = f"{busy}: SLO met, {policy} minus {rival}"
        yield Points(name=name, setting=busy, figure=met, at_least=at_least, policy=policy, rivals=(rival,))
    yield Gain(
        name=f"{busy}: lateness p99 against hexgen-flow",
        setting=busy,
        figure=late,
        at_least=2.5,
        rivals=("hexgen-flow",),
    )
    idle = _label("all graphs", "bursty", _UNLOADED)
    yield Gain(name=f"{idle}: SLO met against the best", setting=idle, figure=met, at_least=0.99, rivals=_RIVALS)


def _label(graph: str, arrival: str, load: float) -> str:
    return f"{graph}, {arrival}, load {load:g}"
