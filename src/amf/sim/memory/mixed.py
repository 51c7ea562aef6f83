"""A model whose layers of two kinds have pages of unlike size: those that keep the whole context, and those that keep a window.

A sequence has a page of the first kind for every `page_tokens` tokens, which branches share as far as their context goes, and
pages of the second kind for a window of its own (that siblings begin with one window in common is left out). Sizes are counted
in layers, as every layer of either kind takes as much a token. Four ways to house both in one memory:

- `bytes`: any free byte serves any page. No engine does that; it is what the others are measured by.
- `two pools`: memory is divided beforehand, as a median hop of the workload needs it.
- `one size`: the layers of both kinds are put into groups of equally many, short groups are filled up, and one size of page
  serves all of them. The filling is the loss.
- `large pages`: memory is divided into pages of the least common multiple of both sizes, each of which is cut into pages of one
  kind until all of them are free again (Jenga, SOSP 2025). What is left over in them is the loss.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm
from typing import Protocol

from amf.core.cost import Deployment
from amf.core.presets import model_preset
from amf.sim.memory.layout import Held, Refusal, Tally
from amf.sim.memory.plan import OUTPUT_TOKENS, OWN_TOKENS, Hop, whole_pages
from amf.sim.memory.scenario import MemoryScenario, MemoryWorkload

FULL, WINDOW = 0, 1
Pages = tuple[int, int]  # of either kind


class Housing(Protocol):
    """Gives and takes back pages of both kinds. `free` in layer pages."""

    total: int

    @property
    def free(self) -> int: ...

    def fits(self, pages: Pages) -> bool: ...

    def take(self, name: str, pages: Pages) -> None:
        """These fit."""
        ...

    def give_back(self, name: str) -> None: ...


@dataclass(slots=True)
class OneSize:
    """Every page of a kind takes `units` of a memory without places: its layers, filled up as the case may be."""

    total: int
    units: Pages
    used: int = 0
    held: dict[str, int] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.total - self.used

    def fits(self, pages: Pages) -> bool:
        return self._cost(pages) <= self.free

    def take(self, name: str, pages: Pages) -> None:
        self.held[name] = self._cost(pages)
        self.used += self.held[name]

    def give_back(self, name: str) -> None:
        self.used -= self.held.pop(name)

    def _cost(self, pages: Pages) -> int:
        return pages[FULL] * self.units[FULL] + pages[WINDOW] * self.units[WINDOW]


class TwoPools:
    def __init__(self, total: int, units: Pages, typical: Pages) -> None:
        share = typical[FULL] * units[FULL] / (typical[FULL] * units[FULL] + typical[WINDOW] * units[WINDOW])
        full = int(total * share)
        self.total = total
        self._pools = (OneSize(full, (units[FULL], 0)), OneSize(total - full, (0, units[WINDOW])))

    @property
    def free(self) -> int:
        return sum(pool.free for pool in self._pools)

    def fits(self, pages: Pages) -> bool:
        return all(pool.fits(pages) for pool in self._pools)

    def take(self, name: str, pages: Pages) -> None:
        for pool in self._pools:
            pool.take(name, pages)

    def give_back(self, name: str) -> None:
        for pool in self._pools:
            pool.give_back(name)


class LargePages:
    """A rest of memory smaller than a large page is left out."""

    def __init__(self, total: int, units: Pages) -> None:
        self._units = units
        self._large = lcm(*units)
        self.total = total // self._large * self._large
        self._slots = (self._large // units[FULL], self._large // units[WINDOW])
        self._unused = list(range(total // self._large))
        self._part: tuple[dict[int, int], dict[int, int]] = (
            {},
            {},
        )  # by kind: large page -> small ones free in it, if any
        self._held: dict[str, list[tuple[int, int, int]]] = {}  # kind, large page, small ones

    @property
    def free(self) -> int:
        parts = (sum(part.values()) * unit for part, unit in zip(self._part, self._units, strict=True))
        return len(self._unused) * self._large + sum(parts)

    def fits(self, pages: Pages) -> bool:
        short = (max(0, pages[kind] - sum(self._part[kind].values())) for kind in (FULL, WINDOW))
        return sum(-(-each // slots) for each, slots in zip(short, self._slots, strict=True)) <= len(self._unused)

    def take(self, name: str, pages: Pages) -> None:
        held = self._held[name] = []
        for kind in (FULL, WINDOW):
            part, left = self._part[kind], pages[kind]
            while left:
                large, free = next(iter(part.items())) if part else (self._unused.pop(), self._slots[kind])
                some = min(left, free)
                part.pop(large, None)
                if some < free:
                    part[large] = free - some
                held.append((kind, large, some))
                left -= some

    def give_back(self, name: str) -> None:
        for kind, large, some in self._held.pop(name):
            free = self._part[kind].pop(large, 0) + some
            if free == self._slots[kind]:
                self._unused.append(large)
            else:
                self._part[kind][large] = free


class MixedLayout:
    """A hop is housed part by part: what is shared, and each branch. Figures are in layer pages."""

    cancels = True

    def __init__(self, make: Callable[[], Housing], layers: Pages, window_pages: int, page_tokens: int) -> None:
        self._make = make
        self._housing = make()
        self._layers = layers
        self._window_pages = window_pages
        self._page_tokens = page_tokens
        self.total_pages = self._housing.total
        self.tally = Tally()

    @property
    def free_pages(self) -> int:
        return self._housing.free

    @property
    def largest_run(self) -> int:
        return self._housing.free

    @property
    def unused_pages(self) -> int:
        return 0

    def fits_empty(self, hop: Hop) -> bool:
        return self._make().fits(_sum(parts_of(hop, self._window_pages, self._page_tokens)))

    def admit(self, held: Held) -> Refusal | None:
        parts = parts_of(held.hop, self._window_pages, self._page_tokens)
        wanted = _sum(parts)
        if not self._housing.fits(wanted):
            units = wanted[FULL] * self._layers[FULL] + wanted[WINDOW] * self._layers[WINDOW]
            return Refusal.ROOM if units > self._housing.free else Refusal.CONTIGUITY
        for index, pages in enumerate(parts, start=-1):  # -1: what is shared
            self._housing.take(f"{held.name}/{index}", pages)
        return None

    def branch_ended(self, held: Held, index: int) -> None:
        held.ended[index] = None
        self._housing.give_back(f"{held.name}/{index}")

    def decided(self, held: Held) -> None:
        for index in range(-1, len(held.hop.branches)):
            if index not in held.ended:
                self._housing.give_back(f"{held.name}/{index}")

    def check_invariants(self) -> None:
        """Raises AssertionError if more is free than there is."""
        assert 0 <= self._housing.free <= self._housing.total


def parts_of(hop: Hop, window_pages: int, page_tokens: int) -> list[Pages]:
    """What is shared, then each branch's own. A window of w pages touches w + 1 unless the sequence is shorter."""
    shared, own = whole_pages(hop, page_tokens)
    return [(shared, 0), *((pages, min(shared + pages, window_pages + 1)) for pages in own)]


def mixed_layout(way: str, scenario: MemoryScenario) -> MixedLayout:
    """One of WAYS. The memory is as large as `kv_tokens` of the model take where each sequence has the length that a deployment
    counts with (`core/cost.py`)."""
    model, size = model_preset(scenario.hybrid), scenario.page_tokens
    layers = (model.full_layers, model.window_layers)
    per_page = layers[FULL] + layers[WINDOW] * min(1.0, model.window_tokens / Deployment().context_tokens)
    total = int(scenario.kv_tokens // size * per_page)
    window_pages = model.window_tokens // size
    group = min(layers)
    filled = (-(-layers[FULL] // group) * group, -(-layers[WINDOW] // group) * group)
    typical = _typical(scenario.workload, window_pages, size)
    make: Mapping[str, Callable[[], Housing]] = {
        "bytes": lambda: OneSize(total, layers),
        "two pools": lambda: TwoPools(total, layers, typical),
        "one size": lambda: OneSize(total, filled),
        "large pages": lambda: LargePages(total, layers),
    }
    return MixedLayout(make[way], layers, window_pages, size)


WAYS = ("bytes", "two pools", "one size", "large pages")


def _typical(workload: MemoryWorkload, window_pages: int, page_tokens: int) -> Pages:
    """Of a hop with the median context and the mean number of branches."""
    branches = 1 + workload.grouped * (sum(workload.branches) / 2 - 1)
    own = (OWN_TOKENS.median + OUTPUT_TOKENS.median) / page_tokens
    return round(workload.context_tokens / page_tokens + branches * own), round(branches * (window_pages + 1))


def _sum(parts: Sequence[Pages]) -> Pages:
    return sum(each[FULL] for each in parts), sum(each[WINDOW] for each in parts)
