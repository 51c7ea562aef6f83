"""How long is an idle context worth its memory?"""

from amf.core.config import FabricConfig
from amf.core.cost import break_even_s
from amf.core.state.workers import WorkerState


def by_break_even(worker: WorkerState, context_tokens: int, config: FabricConfig) -> float:
    """`hold_fraction` x T*, where T* = prefill seconds of the context x pool tokens / context tokens: beyond T* holding the
    memory costs the worker more than computing the context again. Half of it, since the hazard of return falls with
    time (docs/decisions/003-hold-back.md)."""
    if context_tokens <= 0 or worker.spec.kv_tokens <= 0:
        return 0.0
    spec = worker.spec
    return config.hold_fraction * worker.prefill_scale * break_even_s(spec.profile, context_tokens, spec.kv_tokens)


def let_go(worker: WorkerState, context_tokens: int, config: FabricConfig) -> float:
    """Baselines leave retention to the engine."""
    return 0.0
