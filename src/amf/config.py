"""`fabric.toml`: what a user may set, as frozen data. Every key has a default; errors name the file, the key and a remedy.

[server]                      # host, port, body size, keys, shutdown
port = 8080
[fabric]                      # the policy's name, and any bound of core/config.py by its own name
policy = "fabric"
[fabric.tenant_weights]       # API keys whose part of a pool is another than everybody's
"key-for-agents" = 2.0
[[worker]]                    # one for each engine; only `url` is needed
url = "http://10.0.0.5:8000"
gpu = "h200"
[pools."llama-3.3-70b"]       # exact prefixes instead of hashed text
tokenizer = "/models/llama-3.3-70b"
[journal]
path = "amf.journal.jsonl"
[record]                      # traffic without text, to be played again by `amf simulate`
path = "traffic.jsonl.gz"
[profiles]                    # what was learned of lengths and times, kept over a restart
path = "learned.jsonl"
[residency]                   # LMCache's controller, which knows what lies below the engines' KV memory
url = "http://10.0.0.9:9000"
[limits]                      # seconds and bytes of the gateway
[slo]                         # deadlines of runs that do not bring one, by class, graph and key
interactive_deadline_s = 60
[slo.graphs.coding]
deadline_s = 600
"""

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from amf.core.config import FabricConfig
from amf.core.types import SloClass
from amf.engines.options import ResidencyOptions


class ConfigError(ValueError):
    """The configuration cannot be used; the message says where and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """`api_keys` empty: no authentication. `trusted_keys` may also change the fleet and set engine control fields."""

    host: str = "127.0.0.1"
    port: int = 8080
    max_body_bytes: int = 64 * 1024 * 1024
    shutdown_grace_s: float = 30.0
    api_keys: tuple[str, ...] = ()
    trusted_keys: tuple[str, ...] = ()
    time_scale: float = 1.0  # modelled seconds per real second; other than 1 only for emulated fleets
    log_level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """One engine. What is left out is asked of the engine, or assumed until its behaviour corrects it. `preset` names the
    dimensions to assume (a preset of core/presets.py) when the served model's name does not tell. `weights` and `kv` None:
    bf16."""

    url: str
    name: str | None = None
    model: str | None = None
    preset: str | None = None
    engine: Literal["auto", "vllm", "sglang", "trtllm", "llamacpp", "tgi", "openai"] = "auto"
    gpu: str = "h100"
    tensor_parallel: int = 1
    weights: str = "bf16"
    kv: str = "bf16"
    kv_tokens: int | None = None
    dram_tokens: int = 0
    dram_bytes_per_s: float | None = None
    block_tokens: int | None = None
    max_running: int | None = None
    priority: bool = False
    api_key: str | None = None
    kv_events_endpoint: str | None = None
    kv_replay_endpoint: str | None = None
    lmcache_instance: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """`tokenizer`: a directory with a Hugging Face `tokenizer.json`, or "engine" to ask the engine's /tokenize."""

    tokenizer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalConfig:
    path: str | None = None
    flush_interval_s: float = 0.5
    max_buffer_bytes: int = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordConfig:
    """A path that ends in .gz is compressed; one that is taken gets a number."""

    path: str | None = None
    flush_interval_s: float = 0.5
    max_buffer_bytes: int = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilesConfig:
    """What the fabric learns is loaded from `path` at the start, and saved there every `save_interval_s` and at the end."""

    path: str | None = None
    save_interval_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """Real seconds, bytes and counts of the gateway's own."""

    connect_timeout_s: float = 5.0
    head_timeout_s: float = 600.0  # a non-streamed answer as a whole
    stall_timeout_s: float = 300.0  # any later silence
    upload_s: float = 300.0  # for a request's body to arrive
    wait_s: float = 600.0  # in the fabric's queue
    health_interval_s: float = 2.0
    observe_interval_s: float = 1.0
    breaker_failures: int = 3  # consecutive failures that take a worker out
    retry_min_s: float = 0.2  # pause before a lost worker is looked at again; doubles up to retry_max_s
    retry_max_s: float = 10.0
    max_buffered_bytes: int = 32 * 1024 * 1024  # of one answer that is not streamed
    derived_runs: int = 50_000  # prompts remembered to recognise runs
    derived_idle_s: float = 900.0
    explain_entries: int = 10_000  # calls whose decisions are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTarget:
    """What runs of one graph, or of one API key, get unless they say otherwise. Real seconds from the run's first call."""

    deadline_s: float | None = None
    slo_class: SloClass | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SloConfig:
    """Deadlines in real seconds. `keys` are API keys of [server], `graphs` names of call graphs."""

    interactive_deadline_s: float | None = None
    throughput_deadline_s: float | None = None
    background_deadline_s: float | None = None
    default_class: SloClass = SloClass.INTERACTIVE
    max_deadline_s: float = 604_800.0  # a longer one is refused; a timeout beyond it bounds nothing
    max_positions: int = 200  # (graph, hop) pairs with metrics of their own
    graphs: Mapping[str, SloTarget] = field(default_factory=dict)
    keys: Mapping[str, SloTarget] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    policy: str = "fabric"
    server: ServerConfig = field(default_factory=ServerConfig)
    fabric: FabricConfig = field(default_factory=FabricConfig)
    workers: tuple[WorkerConfig, ...] = ()
    pools: Mapping[str, PoolConfig] = field(default_factory=dict)
    journal: JournalConfig = field(default_factory=JournalConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    profiles: ProfilesConfig = field(default_factory=ProfilesConfig)
    residency: ResidencyOptions = field(default_factory=ResidencyOptions)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    slo: SloConfig = field(default_factory=SloConfig)


Table = TypeVar("Table")


LOG_LEVELS = ("debug", "info", "warning", "error")
_MAX_PORT = 65_535
_MAX_TEXT_CHARS = 256
_ABOVE_ZERO = (
    *("max_", "tick_s", "time_scale", "connect_", "head_", "stall_", "wait_", "health_", "observe_", "retry_"),
    *("breaker_", "upload_", "timeout_", "save_", "deadline_", "interactive_", "throughput_", "background_"),
)

_TABLES = ("server", "fabric", "worker", "pools", "journal", "record", "profiles", "residency", "limits", "slo")


def load_config(path: Path) -> ServeConfig:
    """Raises ConfigError if the file is missing, malformed or says what cannot be."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text; a configuration is a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error
    return config_from_dict(document, str(path))


def config_from_dict(document: Mapping[str, Any], source: str = "configuration") -> ServeConfig:
    """`source` names the document in errors. Weights of API keys become weights of tenants. Raises ConfigError."""
    _check_keys(document, _TABLES, source, "the file")
    fabric = dict(_table(document.get("fabric", {}), source, "[fabric]"))
    policy = fabric.pop("policy", "fabric")
    if not isinstance(policy, str):
        raise ConfigError(f"{source}: [fabric] policy must be a policy's name in quotes")
    workers = document.get("worker", [])
    if not isinstance(workers, list):
        raise ConfigError(f"{source}: [worker] must be written [[worker]], one table for each engine")
    pools = _table(document.get("pools", {}), source, "[pools]")
    config = ServeConfig(
        policy=policy,
        server=parse_table(ServerConfig, document.get("server", {}), source, "[server]"),
        fabric=parse_table(FabricConfig, fabric, source, "[fabric]", extra=("policy",)),
        workers=tuple(parse_table(WorkerConfig, entry, source, "[[worker]]") for entry in workers),
        pools={name: parse_table(PoolConfig, entry, source, f"[pools.{name}]") for name, entry in pools.items()},
        journal=parse_table(JournalConfig, document.get("journal", {}), source, "[journal]"),
        record=parse_table(RecordConfig, document.get("record", {}), source, "[record]"),
        profiles=parse_table(ProfilesConfig, document.get("profiles", {}), source, "[profiles]"),
        residency=parse_table(ResidencyOptions, document.get("residency", {}), source, "[residency]"),
        limits=parse_table(LimitsConfig, document.get("limits", {}), source, "[limits]"),
        slo=_slo(document.get("slo", {}), source),
    )
    _check_values(config, source)
    weights = {tenant_of(key): weight for key, weight in config.fabric.tenant_weights.items()}
    return replace(config, fabric=replace(config.fabric, tenant_weights=weights))


def tenant_of(key: str) -> str:
    """The name under which calls with this API key are known. The key cannot be told from it."""
    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _slo(table: object, source: str) -> SloConfig:
    """[slo] and the tables in it. Errors do not repeat API keys."""
    values = dict(_table(table, source, "[slo]"))
    graphs = _table(values.pop("graphs", {}), source, "[slo.graphs]")
    keys = _table(values.pop("keys", {}), source, "[slo.keys]")
    return replace(
        parse_table(SloConfig, values, source, "[slo]"),
        graphs={name: parse_table(SloTarget, each, source, f"[slo.graphs.{name}]") for name, each in graphs.items()},
        keys={key: parse_table(SloTarget, each, source, "a table of [slo.keys]") for key, each in keys.items()},
    )


def parse_table(kind: type[Table], table: object, source: str, where: str, *, extra: tuple[str, ...] = ()) -> Table:
    """`table` as a `kind`. `extra` are keys that are known though not of `kind`. Raises ConfigError."""
    values = _table(table, source, where)
    names = tuple(each.name for each in dataclasses.fields(kind))  # type: ignore[arg-type]
    _check_keys(values, (*names, *extra), source, where)
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {where}: {error}") from error


def _table(value: object, source: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{source}: {where} must be a table of key = value lines")
    return value


def _check_keys(values: Mapping[str, Any], known: tuple[str, ...], source: str, where: str) -> None:
    for key in values:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            remedy = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"{source}: {where} has no key `{key}`; {remedy}")


def check_url(url: str) -> None:
    """Raises ConfigError for an address nobody can call."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"url is `{url}`; write it with http:// or https://")
    try:
        address = urlsplit(url)
        reachable = bool(address.hostname) and address.port != 0
    except ValueError:
        reachable = False
    if not reachable:
        raise ConfigError(f"url is `{url}`; write it as http://host:port")


def check_worker(worker: WorkerConfig) -> None:
    """Raises ConfigError for an address nobody can call, a name that fits no header, and numbers that cannot be."""
    check_url(worker.url)
    for name in ("name", "api_key", "lmcache_instance"):
        text = getattr(worker, name)
        if text is not None and not (text and text.isprintable() and text.isascii() and len(text) <= _MAX_TEXT_CHARS):
            raise ConfigError(f"{name} must be 1 to {_MAX_TEXT_CHARS} printable ASCII characters")
    if worker.dram_tokens < 0:
        raise ConfigError(f"dram_tokens is {worker.dram_tokens}; use 0 (no such tier) or more")
    if worker.dram_bytes_per_s is not None and not 0 < worker.dram_bytes_per_s < math.inf:
        raise ConfigError(f"dram_bytes_per_s is {worker.dram_bytes_per_s}; use a number above 0")
    for name in ("tensor_parallel", "kv_tokens", "block_tokens", "max_running"):
        number = getattr(worker, name)
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}; use at least 1")


def _check_number(name: str, value: object, where: str) -> None:
    """Every number is finite and none below 0; where 0 would stop the service, not 0 either; a quantile is at most 1."""
    if not isinstance(value, (int, float)):
        return
    positive = name.startswith(_ABOVE_ZERO)
    if not (0 <= value < math.inf and (value or not positive)):
        raise ConfigError(f"{where} {name} is {value}; use {'a number above 0' if positive else 'at least 0'}")
    if name.endswith("_quantile") and value > 1:
        raise ConfigError(f"{where} {name} is {value}; use a share from 0 to 1, as 0.9")


def _check_values(config: ServeConfig, source: str) -> None:
    server = config.server
    if not 0 <= server.port <= _MAX_PORT:
        raise ConfigError(f"{source}: [server] port is {server.port}; use 0 (any free port) to {_MAX_PORT}")
    if server.log_level.lower() not in LOG_LEVELS:
        raise ConfigError(f"{source}: [server] log_level is `{server.log_level}`; use one of {', '.join(LOG_LEVELS)}")
    tables: tuple[tuple[str, Any], ...] = (
        ("server", server),
        ("fabric", config.fabric),
        ("journal", config.journal),
        ("record", config.record),
        ("profiles", config.profiles),
        ("residency", config.residency),
        ("limits", config.limits),
        ("slo", config.slo),
        *((f"slo.graphs.{name}", target) for name, target in config.slo.graphs.items()),
        *(("slo.keys", target) for target in config.slo.keys.values()),
    )
    for where, table in tables:
        for each in dataclasses.fields(table):
            _check_number(each.name, getattr(table, each.name), f"{source}: [{where}]")
    _check_slo(config, source)
    _check_weights(config, source)
    for worker in config.workers:
        try:
            check_worker(worker)
        except ConfigError as error:
            raise ConfigError(f"{source}: [[worker]] {error}") from error
    _check_residency(config, source)
    names = [worker.name or worker.url for worker in config.workers]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{source}: [[worker]] {name} is there twice; remove one or give it another name")


def _check_residency(config: ServeConfig, source: str) -> None:
    url = config.residency.url
    if url is not None:
        try:
            check_url(url)
        except ConfigError as error:
            raise ConfigError(f"{source}: [residency] {error}") from error
    if any(worker.lmcache_instance for worker in config.workers):
        if url is None:
            raise ConfigError(
                f"{source}: [[worker]] has an lmcache_instance; set [residency] url to LMCache's controller"
            )
        if not config.pools:
            raise ConfigError(
                f'{source}: [[worker]] has an lmcache_instance, and LMCache is asked by tokens; set [pools."MODEL"] tokenizer'
            )


def _check_slo(config: ServeConfig, source: str) -> None:
    slo, server = config.slo, config.server
    targets = [("[slo.keys]", each.deadline_s) for each in slo.keys.values()]
    targets += [(f"[slo.graphs.{name}]", each.deadline_s) for name, each in slo.graphs.items()]
    targets += [("[slo]", each) for each in (slo.interactive_deadline_s, slo.throughput_deadline_s)]
    for where, deadline_s in (*targets, ("[slo]", slo.background_deadline_s)):
        if deadline_s is not None and deadline_s > slo.max_deadline_s:
            raise ConfigError(f"{source}: {where} has a deadline of {deadline_s:g} s; raise [slo] max_deadline_s to it")
    _check_known(slo.keys, server, f"{source}: [slo.keys]")


def _check_weights(config: ServeConfig, source: str) -> None:
    where, weights = f"{source}: [fabric.tenant_weights]", config.fabric.tenant_weights
    for weight in weights.values():
        if not 0 < weight < math.inf:
            raise ConfigError(f"{where} has a weight of {weight:g}; use a number above 0")
    _check_known(weights, config.server, where)


def _check_known(keys: Mapping[str, Any], server: ServerConfig, where: str) -> None:
    if not set(keys) <= {*server.api_keys, *server.trusted_keys}:
        raise ConfigError(f"{where} has a key that is none of [server] api_keys and trusted_keys; add it there")
