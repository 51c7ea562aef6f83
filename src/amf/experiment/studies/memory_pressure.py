"""Live sessions for each worker's memory, from where their contexts fit to 4 times more than fit."""

from amf.experiment.studies.fleets import SESSION_RIVALS, recorded_sessions, sessions
from amf.experiment.studies.regimes import goals, pressure
from amf.experiment.study import OURS, Gain, Options, Setting, Study, named

_KV_TOKENS = 500_000


def study(options: Options) -> Study:
    trace = recorded_sessions(options)
    workers = 2 if options.quick else 4
    a_worker = (4, 12) if options.quick else (4, 8, 12, 16, 20)
    rivals = ("session-affinity", "thunderagent-fcfs") if options.quick else SESSION_RIVALS
    settings: list[Setting] = []
    wanted: list[Gain] = []
    for live in (each * workers for each in a_worker):
        short = pressure(live, workers, _KV_TOKENS)
        label = f"{live} live, contexts {short:g} x memory"
        scenario = sessions(live, workers, _KV_TOKENS, trace)
        settings.append(Setting(label=label, scenario=scenario, variants=named(*rivals, OURS), x=short))
        wanted += goals(label, short)
    return Study(
        name="memory-pressure",
        question="How do completion times and first tokens suffer as more sessions share the same memory?",
        settings=tuple(settings),
        seeds=options.seed_range(full=3),
        goals=tuple(wanted),
        axis="contexts of live sessions over memory",
        drawn=("jct_s.mean", "stretch.p95", "stretch.p99", "ttft_s.mean", "ttft_s.p99", "hit_ratio"),
        notes=(f"{workers} workers of {_KV_TOKENS} tokens; {'recorded' if trace else 'generated'} sessions",),
    )
