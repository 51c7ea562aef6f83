"""Layouts by name, and playing a scenario under one of them.

| name | how it lies |
|---|---|
| `paged` | pages, a group's context shared. `deferred`: ended branches stay until the decision; `losers linger`: to their end |
| `slots` | each branch a piece of its own, with its own copy of the context |
| `ranges` | a group in one piece, its context once, siblings side by side: the reservation ledger, whose allocator is named |
| `ranges, 4 extents` | the same, but where there is no such piece the context may lie in four, and siblings apart |
| `ranges, compacted` | one piece, and neighbours are moved together for it |
| `mixed: ...` | two unlike page sizes (`mixed.py`); only for a scenario with `hybrid` |
"""

from collections.abc import Callable, Mapping
from typing import Any

from amf.sim.memory.layout import Layout
from amf.sim.memory.mixed import WAYS, mixed_layout
from amf.sim.memory.paged import PagedLayout
from amf.sim.memory.plan import PROFILE, draw
from amf.sim.memory.ranges import RangeLayout
from amf.sim.memory.scenario import MemoryScenario
from amf.sim.memory.worker import MemoryWorker, Watch
from amf.sim.pages.buddy import Buddy
from amf.sim.pages.ledger import LedgerOptions
from amf.sim.pages.ranges import Allocator, BestFit, FirstFit

EXTENTS = 4
Make = Callable[[MemoryScenario], Layout]


def _paged(deferred: bool = False, lingers: bool = False) -> Make:
    return lambda scenario: PagedLayout(_pages(scenario), scenario.page_tokens, deferred, lingers)


def _slots(allocator: Callable[[int], Allocator]) -> Make:
    def make(scenario: MemoryScenario) -> Layout:
        options = LedgerOptions(page_tokens=scenario.page_tokens, together=False)
        return RangeLayout(allocator, _pages(scenario), options, shared=False)

    return make


def _ranges(
    allocator: Callable[[int], Allocator], extents: int = 1, deferred: bool = False, compacts: bool = False
) -> Make:
    def make(scenario: MemoryScenario) -> Layout:
        options = LedgerOptions(page_tokens=scenario.page_tokens, extents=extents, deferred=deferred)
        return RangeLayout(allocator, _pages(scenario), options, compacts=compacts)

    return make


def _mixed(way: str) -> Make:
    return lambda scenario: mixed_layout(way, scenario)


LAYOUTS: Mapping[str, Make] = {
    "paged": _paged(),
    "paged, deferred": _paged(deferred=True),
    "paged, losers linger": _paged(lingers=True),
    "slots, first fit": _slots(FirstFit),
    "slots, best fit": _slots(BestFit),
    "slots, buddy": _slots(Buddy),
    "ranges, first fit": _ranges(FirstFit),
    "ranges, first fit, deferred": _ranges(FirstFit, deferred=True),
    "ranges, best fit": _ranges(BestFit),
    "ranges, buddy": _ranges(Buddy),
    "ranges, 4 extents": _ranges(BestFit, extents=EXTENTS),
    "ranges, 4 extents, deferred": _ranges(BestFit, extents=EXTENTS, deferred=True),
    "ranges, compacted": _ranges(BestFit, compacts=True),
    **{f"mixed: {way}": _mixed(way) for way in WAYS},
}


def play_memory(scenario: MemoryScenario, layout: str, seed: int, watch: Watch) -> dict[str, Any]:
    """The report of one layout under one seed. Raises KeyError for an unknown layout, and what `watch` raises."""
    pipelines = draw(scenario, seed)
    worker = MemoryWorker(LAYOUTS[layout](scenario), pipelines, PROFILE.kv_bytes_per_token * scenario.page_tokens)
    figures = worker.run(watch)
    return {
        "policy": layout,
        "workload": scenario.workload.kind,
        "seed": seed,
        "pipelines": len(pipelines),
        "completed": worker.completed,
        "refused": worker.refused,
        "calls": sum(len(hop.branches) for pipeline in pipelines for hop in pipeline.hops),
        **figures,
        "notes": [],
    }


def _pages(scenario: MemoryScenario) -> int:
    return scenario.kv_tokens // scenario.page_tokens
