"""Recordings of the gateway (`amf serve --record`), read back as pipelines.

A file is a header and a line for each call that ended; its fields are described in docs/scenarios.md. Calls of a run make a
pipeline. Block keys are salted hashes: equal keys are equal text from the prompt's beginning, within one file. A line names
its prompt as blocks kept of its run's last line, and new ones. A last line that a kill has torn is ignored.

Calls that were refused, failed or cancelled are left out, for nobody knows how long their answers would have been.
"""

import json
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from amf.core.types import CallKind
from amf.sim.scenario import ScenarioError
from amf.sim.workload.keyed import KeyedBlocks
from amf.sim.workload.recording import files_of, text_lines
from amf.sim.workload.traffic import Ancestry, ObservedCall, ObservedPipeline, Traffic, gap_s

SOURCE = "recorded"
FORMAT = 1
TEXT_BLOCK_TOKENS = 64  # of plans of recordings whose blocks are pieces of text, of unequal lengths
_INSTANT_S = 1e-6  # times are recorded to the microsecond


@dataclass(frozen=True, slots=True)
class _Line:
    """One call: `run` tells files apart, `fields` are as recorded, times count from the first file's start."""

    run: str
    fields: dict[str, Any]
    at_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class _Call:
    line: _Line
    seen: ObservedCall


def read_recording(path: Path, block_tokens: int | None, think_cap_s: float) -> Traffic:
    """The recording in a file, a folder or the files that match a pattern, played one after another. `block_tokens` None:
    the recorded ones where all are equally long. Raises ScenarioError for a file that is none."""
    lines: list[_Line] = []
    notes: list[str] = []
    for number, file in enumerate(files_of(path)):
        start_s = max((line.end_s for line in lines), default=0.0)
        lines += _lines(file, number, start_s, notes)
    sizes = {line.fields["size"] for line in lines if "size" in line.fields}
    uneven = any("sizes" in line.fields for line in lines)
    own_size = sizes.pop() if len(sizes) == 1 and not uneven else TEXT_BLOCK_TOKENS
    blocks = KeyedBlocks(block_tokens or int(own_size))
    runs: dict[str, list[_Call]] = {}
    for line, seen in _calls(lines, blocks, path):
        runs.setdefault(line.run, []).append(_Call(line, seen))
    if not runs:
        raise ScenarioError(
            f"{path}: holds no answered call; record for longer, and stop the gateway to write the rest"
        )
    pipelines = sorted((_pipeline(calls, think_cap_s) for calls in runs.values()), key=lambda each: each.arrival_s)
    first_s = pipelines[0].arrival_s
    return Traffic(
        source=SOURCE,
        block_tokens=blocks.block_tokens,
        pipelines=tuple(replace(each, arrival_s=each.arrival_s - first_s) for each in pipelines),
        notes=(*notes, *_notes(lines, think_cap_s)),
    )


def _lines(file: Path, number: int, start_s: float, notes: list[str]) -> Iterator[_Line]:
    """A file's calls. What is wrong with it raises ScenarioError, but for a torn end, which is noted."""
    texts = _whole_lines(file, notes)
    for index, (place, text) in enumerate(texts):
        try:
            fields = json.loads(text)
            if index:
                run, at_s, end_s = f"{number}/{fields['run']}", float(fields["at"]), float(fields["end"])
                yield _Line(run, fields, start_s + at_s, start_s + end_s)
            elif fields.get("amf_recording") != FORMAT:
                raise ValueError(f"is not the header of a recording of format {FORMAT}")
            else:
                notes.append(f"recorded by amf {fields.get('version')} under policy {fields.get('policy')}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if index and index == len(texts) - 1:
                notes.append(f"{file.name}: a torn last line is left out")
                return
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ScenarioError(f"{file}: line {place} {reason}; give a file written by amf serve --record") from error


def _whole_lines(file: Path, notes: list[str]) -> list[tuple[int, str]]:
    texts: list[tuple[int, str]] = []
    try:
        texts += text_lines(file)
    except ScenarioError as error:
        if not isinstance(error.__cause__, EOFError):
            raise
    if not texts:
        raise ScenarioError(f"{file}: is empty; give a file written by amf serve --record")
    return texts


def _calls(lines: Sequence[_Line], blocks: KeyedBlocks, path: Path) -> Iterator[tuple[_Line, ObservedCall]]:
    """The answered calls with their prompts in blocks, in the order they ended."""
    last: dict[str, tuple[int, list[int], list[float]]] = {}
    for line in lines:
        fields = line.fields
        try:
            like, keys, sizes = last.get(line.run, (None, [], []))
            keep = int(fields.get("keep", 0))
            if keep and (fields["like"] != like or keep > len(keys)):
                raise ValueError(f"keeps {keep} blocks of line {fields['like']}, which is not its run's last")
            new = np.frombuffer(b64decode(fields.get("keys", "")), dtype="<u8").tolist()
            exact = "sizes" not in fields
            keys = [*keys[:keep], *new]
            sizes = [*sizes[:keep], *(fields["sizes"] if not exact else [fields.get("size", 0)] * len(new))]
            if len(sizes) != len(keys):
                raise ValueError(f"has {len(keys)} keys and {len(sizes)} sizes")
            last[line.run] = (fields["n"], keys, sizes)
            if fields["outcome"] != "ok":
                continue
            yield line, _call(fields, blocks, keys, sizes)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ScenarioError(f"{path}: call {fields.get('n')} {reason}; the recording is damaged") from error


def _call(fields: dict[str, Any], blocks: KeyedBlocks, keys: list[int], sizes: list[float]) -> ObservedCall:
    kind = CallKind(fields.get("kind", "generate"))
    prompt_tokens = max(1, int(fields["prompt"]))
    rest = max(0.0, float(fields["estimate"]) - sum(sizes))
    exact = "sizes" not in fields
    runs, tail_tokens = blocks.prompt(keys, sizes if exact else [*sizes, rest], prompt_tokens, exact=exact)
    return ObservedCall(
        hop=fields.get("hop") or "call",
        model=fields["pool"],
        runs=runs,
        tail_tokens=tail_tokens,
        prompt_tokens=prompt_tokens,
        output_tokens=max(1, int(fields["output"])) if kind is CallKind.GENERATE else 0,
        kind=kind,
    )


def _pipeline(calls: list[_Call], think_cap_s: float) -> ObservedPipeline:
    """A run's calls in order of their start, each with what it waits for."""
    calls.sort(key=lambda call: (call.line.at_s, call.line.fields["n"]))
    start_s = calls[0].line.at_s
    ancestry, placed = Ancestry(), list[ObservedCall]()
    hops: dict[str, int] = {}
    for index, call in enumerate(calls):
        line = call.line
        named = [hops[name] for name in line.fields.get("parents", ()) if name in hops]
        over = [i for i in range(index) if calls[i].line.end_s <= line.at_s + _INSTANT_S]
        parents = tuple(sorted(set(named))) if named else ancestry.latest(over)
        ancestry.add(parents)
        ends_s = [calls[parent].line.end_s for parent in parents] or [start_s]
        took_s = line.end_s - line.at_s
        placed.append(replace(call.seen, parents=parents, gap_s=gap_s(line.at_s, ends_s, think_cap_s), took_s=took_s))
        hops[line.fields.get("hop", "")] = index
    said = [call.line for call in calls if "deadline" in call.line.fields]
    slo_s = said[0].at_s + float(said[0].fields["deadline"]) - start_s if said else None
    graph = next((graph for call in calls if (graph := call.line.fields.get("graph"))), "")
    return ObservedPipeline(
        name=calls[0].line.run,
        graph=graph,
        calls=tuple(placed),
        arrival_s=start_s,
        slo_s=slo_s,
        declared=any(call.line.fields.get("hop") for call in calls),
    )


def _notes(lines: Sequence[_Line], think_cap_s: float) -> list[str]:
    outcomes = Counter(line.fields["outcome"] for line in lines)
    told = [line.fields for line in lines if line.fields["outcome"] == "ok" and "cached" in line.fields]
    prompt_tokens = sum(fields["prompt"] for fields in told)
    notes = [f"gaps between calls cut at {think_cap_s:g} s"]
    if prompt_tokens:
        cached_tokens = sum(fields["cached"] for fields in told)
        notes.append(f"when it was recorded, {100 * cached_tokens / prompt_tokens:.1f} % of prompt tokens were cached")
    lost = {outcome: count for outcome, count in sorted(outcomes.items()) if outcome != "ok"}
    if lost:
        notes.append(f"left out: {', '.join(f'{count} calls {outcome}' for outcome, count in lost.items())}")
    return notes
