"""Spans become pipelines: shape from links, answers and times; lengths and sharing from what the spans say."""

import json
from pathlib import Path

import pytest
from test_workload_recorded import traces

from amf.core.types import CallKind
from amf.sim.scenario import PoolSpec, ScenarioError, WorkloadSpec
from amf.sim.workload import build, ideal_cached_by_call

POOL = (PoolSpec(model="llama-3.1-8b"),)
START_NS = 1_790_000_000_000_000_000


def span(name, start_s, end_s, *, parent="", links=(), trace="t", **attributes):
    """A span in the plain form. `attributes` with __ for dots; `chat=model` makes it a model call."""
    model = attributes.pop("chat", None)
    said = {name.replace("__", "."): value for name, value in attributes.items()}
    if model:
        said = {"gen_ai.operation.name": "chat", "gen_ai.request.model": model} | said
    return {
        "trace_id": trace, "span_id": name, "parent_span_id": parent or None, "name": f"span {name}",
        "start_time": f"2026-02-25T10:00:{start_s:09.6f}", "end_time": f"2026-02-25T10:00:{end_s:09.6f}Z",
        "attributes": said, "links": [{"span_id": link} for link in links],
    }  # fmt: skip


def call(name, start_s, end_s, *, tokens=(100, 10), **more):
    usage = {"gen_ai__usage__input_tokens": tokens[0], "gen_ai__usage__output_tokens": tokens[1]} if tokens else {}
    return span(name, start_s, end_s, chat="m", **(usage | more))


def as_otlp(spans) -> dict:
    """The same spans as an exporter writes them."""

    def value(of):
        if isinstance(of, bool):
            return {"boolValue": of}
        if isinstance(of, int):
            return {"intValue": str(of)}
        return {"stringValue": of}

    def time(of):
        return str(START_NS + round(float(of.rstrip("Z").rsplit(":", 1)[1]) * 1e9))

    converted = [
        {
            "traceId": each["trace_id"], "spanId": each["span_id"], "parentSpanId": each["parent_span_id"] or "",
            "name": each["name"], "startTimeUnixNano": time(each["start_time"]), "endTimeUnixNano": time(each["end_time"]),
            "attributes": [{"key": key, "value": value(of)} for key, of in each["attributes"].items()],
            "links": [{"traceId": each["trace_id"], "spanId": link["span_id"]} for link in each["links"]],
        }
        for each in spans
    ]  # fmt: skip
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": converted}]}]}


def built(path: Path, document=None, pools=POOL, **changes):
    if document is not None:
        path.write_text(json.dumps(document if isinstance(document, dict) else {"spans": document}))
    spec = {"kind": "otel", "path": path, "pipelines": 1, "concurrency": 1, "think_cap_s": 30.0} | changes
    return build(WorkloadSpec(**spec), pools)


def shape(workload) -> dict[str, tuple[list[str], float]]:
    """Per call: hops it waits for and its gap. Hops are spans' names here."""
    calls = workload.pipelines[0].calls
    name = {each.index: each.hop.removeprefix("span-") for each in calls}
    return {name[each.index]: ([name[parent] for parent in each.parents], round(each.gap_s, 6)) for each in calls}


def test_times_alone_give_fan_out_and_fan_in(tmp_path):
    spans = [call("a", 0, 2), call("b", 2.5, 4), call("c", 3, 5), call("d", 6, 7), call("e", 50, 51)]
    workload = built(tmp_path / "t.json", spans)
    assert shape(workload) == {
        "a": ([], 0.0), "b": (["a"], 0.5), "c": (["a"], 1.0), "d": (["b", "c"], 1.0), "e": (["d"], 30.0),
    }  # fmt: skip
    assert workload == built(tmp_path / "o.json", as_otlp(spans)), "OTLP says the same"


def test_branches_that_ran_side_by_side_do_not_wait_for_each_other(tmp_path):
    """Two agents under one root, each two calls around a tool; then the root sums up."""
    spans = [
        span("root", 0, 20),
        call("plan", 0, 1, parent="root"),
        span("left", 1, 9, parent="root", gen_ai__agent__name="Left one"),
        call("l1", 1, 2, parent="left"),
        span("tool", 2, 7, parent="left", gen_ai__operation__name="execute_tool"),
        call("l2", 7, 8, parent="left"),
        span("right", 1, 12, parent="root"),
        call("r1", 1.5, 3, parent="right"),
        call("r2", 8.5, 11, parent="right"),
        call("sum", 13, 15, parent="root"),
    ]
    calls = built(tmp_path / "t.json", spans).pipelines[0].calls
    hops = ["span-plan", "Left-one", "span-r1", "Left-one", "span-r2", "span-sum"]
    assert [each.hop for each in calls] == hops
    assert [each.parents for each in calls] == [(), (0,), (0,), (1,), (2,), (3, 4)]
    assert [each.gap_s for each in calls] == pytest.approx([0.0, 0.0, 0.5, 5.0, 5.5, 2.0])


def test_links_and_parents_that_had_ended_win_over_times(tmp_path):
    spans = [
        call("a", 0, 1),
        call("b", 2, 3),
        call("c", 4, 5, links=["a"]),
        call("d", 6, 7, parent="a"),
        span("agent", 8, 10),
        call("e", 8, 9, parent="agent"),
        call("f", 12, 13, links=["agent"]),
    ]
    found = shape(built(tmp_path / "t.json", spans))
    assert {name: parents for name, (parents, _) in found.items()} == {
        "a": [], "b": ["a"], "c": ["a"], "d": ["a"], "e": ["b", "c", "d"], "f": ["e"],
    }  # fmt: skip


def messages(*texts: str) -> str:
    roles = ("user", "assistant")
    return json.dumps([{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)])


def test_an_answer_among_the_messages_tells_who_was_waited_for(tmp_path):
    """c goes on with a's answer while b ran beside it; d quotes only a, though b and c had ended: they count too."""
    spans = [
        call("a", 0, 1, gen_ai__input__messages=messages("q"), gen_ai__output__text="answer of a"),
        call("b", 0, 2, gen_ai__input__messages=messages("other"), gen_ai__output__text="answer of b"),
        call("c", 3, 4, gen_ai__input__messages=messages("q", "answer of a", "go on"), gen_ai__output__text="c"),
        call("d", 5, 6, gen_ai__input__messages=messages("q", "answer of a", "something else")),
    ]
    found = shape(built(tmp_path / "t.json", spans))
    assert {name: parents for name, (parents, _) in found.items()} == {"a": [], "b": [], "c": ["a"], "d": ["b", "c"]}


def test_prompts_share_as_far_as_their_messages_agree_in_and_across_traces(tmp_path):
    long = "You are a careful assistant. " * 40  # 1160 characters
    first = messages(long, "yes", "one")
    spans = [
        call("a", 0, 1, tokens=(640, 5), gen_ai__input__messages=first),
        call("b", 2, 3, tokens=(960, 5), gen_ai__input__messages=messages(long, "yes", "one", "more", long)),
        call("c", 4, 5, tokens=(640, 5), trace="u", gen_ai__input__messages=messages(long, "no", "two")),
        call("d", 6, 7, tokens=(640, 5), trace="v", gen_ai__input__messages=messages("Not " + long)),
        call("e", 8, 9, tokens=(640, 5), trace="w"),
    ]
    workload = built(tmp_path / "t.json", spans, pipelines=4, arrival="trace", concurrency=None)
    assert [plan.arrival_s for plan in workload.pipelines] == pytest.approx([0.0, 4.0, 6.0, 8.0])
    cached = [
        ideal_cached_by_call(workload)[plan.pipeline_id, call.index]
        for plan in workload.pipelines
        for call in plan.calls
    ]
    assert cached[0] == cached[3] == cached[4] == 0
    assert cached[1] == 640, "all of the first prompt, at its recorded length"
    assert 0.9 * 640 < cached[2] < 640, "the long beginning, stretched to the recorded length"
    assert any("1 of 5 calls record no messages" in note for note in workload.notes)


def test_lengths_are_recorded_ones_or_estimates_and_said_so(tmp_path):
    asked = {"gen_ai__prompt__0__role": "user", "gen_ai__prompt__0__content": "z" * 35}
    numbered = asked | {"gen_ai__completion__0__content": "w" * 40}
    spans = [
        call("old", 0, 1, tokens=None, gen_ai__usage__prompt_tokens=70, gen_ai__usage__completion_tokens=7),
        call("text", 2, 3, tokens=None, gen_ai__input__messages=messages("x" * 395), gen_ai__output__text="y" * 80),
        call("most", 4, 5, tokens=None, gen_ai__input__messages=messages("x" * 395), gen_ai__request__max_tokens=33),
        span("bare", 6, 7, gen_ai__request__model="m", gen_ai__usage__prompt_tokens=9, gen_ai__usage__completion_tokens=0),
        span(
            "emb", 8, 9, gen_ai__request__model="e", gen_ai__operation__name="embeddings", gen_ai__usage__input_tokens=50
        ),
        span("numbered", 10, 11, gen_ai__request__model="m", **numbered),
    ]  # fmt: skip
    workload = built(tmp_path / "t.json", spans)
    calls = workload.pipelines[0].calls
    assert [(each.prompt.total_tokens, each.output_tokens) for each in calls] == [
        (70, 7), (100, 20), (100, 33), (9, 1), (50, 0), (10, 10),
    ]  # fmt: skip
    assert calls[4].kind is CallKind.EMBED
    assert any("3 of 6 calls lack token counts" in note for note in workload.notes)


def test_a_call_that_two_instrumentations_saw_counts_once(tmp_path):
    spans = [call("framework", 0, 5, tokens=(1, 1)), call("client", 1, 4, parent="framework"), call("next", 6, 7)]
    assert shape(built(tmp_path / "t.json", spans)) == {"client": ([], 0.0), "next": (["client"], 2.0)}


def test_more_pipelines_than_traces_are_drawn_again_with_fresh_content(tmp_path):
    text = messages("same text " * 100)
    spans = [call(f"s{i}", i, i + 1, trace=f"t{i}", gen_ai__input__messages=text, tokens=(320, 5)) for i in range(3)]
    workload = built(tmp_path / "t.json", spans, pipelines=7)
    assert len({plan.pipeline_id for plan in workload.pipelines}) == 7
    cached = list(ideal_cached_by_call(workload).values())
    assert cached[:3] == [0, 319, 319] and cached[3:6] == [0, 319, 319] and cached[6] == 0
    assert workload == built(tmp_path / "t.json", pipelines=7)
    orders = {
        tuple(plan.pipeline_id for plan in built(tmp_path / "t.json", pipelines=7, seed=s).pipelines) for s in range(5)
    }
    assert len(orders) > 1


def test_files_in_lines_folders_and_pieces(tmp_path):
    """A collector writes a document a line and may spread one trace over several; the same ids again are another trace."""
    one, two = [call("a", 0, 1)], [call("b", 2, 3)]
    (tmp_path / "pieces.jsonl").write_text(f"{json.dumps(as_otlp(one))}\n{json.dumps(as_otlp(two))}\n")
    assert shape(built(tmp_path / "pieces.jsonl")) == {"a": ([], 0.0), "b": (["a"], 1.0)}
    (tmp_path / "again.jsonl").write_text((tmp_path / "pieces.jsonl").read_text())
    both = built(tmp_path, pipelines=2)
    assert {plan.pipeline_id for plan in both.pipelines} == {"otel/t/0", "otel/t#2/0"}
    assert [len(plan.calls) for plan in both.pipelines] == [2, 2]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([span("a", 0, 1)], "no span calls a model"),
        ([call("a", 0, 1, tokens=None)], "call a with neither gen_ai.usage.input_tokens nor"),
        ([call("a", 0, 1, tokens=None, gen_ai__usage__input_tokens=5)], "neither gen_ai.usage.output_tokens nor"),
        ({"spans": [{"span_id": "a"}]}, "has a span without 'start_time'"),
        ({"things": []}, "neither resourceSpans nor spans"),
        ({"spans": []}, "holds no spans"),
        ([call("a", 0, 1, tokens=(10**9, 1))], "kv_tokens"),
    ],
)
def test_what_cannot_be_replayed_says_why(tmp_path, document, words):
    with pytest.raises(ScenarioError, match=words) as error:
        built(tmp_path / "t.json", document)
    assert "t.json" in str(error.value)


def test_models_that_nobody_serves_are_named(tmp_path):
    spans = [span("a", 0, 1, chat="gpt-4o", gen_ai__usage__input_tokens=5, gen_ai__usage__output_tokens=5)]
    pools = (*POOL, PoolSpec(model="qwen3-32b"))
    with pytest.raises(ScenarioError, match=r'calls gpt-4o, which no .*"gpt-4o" = "llama-3.1-8b"'):
        built(tmp_path / "t.json", spans, pools)
    workload = built(tmp_path / "t.json", spans, pools, models=(("gpt-4o", "qwen3-32b"),))
    assert workload.pipelines[0].calls[0].pool == "qwen3-32b"


def test_the_public_examples_have_their_shapes():
    """Hand-written shapes of inference-perf; the edges are those a reader draws from their texts and times."""
    folder = traces() / "otel_shapes"
    edges = {
        "simple/simple_chain.json": [(), (0,), (1,)],
        "advanced/fan_in_dependencies.json": [(), (0,), (0,), (1, 2)],
        "advanced/parallel_requests.json": [(), (0,), (0,), (1, 2), (3,)],
        "advanced/multi_agent_research.json": [
            (), (0,), (0,), (0,), (1, 2, 3), (4,), (5,), (5,), (5,), (6, 7, 8), (9,), (10,),
        ],
    }  # fmt: skip
    for name, parents in edges.items():
        assert [call.parents for call in built(folder / name).pipelines[0].calls] == parents, name
    everything = built(folder, pipelines=100, arrival="trace", concurrency=None)
    assert len(everything.pipelines) == 12 and sum(len(plan.calls) for plan in everything.pipelines) == 73
