"""vLLM's flags, as far as they can be seen without sending it a call."""

from amf.doctor.findings import Finding, fail, ok, skip, warn
from amf.doctor.patient import Patient
from amf.engines.engine import EngineError
from amf.engines.metrics import SampleReader

_CACHE = SampleReader(("vllm:cache_config_info",))
_CACHING = "start vLLM with --enable-prefix-caching, and without --no-enable-prefix-caching"
PRIORITY_FLAG = "start vLLM with --scheduling-policy priority, or remove `priority = true`"
KV_EVENTS_FLAG = (
    """--kv-events-config '{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:5557","""
    """"replay_endpoint":"tcp://*:5558"}'"""
)


async def flags(patient: Patient) -> list[Finding]:
    try:
        page = (await patient.ask("GET", "/metrics")).body.decode("utf-8", "replace")
    except EngineError as error:
        page = ""
        seen = f"GET /metrics: {error}"
    else:
        seen = "/metrics does not tell (no vllm:cache_config_info)"
    labels = [sample.labels for sample in _CACHE.read(page)]
    if not labels:
        fix = "let the gateway reach /metrics, and do not start vLLM with --disable-log-stats"
        return [warn("metrics", f"{seen}: no load, KV size or flags can be read", fix)]
    caching = _prefix_caching({each.get("enable_prefix_caching", "") for each in labels})
    return [caching, _kv_format(patient), *_priority(patient.config.priority, await scheduling_policy(patient))]


async def scheduling_policy(patient: Patient) -> str | None:
    """As /server_info tells, which only a server in development mode has; None where it does not."""
    try:
        reply = await patient.ask("GET", "/server_info?config_format=json")
    except EngineError:
        return None
    told = reply.json() if reply.status == 200 else None
    for part in ("vllm_config", "scheduler_config"):
        told = told.get(part) if isinstance(told, dict) else None
    policy = told.get("policy") if isinstance(told, dict) else None
    return policy if isinstance(policy, str) else None


def _priority(configured: bool, policy: str | None) -> list[Finding]:
    """Nothing where the engine does not say how it schedules."""
    if policy is None:
        return []
    if configured and policy != "priority":
        return [
            fail(
                "priority",
                f"the engine schedules by {policy}: the urgency that is sent counts for nothing",
                PRIORITY_FLAG,
            )
        ]
    if not configured and policy == "priority":
        return [warn("priority", "the engine schedules by priorities, and none are sent", "set priority = true")]
    return [ok("priority", f"the engine schedules by {policy}, as configured")]


def _prefix_caching(said: set[str]) -> Finding:
    lowered = {value.lower() for value in said}
    if lowered == {"true"}:
        return ok("prefix caching", "on")
    if "false" in lowered:
        return fail("prefix caching", "off: no prompt is ever warm, whatever the fabric believes", _CACHING)
    return skip("prefix caching", "its metrics do not say; --probe sees it by sending a prompt twice", _CACHING)


def _kv_format(patient: Patient) -> Finding:
    """The price of memory is reckoned with the configured format."""
    told, configured = (patient.info.kv_format if patient.info else None), patient.config.kv
    if told is None or told == "auto":
        return skip("KV format", f"{told or 'not'} said by the engine; {configured} is assumed")
    if told.startswith("fp8") != (configured == "fp8"):
        seen = f"the engine keeps {told}, configured is {configured}: memory is priced wrongly"
        return warn("KV format", seen, f'set kv = "{"fp8" if told.startswith("fp8") else "bf16"}" of this [[worker]]')
    return ok("KV format", told)
