"""Deadlines met, goodput and completion times against offered load, for call graphs under bursty and Poisson arrivals."""

from amf.experiment.studies.fleets import DAG_RIVALS, dag
from amf.experiment.study import OURS, Gain, Options, Setting, Study, named


def study(options: Options) -> Study:
    graphs = ("coding-7hop",) if options.quick else ("coding-7hop", "rag-verify", "dag-10-wide")
    loads = (0.7, 1.0) if options.quick else (0.5, 0.7, 0.9, 1.1)
    arrivals = ("bursty",) if options.quick else ("bursty", "poisson")
    policies = named(*(("session-affinity", "llm-d", "edf") if options.quick else DAG_RIVALS), OURS)
    settings = tuple(
        Setting(
            label=f"{graph}, {arrival}, load {load:g}",
            scenario=dag(graph, load, 40 if options.quick else 200, arrival),
            variants=policies,
            x=load,
            series=f"{graph}, {arrival}",
        )
        for graph in graphs
        for arrival in arrivals
        for load in loads
    )
    return Study(
        name="load-sweep",
        question="How many pipelines meet their deadline as the offered load grows, and how long do they take?",
        settings=settings,
        seeds=options.seed_range(full=3),
        goals=tuple(
            Gain(name=f"{setting.label}: {what}", setting=setting.label, figure=figure, at_least=0.98)
            for setting in settings
            for figure, what in (
                ("slo_attainment", "SLO met"),
                ("goodput_per_s", "goodput"),
                ("jct_s.mean", "JCT mean"),
            )
        ),
        axis="load",
        drawn=("slo_attainment", "goodput_per_s", "jct_s.mean", "jct_s.p99"),
    )
