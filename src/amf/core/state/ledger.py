"""Accounting: what each pipeline, and everything together, cost in tokens, GPU seconds, bytes and dollars.

Tokens are the engines' own counts. GPU seconds are the cost model's price of the work at the batch it ran in, not wall time:
prefill of what was not cached, and each decode iteration divided among its sequences. Dollars follow from the worker's
price per hour. `reprefill_bytes` is KV that had existed for this pipeline and was computed again.
"""

from dataclasses import asdict, dataclass

from amf.core.cost import kv_bytes
from amf.core.state.workers import WorkerState


@dataclass(slots=True)
class Account:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    output_tokens: int = 0
    service_s: float = 0.0
    queue_s: float = 0.0
    gpu_s: float = 0.0
    cost_usd: float = 0.0
    kv_bytes: float = 0.0
    weight_bytes: float = 0.0
    reprefill_bytes: float = 0.0

    def add(self, other: "Account") -> None:
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.recomputed_tokens += other.recomputed_tokens
        self.output_tokens += other.output_tokens
        self.service_s += other.service_s
        self.queue_s += other.queue_s
        self.gpu_s += other.gpu_s
        self.cost_usd += other.cost_usd
        self.kv_bytes += other.kv_bytes
        self.weight_bytes += other.weight_bytes
        self.reprefill_bytes += other.reprefill_bytes

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def charge(worker: WorkerState, tokens: tuple[int, int, int], known_tokens: int) -> Account:
    """The account of one completed attempt. `tokens` = (prompt, cached, output) as the engine reported them."""
    prompt_tokens, cached_tokens, output_tokens = tokens
    profile = worker.spec.profile
    batch = len(worker.flights) + 1
    gpu_s = (
        worker.prefill_s(prompt_tokens - cached_tokens, cached_tokens) + output_tokens * worker.decode_step_s / batch
    )
    recomputed_tokens = min(max(known_tokens - cached_tokens, 0), prompt_tokens - cached_tokens)
    iterations = max(output_tokens, 1)
    return Account(
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        recomputed_tokens=recomputed_tokens,
        output_tokens=output_tokens,
        gpu_s=gpu_s,
        cost_usd=gpu_s * profile.dollars_per_hour / 3600.0,
        kv_bytes=kv_bytes(profile, prompt_tokens - cached_tokens + output_tokens),
        weight_bytes=(profile.dense_weight_bytes + profile.expert_weight_bytes * profile.expert_share)
        * iterations
        / batch,
        reprefill_bytes=kv_bytes(profile, recomputed_tokens),
    )
