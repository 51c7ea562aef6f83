"""What the fabric believes about each worker: what runs there on its behalf, how much memory that commits, how long its
prefill backlog is, and how fast it really is compared with its profile.

Sums are kept up to date at events, so that pricing a worker costs a few additions. The prefill backlog is a virtual
finishing time, `prefill_free_s`: engines prefill one prompt after another. It is trued up at every first token. A call
whose first token cannot be seen (no streaming) is believed to have left the prefill queue when it was due, and its end
says how fast its worker is.
"""

from dataclasses import dataclass
from enum import StrEnum
from heapq import heappop, heappush
from math import exp, inf

from amf.core.config import FabricConfig
from amf.core.cost import decode_iteration_s, decode_s, decode_share_s, full_batch, prefill_s
from amf.core.state.pace import Pace, Paces
from amf.core.state.reservations import Reservations
from amf.core.types import Call, Prefix, Worker

_FEW_TOKENS = 8  # of an answer, say nothing of the speed of decoding
_SLOWEST = 100.0  # times what was expected: no more is believed
_RECENT_S = 180.0  # how far back recent work reaches: the window of Preble


class WorkerStatus(StrEnum):
    UP = "up"
    DRAINING = "draining"
    LOST = "lost"


@dataclass(slots=True)
class Flight:
    """One attempt of a call on a worker."""

    call_id: str
    run_id: str
    attempt: int
    prefix: Prefix
    hit_tokens: int
    footprint_tokens: int  # prompt and expected output: the memory it will take, what it shares with siblings included
    prefill_s: float
    restore_s: float  # before it: loading back what lies in a lower tier
    sent_s: float
    due_s: float  # first token expected
    backlog_s: float  # prefill that was in front of it
    streams: bool
    cold: bool
    used_s: float = -inf  # last use of its warm prefix before this dispatch
    prefilling: bool = True
    first_token_s: float | None = None

    @property
    def prompt_tokens(self) -> int:
        return self.prefix.total_tokens

    @property
    def uncached_tokens(self) -> int:
        """To prefill, as was believed when it was sent."""
        return self.prompt_tokens - self.hit_tokens

    @property
    def output_tokens(self) -> int:
        """Of its answer, as was expected when it was sent."""
        return self.footprint_tokens - self.prompt_tokens


class WorkerState:
    def __init__(self, spec: Worker, pool_paces: Paces) -> None:
        self.spec = spec
        self.name = spec.name
        self.kv_tokens = spec.kv_tokens
        self.tiers_tokens = spec.kv_tokens + spec.dram_tokens  # HBM and what lies below it
        self.profile = spec.profile
        self.status = WorkerStatus.UP
        self.flights: dict[str, Flight] = {}
        self.committed_tokens = 0  # of all that flies, as decoding reads it
        self.reserved = Reservations(spec.block_tokens)  # the memory it takes
        self.cold_prefills = 0
        self.pending_prefill_tokens = 0
        self.prefill_free_s = -inf
        self.yields_from_s = -inf  # no protected context here makes way for a lapsed call before
        self.dispatched = 0
        self.failures = 0
        self.reported_running = 0
        self.reported_waiting = 0
        self.reported_kv_used_ratio = 0.0
        self.has_reported = False
        self._recent_prefill: tuple[float, float] = (0.0, -inf)  # seconds sent, forgotten over time; as of when
        self.due: list[tuple[float, str, int]] = []  # unseen first tokens, by due time
        self._paces = Paces()
        self._pool_paces = pool_paces
        self._decode_base_s = 0.0
        self.prefill_scale = self.decode_scale = 1.0
        self.decode_step_s = 0.0  # seconds of one decode iteration if one more sequence joined
        self.refresh_paces()
        self._refresh_decode()

    @property
    def running(self) -> int:
        return len(self.flights)

    def refresh_paces(self) -> None:
        """Renew the speed factors from what this worker and its pool have shown."""
        own, pool = self._paces, self._pool_paces
        self.prefill_scale = own.prefill.within(pool.prefill)
        self.decode_scale = own.decode.within(pool.decode)
        self.decode_step_s = self._decode_base_s * self.decode_scale

    def backlog_s(self, now_s: float) -> float:
        """Seconds until a new prompt's prefill would begin."""
        return max(self.prefill_free_s - now_s, 0.0)

    def prefill_s(self, new_tokens: int, cached_tokens: int) -> float:
        """Expected seconds to prefill, by profile and observed speed."""
        return prefill_s(self.profile, new_tokens, cached_tokens) * self.prefill_scale

    def toll_s(self, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> tuple[float, float]:
        """What a call takes, in expected seconds, if it has the worker to itself, and what it costs a busy worker: its prefill,
        and its share of the iterations of a full batch. `cached_tokens` are at most the prompt's."""
        profile, scale = self.profile, self.decode_scale
        batch = full_batch(self.spec.max_running, self.kv_tokens, max(prompt_tokens + output_tokens, 1))
        prefilled_s = self.prefill_s(prompt_tokens - cached_tokens, cached_tokens)
        alone_s = prefilled_s + decode_s(profile, output_tokens - 1, 1, prompt_tokens) * scale
        return alone_s, prefilled_s + decode_share_s(profile, prompt_tokens, output_tokens, batch) * scale

    def restore_s(self, lower_tokens: int, config: FabricConfig) -> float:
        """Seconds to load back what is warm only in a lower tier."""
        if not lower_tokens:
            return 0.0
        bytes_per_s = self.spec.restore_bytes_per_s or config.restore_bytes_per_s
        return lower_tokens * self.spec.profile.kv_bytes_per_token / bytes_per_s

    def recent_prefill_s(self, now_s: float) -> float:
        """Seconds of prefill sent here of late: each counts e times less with every three minutes."""
        total_s, as_of_s = self._recent_prefill
        return total_s * exp((as_of_s - now_s) / _RECENT_S) if total_s else 0.0

    def free_tokens(self) -> int:
        """KV memory not reserved for calls in flight. May be negative."""
        return self.spec.kv_tokens - self.reserved.tokens

    def needed_tokens(self, call: Call, footprint_tokens: int) -> int:
        """The memory that a call would take here, beside what its siblings hold already."""
        return self.reserved.needed(call.run_id, call.prefix, footprint_tokens)

    def start(self, flight: Flight) -> None:
        self.flights[flight.call_id] = flight
        self.dispatched += 1
        self.committed_tokens += flight.footprint_tokens
        self.reserved.add(flight.run_id, flight.call_id, flight.prefix, flight.footprint_tokens)
        self.cold_prefills += flight.cold
        self.pending_prefill_tokens += flight.uncached_tokens
        self.prefill_free_s = flight.due_s
        self._recent_prefill = (self.recent_prefill_s(flight.sent_s) + flight.prefill_s, flight.sent_s)
        if not flight.streams:
            heappush(self.due, (flight.due_s, flight.call_id, flight.attempt))
        self._refresh_decode()

    def first_token(self, call_id: str, now_s: float) -> None:
        """Seen: correct the speed estimate and the backlog."""
        flight = self.flights[call_id]
        flight.first_token_s = now_s
        expected_s = prefill_s(self.profile, flight.uncached_tokens, flight.hit_tokens)
        if flight.backlog_s <= flight.prefill_s:  # mostly its own prefill, not a queue
            waited_s = flight.backlog_s + flight.restore_s
            own, pool = self._paces.prefill, self._pool_paces.prefill
            self._observe(own, pool, now_s - flight.sent_s - waited_s, expected_s)
        self._leave_prefill(flight)
        self.prefill_free_s = now_s + sum(f.prefill_s for f in self.flights.values() if f.prefilling)

    def pass_due(self, now_s: float) -> None:
        """Unseen first tokens that were due by now are believed to have come."""
        while self.due and self.due[0][0] <= now_s:
            _, call_id, attempt = heappop(self.due)
            flight = self.flights.get(call_id)
            if flight is not None and flight.attempt == attempt:
                self._leave_prefill(flight)

    def end(self, call_id: str, now_s: float, output_tokens: int | None) -> Flight:
        """The attempt is over. `output_tokens` when it completed: corrects the decode speed estimate."""
        flight = self.flights.pop(call_id)
        if flight.prefilling:
            self._leave_prefill(flight)
            self.prefill_free_s = now_s + sum(f.prefill_s for f in self.flights.values() if f.prefilling)
        self.committed_tokens -= flight.footprint_tokens
        self.reserved.remove(flight.run_id, call_id)
        if output_tokens is not None:
            self._learn_speed(flight, now_s, output_tokens)
        self._refresh_decode()
        return flight

    def check_invariants(self) -> None:
        flights = self.flights.values()
        assert self.committed_tokens == sum(f.footprint_tokens for f in flights)
        self.reserved.check_invariants({f.call_id for f in flights})
        assert self.cold_prefills == sum(1 for f in flights if f.prefilling and f.cold)
        assert self.pending_prefill_tokens == sum(f.uncached_tokens for f in flights if f.prefilling)
        assert all(call_id == flight.call_id for call_id, flight in self.flights.items())

    def _learn_speed(self, flight: Flight, now_s: float, output_tokens: int) -> None:
        """A completed attempt corrects the decode speed, or, where its first token could not be seen, the speed of what was
        expected to take longest: the rest counts as it is believed to be."""
        own, pool, decoded_s = self._paces, self._pool_paces, 0.0
        if output_tokens > _FEW_TOKENS:
            kv_tokens = self.committed_tokens + flight.footprint_tokens
            decoded_s = (output_tokens - 1) * decode_iteration_s(self.profile, len(self.flights) + 1, kv_tokens)
        if flight.first_token_s is not None:
            return self._observe(own.decode, pool.decode, now_s - flight.first_token_s, decoded_s)
        prefilled_s = prefill_s(self.profile, flight.uncached_tokens, flight.hit_tokens)
        if flight.streams or flight.backlog_s > flight.prefill_s + decoded_s:  # mostly a queue
            return None
        took_s = now_s - flight.sent_s - flight.backlog_s - flight.restore_s
        if decoded_s > prefilled_s:
            return self._observe(own.decode, pool.decode, took_s - prefilled_s * self.prefill_scale, decoded_s)
        return self._observe(own.prefill, pool.prefill, took_s - decoded_s * self.decode_scale, prefilled_s)

    def _observe(self, own: Pace, pool: Pace, observed_s: float, expected_s: float) -> None:
        """Nothing where nothing was expected."""
        if expected_s > 0.0:
            observed_s = min(max(observed_s, 0.0), _SLOWEST * expected_s)
            own.observe(observed_s, expected_s)
            self._pool_paces.observe(pool, observed_s, expected_s)
            self.refresh_paces()

    def _leave_prefill(self, flight: Flight) -> None:
        if flight.prefilling:
            flight.prefilling = False
            self.cold_prefills -= flight.cold
            self.pending_prefill_tokens -= flight.uncached_tokens

    def _refresh_decode(self) -> None:
        batch, kv_tokens = len(self.flights) + 1, max(self.committed_tokens, 0)
        self._decode_base_s = decode_iteration_s(self.profile, batch, kv_tokens)
        self.decode_step_s = self._decode_base_s * self.decode_scale
