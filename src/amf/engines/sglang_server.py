"""What an SGLang server says of itself at /server_info: its resolved arguments and what its schedulers added to them.

Every value is taken as an outsider's word: of another kind than expected, it counts as not said. Where it publishes KV
events the server says in one place in later releases (`kv_events`), and only through its argument in earlier ones.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from amf.core.types import Tier
from amf.engines.http import decoded, positive
from amf.engines.release import release

PriorityOrder = Literal["none", "lower-first", "higher-first"]

_MAX_RANKS = 1024
_NAMES_REQUESTS = (0, 5, 23)  # the release in which it was seen; 0.5.12 does not
_PORT = re.compile(r"^(tcp://.*:)(\d{1,5})$")
_TOKEN_PAIRS = ("EAGLE", "NEXTN", "FROZEN_KV_MTP")  # speculation under which the cache's unit is two tokens, not one


@dataclass(frozen=True, slots=True)
class SglangServer:
    """`told`: the answer of /server_info; empty if there is none."""

    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str | None:
        version = self.told.get("version")
        return version if isinstance(version, str) else None

    @property
    def ranks(self) -> int:
        """Data-parallel ranks, each with a cache of its own. Attention ranks were once counted as `dp_size` too."""
        ranks = positive(self._kv_events.get("dp_size"))
        if ranks is None:
            ranks = (positive(self.told.get("dp_size")) or 1) * (positive(self.told.get("attn_dp_size")) or 1)
        return min(ranks, _MAX_RANKS)

    @property
    def block_tokens(self) -> int | None:
        """A page, as KV events count it."""
        return positive(self._kv_events.get("block_size")) or positive(self.told.get("page_size"))

    @property
    def kv_tokens(self) -> int | None:
        """Of all ranks; the schedulers tell one rank's."""
        tokens = positive(self.told.get("max_total_num_tokens"))
        return None if tokens is None else tokens * self.ranks

    @property
    def max_running(self) -> int | None:
        """Calls that all ranks serve at once, as their schedulers took it, else as it was asked for."""
        told = self.told.get("internal_states")
        states = [state for state in told if isinstance(state, dict)] if isinstance(told, list) else []
        taken = [positive(state.get("effective_max_running_requests_per_dp")) for state in states]
        if not taken or None in taken:
            return positive(self.told.get("max_running_requests"))
        return sum(each or 0 for each in taken)

    @property
    def tiers(self) -> tuple[str, ...]:
        """HiCache: host memory, and what lies behind it."""
        if self.flag("enable_hierarchical_cache") is not True:
            return ()
        return (Tier.DRAM.value, Tier.DISK.value) if self.told.get("hicache_storage_backend") else (Tier.DRAM.value,)

    @property
    def names_blocks(self) -> bool:
        """Whether there is a prefix cache whose blocks are named by their tokens."""
        speculation = self.told.get("speculative_algorithm")
        in_pairs = isinstance(speculation, str) and speculation.upper().startswith(_TOKEN_PAIRS)
        return self.flag("disable_radix_cache") is not True and not in_pairs

    @property
    def takes_sessions(self) -> bool:
        """Whether it may be told of sessions. Its session cache would keep in mind each one that nobody closes."""
        return self.flag("enable_session_radix_cache") is not True

    @property
    def names_requests(self) -> bool:
        """Whether its events carry the session of the call that stored a block."""
        named_here = release(self.version) >= _NAMES_REQUESTS
        return self.takes_sessions and self.flag("enable_flexkv") is not True and named_here

    def flag(self, name: str) -> bool | None:
        """A switch among the arguments; None if not said."""
        value = self.told.get(name)
        return value if isinstance(value, bool) else None

    def priority(self, insisted: bool) -> PriorityOrder:
        """The order in which it serves priorities, where they are to be sent: it says that it schedules by them and nothing
        speaks against it, or, `insisted`, the user says so and the server does not deny it."""
        schedules = self.flag("enable_priority_scheduling")
        if schedules is False or not (insisted or (schedules and self.objection is None)):
            return "none"
        return "lower-first" if self.flag("schedule_low_priority_values_first") else "higher-first"

    @property
    def objection(self) -> str | None:
        """What harm priorities as fine as the fabric's would do to this server, if any."""
        if self.flag("enable_metrics"):
            return "with --enable-metrics the engine keeps series of metrics for every priority it has seen"
        if self.told.get("radix_eviction_policy") == "priority":
            return "with --radix-eviction-policy priority the engine would forget the latest calls' prefixes first"
        return None

    def publishers(self) -> tuple[tuple[str, str | None], ...]:
        """Each rank's KV event publisher and replay address, as told: the host may be a wildcard."""
        told = self._kv_events or self._kv_events_argument
        if told.get("publisher") != "zmq":
            return ()
        return of_ranks(told.get("endpoint"), told.get("replay_endpoint"), self.ranks)

    @property
    def _kv_events(self) -> Mapping[str, Any]:
        """The server's description of its publisher, with addresses put together."""
        told = self.told.get("kv_events")
        if not isinstance(told, dict):
            return {}
        host, port, replay = (
            told.get("endpoint_host"),
            positive(told.get("endpoint_port_base")),
            positive(told.get("replay_endpoint_port_base")),
        )
        return {
            **told,
            "endpoint": f"tcp://{host}:{port}" if port else None,
            "replay_endpoint": f"tcp://{host}:{replay}" if replay else None,
        }

    @property
    def _kv_events_argument(self) -> Mapping[str, Any]:
        """--kv-events-config, for releases that do not describe their publisher."""
        argument = self.told.get("kv_events_config")
        if "kv_events" in self.told or not isinstance(argument, str):
            return {}
        config = decoded(argument.encode("utf-8", "surrogatepass"))
        return {"endpoint": "tcp://*:5557", **config} if isinstance(config, dict) else {}


def of_ranks(endpoint: Any, replay_endpoint: Any, ranks: int) -> tuple[tuple[str, str | None], ...]:
    """One publisher a rank: rank r's ports lie r above the first's. An address without a port serves the first alone."""
    first = _of_rank(endpoint, 0)
    if first is None:
        return ()
    rest = [(at, _of_rank(replay_endpoint, rank)) for rank in range(1, ranks) if (at := _of_rank(endpoint, rank))]
    return (first, _of_rank(replay_endpoint, 0)), *rest


def _of_rank(endpoint: Any, rank: int) -> str | None:
    if not isinstance(endpoint, str):
        return None
    if not rank:
        return endpoint
    match = _PORT.match(endpoint)
    return f"{match[1]}{int(match[2]) + rank}" if match else None
