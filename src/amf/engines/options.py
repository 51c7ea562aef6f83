"""What a user may set about one engine: how long to wait for it, how to log in, and what it cannot tell by itself. And about
the controller that knows what lies below the engines' KV memory."""

from dataclasses import dataclass
from typing import Literal

EngineKind = Literal["auto", "vllm", "sglang", "trtllm", "llamacpp", "tgi", "openai"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """How long an engine may keep the fabric waiting, and how much it may make the fabric hold.

    A non-streamed answer has its head at its end, so `head_timeout_s` bounds such a call as a whole, queueing in the
    engine included. `stall_timeout_s` bounds every later silence; a streamed call's prefill falls under it, because
    engines send the head of a stream before the first token.
    """

    connect_timeout_s: float = 5.0
    head_timeout_s: float = 600.0
    stall_timeout_s: float = 300.0
    control_timeout_s: float = 5.0  # probes, health checks and metrics, each as a whole
    control_max_bytes: int = 16 * 1024 * 1024
    observe_interval_s: float = 1.0  # between two looks at the engine's load
    discover_interval_s: float = 30.0  # between two looks at where it publishes its events
    reconnect_max_s: float = 10.0  # longest pause between two looks at an engine that does not answer
    replay_timeout_s: float = 5.0  # for missed events to be sent again, as a whole
    observation_queue_size: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """`priority`: the engine runs with priority scheduling, which cannot be probed without risking a refused call.

    `api_key` replaces the client's own credentials; without one they are forwarded. The two endpoints, ZMQ addresses
    such as "tcp://10.0.0.5:5557", are asked of the engine unless set.
    """

    kind: EngineKind = "auto"
    priority: bool = False
    api_key: str | None = None
    kv_events_endpoint: str | None = None
    kv_replay_endpoint: str | None = None
    limits: EngineLimits = EngineLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencyOptions:
    """LMCache's controller, and how often it may be asked. Real seconds, tokens and counts; without a `url` nobody is asked.

    A prompt is asked about when `min_tokens` of it or more were not asked about within `fresh_s`. It waits for the answer at
    most `delay_s`; one that comes later, within `timeout_s`, still corrects what is believed.
    """

    url: str | None = None
    delay_s: float = 0.05
    timeout_s: float = 1.0
    min_tokens: int = 4096
    fresh_s: float = 30.0
    believe_s: float = 3600.0  # what was not told again for this long is believed no more
    breaker_failures: int = 3  # in a row: then the controller is left alone for `retry_s`
    retry_s: float = 30.0
    max_questions: int = 8  # at once
    max_blocks: int = 1_000_000  # believed of one worker's lower tiers by what was told; the longest untold go first
