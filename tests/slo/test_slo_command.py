"""`amf slo` from the outside, and what it composes against the pipelines that it was composed from."""

import gzip
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from amf.cli import app
from amf.core.path import Samples
from amf.sim.workload import GRAPHS
from amf.slo.compose import compose
from amf.slo.observed import Observed, Took, drawn, recorded

GRAPH = """
name: mine
hops:
  ask: {pool: llama-3.1-8b, output_tokens: 200}
  look: {kind: tool, expected_s: 3, after: ask}
  answer: {pool: llama-3.3-70b, output_tokens: 400, after: look}
"""


def slo(*arguments: object):
    return CliRunner().invoke(app, ["slo", *(str(each) for each in arguments)])


def answer_of(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    file = tmp_path / "answer.json"
    result = slo(*arguments, "--json", file)
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(file.read_text())
    return answer


def refusal(*arguments: object) -> str:
    result = slo(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return str(result.output)


def record(observed: Observed, path: Path, **changes: Any) -> None:
    """What the gateway would have recorded, had these pipelines run: a call arrives when its gap is over."""
    lines: list[dict[str, Any]] = [{"amf_recording": 1, "version": "0", "policy": "fabric"}]
    for run, calls in enumerate(observed.pipelines):
        ends: list[float] = []
        for call in calls:
            at_s = max((ends[parent] for parent in call.parents), default=10_000.0 * run)
            ends.append(at_s + call.seconds)
            line = {
                "n": len(lines), "run": f"{run:x}", "at": at_s, "end": ends[-1], "outcome": "ok", "pool": "m",
                "prompt": 10, "output": 5, "estimate": 10, "graph": observed.graph.name, "hop": call.hop,
                "parents": sorted({calls[parent].hop for parent in call.parents}),
            }  # fmt: skip
            lines.append(line | changes)
    with gzip.open(path, "wt") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("name", GRAPHS)
def test_composed_pipelines_end_as_the_drawn_ones(name: str):
    """The composition knows the hops only, the pipelines themselves what follows what. The worst are rag-verify's median and
    the p99 of coding-7hop."""
    observed = drawn(name, 1_000, 7)
    rows = compose(observed, None, 0.9)["end_to_end_s"]
    measured, witness = rows["measured"], rows["pipelines"]
    off = {q: abs(measured[q] / witness[q] - 1) for q in measured}
    assert off["p50"] < 0.2 and off["p90"] < 0.12 and off["p95"] < 0.12 and off["p99"] < 0.25, off


def test_quantiles_of_a_chain_lie_between_independence_and_their_sum():
    rows = compose(drawn("chain-3", 1_000, 7), None, 0.9)["end_to_end_s"]
    independent, measured, comonotone, summed, _ = (row["p99"] for row in rows.values())
    assert independent < measured < comonotone
    assert comonotone == pytest.approx(summed, rel=0.02)


def test_the_answer_hangs_together(tmp_path: Path):
    answer = answer_of(tmp_path, "coding-7hop", "--pipelines", 500, "--slo-s", 240, "--quantile", 0.95)
    assert (answer["slo_s"], answer["quantile"], answer["pipelines"]) == (240, 0.95, 500)
    gains = [row["gain_s"] for row in answer["shorten"]]
    assert gains == sorted(gains, reverse=True) and gains[0] > 1 and min(gains) >= 0
    assert {row["hop"] for row in answer["shorten"]} == {row["hop"] for row in answer["budgets"]}
    start = {row["hop"]: row["latest_start_s"] for row in answer["budgets"]}
    end = {row["hop"]: row["latest_end_s"] for row in answer["budgets"]}
    assert end["finalise"] == 240 and all(start[hop] <= end[hop] for hop in start)
    chain = ["plan", "embed", "rerank", "code", "test", "review", "finalise"]
    for left, right in pairwise(chain):
        assert end[left] <= start[right] + 1e-9
    assert "load" not in answer


def test_without_an_slo_it_is_the_p95(tmp_path: Path):
    answer = answer_of(tmp_path, "dag-4", "--pipelines", 300)
    assert answer["met"] == pytest.approx(0.95, abs=0.001)


def test_a_graph_file_is_priced_on_its_pools(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(GRAPH)
    answer = answer_of(tmp_path, file, "--pipelines", 300)
    assert "llama-3.1-8b on 1 h200, llama-3.3-70b on 1 h200" in answer["source"]
    times = {row["hop"]: row["p50_s"] for row in answer["budgets"]}
    assert times["look"] == 0 and times["answer"] > 3
    assert "never called, and counted as no time: look" in answer["notes"]


def test_recorded_pipelines_are_those_that_ran(tmp_path: Path):
    """Hop times, correlation and shape survive the recording."""
    ran, file = drawn("text-to-sql", 60, 3), tmp_path / "traffic.jsonl.gz"
    record(ran, file)
    again = recorded(file, None)
    assert again.totals().values == pytest.approx(ran.totals().values, abs=1e-5)
    assert again.correlation().value == pytest.approx(ran.correlation().value, abs=1e-4)
    assert {hop: sorted(s) for hop, s in again.seconds().items()} == {
        hop: pytest.approx(sorted(s), abs=1e-5) for hop, s in ran.seconds().items()
    }
    answer = answer_of(tmp_path, file)
    assert answer["source"].startswith("60 pipelines recorded by amf serve --record")


def test_a_recording_of_ones_own_graph_needs_its_file(tmp_path: Path):
    graph, file = tmp_path / "mine.yaml", tmp_path / "traffic.jsonl.gz"
    graph.write_text(GRAPH)
    record(drawn(str(graph), 50, 3), file)
    assert "'mine' is not built in; give the file that declares it with --graph" in refusal(file)
    assert answer_of(tmp_path, file, "--graph", graph)["graph"] == "mine"
    assert "no pipeline of graph 'dag-4'; it has those of mine (50)" in refusal(file, "--graph", "dag-4")
    record(drawn(str(graph), 50, 3), file, hop="other")
    assert "a hop 'other' that graph 'mine' does not have" in refusal(file, "--graph", graph)
    record(drawn(str(graph), 50, 3), file, graph="")
    assert "pipelines of no graph (50); say with --graph" in refusal(file)


def test_the_load_that_keeps_the_slo(tmp_path: Path):
    wide = answer_of(tmp_path, "chain-3", "--load", "--load-pipelines", 30, "--slo-s", 500)
    assert wide["load"] > 0.9
    runs = {run["load"]: run["met"] for run in wide["load_runs"]}
    assert runs[wide["load"]] >= 0.9
    tight = answer_of(tmp_path, "chain-3", "--load", "--load-pipelines", 30, "--slo-s", 10)
    assert tight["load"] is None and len(tight["load_runs"]) == 1
    assert "too tight at the p90: outline would have to start" in slo("chain-3", "--slo-s", 10).output


def test_the_page_is_self_contained_and_escapes(tmp_path: Path):
    file, graph = tmp_path / "slo.html", tmp_path / "mine.yaml"
    graph.write_text(GRAPH.replace("name: mine", "name: <b>mine</b>"))
    assert slo(graph, "--pipelines", 100, "--html", file).exit_code == 0
    page = file.read_text()
    assert page.count("<svg") == 3 and "<b>mine" not in page
    assert not re.search(r"<script|<link|src=|@import", page)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("coding-7hops",), "did you mean 'coding-7hop'?"),
        (("dag-4", "--quantile", "90"), "--quantile 90: is a share between 0 and 1"),
        (("dag-4", "--slo-s", "-1"), "--slo-s -1: is a number of seconds above 0"),
        (("gone.jsonl", "--load"), "--load: needs a GRAPH with a fleet"),
        (("gone.jsonl",), "gone.jsonl: does not exist; give a file written by amf serve --record"),
        (("gone.yaml",), "gone.yaml: does not exist; give a graph file or the name of a built-in graph"),
        (("dag-4", "--json", "no/such/folder/x.json"), "make the folder or choose another"),
    ],
)
def test_mistakes_are_named(arguments: tuple[str, ...], said: str):
    assert said in refusal(*arguments)


def test_calls_that_take_no_time_say_nothing_about_correlation():
    graph = GRAPHS["chain-3"].call_graph()
    idle = [[Took(hop, 0.0, ()) for hop in graph.order] for _ in range(3)]
    observed = Observed(graph=graph, source="none", pipelines=idle)
    assert observed.correlation().value == 0.0
    assert observed.totals().values == Samples([0.0, 0.0, 0.0]).values
