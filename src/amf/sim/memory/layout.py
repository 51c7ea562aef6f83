"""What every layout of a worker's memory answers, and how much of it a hop needs.

A layout admits a hop as a whole or not at all, hears of each branch that ends and of the commit, and then of the end. What it
says of itself is in pages, so that layouts of one memory can be compared.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from amf.sim.memory.plan import Hop


class Refusal(StrEnum):
    ROOM = "room"  # too few pages are free
    CONTIGUITY = "contiguity"  # enough are free, and not where they would have to be


@dataclass(slots=True, kw_only=True)
class Tally:
    """Sums over a run. `transfers`: operations it would take to move to another tier what a commit leaves, one for each run of
    neighbouring pages, and `left_pages`, how many pages that is. `displaced_tokens`: of contexts that came back and had been
    warm; computing them again took `recomputed_s`."""

    moved_pages: int = 0
    compactions: int = 0
    transfers: int = 0
    left_pages: int = 0
    returned_tokens: int = 0
    displaced_tokens: int = 0
    recomputed_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class Held:
    """A hop that was admitted. `name` is unique; `pipeline` has at most one at a time."""

    name: str
    pipeline: int
    hop: Hop
    ended: dict[int, None] = field(default_factory=dict)


class Layout(Protocol):
    total_pages: int
    tally: Tally
    cancels: bool  # the losers of a decision; else they run to their end

    @property
    def free_pages(self) -> int: ...

    @property
    def largest_run(self) -> int:
        """Pages of the largest hop that could be admitted now."""
        ...

    @property
    def unused_pages(self) -> int:
        """Reserved pages that nothing will ever be written to, and rounding."""
        ...

    def fits_empty(self, hop: Hop) -> bool:
        """Whether an empty memory would take it."""
        ...

    def admit(self, held: Held) -> Refusal | None: ...

    def branch_ended(self, held: Held, index: int) -> None:
        """Before the decision, by itself."""
        ...

    def decided(self, held: Held) -> None:
        """The winner is known and has ended. So do all others if the layout `cancels` them."""
        ...

    def check_invariants(self) -> None: ...
