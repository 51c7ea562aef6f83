"""Of the paths whose p90 the fabric states at a dispatch, does a tenth turn out longer?"""

from collections.abc import Iterator

from amf.experiment.studies.fleets import SLO_GRAPHS, dag, with_slack
from amf.experiment.study import OURS, Average, Limit, Options, Setting, Study, Variant

_ALONE = 0.1  # a load at which hardly any calls share a worker
_LOW, _HIGH = 0.88, 0.92


def study(options: Options) -> Study:
    graphs = ("dag-4", "rag-verify") if options.quick else SLO_GRAPHS
    loads = (_ALONE, 1.0) if options.quick else (_ALONE, 0.5, 0.8, 1.0)
    settings = tuple(
        Setting(
            label=_label(graph, load),
            scenario=with_slack(dag(graph, load, 200 if options.quick else 600)),
            variants=(Variant(name=OURS, calibrated=True),),
            x=load,
            series=graph,
        )
        for graph in graphs
        for load in loads
    )
    averages = tuple(
        Average(
            label=_label("all graphs", load),
            of=tuple(_label(graph, load) for graph in graphs),
            x=load,
            series="all graphs",
        )
        for load in loads
    )
    return Study(
        name="calibration",
        question="Of the remaining paths whose quantiles the fabric states at a dispatch, what share is within them?",
        settings=settings,
        averages=averages,
        seeds=options.seed_range(full=3),
        goals=tuple(_goals([*(each.label for each in averages), *(each.label for each in settings)])),
        axis="load",
        drawn=("calibration.p90",),
        notes=(
            "A path is from a dispatch to the end of its pipeline, without what its calls waited in our queues.",
            "Only completed pipelines are counted. Admission refuses those that would hardly be in time.",
            "p90 is what is stated, corrected by what became of earlier statements; the other quantiles are as composed.",
            "cold: some hop that may follow had not been seen often enough at its position; not in the shares. "
            "p90, known: of those where each of these hops had been seen 100 times.",
        ),
    )


def _goals(labels: list[str]) -> Iterator[Limit]:
    for label in labels:
        name = f"{label}: share within the stated p90"
        yield Limit(name=name, setting=label, figure="calibration.p90", at_least=_LOW, at_most=_HIGH)


def _label(graph: str, load: float) -> str:
    return f"{graph}, load {load:g}"
