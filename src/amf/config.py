"""`fabric.toml`: what a user may set, as frozen data. Every key has a default; errors name the file, the key and a remedy.

[server]                      # host, port, body size, keys, shutdown
port = 8080
[fabric]                      # the policy's name, and any bound of core/config.py by its own name
policy = "fabric"
[[worker]]                    # one for each engine; only `url` is needed
url = "http://10.0.0.5:8000"
gpu = "h200"
[pools."llama-3.3-70b"]       # exact prefixes instead of hashed text
tokenizer = "/models/llama-3.3-70b"
[journal]
path = "amf.journal.jsonl"
[limits]                      # seconds and bytes of the gateway
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from amf.core.config import FabricConfig


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
    engine: Literal["auto", "vllm", "openai"] = "auto"
    gpu: str = "h100"
    tensor_parallel: int = 1
    weights: str = "bf16"
    kv: str = "bf16"
    kv_tokens: int | None = None
    block_tokens: int | None = None
    max_running: int = 256
    priority: bool = False
    api_key: str | None = None
    kv_events_endpoint: str | None = None
    kv_replay_endpoint: str | None = None


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
class LimitsConfig:
    """Real seconds, bytes and counts of the gateway's own."""

    connect_timeout_s: float = 5.0
    head_timeout_s: float = 600.0  # a non-streamed answer as a whole
    stall_timeout_s: float = 300.0  # any later silence
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
class ServeConfig:
    policy: str = "fabric"
    server: ServerConfig = field(default_factory=ServerConfig)
    fabric: FabricConfig = field(default_factory=FabricConfig)
    workers: tuple[WorkerConfig, ...] = ()
    pools: Mapping[str, PoolConfig] = field(default_factory=dict)
    journal: JournalConfig = field(default_factory=JournalConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)


Table = TypeVar("Table")

_TABLES = ("server", "fabric", "worker", "pools", "journal", "limits")


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
    """`source` names the document in errors. Raises ConfigError."""
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
        limits=parse_table(LimitsConfig, document.get("limits", {}), source, "[limits]"),
    )
    _check_values(config, source)
    return config


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


def _check_values(config: ServeConfig, source: str) -> None:
    server, limits = config.server, config.limits
    if not 0 <= server.port <= 65_535:
        raise ConfigError(f"{source}: [server] port is {server.port}; use 0 (any free port) to 65535")
    if server.time_scale <= 0:
        raise ConfigError(f"{source}: [server] time_scale is {server.time_scale}; use a number above 0")
    if server.max_body_bytes < 1:
        raise ConfigError(f"{source}: [server] max_body_bytes is {server.max_body_bytes}; use at least 1")
    for name in (
        "connect_timeout_s",
        "head_timeout_s",
        "stall_timeout_s",
        "wait_s",
        "health_interval_s",
        "retry_min_s",
    ):
        if getattr(limits, name) <= 0:
            raise ConfigError(f"{source}: [limits] {name} is {getattr(limits, name)}; use a number above 0")
    for worker in config.workers:
        if not worker.url.startswith(("http://", "https://")):
            raise ConfigError(f"{source}: [[worker]] url is `{worker.url}`; write it with http:// or https://")
    names = [worker.name or worker.url for worker in config.workers]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{source}: [[worker]] {name} is there twice; remove one or give it another name")
