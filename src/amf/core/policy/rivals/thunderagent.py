"""Admission of whole programs: ThunderAgent (arXiv:2602.13692, ICML 2026; also shipped with Dynamo).

A program *reasons* (a call of it is in flight) or *acts* (a tool runs). Its context counts against its worker's memory in
both states, with `thunderagent_buffer_tokens` more. Every `thunderagent_tick_s`, while the sum exceeds the memory, acting
programs are paused, the smallest context first. The next call of a paused program waits in one queue for all workers, with
the calls of new programs, and goes to the worker with most room once it fits there; after `thunderagent_resume_s` wherever
most room is. A program that was not paused goes on where it was, at once.

Their option lets the context of an acting program count for less the longer its tool runs, 2^-(t / `thunderagent_decay_s`),
off as published; `thunderagent-decay` has it, with a half-life of ours and the order of arrival. Half a minute or more is
what agent tools take; one second, which is what Dynamo's documentation names, forgets them all.

The published resume order is best fit decreasing: programs that have run before new ones, largest first. It lets small
programs wait beside large ones; `thunderagent-fcfs` resumes in order of arrival, which is our strengthening and not theirs.

Where workers have a DRAM tier it is memory like HBM, which is our strengthening as well: the sum may fill both, and a paused
program resumes on its own worker if it fits there, since its KV may still lie in the tier.

A tick is a multiple of `thunderagent_tick_s` on the clock: a program can be paused at the first look after one that fell into
its acting. A program that reasons is never paused, as nothing of it runs between two calls, and one paused while acting
resumes with its next call. Not reproduced: clearing a paused program's KV (the engine evicts it when it needs the room),
preparing and collecting tool environments, and Dynamo's thresholds below the full memory and its soft demotion by engine
priority.
"""

from math import inf

from amf.core.decisions import Because
from amf.core.policy.interface import Placement, PoolView, View
from amf.core.policy.ordering import LAST_S
from amf.core.policy.routing import home_of, usable
from amf.core.state.lanes import Lane
from amf.core.state.pipelines import CallState
from amf.core.state.workers import WorkerState


def pause_and_resume(state: CallState, view: PoolView) -> Placement:
    """At once to its own worker unless its program is paused; a paused or new program when it fits somewhere."""
    return _placed(state, view, inf)


def with_decay(state: CallState, view: PoolView) -> Placement:
    """The same, where what acts counts for half after every `thunderagent_decay_s`."""
    return _placed(state, view, view.config.thunderagent_decay_s or inf)


def _placed(state: CallState, view: PoolView, half_life_s: float) -> Placement:
    rooms = {worker.name: _room(worker, view, half_life_s) for worker in view.workers}
    pauses = tuple(run_id for _, paused in rooms.values() for run_id in paused)
    lane = view.lanes.get(state.call.run_id, state.call.pool)
    home = home_of(state, view)
    if lane is not None and home is not None and (lane.in_flight or not (lane.paused or state.held)):
        return Placement(home.name, Because(reason="its program was not paused"), pauses=pauses)
    worker = min(usable(state, view), key=lambda w: (-rooms[w.name][0], w.running, w.name))
    if home is not None and home.spec.dram_tokens and _needed_tokens(state, view) <= rooms[home.name][0]:
        worker = home
    free_tokens, needed_tokens = rooms[worker.name][0], min(_needed_tokens(state, view), worker.tiers_tokens)
    if needed_tokens <= free_tokens:
        reason = f"resumed: {free_tokens} tokens free on {worker.name}"
        return Placement(worker.name, Because(reason=reason), pauses=pauses)
    if view.now_s - state.arrived_s > view.config.thunderagent_resume_s:
        return Placement(worker.name, Because(reason="resumed by force after thunderagent_resume_s"), pauses=pauses)
    reason = f"paused: {needed_tokens} tokens needed, most room is {free_tokens} on {worker.name}"
    return Placement(None, Because(reason=reason), pauses=pauses)


def largest_first(state: CallState, due_s: float | None, view: View) -> float:
    """The published resume order: programs that have run before, then new ones; in each the largest first."""
    return (0.0 if state.number else LAST_S) - state.call.prompt_tokens


def _needed_tokens(state: CallState, view: View) -> int:
    return state.footprint_tokens + view.config.thunderagent_buffer_tokens


def _room(worker: WorkerState, view: PoolView, half_life_s: float) -> tuple[int, list[str]]:
    """Memory beside what reasons and what acts there, and which programs must be paused for the sum to fit. The memory may
    be negative; a worker without KV memory has none and needs none."""

    def counted_tokens(lane: Lane) -> int:
        faded = 0.5 ** (max(view.now_s - lane.idle_since_s, 0.0) / half_life_s)
        return int(lane.context_tokens * faded) + buffer_tokens

    if not worker.kv_tokens:
        return 0, []
    tick_s, buffer_tokens = view.config.thunderagent_tick_s, view.config.thunderagent_buffer_tokens
    acting = [
        lane
        for lane in view.lanes.home(worker.name).lanes.values()
        if not (lane.in_flight or lane.waiting or lane.paused)
    ]
    free_tokens = worker.tiers_tokens - worker.committed_tokens - buffer_tokens * worker.running
    free_tokens -= sum(counted_tokens(lane) for lane in acting)
    paused: list[str] = []
    if free_tokens < 0:
        tick = view.now_s // tick_s
        for lane in sorted(acting, key=lambda lane: (lane.context_tokens, lane.run_id)):
            if free_tokens < 0 and lane.idle_since_s // tick_s < tick:
                free_tokens += counted_tokens(lane)
                paused.append(lane.run_id)
    return free_tokens, paused
