"""Which deadline and class a run gets, from which source, and how runs are judged. Time stands still here."""

from dataclasses import replace

import msgspec
import pytest
from multidict import CIMultiDict

from amf.config import SloConfig, SloTarget
from amf.core.types import Call, SloClass
from amf.gateway.auth import tenant_of
from amf.gateway.body import parse_body
from amf.gateway.clock import Clock
from amf.gateway.identity import read_identity
from amf.gateway.metrics import Metrics
from amf.gateway.problem import Problem
from amf.gateway.promises import CallSlo, Promises
from amf.gateway.record import Ended

CONFIG = SloConfig(
    interactive_deadline_s=60.0,
    background_deadline_s=600.0,
    graphs={"coding": SloTarget(deadline_s=50.0), "nightly": SloTarget(slo_class=SloClass.BACKGROUND)},
    keys={"gold": SloTarget(deadline_s=40.0), "bulk": SloTarget(slo_class=SloClass.THROUGHPUT)},
    max_deadline_s=3600.0,
    max_positions=2,
)
ARRIVED_S = 1e6  # far enough ahead of the clock's own time
ENDED = Ended(
    call=Call(call_id="", run_id="", pool="m"),
    outcome="ok",
    arrived_s=ARRIVED_S,
    first_s=None,
    ended_s=ARRIVED_S,
    prompt_tokens=1,
    output_tokens=1,
    cached_tokens=None,
    worker="w",
)


class Desk:
    """Promises with runs that are live because the test says so."""

    def __init__(self, config: SloConfig = CONFIG, scale: float = 1.0, max_runs: int = 100) -> None:
        self.metrics = Metrics(config.max_positions)
        self.live: set[str] = set()
        self.book = Promises(config, Clock(scale), self.metrics.slo, self.live.__contains__, max_runs)
        self.calls = 0

    def ask(
        self,
        headers: dict[str, str] | None = None,
        *,
        run: str = "r",
        key: str = "",
        alone: bool = False,
        **body: object,
    ) -> CallSlo:
        identity = read_identity(CIMultiDict(headers or {}), parse_body(msgspec.json.encode(body)))
        return self.book.resolve(run, tenant_of(key) if key else "", identity, ARRIVED_S, alone)

    def start(self, headers: dict[str, str] | None = None, *, run: str = "r", hop: str = "") -> Call:
        self.calls += 1
        slo = self.ask(headers, run=run)
        call = Call(call_id=f"c{self.calls}", run_id=run, pool="m", hop=hop, deadline_s=slo.brings_s)
        self.book.note(call, slo, ARRIVED_S)
        return call

    def end(self, call: Call, after_s: float, outcome: str = "ok", first_s: float | None = None) -> None:
        first = None if first_s is None else ARRIVED_S + first_s
        self.book.ended(replace(ENDED, call=call, outcome=outcome, ended_s=ARRIVED_S + after_s, first_s=first))

    def counted(self, **labels: str) -> float:
        return self.metrics.registry.get_sample_value("amf_deadline_pipelines_total", labels) or 0.0


# Every source with what it gives, best first: (headers, key, whole run, source, seconds).
LADDER: list[tuple[dict[str, str], str, bool, str, float]] = [
    ({"x-amf-deadline-ms": "10000"}, "", False, "explicit", 10.0),
    ({"grpc-timeout": "20S"}, "", True, "grpc-timeout", 20.0),
    ({}, "gold", False, "key", 40.0),
    ({"x-amf-pipeline": "coding"}, "", False, "graph", 50.0),
    ({}, "", False, "class", 60.0),
]


@pytest.mark.parametrize("rung", range(len(LADDER)), ids=[rung[3] for rung in LADDER])
def test_each_source_gives_a_deadline_and_beats_all_below(rung: int) -> None:
    headers, key, alone = {}, "", False
    for more, rung_key, rung_alone, _, _ in LADDER[rung:]:
        headers, key, alone = headers | more, key or rung_key, alone or rung_alone
    slo = Desk().ask(headers, key=key, alone=alone)
    assert (slo.source, slo.deadline_s) == (LADDER[rung][3], ARRIVED_S + LADDER[rung][4])
    assert slo.brings_s == slo.deadline_s


def test_a_timeout_bounds_the_call_and_not_a_run_that_may_go_on() -> None:
    slo = Desk(SloConfig()).ask({"grpc-timeout": "20S"})
    assert (slo.timeout_at_s, slo.timeout_source) == (ARRIVED_S + 20.0, "grpc-timeout")
    assert (slo.deadline_s, slo.brings_s, slo.source) == (None, None, "")


def test_without_anything_there_is_no_deadline() -> None:
    assert Desk(SloConfig()).ask() == CallSlo()


@pytest.mark.parametrize(
    ("headers", "key", "tier", "slo_class"),
    [
        ({"x-amf-slo-class": "background"}, "bulk", "priority", SloClass.BACKGROUND),
        ({}, "bulk", "priority", SloClass.INTERACTIVE),
        ({"x-amf-pipeline": "nightly"}, "bulk", None, SloClass.THROUGHPUT),
        ({"x-amf-pipeline": "nightly"}, "gold", "auto", SloClass.BACKGROUND),
        ({}, "", None, SloClass.INTERACTIVE),
    ],
)
def test_the_class_goes_the_same_way(headers: dict[str, str], key: str, tier: str | None, slo_class: SloClass) -> None:
    assert Desk().ask(headers, key=key, service_tier=tier).slo_class is slo_class


def test_the_class_that_was_found_decides_on_its_deadline() -> None:
    slo = Desk().ask({"x-amf-pipeline": "nightly"})
    assert (slo.source, slo.deadline_s) == ("class", ARRIVED_S + 600.0)


def test_later_calls_inherit_and_bring_nothing() -> None:
    desk = Desk()
    desk.start({"x-amf-deadline-ms": "10000", "x-amf-slo-class": "throughput", "x-amf-pipeline": "coding"})
    later = desk.ask({"x-amf-deadline-ms": "99000", "grpc-timeout": "1S"}, key="gold", alone=True)
    assert (later.deadline_s, later.source, later.brings_s) == (ARRIVED_S + 10.0, "explicit", None)
    assert (later.slo_class, later.graph, later.timeout_at_s) == (SloClass.THROUGHPUT, "coding", ARRIVED_S + 1.0)


def test_a_run_without_a_deadline_may_get_one_later_from_the_client_only() -> None:
    desk = Desk(SloConfig(keys={"gold": SloTarget(deadline_s=40.0)}))
    desk.start()
    assert desk.ask(key="gold").deadline_s is None
    assert desk.ask({"x-amf-deadline-ms": "5000"}).brings_s == ARRIVED_S + 5.0


def test_a_run_that_was_over_starts_anew() -> None:
    desk = Desk()
    desk.end(desk.start({"x-amf-deadline-ms": "10000"}), 1.0)
    assert desk.ask().source == "class"


def test_real_seconds_become_modelled_ones() -> None:
    desk = Desk(scale=10.0)
    slo = desk.ask({"x-amf-deadline-ms": "2000", "grpc-timeout": "1S", "x-slo-ttft-ms": "500"})
    assert (slo.deadline_s, slo.timeout_at_s, slo.ttft_at_s) == (ARRIVED_S + 20.0, ARRIVED_S + 10.0, ARRIVED_S + 5.0)


def test_bounds() -> None:
    desk = Desk()
    with pytest.raises(Problem, match="max_deadline_s") as caught:
        desk.ask({"x-amf-deadline-ms": "3600001"})
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        400,
        "invalid_deadline",
        "x-amf-deadline-ms",
    )
    assert desk.ask({"grpc-timeout": "99999999H"}).timeout_at_s is None


def test_what_has_passed_on_the_way_is_refused() -> None:
    desk = Desk()
    identity = read_identity(CIMultiDict({"grpc-timeout": "1u"}), parse_body(b"{}"))
    with pytest.raises(Problem, match="grpc-timeout") as caught:
        desk.book.resolve("r", "", identity, desk.book.clock.now_s() - 1.0, False)
    assert (caught.value.status, caught.value.code, caught.value.retry) == (504, "deadline_exceeded", False)


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [
        ([(5.0, "ok"), (9.0, "ok")], "met"),
        ([(5.0, "ok"), (11.0, "ok")], "missed"),
        ([(5.0, "failed"), (9.0, "ok")], "met"),
        ([(5.0, "ok"), (9.0, "failed")], "missed"),
        ([(9.0, "refused")], "missed"),
        ([(9.0, "cancelled")], "cancelled"),
        ([(11.0, "cancelled")], "missed"),
    ],
)
def test_a_run_is_judged_once_when_it_is_over(ends: list[tuple[float, str]], outcome: str) -> None:
    desk = Desk()
    desk.live.add("r")
    for after_s, how in ends:
        desk.end(desk.start({"x-amf-deadline-ms": "10000", "x-amf-pipeline": "coding"}), after_s, how)
    desk.book.sweep()
    labels = {"graph": "coding", "slo_class": "interactive"}
    assert desk.counted(**labels, outcome=outcome) == 0.0
    desk.live.clear()
    desk.book.sweep()
    desk.book.sweep()
    counts = {each: desk.counted(**labels, outcome=each) for each in ("met", "missed", "cancelled")}
    assert counts == {"met": 0.0, "missed": 0.0, "cancelled": 0.0} | {outcome: 1.0}


def test_a_run_that_the_fabric_has_closed_is_judged_at_its_last_end() -> None:
    desk = Desk()
    desk.end(desk.start(), 9.0)
    assert desk.counted(graph="", slo_class="interactive", outcome="met") == 1.0


def test_runs_without_a_deadline_are_not_counted() -> None:
    desk = Desk(SloConfig())
    desk.end(desk.start(), 9.0)
    assert not any(sample.name.endswith("_total") and "pipelines" in sample.name for sample in samples(desk))


def test_memory_is_bounded_and_what_is_forgotten_is_judged() -> None:
    desk = Desk(max_runs=10)
    for number in range(100):
        desk.live.add(f"r{number}")
        desk.end(desk.start(run=f"r{number}"), 1.0)
    desk.live.clear()
    desk.book.sweep()
    assert desk.counted(graph="", slo_class="interactive", outcome="met") == 100.0
    assert not desk.book._runs and not desk.book._calls


def samples(desk: Desk) -> list:
    return [sample for family in desk.metrics.registry.collect() for sample in family.samples]


def test_burn_is_the_share_of_the_budget_that_is_gone() -> None:
    desk = Desk()
    desk.live.add("r")
    for hop, after_s in (("plan", 2.0), ("code", 15.0)):
        desk.end(desk.start({"x-amf-deadline-ms": "10000", "x-amf-pipeline": "coding"}, hop=hop), after_s)

    def below(hop: str, bound: str) -> float | None:
        labels = {"graph": "coding", "hop": hop, "le": bound}
        return desk.metrics.registry.get_sample_value("amf_budget_burn_ratio_bucket", labels)

    assert (below("plan", "0.1"), below("plan", "0.2")) == (0.0, 1.0)
    assert (below("code", "1.25"), below("code", "1.5")) == (0.0, 1.0)


def test_positions_have_series_of_their_own_up_to_a_bound() -> None:
    desk = Desk()
    for number in range(50):
        desk.metrics.slo.sent(f"g{number}", "h", 1.0)
        desk.metrics.slo.pipeline_ended(f"g{number}", "interactive", "met")
    found = {(s.labels["graph"], s.labels["hop"]) for s in samples(desk) if s.name == "amf_slack_seconds_count"}
    assert found == {("g0", "h"), ("g1", "h"), ("other", "other")}
    assert desk.counted(graph="other", slo_class="interactive", outcome="met") == 48.0


@pytest.mark.parametrize(
    ("end", "outcome", "first_s", "counted"),
    [(9.0, "ok", 1.0, "met"), (9.0, "ok", 3.0, "missed"), (9.0, "ok", None, "missed"), (1.0, "ok", None, "met"),
     (1.0, "failed", None, "missed"), (1.0, "cancelled", None, None)],
)  # fmt: skip
def test_first_tokens_are_held_against_their_target(
    end: float, outcome: str, first_s: float | None, counted: str | None
) -> None:
    desk = Desk()
    desk.end(desk.start({"x-slo-ttft-ms": "2000"}), end, outcome, first_s)
    found = {s.labels["outcome"]: s.value for s in samples(desk) if s.name == "amf_ttft_target_calls_total"}
    assert found == ({counted: 1.0} if counted else {})
