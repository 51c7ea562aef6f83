"""Least attained service of a whole program first: Autellix (arXiv:2502.13965; Agentix, NSDI 2026).

PLAS: a call is as late in the queue as its program has been served, all its calls together. ATLAS: as long as the longest
chain of service before it; the program keeps one number, `Pipeline.served_path_s`, and a call the value it found. A program
whose wait is `autellix_starvation_ratio` times its service goes to the front; the paper names the rule and not the number.

Not reproduced: queues of quantised service with a quantum each (without preemption a call that runs, runs on), resetting the
counters of a promoted call, multi-step scheduling and the swap kernel inside the engine. Service is what we see from above:
dispatch to the end. The queue stands before the workers here, in each engine there.
"""

from amf.core.policy.interface import Placement, PoolView, View
from amf.core.policy.rivals.late_binding import late_least_loaded, late_sticky
from amf.core.state.pipelines import CallState


def plas(state: CallState, due_s: float | None, view: View) -> float:
    """Service of the program's finished calls, in seconds; 0 when starved."""
    pipeline = view.pipelines.get(state.call.run_id)
    return 0.0 if pipeline is None or _starved(state, view) else pipeline.account.service_s


def atlas(state: CallState, due_s: float | None, view: View) -> float:
    """Service on the longest chain of the program's calls before this one, in seconds; 0 when starved."""
    return 0.0 if _starved(state, view) else state.served_path_s


def by_length(state: CallState, view: PoolView) -> Placement:
    """Their load balancer: up to `autellix_short_tokens` of prompt to the least used engine, longer calls to the engine of
    their program."""
    short = state.call.prompt_tokens <= view.config.autellix_short_tokens
    return late_least_loaded(state, view) if short else late_sticky(state, view)


def _starved(state: CallState, view: View) -> bool:
    pipeline = view.pipelines.get(state.call.run_id)
    if pipeline is None:
        return False
    waited_s = pipeline.account.queue_s + view.now_s - state.arrived_s
    served_s = pipeline.account.service_s
    return served_s > 0.0 and waited_s >= view.config.autellix_starvation_ratio * served_s
