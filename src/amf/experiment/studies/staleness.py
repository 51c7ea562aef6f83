"""KV events lost or late, load reports old: how much of the gain is left when the fabric's belief is wrong."""

from collections.abc import Iterator
from typing import Any

from amf.experiment.studies.fleets import recorded_sessions, sessions
from amf.experiment.study import OURS, Gain, Options, Setting, Study, named

_EXACT = "exact"
_FIGURE = "jct_s.mean"
_FAULTS: tuple[tuple[str, dict[str, float]], ...] = (
    (_EXACT, {}),
    ("1 % lost", {"event_loss": 0.01}),
    ("5 % lost", {"event_loss": 0.05}),
    ("20 % lost", {"event_loss": 0.2}),
    ("0.1 s late", {"event_delay_s": 0.1}),
    ("1 s late", {"event_delay_s": 1.0}),
    ("10 s late", {"event_delay_s": 10.0}),
    ("load 10 s old", {"metrics_staleness_s": 10.0}),
)
_QUICK = (_FAULTS[0], _FAULTS[3], _FAULTS[6])


def study(options: Options) -> Study:
    trace = recorded_sessions(options)
    workers, live = (2, 16) if options.quick else (4, 40)
    rivals = ("llm-d",) if options.quick else ("session-affinity", "llm-d", "thunderagent-fcfs")
    wanted: list[Gain] = []
    settings: list[Setting] = []
    for label, faults in _QUICK if options.quick else _FAULTS:
        tables: dict[str, Any] = {"faults": faults}
        scenario = sessions(live, workers, 500_000, trace, **tables)
        settings.append(Setting(label=label, scenario=scenario, variants=named(*rivals, OURS)))
        if label != _EXACT:
            wanted += _goals(label)
    return Study(
        name="staleness",
        question="What does it cost when KV events are lost or late, and when load reports are old?",
        settings=tuple(settings),
        seeds=options.seed_range(full=3),
        goals=tuple(wanted),
    )


def _goals(label: str) -> Iterator[Gain]:
    yield Gain(name=f"{label}: JCT mean, against the strongest rival", setting=label, figure=_FIGURE, at_least=1.0)
    yield Gain(
        name=f"{label}: JCT mean, against exact events",
        setting=label,
        figure=_FIGURE,
        at_least=0.95,
        rivals=(OURS,),
        than=_EXACT,
    )
