"""Every policy bundle on sessions, requests without sessions, and call graphs: the fabric against the strongest of all."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from amf.experiment.studies.fleets import PREFIX_RULES, dag, every_bundle, recorded_sessions, requests, sessions
from amf.experiment.study import OURS, Gain, Options, Setting, Study, named

_GRAPHS = ("coding-7hop", "rag-verify", "map-reduce", "dag-10-wide")
_FIGURES = (
    ("jct_s.mean", "JCT mean"),
    ("jct_s.p99", "JCT p99"),
    ("slo_attainment", "SLO met"),
    ("ttft_s.mean", "TTFT mean"),
)
_QUICK = ("session-affinity", "llm-d", "thunderagent-fcfs", "least-slack", OURS)


def study(options: Options) -> Study:
    settings = tuple(_settings(options))
    return Study(
        name="rivals",
        question="Who is strongest on which workload, and where does the fabric lose?",
        settings=settings,
        seeds=options.seed_range(),
        goals=tuple(goal for setting in settings for goal in _goals(setting)),
        drawn=("jct_s.mean", "slo_attainment", "ttft_s.mean", "hit_ratio"),
    )


def _settings(options: Options) -> Iterator[Setting]:
    bundles = named(*(_QUICK if options.quick else every_bundle()))
    trace = recorded_sessions(options)
    workers, live = (2, 16) if options.quick else (4, 40)
    yield Setting(
        label="recorded sessions" if trace else "sessions",
        scenario=sessions(live, workers, 500_000, trace),
        variants=bundles,
        series="sessions",
    )
    recorded: Sequence[Path | None] = options.recordings("mooncake") or (None,)
    for path in recorded:
        name = path.name.partition(".")[0] if path else "chat requests"
        scenario = requests(300 if options.quick else 2_000, path)
        yield Setting(label=name, scenario=scenario, variants=bundles, series=name)
    for graph in _GRAPHS[:1] if options.quick else _GRAPHS:
        scenario = dag(graph, 0.8, 40 if options.quick else 150)
        yield Setting(label=graph, scenario=scenario, variants=bundles, series="call graphs")


def _goals(setting: Setting) -> Iterator[Gain]:
    label, kind = setting.label, setting.scenario.workload.kind
    if kind == "graph":
        for figure, what in _FIGURES:
            yield Gain(name=f"{label}: {what}", setting=label, figure=figure, at_least=0.98)
    elif kind in ("mooncake", "chat-requests"):
        played = {variant.name for variant in setting.variants}
        rules = tuple(rule for rule in PREFIX_RULES if rule in played)
        for figure, what in (("hit_ratio", "hit ratio"), ("ttft_s.p99", "TTFT p99")):
            yield Gain(name=f"{label}: {what}", setting=label, figure=figure, at_least=1.0, rivals=rules)
    else:
        for figure, what in (("jct_s.mean", "JCT mean"), ("stretch.p99", "stretch p99"), ("ttft_s.mean", "TTFT mean")):
            yield Gain(name=f"{label}: {what}", setting=label, figure=figure, at_least=1.0)
