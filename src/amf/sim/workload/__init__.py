"""Workloads: recorded (Claude Code, Mooncake, Azure, OpenTelemetry, the gateway), generated and mixed, as plans of block ids.

`build` makes a workload of a scenario. Block ids below SHARED_BLOCKS are static text that all pipelines of a graph share
(namespace `shared:<graph>`); all others belong to the prompt's namespace. Use `block_namespace` or `owned_runs` for both.
"""

from amf.sim.workload.blocks import SHARED_BLOCKS, block_namespace, owned_runs
from amf.sim.workload.build import build, fleet_of
from amf.sim.workload.graphs import GRAPHS, built_in
from amf.sim.workload.ideal import ideal_cached_by_call, ideal_cached_tokens
from amf.sim.workload.timing import saturation_rate_per_s, standalone_s

__all__ = [
    "GRAPHS",
    "SHARED_BLOCKS",
    "block_namespace",
    "build",
    "built_in",
    "fleet_of",
    "ideal_cached_by_call",
    "ideal_cached_tokens",
    "owned_runs",
    "saturation_rate_per_s",
    "standalone_s",
]
