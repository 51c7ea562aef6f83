"""vLLM's flags, as far as they can be seen without sending it a call."""

from amf.doctor.findings import Finding, fail, ok, skip, warn
from amf.doctor.patient import Patient
from amf.engines.engine import EngineError
from amf.engines.metrics import SampleReader

_CACHE = SampleReader(("vllm:cache_config_info",))
_CACHING = "start vLLM with --enable-prefix-caching, and without --no-enable-prefix-caching"
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
    return [_prefix_caching({each.get("enable_prefix_caching", "") for each in labels}), _kv_format(patient)]


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
