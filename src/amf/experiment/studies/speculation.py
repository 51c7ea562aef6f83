"""Attempts and guesses beside plain pipelines: what does speculation gain, who pays for it, and what is thrown away?"""

from collections.abc import Iterator

from amf.core.policy.bundles import BUNDLES
from amf.experiment.studies.fleets import mixed
from amf.experiment.study import OURS, Average, Gain, Goal, Options, Points, Setting, Study, Variant, named

# By branches: graphs of `sim/workload/speculation.py`.
_GRAPHS = {
    3: ("first-success-3", "best-of-3", "predicted-60", "tree-early"),
    8: ("first-success-8", "best-of-8"),
}
_ODDS = ("predicted-30", "predicted-90")  # beside predicted-60, at fewer loads
_LOADS, _ODDS_LOADS = (0.3, 0.5, 0.7, 0.9, 1.1), (0.3, 0.7, 1.1)
_QUICK_GRAPHS, _QUICK_LOADS = {3: ("first-success-3",), 8: ("first-success-8",)}, (0.5, 0.9)
_OFF, _UNMANAGED = "off", "unmanaged"
_VARIANTS = (
    Variant(name=_OFF, bundle=BUNDLES[OURS], speculation="off"),
    Variant(name=_UNMANAGED, bundle=BUNDLES[OURS], speculation="unmanaged"),
    *named("fabric-kill", OURS),
)
_FLEET = {"large": 3, "medium": 3, "small": 1}


def study(options: Options) -> Study:
    graphs, loads = (_QUICK_GRAPHS, _QUICK_LOADS) if options.quick else (_GRAPHS, _LOADS)
    pipelines = 60 if options.quick else 200
    points = [(graph, load) for found in graphs.values() for graph in found for load in loads]
    points += [] if options.quick else [(graph, load) for graph in _ODDS for load in _ODDS_LOADS]
    return Study(
        name="speculation",
        question="What do attempts and guesses gain, what do the pipelines beside them pay, and how much is thrown away?",
        settings=tuple(
            Setting(
                label=_label(graph, load),
                scenario=mixed(graph, load, pipelines, **_FLEET),
                variants=_VARIANTS,
                x=load,
                series=graph,
            )
            for graph, load in points
        ),
        averages=tuple(
            Average(
                label=_label(_branches(count), load),
                of=tuple(_label(graph, load) for graph in found),
                x=load,
                series=_branches(count),
            )
            for count, found in graphs.items()
            for load in loads
        ),
        seeds=options.seed_range(full=3),
        goals=tuple(_goals(loads)),
        axis="load",
        drawn=("speculation.own.p50", "speculation.others.mean", "jct_s.mean", "speculation.wasted_share"),
        notes=(
            "Half of the pipelines speculate (own), the others are plain chain-3; load 1 is what the fleet can do without "
            "speculation. Deadlines are 100 times the pipeline alone: nobody is refused.",
            "off tries one thing after another. unmanaged does all at once with plain calls. fabric-kill and fabric do so with "
            "branches; only fabric asks what each one costs.",
            "3 branches and 8 branches are means of seconds over their graphs: pipelines that take long weigh most.",
            "Wasted is all whose work nobody used, so an attempt that fails is wasted in off, too.",
        ),
    )


def _goals(loads: tuple[float, ...]) -> Iterator[Goal]:
    def against(rival: str, count: int, load: float, figure: str, at_least: float, what: str) -> Gain:
        label = _label(_branches(count), load)
        return Gain(name=f"{label}: {what}", setting=label, figure=figure, at_least=at_least, rivals=(rival,))

    for load in loads:
        if load <= 0.7:
            yield against(_OFF, 3, load, "speculation.own.p50", 1.22, "own p50 over off")
        if load >= 0.9:
            yield against(_OFF, 8, load, "jct_s.mean", 1.09, "mean over all pipelines, over off")
        for count in _GRAPHS:
            yield against(_OFF, count, load, "speculation.others.mean", 0.95, "the others' mean over off")
            wasted = "wasted tokens, unmanaged over ours"
            yield against(_UNMANAGED, count, load, "wasted_speculative_tokens", 3.0, wasted)
            needless = f"{wasted}, but for what off wastes, too"
            yield against(_UNMANAGED, count, load, "speculation.needless_tokens", 3.0, needless)
            label = _label(_branches(count), load)
            yield Points(
                name=f"{label}: hit ratio of what is used, minus off",
                setting=label,
                figure="speculation.hit_ratio",
                at_least=-0.01,
                rivals=(_OFF,),
            )


def _branches(count: int) -> str:
    return f"{count} branches"


def _label(what: str, load: float) -> str:
    return f"{what}, load {load:g}"
