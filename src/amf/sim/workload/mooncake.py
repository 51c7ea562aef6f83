"""Recorded Mooncake requests (Kimi, 512-token blocks, ids global to the trace), each a pipeline of one call.

The trace rounds a prompt up to whole blocks. Its last block, if not full, becomes tail tokens, so that the prompt has its
recorded length; two identical prompts therefore share up to 511 tokens less than they did.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.workload.blocks import SHARED_BLOCKS, Run, compressed
from amf.sim.workload.recording import decoded

BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    at_s: float
    runs: tuple[Run, ...]
    tail_tokens: int
    output_tokens: int

    @property
    def total_tokens(self) -> int:
        return sum(count for _, count in self.runs) * BLOCK_TOKENS + self.tail_tokens + self.output_tokens


def read_requests(path: Path) -> list[RecordedRequest]:
    """In order of arrival. Raises ScenarioError if the file is missing or not in this format."""
    return sorted(decoded(path, _request), key=lambda request: request.at_s)


def request_pipeline(request: RecordedRequest, index: int, pool: str) -> PipelinePlan:
    prompt = PromptPlan(
        namespace="mooncake/all", block_tokens=BLOCK_TOKENS, runs=request.runs, tail_tokens=request.tail_tokens
    )
    call = CallPlan(index=0, hop="request", pool=pool, prompt=prompt, output_tokens=request.output_tokens)
    return PipelinePlan(pipeline_id=f"mooncake/{index}", graph="mooncake", calls=(call,), arrival_s=request.at_s)


def _request(record: dict[str, Any]) -> RecordedRequest:
    tokens, ids = int(record["input_length"]), record["hash_ids"]
    full = min(len(ids), tokens // BLOCK_TOKENS)
    return RecordedRequest(
        at_s=float(record["timestamp"]) / 1000,
        runs=compressed([int(block_id) + SHARED_BLOCKS for block_id in ids[:full]]),
        tail_tokens=min(tokens - full * BLOCK_TOKENS, BLOCK_TOKENS - 1),
        output_tokens=max(1, int(record["output_length"])),
    )
