"""Each mechanism of the fabric off in turn: what is it worth?"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from amf.core.policy import budget, ordering
from amf.core.policy.bundles import BUNDLES
from amf.core.policy.interface import Placement, PoolView
from amf.core.state.pipelines import CallState
from amf.core.state.profiles import Profiles
from amf.experiment.studies.fleets import dag, recorded_sessions, sessions
from amf.experiment.study import OURS, Gain, Options, Setting, Study, Variant, named

_NEVER_S = 1e9
_UNBOUNDED = 1_000_000
_FABRIC = BUNDLES[OURS]
_FIGURES = (("jct_s.mean", "JCT mean"), ("stretch.p99", "stretch p99"))


class _NoDuty:
    """Profiles as they are, but for the share of time that a pool's residents are in service."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles

    def __getattr__(self, name: str) -> Any:
        return getattr(self._profiles, name)

    def duty(self, pool: str) -> tuple[float, float]:
        return 0.0, self._profiles.duty(pool)[1]


def _without_contention(state: CallState, view: PoolView) -> Placement:
    """The fabric's own route, told that residents are never in service."""
    profiles: Any = _NoDuty(view.profiles)
    return _FABRIC.route(state, replace(view, profiles=profiles))


# By a bound's value where one switches the mechanism off, else by another choice in its place.
_WITHOUT = (
    Variant(name="no protection", bundle=_FABRIC, config=(("hold_fraction", 0.0),)),
    Variant(name="any number of cold prefills", bundle=_FABRIC, config=(("max_cold_prefills", _UNBOUNDED),)),
    Variant(name="no late binding", bundle=_FABRIC, config=(("start_soon_s", _NEVER_S),)),
    Variant(name="no contention", bundle=replace(_FABRIC, route=_without_contention)),
    Variant(name="no interference", bundle=_FABRIC, config=(("interference_share", 0.0),)),
    Variant(name="no displacement", bundle=_FABRIC, config=(("displaced_reuse", 0.0),)),
    Variant(name="no stretch in the order", bundle=_FABRIC, config=(("stretch_target", _NEVER_S),)),
    Variant(name="no bound on making way", bundle=_FABRIC, config=(("yield_share", _NEVER_S),)),
    Variant(name="no lapse", bundle=_FABRIC, config=(("lapse_s", _NEVER_S),)),
    Variant(name="no reserve", bundle=_FABRIC, config=(("reserve_s", _NEVER_S),)),
    Variant(name="first come, first served", bundle=replace(_FABRIC, order=ordering.fcfs, budget=budget.no_budget)),
)


def study(options: Options) -> Study:
    settings = tuple(_settings(options))
    return Study(
        name="ablation",
        question="Each mechanism of the fabric off in turn: what is it worth, and does any do harm?",
        settings=settings,
        seeds=options.seed_range(full=3),
        goals=tuple(
            Gain(
                name=f"{setting.label}, against {variant.name}: {what}",
                setting=setting.label,
                figure=figure,
                at_least=0.98,
                rivals=(variant.name,),
            )
            for setting in settings
            for variant in _WITHOUT
            for figure, what in _FIGURES
        ),
        notes=("A mechanism that does no harm is no more than 2 % worse than its absence.",),
    )


def _settings(options: Options) -> Iterator[Setting]:
    variants = (*named(OURS), *_WITHOUT)
    workers, live = (2, 24) if options.quick else (4, 48)
    scenario = sessions(live, workers, 500_000, recorded_sessions(options))
    yield Setting(label="sessions short of memory", scenario=scenario, variants=variants)
    for graph in ("coding-7hop",) if options.quick else ("coding-7hop", "map-reduce"):
        scenario = dag(graph, 0.9, 40 if options.quick else 200)
        yield Setting(label=graph, scenario=scenario, variants=variants)
