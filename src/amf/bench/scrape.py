"""What the target and the engines count themselves, read from `/metrics` before and after a run.

What a benchmark reports from `usage` fields should agree with the workers' own counters to the token; where it does not,
something was lost, retried or came from somebody else, and the report says so.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

_PROMPT = ("amf_prompt_tokens_total", "vllm:prompt_tokens_total", "sglang:prompt_tokens_total")
_CACHED = ("amf_cached_tokens_total", "vllm:prefix_cache_hits_total", "sglang:cached_tokens_total")
_OUTPUT = ("amf_output_tokens_total", "vllm:generation_tokens_total", "sglang:generation_tokens_total")
_DECISION = "amf_decision_seconds_bucket"
_TIMEOUT_S = 10.0

Samples = Mapping[tuple[str, str], float]  # (name, "le" label or "") -> value, summed over all other labels


class ScrapeError(Exception):
    """An endpoint's metrics could not be read. The message names it and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def __sub__(self, earlier: "Totals") -> "Totals":
        return Totals(
            prompt_tokens=self.prompt_tokens - earlier.prompt_tokens,
            cached_tokens=self.cached_tokens - earlier.cached_tokens,
            output_tokens=self.output_tokens - earlier.output_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The run's own totals beside what others counted, by who they are. `cut_off` calls ended without their usage:
    others may have counted them, answers did not."""

    measured: Totals
    others: Mapping[str, Totals]
    cut_off: int = 0

    @property
    def exact(self) -> bool:
        return all(totals == self.measured for totals in self.others.values())

    def lines(self) -> list[str]:
        columns = {"answers": self.measured, **self.others}
        head = f"{'tokens':<8}" + "".join(f"{name:>16}" for name in columns)
        rows = [
            f"{name:<8}" + "".join(f"{getattr(totals, f'{name}_tokens'):>16,}" for totals in columns.values())
            for name in ("prompt", "cached", "output")
        ]
        because = f" ({self.cut_off} calls ended without their usage)" if self.cut_off and not self.exact else ""
        return [head, *rows, f"The totals {'agree to the token' if self.exact else 'do NOT agree'}{because}."]


def totals(samples: Samples) -> Totals:
    """Token totals by whichever names the endpoint uses."""
    return Totals(
        prompt_tokens=_first(samples, _PROMPT),
        cached_tokens=_first(samples, _CACHED),
        output_tokens=_first(samples, _OUTPUT),
    )


def is_fabric(samples: Samples) -> bool:
    return any(name.startswith("amf_") for name, _ in samples)


def decision_us(before: Samples, after: Samples, quantile: float) -> float | None:
    """Microseconds of a fabric decision, linear within the histogram's bucket; None without decisions in between."""
    edges = sorted((float(le), key) for key in after if key[0] == _DECISION for le in (key[1],))
    counts = [after[key] - before.get(key, 0.0) for _, key in edges]
    if not counts or counts[-1] <= 0:
        return None
    rank = quantile * counts[-1]
    cumulative = list(accumulate(counts, max))
    index = bisect_left(cumulative, rank)
    low_s, low_count = (edges[index - 1][0], cumulative[index - 1]) if index else (0.0, 0.0)
    high_s = edges[index][0] if edges[index][0] != float("inf") else low_s
    share = (rank - low_count) / (cumulative[index] - low_count) if cumulative[index] > low_count else 0.0
    return (low_s + share * (high_s - low_s)) * 1e6


async def scrape_all(urls: Sequence[str]) -> Samples:
    """The sum over all endpoints. Raises ScrapeError."""
    merged: dict[tuple[str, str], float] = {}
    for samples in await asyncio.gather(*(scrape(url) for url in urls)):
        for key, value in samples.items():
            merged[key] = merged.get(key, 0.0) + value
    return merged


async def scrape(url: str) -> Samples:
    """Every sample of `url`/metrics. Raises ScrapeError."""
    where = f"{url.rstrip('/').removesuffix('/v1')}/metrics"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as http,
            http.get(where) as response,
        ):
            response.raise_for_status()
            text = await response.text()
        found: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, sample.labels.get("le", ""))
                found[key] = found.get(key, 0.0) + sample.value
        return found
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ScrapeError(f"{where}: {error or type(error).__name__}") from error
    except ValueError as error:
        raise ScrapeError(f"{where}: not in Prometheus text format ({error})") from error


def _first(samples: Samples, names: Sequence[str]) -> int:
    return next((round(samples[name, ""]) for name in names if (name, "") in samples), 0)
