"""Recorded Azure LLM requests (CSV: TIMESTAMP, ContextTokens, GeneratedTokens): arrival times and lengths, nothing shared."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.scenario import ScenarioError
from amf.sim.workload.blocks import SHARED_BLOCKS
from amf.sim.workload.recording import text_lines

BLOCK_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedLengths:
    at_s: float
    input_tokens: int
    output_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def read_lengths(path: Path) -> list[RecordedLengths]:
    """In order of arrival, the first at 0 s. Raises ScenarioError if the file is missing or not in this format."""
    rows: list[tuple[datetime, int, int]] = []
    for number, line in text_lines(path):
        if number == 1 and line.startswith("TIMESTAMP"):
            continue
        try:
            stamp, input_tokens, output_tokens = line.strip().split(",")
            rows.append((datetime.fromisoformat(stamp[:26]), int(input_tokens), int(output_tokens)))
        except ValueError as error:
            raise ScenarioError(
                f"{path}: line {number} is not TIMESTAMP,ContextTokens,GeneratedTokens; is it an Azure LLM trace?"
            ) from error
    if not rows:
        raise ScenarioError(f"{path}: holds no records")
    rows.sort()
    start = rows[0][0]
    return [
        RecordedLengths(at_s=(at - start).total_seconds(), input_tokens=max(1, sent), output_tokens=max(1, made))
        for at, sent, made in rows
    ]


def lengths_pipeline(request: RecordedLengths, index: int, pool: str) -> PipelinePlan:
    blocks, tail_tokens = divmod(request.input_tokens, BLOCK_TOKENS)
    identity = f"azure/{index}"
    prompt = PromptPlan(
        namespace=identity,
        block_tokens=BLOCK_TOKENS,
        runs=((SHARED_BLOCKS, blocks),) if blocks else (),
        tail_tokens=tail_tokens,
    )
    call = CallPlan(index=0, hop="request", pool=pool, prompt=prompt, output_tokens=request.output_tokens)
    return PipelinePlan(pipeline_id=identity, graph="azure", calls=(call,), arrival_s=request.at_s)
