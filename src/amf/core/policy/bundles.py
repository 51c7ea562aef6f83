"""Named choices. A bundle is one row of every comparison table; the fabric's own is a row like the others."""

from dataclasses import replace

from amf.core.policy import admission, budget, ordering, residency, room, sharing, speculation, tiers
from amf.core.policy.interface import Order, Policies, Route
from amf.core.policy.rivals import (
    autellix,
    balance,
    continuum,
    deadline,
    dynamo,
    essay,
    footprint,
    llm_d,
    preble,
    sglang,
    thunderagent,
)
from amf.core.policy.rivals.late_binding import late_least_loaded, late_sticky

_PLAIN = Policies(
    name="",
    admit=admission.by_bounds,
    budget=budget.no_budget,
    order=ordering.fcfs,
    route=balance.least_loaded,
    retain=residency.let_go,
)


def _plain(name: str, route: Route) -> Policies:
    return replace(_PLAIN, name=name, route=route)


def _queued(name: str, order: Order, route: Route = late_least_loaded) -> Policies:
    """A central queue in this order, whose calls are bound late."""
    return replace(_PLAIN, name=name, order=order, route=route)


def _programs(name: str, order: Order, route: Route = thunderagent.pause_and_resume) -> Policies:
    """Whole programs are admitted, in this order."""
    return replace(_PLAIN, name=name, order=order, route=route)


_FABRIC = Policies(
    name="fabric",
    admit=admission.by_demand,
    budget=budget.by_critical_path,
    stated=budget.by_remaining_path,
    order=speculation.needed_first,
    launch=speculation.priced,
    share=sharing.by_service,
    route=tiers.hold_back_at_the_last_tier,
    may_start=room.may_start,
    retain=residency.by_break_even,
)
_LLM_D = replace(_plain("llm-d", llm_d.llm_d), reads_reports=True)


BUNDLES: dict[str, Policies] = {
    policies.name: policies
    for policies in (
        _plain("round-robin", balance.round_robin),
        _plain("least-loaded", balance.least_loaded),
        _plain("session-affinity", balance.session_affinity),
        _plain("prefix-affinity", sglang.prefix_affinity),
        _plain("kv-cost", dynamo.kv_cost),
        _plain("dynamo-agentic", dynamo.agentic),
        _plain("preble", preble.exploit_or_explore),
        _LLM_D,
        replace(_LLM_D, name="llm-d-las", order=llm_d.least_attained_service, route=llm_d.flow_controlled),
        _programs("thunderagent", thunderagent.largest_first),
        _programs("thunderagent-fcfs", ordering.fcfs),
        _programs("thunderagent-decay", ordering.fcfs, thunderagent.with_decay),
        _programs("footprint", ordering.fcfs, footprint.admit_by_footprint),
        _queued("continuum", continuum.program_fcfs, late_sticky),
        _queued("plas", autellix.plas, autellix.by_length),
        _queued("atlas", autellix.atlas, autellix.by_length),
        _queued("fcfs", ordering.fcfs),
        _queued("edf", deadline.edf),
        replace(_queued("edf-cancel", deadline.edf), expire=deadline.at_deadline),
        replace(_queued("least-slack", ordering.least_slack), budget=budget.by_critical_path),
        replace(_queued("hexgen-flow", deadline.negative_slack_last), budget=budget.by_critical_path),
        _queued("heft", deadline.upward_rank),
        replace(_queued("static-split", ordering.least_slack), budget=budget.static_split),
        replace(_PLAIN, name="essay", route=essay.essay, budget=budget.static_split, order=ordering.least_slack),
        _FABRIC,
        replace(_FABRIC, name="fabric-kill", launch=speculation.always),
        replace(_FABRIC, name="fabric-hard", expire=deadline.at_deadline),
        replace(_FABRIC, name="fabric-clairvoyant", retain=residency.to_break_even, clairvoyant=True),
    )
}


def policies_named(name: str) -> Policies:
    """The bundle of this name. Raises ValueError that lists the known ones."""
    if name not in BUNDLES:
        raise ValueError(f"unknown policy {name!r}; known: {', '.join(BUNDLES)}")
    return BUNDLES[name]


def live_policies_named(name: str) -> Policies:
    """The bundle of this name for live traffic. Raises ValueError for unknown ones, and for one that would have to know the
    future."""
    policies = policies_named(name)
    if policies.clairvoyant:
        raise ValueError(
            f"policy {name!r} needs a plan of the future: only `amf simulate` can run it; take 'fabric' here"
        )
    return policies
