"""Every bound and constant of the fabric, by name and unit. Nothing in the core is unbounded or unnamed."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricConfig:
    # Bounds: what the fabric will remember or hold at once.
    max_live_pipelines: int = 20_000  # more are refused at their first hop
    max_closed_pipelines: int = 2_000  # summaries kept for /amf/v1/runs
    pipeline_idle_s: float = 3_600.0  # a pipeline that says nothing for this long is over
    max_waiting_calls: int = 8_192  # per pool; more are refused
    max_scan_calls: int = 64  # waiting calls priced per event and pool
    max_passed_calls: int = 1_024  # the same, with those that are passed over for want of room
    no_worker_wait_s: float = 5.0  # how long calls wait for a pool without workers before they are refused
    max_graphs: int = 1_000  # declared call graphs
    max_attempts: int = 3  # dispatches of one call before it fails
    max_profiles: int = 20_000  # learned (graph, hop) positions
    max_warm_blocks: int = 4_000_000  # block keys in one pool's registry
    max_alternatives: int = 3  # prices kept in a decision's `because`
    max_hops_per_pipeline: int = 4_096  # hops, and edges between them, remembered of one pipeline; the oldest go
    max_idle_tenants: int = 1_000  # per pool: tenants without a waiting call whose counters are kept while others wait

    # The registry.
    prediction_ttl_s: float = 3_600.0  # a predicted prefix counts no longer than this after its last use
    event_lag_s: float = 5.0  # the same on a worker whose KV events we see: truth has arrived by then
    restore_bytes_per_s: float = 50e9  # loading KV back from a lower tier, where a worker does not say

    # Admission of pipelines with a deadline (docs/time.md).
    demand_evidence: int = 8  # ended pipelines with a deadline from which on a graph's demand is believed
    demand_share: float = 0.8  # share of a pool's time until a deadline that admitted work may take
    promise_target: float = 0.8  # share of admitted pipelines that is to meet its deadline
    demand_path_share: float = 0.7  # share of its remaining path that is taken to lie behind a pipeline's work
    feasible_odds: float = 0.1  # a pipeline is refused if its odds to be in time, alone, are lower

    # Budgets (core/state/paths.py).
    budget_quantile: float = 0.9  # of the remaining path, that a hop's due time leaves room for

    # Routing and hold-back (docs/decisions/003-hold-back.md has the evidence for each).
    cold_tokens: int = 32_000  # a call with more than this to prefill is cold
    hold_fraction: float = 0.5  # share of the break-even time for which an idle context is protected
    max_cold_prefills: int = 1  # per worker
    stretch_target: float = 3.0  # a pipeline without deadline is due at this multiple of its time without queues
    lapse_s: float = 1_200.0  # a call that waited this long has lapsed: now and then an idle context makes way for it
    reserve_s: float = 3_600.0  # the worker of a call that waited this long takes nothing new until the call fits
    yield_share: float = 0.03  # how often: the share of a worker's seconds that lapsed cold prefills may take
    tier_margin: float = 0.8  # share of HBM and DRAM, where workers have a DRAM tier, that live contexts may fill
    tier_lapse_s: float = 1_800.0  # `lapse_s` where workers have a DRAM tier
    cold_look_s: float = 10.0  # how often a held call that no worker is warm for is asked about warmth again
    start_soon_s: float = 30.0  # bind to a worker only if its prefill backlog is at most this
    interference_share: float = 0.3  # share of a prefill's seconds that each running decode loses
    displaced_reuse: float = 0.1  # odds that what a full worker forgets first is asked for again
    tick_s: float = 1.0  # look again at held calls at least this often

    # Branch groups (docs/speculation.md).
    branch_price: float = 2.0  # what a second that a branch costs others counts, in seconds that it saves
    branch_patience_s: float = 10.0  # an alternative that nothing was heard of for this long holds back no other
    max_branch_groups: int = 64  # of one pipeline; more are plain calls
    max_branch_members: int = 64  # of one group; more are plain calls

    # Fair shares of tenants (core/state/shares.py).
    fair_burst_tokens: int = 200_000  # weighted tokens by which one may be ahead before others go first
    fair_output_weight: float = 4.0  # what a token of an answer counts, in uncached prompt tokens
    tenant_weights: Mapping[str, float] = field(default_factory=dict)  # a tenant's part; 1 if it is not named

    # Beliefs before anything was observed.
    default_output_tokens: int = 256
    default_gap_s: float = 10.0  # tool or think time between two hops of a pipeline
    min_evidence: int = 8  # observations from which a position, or its pool, is asked for a distribution
    over_quantile: float = 0.99  # of the learned pauses: a pipeline that is idle for twice as long is probably over
    over_floor_s: float = 10.0  # and never before this

    # The opponents' published defaults.
    affinity_load_factor: float = 1.25  # session-affinity: bounded load
    prefix_match_ratio: float = 0.3  # prefix-affinity: share of the prompt that must match
    prefix_balance_calls: int = 64  # prefix-affinity: absolute imbalance that overrides warmth
    prefix_balance_ratio: float = 1.5  # prefix-affinity: relative imbalance that overrides warmth
    kv_overlap_weight: float = 1.0  # kv-cost: weight of uncached blocks
    kv_reuse_threshold_calls: int = 8  # essay: queue depth up to which a warm worker is preferred
    dynamo_lower_tier_weight: float = 0.75  # kv-cost, dynamo-agentic: of what is warm outside HBM
    agentic_overlap_credit: float = 2.0  # dynamo-agentic: of what is warm in HBM
    agentic_prefill_scale: float = 4.0  # dynamo-agentic: of blocks to prefill
    agentic_active_call_blocks: float = 64.0  # dynamo-agentic: what a call in flight counts
    llm_d_queue_weight: float = 2.0  # llm-d: of the queue score
    llm_d_kv_weight: float = 2.0  # llm-d: of the KV memory score
    llm_d_prefix_weight: float = 3.0  # llm-d: of the prefix score
    llm_d_queue_limit: float = 5.0  # llm-d-las: waiting calls a worker at which the pool is saturated
    llm_d_kv_limit: float = 0.8  # llm-d-las: the same as a share of the KV memory in use
    preble_balance_ratio: float = 1.5  # preble: relative imbalance of load that overrides warmth
    footprint_tokens: int = 0  # footprint: what a session counts for at least; 0: the mean context of the pool's calls
    thunderagent_buffer_tokens: int = 100  # thunderagent: counted for each program besides its context
    thunderagent_tick_s: float = 5.0  # thunderagent: programs are paused at multiples of this
    thunderagent_resume_s: float = 1_800.0  # thunderagent: a paused program resumes by force after this
    thunderagent_decay_s: float = (
        100.0  # thunderagent-decay: half-life of what acting programs count; 0: none, as published
    )
    autellix_short_tokens: int = 2_048  # plas, atlas: up to this a call may leave its program's worker
    autellix_starvation_ratio: float = (
        10.0  # plas, atlas: wait to service from which a program goes first (not published)
    )
