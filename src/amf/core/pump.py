"""Looking at the calls that wait in one pool: by when is each due, in which order, and can one be placed now?

Called whenever something happened that could let a call start. The work is bounded by `max_scan_calls` per look; a call
that is held is told so once, and the fabric wakes itself to look again. Where tenants share a pool fairly, each of them has
its part of the look, and whose turn it is is asked anew after each dispatch.
"""

from collections import deque
from collections.abc import Iterator
from math import inf

from amf.core.config import FabricConfig
from amf.core.decisions import Because, Decision, Dispatch, Hold, Refuse
from amf.core.policy.interface import Placement, Policies, PoolView
from amf.core.state.book import Book
from amf.core.state.pipelines import CallState
from amf.core.state.pools import Pool


def pump(book: Book, policies: Policies, pool: Pool) -> list[Decision]:
    """Place what can be placed. Returns the decisions in order."""
    if not pool.waiting:
        return []
    if not pool.usable:
        return _without_workers(book, pool)
    pool.refresh_beliefs(book.now_s)
    view = _view(book, pool)
    decisions: list[Decision] = []
    for state in _in_turn(_ranked(book, policies, pool, view), policies, pool, book.config):
        placement = policies.route(state, view)
        if policies.launch is not None and placement.worker is not None and state.call.branch:
            placement = policies.launch(state, placement, view)
        for run_id in placement.pauses:
            book.lanes.pause(run_id, pool.name)
        if placement.worker is not None:
            decisions.append(_dispatch(book, state, placement, _stated_s(policies, state, view)))
            view.dispatched = pool.dispatched
            continue
        if placement.cold:
            state.cold_until_s = book.now_s + book.config.cold_look_s
            book.lanes.cooled(state.call.run_id, pool.name)
        if placement.reserve:
            view.reserved.add(placement.reserve)
        if not state.held:
            state.held = True
            decisions.append(Hold(call_id=state.call.call_id, because=placement.because))
    return decisions


def _view(book: Book, pool: Pool) -> PoolView:
    return PoolView(
        now_s=book.now_s,
        config=book.config,
        pipelines=book.pipelines,
        profiles=book.profiles,
        lanes=book.lanes,
        outcomes=book.outcomes,
        pool=pool.name,
        workers=pool.usable,
        warmth=pool.warmth,
        dispatched=pool.dispatched,
        waiting=pool.waiting.values(),
        tiers_tokens=pool.tiers_tokens,
        live_tokens=pool.waiting_tokens + sum(book.lanes.home(name).live_tokens for name in pool.workers)
        if pool.tiers_tokens
        else 0,
    )


def _ranked(book: Book, policies: Policies, pool: Pool, view: PoolView) -> list[CallState]:
    """The first waiting calls that may start, most urgent first. A new call is first in the queue until it is looked
    at, so that none is overlooked; all others are as urgent as when they were looked at last."""
    looked_at: list[CallState] = []
    config = book.config
    first = pool.first if policies.share is None else pool.first_of_each
    for state in first(config.max_passed_calls):
        if not policies.may_start(state, view):
            continue
        if len(looked_at) == config.max_scan_calls:
            break
        pipeline = book.pipelines.get(state.call.run_id)
        assert pipeline is not None
        state.due_s = policies.budget(pipeline, state, view)
        state.latest_start_s = policies.order(state, state.due_s, view)
        if state.latest_start_s != state.queued_as[0] and len(pool.waiting) > 1:  # alone, a call needs no place
            pool.wait(state)
        looked_at.append(state)
    if len(looked_at) > 1:
        looked_at.sort(key=lambda state: state.queued_as)
    return looked_at


def _in_turn(ranked: list[CallState], policies: Policies, pool: Pool, config: FabricConfig) -> Iterator[CallState]:
    """The calls in the order in which they are placed: the most urgent first, but lower steps of tenants before higher ones.
    A dispatch counts at once, so one look cannot give everything to one tenant."""
    if policies.share is None or not pool.shares.contended:
        yield from ranked
        return
    lines: dict[str, deque[CallState]] = {}
    for state in ranked:
        lines.setdefault(state.call.tenant, deque()).append(state)
    steps, as_of = policies.share(pool.shares.served(), config), pool.dispatched
    while lines:
        if as_of != pool.dispatched:
            steps, as_of = policies.share(pool.shares.served(), config), pool.dispatched
        tenant = min(lines, key=lambda each: (steps[each], lines[each][0].queued_as))
        yield lines[tenant].popleft()
        if not lines[tenant]:
            del lines[tenant]


def _stated_s(policies: Policies, state: CallState, view: PoolView) -> float | None:
    """By when we say that the call must be done."""
    pipeline = view.pipelines.get(state.call.run_id)
    return policies.stated(pipeline, state, view) if policies.stated and pipeline else state.due_s


def _dispatch(book: Book, state: CallState, placement: Placement, due_s: float | None) -> Dispatch:
    name = placement.worker
    assert name is not None
    call, pool = state.call, book.pools[state.call.pool]
    hit_tokens = placement.hit_tokens
    if hit_tokens is None:
        hit_tokens = pool.warmth.hit(name, call.prefix, book.now_s).tokens
    book.send(state, pool.workers[name], hit_tokens)
    budget_s = slack_s = None
    if due_s is not None:
        budget_s = due_s - book.now_s
        slack_s = budget_s - book.profiles.expected_service_s(call)
    return Dispatch(
        call_id=call.call_id,
        worker=name,
        attempt=state.attempt,
        urgency_s=state.latest_start_s,
        hit_tokens=hit_tokens,
        budget_s=budget_s,
        slack_s=slack_s,
        because=placement.because,
    )


def _without_workers(book: Book, pool: Pool) -> list[Decision]:
    """Nobody serves this model now: wait a little for a worker to come back, then refuse."""
    assert pool.down_since_s is not None
    patience_s = book.config.no_worker_wait_s
    decisions: list[Decision] = []
    because = Because(reason=f"no worker of {pool.name!r} is up")
    for state in list(pool.waiting.values()):
        if book.now_s >= max(pool.down_since_s, state.arrived_s) + patience_s:
            book.close_if_over(book.stop(state, "refused"))
            message = f"no worker of {pool.name!r} has been up for {book.now_s - pool.down_since_s:.1f} s"
            message += f"; last failure: {state.last_failure}" if state.last_failure else ""
            decisions.append(refusal(state.call.call_id, "no_worker", message, retry_after_s=patience_s))
        elif not state.held:
            state.held = True
            decisions.append(Hold(call_id=state.call.call_id, because=because))
    return decisions


def refusal(call_id: str, code: str, message: str, retry_after_s: float | None = None) -> Refuse:
    """A refusal whose reason is its message."""
    because = Because(reason=message)
    return Refuse(call_id=call_id, code=code, message=message, because=because, retry_after_s=retry_after_s)


def next_look_s(book: Book, config: FabricConfig) -> float | None:
    """When to look again if nothing else happens: at calls that wait, or at a pipeline to be given up. None: no need."""
    look_s = book.expiries.next_s()
    if any(pool.waiting for pool in book.pools.values()):
        look_s = min(look_s, book.now_s + config.tick_s, book.lanes.next_ending_s())
    return max(look_s, book.now_s + 1e-3) if look_s < inf else None
