"""A central queue before the workers, for the published systems that have one: a worker takes the next call when it can
start it soon. Which is next, the bundle's order says.

*Soon* is the fabric's own: a free sequence, at most `start_soon_s` of prefill in front, and memory for the prompt and the
expected output. A call that only memory holds up claims the worker for the rest of the look, so that those behind it in the
queue do not overtake it there.
"""

from amf.core.decisions import Because
from amf.core.policy.interface import Placement, PoolView
from amf.core.policy.routing import home_of, usable
from amf.core.state.pipelines import CallState
from amf.core.state.workers import WorkerState

_MEMORY = "its memory is committed"


def late_least_loaded(state: CallState, view: PoolView) -> Placement:
    """Of the workers that can start the call soon, the one with the fewest calls in flight; else it waits here."""
    workers = usable(state, view)
    obstacles = {w.name: _obstacle(state, w, view) for w in workers}
    ready = [w for w in workers if not obstacles[w.name]]
    if ready:
        worker = min(ready, key=lambda w: (w.running, w.name))
        return Placement(worker.name, Because(reason=f"can start, fewest calls in flight ({worker.running})"))
    short = [w for w in workers if obstacles[w.name] == _MEMORY]
    claims = bool(short) and not view.reserved
    claimed = min(short, key=lambda w: (-w.free_tokens(), w.name)).name if claims else ""
    reason = f"queued: {workers[0].name}: {obstacles[workers[0].name]}, and so on for all {len(workers)}"
    return Placement(None, Because(reason=reason), reserve=claimed)


def late_sticky(state: CallState, view: PoolView) -> Placement:
    """The worker where the program's last call in this pool went, when it can start the call soon. The first call, and one
    whose worker is gone or has failed it, goes where `late_least_loaded` says."""
    home = home_of(state, view)
    if home is None:
        return late_least_loaded(state, view)
    obstacle = _obstacle(state, home, view)
    if not obstacle:
        return Placement(home.name, Because(reason="the program's own worker"))
    reason = f"queued for the program's own worker {home.name}: {obstacle}"
    return Placement(
        None, Because(reason=reason), reserve=home.name if obstacle == _MEMORY and not view.reserved else ""
    )


def _obstacle(state: CallState, worker: WorkerState, view: PoolView) -> str:
    """Why the call cannot start soon there; empty if it can, or if it never will and the engine must say so."""
    if not worker.flights or 0 < worker.kv_tokens <= state.call.prompt_tokens:
        return ""
    if worker.name in view.reserved:
        return "kept free for an earlier call"
    if worker.running >= worker.spec.max_running:
        return "all sequences are taken"
    if worker.backlog_s(view.now_s) > view.config.start_soon_s:
        return "another prefill is in front"
    if worker.kv_tokens and worker.free_tokens() < worker.needed_tokens(state.call, state.footprint_tokens):
        return _MEMORY
    return ""
