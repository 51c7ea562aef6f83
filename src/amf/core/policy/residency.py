"""How long is an idle context worth its memory?"""

from amf.core.config import FabricConfig
from amf.core.cost import break_even_s
from amf.core.state.workers import WorkerState


def by_break_even(worker: WorkerState, context_tokens: int, config: FabricConfig) -> float:
    """`hold_fraction` x T*: half of it, since the hazard of return falls with time (docs/decisions/003-hold-back.md)."""
    return config.hold_fraction * to_break_even(worker, context_tokens, config)


def to_break_even(worker: WorkerState, context_tokens: int, config: FabricConfig) -> float:
    """T* = prefill seconds of the context x pool tokens / context tokens: beyond it holding the memory costs the worker more
    than computing the context again. The whole of it is right for who knows when the context is used again. With a DRAM tier
    the pool is both tiers: what the last one forgets is what has to be computed again."""
    if context_tokens <= 0 or worker.spec.kv_tokens <= 0:
        return 0.0
    spec = worker.spec
    return worker.prefill_scale * break_even_s(spec.profile, context_tokens, worker.tiers_tokens)


def let_go(worker: WorkerState, context_tokens: int, config: FabricConfig) -> float:
    """Baselines leave retention to the engine."""
    return 0.0
