"""What does it cost to lay a worker's KV memory out in one piece a sequence, and what do branches displace in pages?

The first settings fill one worker's memory beyond what it holds and ask how many groups are live in it at once, layout by
layout. In the last ones pipelines that would need 60 % of it without branches launch more and more of them, and what counts is
how much of the contexts that come back is gone.
"""

from collections.abc import Iterator
from dataclasses import replace

from amf.core.cost import Deployment, kv_bytes, worker_profile
from amf.core.presets import gpu_preset, model_preset
from amf.experiment.study import Gain, Limit, Options, Setting, Study, named
from amf.sim.memory.run import LAYOUTS
from amf.sim.memory.scenario import GPU, MODEL, MemoryScenario, MemoryWorkload

_PIPELINES, _QUICK_PIPELINES = 600, 60
_EXTENTS, _COMPACTED, _ONE_RANGE = "ranges, 4 extents", "ranges, compacted", "ranges, best fit"
_FIRST_FIT = "ranges, first fit"
_PLAIN = tuple(name for name in LAYOUTS if not name.startswith("mixed"))
_MAIN = ("paged", "slots, first fit", _FIRST_FIT, _EXTENTS, _COMPACTED)
_BUDDIES = ("slots, buddy", "ranges, buddy")
_MIXED = tuple(name for name in LAYOUTS if name.startswith("mixed"))
_PAGED = ("paged", "paged, deferred", "paged, losers linger")
_OF_PAGED = 1 / 1.15
_HYBRID = "gemma-3-27b"
_THREE, _UP_TO_EIGHT = "3 branches", "2 to 8 branches"
# Calls a hop at three branches a group, by the share of hops that launch one.
_BRANCHING = ((1.5, 0.25), (2.0, 0.5), (3.0, 1.0))
_DISPLACING_LOAD = 0.6
# The essay's example and its size of a token.
_ESSAY_BRANCHES, _ESSAY_TOKENS, _ESSAY_TOKEN_BYTES = 3, 16_384, 1.25e6


def study(options: Options) -> Study:
    workload = MemoryWorkload(pipelines=_QUICK_PIPELINES if options.quick else _PIPELINES)
    settings = (*_saturated(workload), *_displacing(workload))
    if options.quick:
        settings = tuple(setting for setting in settings if "branching" not in setting.label)
    return Study(
        name="fragmentation",
        question="How many groups of branches does a memory hold in each layout, and what do they displace from pages?",
        settings=settings,
        seeds=options.seed_range(),
        goals=tuple(_goals()),
        drawn=("live_groups", "largest_free_share", "failed_contiguity", "displaced_share"),
        notes=(*_essay(), *_NOTES),
    )


_NOTES = (
    "One worker of 500,000 tokens in pages of 16. Hops start in order of arrival, and none passes another; unless said "
    "otherwise 70 % of them launch a group. A call takes equally long in every layout. Live groups count hops that are one "
    "call, too.",
    "failed: of the attempts to admit the first hop in the queue, for want of a run although enough was free, and for want of "
    "room. unused: of the memory, reserved beyond the true output, and rounding.",
    "transfers/GB: runs of neighbouring pages in what a commit leaves, where a page has all layers; where each layer has a "
    "tensor of its own, times the layers. displaced: of the tokens of contexts that come back.",
)


def _saturated(workload: MemoryWorkload) -> Iterator[Setting]:
    most = replace(workload, branches=(2, 8))
    yield Setting(label=_THREE, scenario=MemoryScenario(workload=workload), variants=named(*_PLAIN))
    yield Setting(label=_UP_TO_EIGHT, scenario=MemoryScenario(workload=most), variants=named(*_MAIN, *_BUDDIES))
    for factor, grouped in _BRANCHING:
        scenario = MemoryScenario(workload=replace(workload, grouped=grouped))
        yield Setting(label=f"branching {factor:g}x", scenario=scenario, variants=named(*_MAIN))
    hybrid = MemoryScenario(workload=workload, hybrid=_HYBRID)
    yield Setting(label=f"3 branches, {_HYBRID}", scenario=hybrid, variants=named(*_MIXED), series="two page sizes")


def _displacing(workload: MemoryWorkload) -> Iterator[Setting]:
    for label, grouped, branches in (
        ("no branches", 0.0, (1, 1)),
        *((f"branching {factor:g}x", share, (3, 3)) for factor, share in _BRANCHING),
        ("8 branches", 1.0, (8, 8)),
    ):
        offered = replace(
            workload, grouped=grouped, branches=branches, load=_DISPLACING_LOAD, load_without_branches=True
        )
        yield Setting(
            label=f"{label}, 60 % without them",
            scenario=MemoryScenario(workload=offered),
            variants=named(*_PAGED),
            series="displaced",
        )


def _goals() -> Iterator[Gain | Limit]:
    for label in (_THREE, _UP_TO_EIGHT):
        yield Limit(
            name=f"{label}: paged fails for want of a run",
            setting=label,
            figure="failed_contiguity",
            policy="paged",
            at_most=0.0,
        )
        for ours, rival, at_least in (
            (_EXTENTS, _FIRST_FIT, 1.0),
            (_EXTENTS, "paged", _OF_PAGED),
            (_COMPACTED, "paged", _OF_PAGED),
            *(((_ONE_RANGE, _FIRST_FIT, 1.0), (_ONE_RANGE, "paged", _OF_PAGED)) if label == _THREE else ()),
        ):
            yield Gain(
                name=f"{label}: live groups in {ours}, of {rival}",
                setting=label,
                figure="live_groups",
                policy=ours,
                rivals=(rival,),
                at_least=at_least,
            )


def _essay() -> Iterator[str]:
    """Three branches of 16 K, with its bytes a token and with those of models."""
    tokens = _ESSAY_BRANCHES * _ESSAY_TOKENS
    yield (
        f"The essay's {_ESSAY_BRANCHES} branches of 16 K tokens at its {_ESSAY_TOKEN_BYTES / 1e6:g} MB a token: "
        f"{_ESSAY_TOKENS * _ESSAY_TOKEN_BYTES / 1e9:.1f} GB each, {tokens * _ESSAY_TOKEN_BYTES / 1e9:.1f} GB together."
    )
    for name in (MODEL, "llama-3.1-8b", "deepseek-v3", _HYBRID):
        model, parts = model_preset(name), list[str]()
        for kv in ("fp8", "bf16"):
            one = kv_bytes(worker_profile(model, gpu_preset(GPU), Deployment(kv=kv)), _ESSAY_TOKENS)
            parts.append(f"{kv} {one / 2**30:.2f} GiB each, {_ESSAY_BRANCHES * one / 2**30:.2f} together")
        yield f"The same in {name}: {'; '.join(parts)}."
