"""What one worker's memory is offered: pipelines whose hops launch alternatives, as data."""

from dataclasses import dataclass

MODEL = "llama-3.3-70b"
GPU = "h200"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryWorkload:
    """`grouped`: the share of hops that launch a group of branches, each with a number of branches drawn evenly from `branches`
    (least, most); the others are one call. `context_tokens`: the median of a first hop's shared context, cut at
    `context_most_tokens`. `load`: page seconds that arrive over those that the memory has, counted under paging; with
    `load_without_branches` counted as if no hop launched more than one."""

    kind: str = "branches"
    pipelines: int = 600
    grouped: float = 0.7
    branches: tuple[int, int] = (3, 3)
    context_tokens: float = 12_000.0
    context_most_tokens: int = 32_768
    load: float = 1.1
    load_without_branches: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryScenario:
    """`hybrid`: a model whose layers of two kinds have pages of unlike size, in place of MODEL."""

    workload: MemoryWorkload = MemoryWorkload()
    kv_tokens: int = 500_000
    page_tokens: int = 16
    hybrid: str = ""
