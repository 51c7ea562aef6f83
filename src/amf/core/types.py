"""The nouns every part of the fabric shares. Frozen data, no behaviour beyond small derived facts.

Words (docs/architecture.md): a *pipeline* is one execution (a run) of a *call graph*; a *hop* is a vertex of the graph;
a *call* is one execution of a model hop; a *pool* is the set of *workers* that serve one *model*.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class CallKind(StrEnum):
    GENERATE = "generate"
    EMBED = "embed"
    RERANK = "rerank"


class SloClass(StrEnum):
    """What a late answer means. INTERACTIVE has a deadline, THROUGHPUT a fair share, BACKGROUND what is left over."""

    INTERACTIVE = "interactive"
    THROUGHPUT = "throughput"
    BACKGROUND = "background"


class Tier(StrEnum):
    """Where a warm block lies on a worker, fastest first."""

    HBM = "hbm"
    DRAM = "dram"
    DISK = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProfile:
    """The numbers that turn tokens into seconds and bytes on one worker (formulas in `cost.py`).

    Rates are effective: peak x utilisation x tensor-parallel degree. Bytes and FLOPs are of the whole worker.
    A mixture of experts reads `expert_weight_bytes` only as far as its batch reaches: `expert_share` is the fraction of
    experts one token activates (0 for dense models).
    """

    flops_per_token: float  # 2 x active parameters
    attention_flops: float  # 4 x layers x attention width, per (query, key) pair, full-attention layers
    window_attention_flops: float  # the same for sliding-window layers
    window_tokens: int  # 0: no sliding window
    flops_per_s: float
    bandwidth_bytes_per_s: float
    dense_weight_bytes: float
    expert_weight_bytes: float
    expert_share: float
    kv_bytes_per_token: float  # full-attention (or latent) layers
    window_kv_bytes_per_token: float  # sliding-window layers, up to window_tokens
    iteration_overhead_s: float
    dollars_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """A prompt as a chain of blocks, without its text.

    `keys[i]` is a chained hash: it names everything from the first token up to `ends[i]` tokens, so two prompts share a
    prefix of `ends[i]` tokens exactly when they share `keys[i]`. Blocks may differ in length. `ends` is strictly
    increasing and may be a `range`. `total_tokens` is the whole prompt and may exceed `ends[-1]` (an open last block).
    Nobody changes `keys`, which may be any sequence that slices and adds like a tuple: an `array` of machine integers has no
    object for each of a long prompt's thousands of blocks.
    """

    keys: Sequence[int] = ()
    ends: Sequence[int] = ()
    total_tokens: int = 0

    def tokens_at(self, depth: int) -> int:
        """Tokens covered by the first `depth` blocks."""
        return self.ends[depth - 1] if depth else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchHint:
    """What a client says of the branch group that its call belongs to, where no declared graph does (`BranchGroup` has the
    meanings). `kind` empty: first_success. `probability`: that this alternative succeeds, or is the wanted one."""

    kind: str = ""
    k: int = 1
    probability: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, as intake understood it. Facts only; what becomes of it lives in `state/pipelines`."""

    call_id: str
    run_id: str
    pool: str
    kind: CallKind = CallKind.GENERATE
    prefix: Prefix = field(default_factory=Prefix)
    max_output_tokens: int | None = None
    graph: str = ""
    hop: str = ""
    parents: tuple[str, ...] = ()
    branch: str = ""  # group/alternative, outermost first: group/alternative/group/alternative
    branch_hint: BranchHint | None = None  # of its innermost group
    deadline_s: float | None = None
    slo_class: SloClass = SloClass.INTERACTIVE
    tenant: str = ""
    identity: str = "derived"
    final: bool = False
    streams: bool = True  # False: the first token is not observable before the end

    @property
    def prompt_tokens(self) -> int:
        return self.prefix.total_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One engine endpoint as declared or probed. Its speed is a starting belief, corrected online from what is observed.
    `dram_tokens`: what a lower tier holds of what KV memory has forgotten, beside it; loaded back at `restore_bytes_per_s`
    (None: as the fabric's configuration says)."""

    name: str
    pool: str
    profile: WorkerProfile
    kv_tokens: int
    block_tokens: int = 16
    max_running: int = 256
    dram_tokens: int = 0
    restore_bytes_per_s: float | None = None
    has_kv_events: bool = False
    has_priority: bool = False
    attributes: tuple[tuple[str, str], ...] = ()
