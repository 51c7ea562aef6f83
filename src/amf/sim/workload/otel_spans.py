"""Spans from OpenTelemetry exports: OTLP as JSON (resourceSpans, camelCase, attributes as lists; a document a line or a
file) and plain documents with a list `spans` (snake_case, ISO times, attributes as a table). Each is recognised by its
content."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from amf.sim.scenario import ScenarioError
from amf.sim.workload.recording import documents, files_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Seconds are since the epoch. `links`: ids of spans that this one names as causes."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    start_s: float
    end_s: float
    attributes: Mapping[str, Any]
    links: tuple[str, ...] = ()


def read_spans(path: Path) -> dict[str, list[Span]]:
    """Spans by trace, in order of their start. A trace may be spread over files; one that is met again with the same spans
    is another. Raises ScenarioError naming what is not a span."""
    traces: dict[str, dict[str, Span]] = {}
    for file in files_of(path):
        own: dict[str, dict[str, Span]] = {}
        for place, document in documents(file):
            try:
                for span in _spans(document):
                    own.setdefault(span.trace_id, {})[span.span_id] = span
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"has a span without {error}" if isinstance(error, KeyError) else str(error)
                raise ScenarioError(
                    f"{file}: {place} {reason}; give OTLP JSON (resourceSpans) or documents with a list of spans"
                ) from error
        for name, spans in own.items():
            names = (name if number == 1 else f"{name}#{number}" for number in count(1))
            traces.setdefault(next(each for each in names if not traces.get(each, {}).keys() & spans), {}).update(spans)
    if not traces:
        raise ScenarioError(f"{path}: holds no spans")
    return {
        name: sorted(spans.values(), key=lambda span: (span.start_s, span.span_id)) for name, spans in traces.items()
    }


def _spans(document: Any) -> Iterator[Span]:
    if isinstance(document, list):
        for each in document:
            yield from _spans(each)
    elif "resourceSpans" in document:
        for resource in document["resourceSpans"]:
            for scope in resource.get("scopeSpans") or resource.get("instrumentationLibrarySpans") or ():
                for span in scope["spans"]:
                    yield _otlp_span(span)
    elif "spans" in document:
        for span in document["spans"]:
            yield _plain_span({"trace_id": document.get("trace_id"), **span})
    elif "span_id" in document:
        yield _plain_span(document)
    else:
        raise ValueError("holds neither resourceSpans nor spans")


def _otlp_span(span: Mapping[str, Any]) -> Span:
    return Span(
        trace_id=span["traceId"],
        span_id=span["spanId"],
        parent_id=span.get("parentSpanId") or "",
        name=span.get("name", ""),
        start_s=int(span["startTimeUnixNano"]) / 1e9,
        end_s=int(span["endTimeUnixNano"]) / 1e9,
        attributes={each["key"]: _value(each.get("value", {})) for each in span.get("attributes", ())},
        links=tuple(link["spanId"] for link in span.get("links", ())),
    )


def _value(value: Mapping[str, Any]) -> Any:
    """An OTLP attribute value; 64-bit integers are texts in JSON."""
    if "intValue" in value:
        return int(value["intValue"])
    if "arrayValue" in value:
        return [_value(each) for each in value["arrayValue"].get("values", ())]
    if "kvlistValue" in value:
        return {each["key"]: _value(each.get("value", {})) for each in value["kvlistValue"].get("values", ())}
    return next(iter(value.values()), None)


def _plain_span(span: Mapping[str, Any]) -> Span:
    return Span(
        trace_id=str(span["trace_id"]),
        span_id=str(span["span_id"]),
        parent_id=str(span.get("parent_span_id") or ""),
        name=str(span.get("name", "")),
        start_s=_seconds(span["start_time"]),
        end_s=_seconds(span["end_time"]),
        attributes=span.get("attributes") or {},
        links=tuple(str(link["span_id"]) for link in span.get("links") or ()),
    )


def _seconds(time: Any) -> float:
    """An ISO time (UTC unless it says otherwise) or seconds since the epoch."""
    if isinstance(time, (int, float)):
        return float(time)
    read = datetime.fromisoformat(time)
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
