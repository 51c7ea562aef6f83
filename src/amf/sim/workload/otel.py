"""Traces of OpenTelemetry as pipelines: a trace is a pipeline, a span that calls a model is a call.

Who waited for whom, from the strongest sign to the weakest:

1. Links to other spans, and a parent span that is a call and had ended. They say so.
2. Whole answers of earlier calls among the messages of the prompt. If all of them are older than what the times tell (an
   answer can be used without being quoted), what the times tell is added.
3. Times, in the tree of spans: a call waits for the last calls that had ended before it in its own surroundings (its
   parent span), else for those that had ended before its surroundings began, and so on outwards. Branches that ran side by
   side therefore do not wait for each other.

A call inside a call is the same request seen by two instrumentations: the inner one counts. Spans that are no calls (tools,
agents, retrieval) are time: they lie in the gap before the next call.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from amf.sim.scenario import ScenarioError
from amf.sim.workload.keyed import KeyedBlocks
from amf.sim.workload.otel_calls import CHARS_PER_TOKEN, SpanCall, call_of, pieces
from amf.sim.workload.otel_spans import Span, read_spans
from amf.sim.workload.traffic import Ancestry, ObservedCall, ObservedPipeline, Traffic, gap_s

SOURCE = "otel"
_INSTANT_S = 1e-6  # times since the epoch are exact to about this


def read_traces(path: Path, block_tokens: int, think_cap_s: float) -> Traffic:
    """The traces in a file, a folder or the files that match a pattern. Raises ScenarioError if none calls a model."""
    blocks = KeyedBlocks(block_tokens)
    pipelines: list[ObservedPipeline] = []
    calls: list[SpanCall] = []
    traces = read_spans(path)
    for name in sorted(traces, key=lambda name: (traces[name][0].start_s, name)):
        try:
            trace = _Trace(traces[name])
        except ValueError as error:
            raise ScenarioError(f"{path}: trace {name} {error}; record token counts, or messages") from error
        if trace.calls:
            calls += trace.calls
            pipelines.append(trace.pipeline(name, blocks, think_cap_s))
    if not pipelines:
        raise ScenarioError(
            f"{path}: no span calls a model; such spans have gen_ai.operation.name (chat, embeddings, …) and "
            "gen_ai.request.model"
        )
    pipelines.sort(key=lambda each: each.arrival_s)
    first_s = pipelines[0].arrival_s
    return Traffic(
        source=SOURCE,
        block_tokens=block_tokens,
        pipelines=tuple(replace(each, arrival_s=each.arrival_s - first_s) for each in pipelines),
        notes=tuple(_notes(calls, len(traces) - len(pipelines), think_cap_s)),
    )


@dataclass(slots=True, init=False)
class _Trace:
    """One trace's spans as a tree, and its calls in order of their start."""

    calls: list[SpanCall]
    _spans: Mapping[str, Span]
    _index: Mapping[str, int]  # call's number by span id
    _outer: Sequence[Sequence[str]]  # by call: ids of the spans around it, from the inside out

    def __init__(self, spans: Sequence[Span]) -> None:
        """Raises ValueError for a call without lengths."""
        self._spans = {span.span_id: span for span in spans}
        found = [call for span in spans if (call := call_of(span)) is not None]
        ids = {call.span.span_id for call in found}
        wrappers = {
            outer
            for call in found
            for outer in self._around(call.span)
            if outer in ids and self._holds(outer, call.span)
        }
        self.calls = [call for call in found if call.span.span_id not in wrappers]
        self._index = {call.span.span_id: index for index, call in enumerate(self.calls)}
        self._outer = [self._around(call.span) for call in self.calls]

    def pipeline(self, name: str, blocks: KeyedBlocks, think_cap_s: float) -> ObservedPipeline:
        ancestry, observed = Ancestry(), list[ObservedCall]()
        start_s = self.calls[0].span.start_s
        for index, call in enumerate(self.calls):
            parents = self._parents(index, ancestry)
            ancestry.add(parents)
            ends_s = [self.calls[parent].span.end_s for parent in parents] or [start_s]
            keys, sizes = pieces(call.messages)
            runs, tail_tokens = blocks.prompt(keys, sizes, call.prompt_tokens)
            observed.append(
                ObservedCall(
                    hop=self._hop(call.span),
                    model=call.model,
                    runs=runs,
                    tail_tokens=tail_tokens,
                    prompt_tokens=call.prompt_tokens,
                    output_tokens=call.output_tokens,
                    parents=parents,
                    gap_s=gap_s(call.span.start_s, ends_s, think_cap_s),
                    kind=call.kind,
                )
            )
        return ObservedPipeline(name=name, graph=SOURCE, calls=tuple(observed), arrival_s=start_s, declared=True)

    def _parents(self, index: int, ancestry: Ancestry) -> tuple[int, ...]:
        said = self._said(index)
        if said:
            return ancestry.latest(said)
        quoted, earlier = self._quoted(index), ancestry.latest(self._earlier(index))
        if set(quoted) & set(earlier):
            return ancestry.latest(quoted)
        return ancestry.latest([*quoted, *earlier])

    def _said(self, index: int) -> list[int]:
        """Calls that the spans themselves name as causes."""
        span = self.calls[index].span
        named = [self._index[cause] for cause in (*span.links, span.parent_id) if cause in self._index]
        inside = [other for cause in span.links if cause not in self._index for other in self._within(cause)]
        return self._ended([*named, *inside], index, span.start_s)

    def _quoted(self, index: int) -> list[int]:
        """Calls whose answers stand in the prompt."""
        call = self.calls[index]
        quoted = [other for other in range(index) if self.calls[other].answer in call.said]
        return self._ended(quoted, index, call.span.start_s)

    def _earlier(self, index: int) -> list[int]:
        """Calls that had ended, in the nearest surroundings that have any."""
        inner = self.calls[index].span
        for outer in (*self._outer[index], ""):
            own = [other for other in range(index) if not outer or outer in self._outer[other]]
            ended = self._ended(own, index, inner.start_s)
            if ended:
                return ended
            inner = self._spans.get(outer, inner)
        return []

    def _ended(self, others: Sequence[int], index: int, by_s: float) -> list[int]:
        return [other for other in others if other < index and self.calls[other].span.end_s <= by_s + _INSTANT_S]

    def _within(self, outer: str) -> list[int]:
        return [index for index, around in enumerate(self._outer) if outer in around]

    def _around(self, span: Span) -> list[str]:
        """Ids of the spans around this one, from the inside out."""
        outer: list[str] = []
        parent = span.parent_id
        while parent in self._spans and parent not in outer and parent != span.span_id:
            outer.append(parent)
            parent = self._spans[parent].parent_id
        return outer

    def _holds(self, outer: str, span: Span) -> bool:
        return span.start_s < self._spans[outer].end_s - _INSTANT_S

    def _hop(self, span: Span) -> str:
        """The agent that called, else the span's name; in letters that fit a header."""
        spans = [span, *(self._spans[each] for each in self._around(span))]
        agent = next((name for each in spans if (name := each.attributes.get("gen_ai.agent.name"))), span.name)
        return re.sub(r"[^\w.-]+", "-", str(agent), flags=re.ASCII).strip("-") or "call"


def _notes(calls: Sequence[SpanCall], without: int, think_cap_s: float) -> list[str]:
    notes = [f"OpenTelemetry traces; gaps between calls cut at {think_cap_s:g} s"]
    estimated = sum(call.estimated for call in calls)
    silent = sum(not call.messages for call in calls)
    if estimated:
        notes.append(
            f"{estimated} of {len(calls)} calls lack token counts: taken as {CHARS_PER_TOKEN} characters a token"
        )
    if silent:
        notes.append(f"{silent} of {len(calls)} calls record no messages: nothing of their prompts is shared")
    if without:
        notes.append(f"{without} traces call no model and are left out")
    return notes
