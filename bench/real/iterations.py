"""What each iteration of a real vLLM did and how long it took, from the log it keeps of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(
    r"Iteration\((\d+)\): (\d+) context requests, (\d+) context tokens, "
    r"(\d+) generation requests, (\d+) generation tokens, iteration elapsed time: ([\d.]+) ms"
)


@dataclass(frozen=True, kw_only=True)
class IterationSeen:
    """Requests that have no output yet count as prefill; one that is computed again after a preemption counts as decode."""

    number: int
    prefill_requests: int
    prefill_tokens: int
    decode_requests: int
    decode_tokens: int
    elapsed_s: float

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.decode_tokens


def read_iterations(log: Path, first: int = 0) -> Sequence[IterationSeen]:
    """The iterations numbered `first` and above, in order."""
    found = [_seen(match) for match in _LINE.finditer(log.read_text(errors="replace"))]
    return sorted((one for one in found if one.number >= first), key=lambda one: one.number)


def _seen(match: re.Match[str]) -> IterationSeen:
    number, prefill_requests, prefill_tokens, decode_requests, decode_tokens = map(int, match.groups()[:5])
    return IterationSeen(
        number=number,
        prefill_requests=prefill_requests,
        prefill_tokens=prefill_tokens,
        decode_requests=decode_requests,
        decode_tokens=decode_tokens,
        elapsed_s=float(match[6]) / 1_000,
    )
