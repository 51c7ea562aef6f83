"""What to do. Decisions are frozen data that a shell carries out; each choice explains itself with `because`: the
alternatives and their prices in seconds. Explain, dashboard and logs only render it. Adding one is a design decision.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One alternative, priced in seconds. `total_s` is what was compared; an infinite total means "cannot"."""

    worker: str
    total_s: float
    hit_tokens: int = 0
    wait_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    contention_s: float = 0.0
    externality_s: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Because:
    """Why: the rule that decided, in words a user understands, and what else was possible."""

    reason: str
    alternatives: tuple[Price, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit(Decision):
    """The pipeline may run; its later hops are never refused."""

    run_id: str
    because: Because


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold(Decision):
    """The call waits in the fabric's own queue. Said once per wait, not per look."""

    call_id: str
    because: Because


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse(Decision):
    """The call ends here without an answer from a worker. `code` is the wire's error code (docs/wire.md)."""

    call_id: str
    code: str
    message: str
    because: Because
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch(Decision):
    """Send the call to the worker now. `urgency_s` is the latest time, on the fabric's clock, at which the call should
    start (lower is sooner); absolute, so that calls sent at different times compare. Each engine adapter converts it
    into its own priority field."""

    call_id: str
    worker: str
    attempt: int
    urgency_s: float
    hit_tokens: int
    budget_s: float | None
    slack_s: float | None
    because: Because


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel(Decision):
    """Stop this attempt at the worker, by closing the connection or the engine's abort."""

    call_id: str
    worker: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeAt(Decision):
    """Send `Woke` at this time. A later WakeAt with an earlier time replaces it."""

    at_s: float
