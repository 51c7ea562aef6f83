"""Memory in which a sequence, or a group, lies in one piece: the ledger's ranges as places.

Slot-based engines, and KV in a registered region. `shared` False is the plain slot: each branch has its own copy of the
context. A call reserves the bound that its client declared, since a piece cannot grow into its neighbour; what of it stays
unwritten is `unused_pages`. With `compacts`, a hop that finds enough pages and no piece has neighbours moved together.
"""

from collections.abc import Callable

from amf.sim.memory.layout import Held, Refusal, Tally
from amf.sim.memory.plan import Hop
from amf.sim.pages.ledger import LedgerOptions, Need, ReservationLedger
from amf.sim.pages.ranges import Allocator


class RangeLayout:
    cancels = True

    def __init__(
        self,
        allocator: Callable[[int], Allocator],
        total_pages: int,
        options: LedgerOptions,
        shared: bool = True,
        compacts: bool = False,
    ) -> None:
        self.total_pages = total_pages
        self.tally = Tally()
        self._make = allocator
        self._options = options
        self._shared = shared
        self._compacts = compacts
        self._ledger = ReservationLedger(allocator(total_pages), options)
        self._unused: dict[str, list[int]] = {}

    @property
    def free_pages(self) -> int:
        return self._ledger.allocator.free_pages

    @property
    def largest_run(self) -> int:
        return self._ledger.allocator.largest_run

    @property
    def unused_pages(self) -> int:
        return self._ledger.allocator.wasted_pages + sum(sum(each) for each in self._unused.values())

    def fits_empty(self, hop: Hop) -> bool:
        empty = ReservationLedger(self._make(self.total_pages), self._options)
        return empty.reserve_group("", *self._needs(Held(name="", pipeline=0, hop=hop)))

    def admit(self, held: Held) -> Refusal | None:
        shared_tokens, needs = self._needs(held)
        shared, own = self._ledger.pages_of(shared_tokens, needs.values())
        wanted = shared + sum(own)
        if wanted > self.free_pages:
            return Refusal.ROOM
        found = self._ledger.reserve_group(held.name, shared_tokens, needs)
        if not found and self._compacts:
            self.tally.moved_pages += self._ledger.compact(wanted) or 0
            self.tally.compactions += 1
            found = self._ledger.reserve_group(held.name, shared_tokens, needs)
        if not found:
            return Refusal.CONTIGUITY
        most = [each.bound_tokens - each.output_tokens for each in held.hop.branches]
        self._unused[held.name] = [tokens // self._options.page_tokens for tokens in most]
        return None

    def branch_ended(self, held: Held, index: int) -> None:
        """Its pages come back, with `deferred` at the decision."""
        held.ended[index] = None
        if index == held.hop.winner:
            self._leave(held)
        self._ledger.finish(_call(held, index))
        if not self._options.deferred:
            self._unused[held.name][index] = 0

    def decided(self, held: Held) -> None:
        if held.hop.winner not in held.ended:
            self._leave(held)
        self._ledger.close(held.name)
        del self._unused[held.name]

    def check_invariants(self) -> None:
        self._ledger.check_invariants()

    def _leave(self, held: Held) -> None:
        """What the winner would carry to another tier: what was written of its ranges."""
        hop = held.hop
        written = hop.context_tokens + hop.branches[hop.winner].true_tokens
        self.tally.transfers += len(self._ledger.ranges_of(_call(held, hop.winner)))
        self.tally.left_pages += -(-written // self._options.page_tokens)

    def _needs(self, held: Held) -> tuple[int, dict[str, Need]]:
        hop = held.hop
        own = 0 if self._shared else hop.context_tokens
        needs = {
            _call(held, index): Need(own + branch.own_tokens, branch.bound_tokens)
            for index, branch in enumerate(hop.branches)
        }
        return hop.context_tokens if self._shared else 0, needs


def _call(held: Held, index: int) -> str:
    return f"{held.name}/{index}"
