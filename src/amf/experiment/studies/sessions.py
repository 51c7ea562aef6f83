"""Coding sessions on 8 workers, from where they fit to 4 times short of memory: the goals the fabric is held to."""

from amf.experiment.studies.fleets import SESSION_RIVALS, recorded_sessions, sessions
from amf.experiment.studies.regimes import goals, pressure
from amf.experiment.study import OURS, Options, Setting, Study, named

# Live sessions and KV tokens of each of 8 workers.
_REGIMES = ((32, 500_000), (64, 1_000_000), (64, 500_000), (128, 1_000_000), (128, 500_000), (256, 1_000_000))
_QUICK = _REGIMES[:1] + _REGIMES[2:3]


def study(options: Options) -> Study:
    trace = recorded_sessions(options)
    regimes, share = (
        (_QUICK, 4) if options.quick else (_REGIMES, 1)
    )  # quick: a quarter of the fleet and of the sessions
    rivals = ("session-affinity", "thunderagent-fcfs") if options.quick else SESSION_RIVALS
    workers = 8 // share
    made = [
        (
            Setting(
                label=f"{live // share} live, {kv_tokens // 1000} K tokens",
                scenario=sessions(live // share, workers, kv_tokens, trace),
                variants=named(*rivals, OURS),
            ),
            pressure(live // share, workers, kv_tokens),
        )
        for live, kv_tokens in regimes
    ]
    return Study(
        name="sessions",
        question="Many live coding sessions on one pool: how much sooner are they done than under the strongest rival?",
        settings=tuple(setting for setting, _ in made),
        seeds=options.seed_range(),
        goals=tuple(goal for setting, short in made for goal in goals(setting.label, short)),
        notes=(f"{workers} workers; {'recorded' if trace else 'generated'} sessions",),
    )
