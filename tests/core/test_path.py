"""Distributions of whole paths: closed forms, other people's arithmetic, laws, and drawn pipelines as witnesses."""

from itertools import pairwise
from math import exp, log, sqrt
from random import Random
from statistics import NormalDist, fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amf.core.graph import BranchGroup, CallGraph, Edge, GraphError, GroupKind, Hop
from amf.core.path import FINE_POINTS, POINTS, Correlation, HopTime, Samples, path_times, score

STANDARD = NormalDist()


def graph(names: str, *edges: str, groups: tuple[BranchGroup, ...] = ()) -> CallGraph:
    """`graph("a b", "a b", "b a 0.3 2")`: hops, then edges as source, target, probability, loop bound."""
    parts = [(*each.split(), "1", "0")[:4] if len(each.split()) < 3 else (*each.split(), "0")[:4] for each in edges]
    return CallGraph(
        name="g",
        hops=tuple(Hop(name=name, pool="m") for name in names.split()),
        edges=tuple(Edge(source=s, target=t, probability=float(p), max_iterations=int(n)) for s, t, p, n in parts),
        branch_groups=groups,
    )


def chain(length: int) -> CallGraph:
    names = [f"h{number:02}" for number in range(length)]
    return graph(" ".join(names), *(f"{left} {right}" for left, right in pairwise(names)))


def exponential(q: float) -> float:
    return -log(1 - q)


def normal(q: float) -> float:
    return 10 + STANDARD.inv_cdf(q)


def lognormal(q: float) -> float:
    return exp(STANDARD.inv_cdf(q))


def fixed(seconds: float) -> HopTime:
    return HopTime(lambda q: seconds)


def same(shape: CallGraph, time: HopTime) -> dict[str, HopTime]:
    return dict.fromkeys(shape.order, time)


def erlang_cdf(x: float, stages: int) -> float:
    term, total = 1.0, 0.0
    for k in range(stages):
        total += term
        term *= x / (k + 1)
    return 1 - exp(-x) * total


# --- closed forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("points", "tolerance"), [(POINTS, 0.35), (FINE_POINTS, 0.06)])
@pytest.mark.parametrize("hops", [2, 7, 20, 40])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8, 1.0])
def test_normals_add_up_to_a_normal(points: int, tolerance: float, hops: int, correlation: float):
    """In standard deviations of the sum, whose variance is n + n (n - 1) rho."""
    total = path_times(chain(hops), same(chain(hops), HopTime(normal)), correlation, points).total
    sigma = sqrt(hops + hops * (hops - 1) * correlation)
    for q in (0.1, 0.5, 0.9, 0.95):
        assert (total.quantile(q) - 10 * hops) / sigma == pytest.approx(STANDARD.inv_cdf(q), abs=tolerance)


@pytest.mark.parametrize(("points", "tolerance"), [(POINTS, 0.025), (FINE_POINTS, 0.012)])
@pytest.mark.parametrize("hops", [2, 4, 7, 12, 33])
def test_exponentials_add_up_to_an_erlang(points: int, tolerance: float, hops: int):
    """The share that really lies below what is called a quantile."""
    total = path_times(chain(hops), same(chain(hops), HopTime(exponential)), 0.0, points).total
    for q in (0.5, 0.9, 0.99):
        assert erlang_cdf(total.quantile(q), hops) == pytest.approx(q, abs=tolerance)


def test_comonotone_quantiles_add_up_and_independent_tails_do_not():
    shape, times = chain(7), same(chain(7), HopTime(lognormal))
    one = Samples([lognormal((k + 0.5) / FINE_POINTS) for k in range(FINE_POINTS)])
    together = path_times(shape, times, 1.0, FINE_POINTS).total
    for q in (0.1, 0.5, 0.9, 0.99):
        assert together.quantile(q) == pytest.approx(7 * one.quantile(q))
    apart = path_times(shape, times, 0.0, FINE_POINTS).total
    assert 2.0 < 7 * one.quantile(0.99) / apart.quantile(0.99) < 2.4


@pytest.mark.parametrize(("points", "tolerance"), [(POINTS, 0.025), (FINE_POINTS, 0.012)])
def test_the_longest_of_independent_siblings_counts(points: int, tolerance: float):
    """P(max <= x) = F(x)^3."""
    shape = graph("a b c d e", "a b", "a c", "a d", "b e", "c e", "d e")
    times = same(shape, HopTime(exponential)) | {"a": fixed(0.0), "e": fixed(0.0)}
    total = path_times(shape, times, 0.0, points).total
    for q in (0.5, 0.9, 0.99):
        assert (1 - exp(-total.quantile(q))) ** 3 == pytest.approx(q, abs=tolerance)


def test_a_gap_is_passed_before_its_hop():
    path = path_times(chain(2), {"h00": HopTime(lambda q: 1.0), "h01": HopTime(lambda q: 2.0, gap_s=5.0)})
    assert (path.total.quantile(0.5), path.after("h00").mean, path.after("h01").mean) == (8.0, 7.0, 0.0)
    assert (path.since("h00").mean, path.since("h01").quantile(1.0)) == (8.0, 7.0)


# --- structure --------------------------------------------------------------------------------------------------------------


def test_conditional_edges_exclude_each_other():
    shape = graph("a b c d", "a b 0.2", "a c 0.3", "a d")
    times = {"a": fixed(1.0), "b": fixed(10.0), "c": fixed(20.0), "d": fixed(2.0)}
    total = path_times(shape, times, 0.0, FINE_POINTS).total
    shares = {value: total.values.count(value) / FINE_POINTS for value in set(total.values)}
    assert shares == pytest.approx({3.0: 0.5, 11.0: 0.2, 21.0: 0.3}, abs=0.001)


def test_a_loop_repeats_with_new_times_up_to_its_bound():
    shape = graph("a b", "a b", "b a 0.5 2")
    total = path_times(shape, {"a": fixed(1.0), "b": fixed(1.0)}, 0.0, FINE_POINTS).total
    shares = {value: total.values.count(value) / FINE_POINTS for value in set(total.values)}
    assert shares == pytest.approx({2.0: 0.5, 4.0: 0.25, 6.0: 0.25}, abs=0.001)
    always = path_times(graph("a", "a a 1 3"), {"a": HopTime(exponential)}, 0.0, FINE_POINTS).total  # four in a row
    assert erlang_cdf(always.quantile(0.9), 4) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "k", "probabilities", "share_below_1"),
    [
        (GroupKind.FIRST_SUCCESS, 1, (), 1 - exp(-3)),
        (GroupKind.BEST_OF, 1, (), (1 - exp(-1)) ** 3),
        (GroupKind.QUORUM, 2, (), 3 * (1 - exp(-1)) ** 2 * exp(-1) + (1 - exp(-1)) ** 3),
        (GroupKind.PREDICTED, 1, (), 1 - exp(-1)),
        (GroupKind.PREDICTED, 1, (0.7, 0.2, 0.1), 1 - exp(-1)),
        (GroupKind.FIRST_SUCCESS, 1, (0.0, 0.0, 1.0), 1 - exp(-1)),
        (GroupKind.FIRST_SUCCESS, 1, (0.0, 0.0, 0.0), (1 - exp(-1)) ** 3),
    ],
)
def test_a_group_counts_as_one_way(kind: GroupKind, k: int, probabilities: tuple[float, ...], share_below_1: float):
    groups = (BranchGroup(name="b", kind=kind, alternatives=("b1", "b2", "b3"), k=k, probabilities=probabilities),)
    shape = graph("a b1 b2 b3", "a b1", "a b2", "a b3", groups=groups)
    times = same(shape, HopTime(exponential)) | {"a": fixed(0.0)}
    values = path_times(shape, times, 0.0, FINE_POINTS).total.values
    assert sum(value <= 1 for value in values) / FINE_POINTS == pytest.approx(share_below_1, abs=0.01)


MIXED = graph("a b c d e f", "a b", "a c", "b d", "c d", "d e 0.3", "d f 0.2", "d b 0.4 3")


@pytest.mark.parametrize("shape", [chain(6), graph("a b c", "a b", "b c", "c a 0.35 3"), MIXED])
def test_with_fixed_times_the_means_are_those_of_the_graph(shape: CallGraph):
    """Where nothing but the structure varies, `graph.remaining` is exact, choices and loops included."""
    seconds = {hop: 1.0 + 0.5 * place for place, hop in enumerate(shape.order)}
    path = path_times(shape, {hop: fixed(s) for hop, s in seconds.items()}, 0.0, FINE_POINTS)
    assert path.total.mean == pytest.approx(shape.expected_s(seconds.__getitem__), rel=0.003)
    for hop, after_s in shape.remaining(seconds.__getitem__).items():
        assert path.after(hop).mean == pytest.approx(after_s, rel=0.003, abs=0.003)


@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
def test_on_a_chain_the_means_are_those_of_the_graph(correlation: float):
    shape = graph("a b c d", "a b", "b c", "c d")
    times = {"a": HopTime(exponential), "b": HopTime(lognormal), "c": HopTime(normal, gap_s=3.0), "d": fixed(2.0)}
    own = {hop: fmean(t.gap_s + t.quantile((k + 0.5) / POINTS) for k in range(POINTS)) for hop, t in times.items()}
    path = path_times(shape, times, correlation)
    for hop, after_s in shape.remaining(own.__getitem__).items():
        assert path.after(hop).mean == pytest.approx(after_s)


# --- laws -------------------------------------------------------------------------------------------------------------------

SPREADS = st.lists(st.floats(0.01, 2.0), min_size=6, max_size=6)


def spread(medians: list[float], hop: int, slower: float = 1.0) -> HopTime:
    return HopTime(lambda q: slower * medians[hop] * exp(medians[hop] * STANDARD.inv_cdf(q)))


@given(SPREADS, st.integers(0, 5), st.floats(1.0, 3.0), st.sampled_from([0.0, 0.3, 1.0]))
def test_a_slower_hop_makes_no_quantile_smaller(medians: list[float], slow: int, factor: float, correlation: float):
    times = {hop: spread(medians, place) for place, hop in enumerate(MIXED.order)}
    slowed = times | {MIXED.order[slow]: spread(medians, slow, factor)}
    before, then = path_times(MIXED, times, correlation), path_times(MIXED, slowed, correlation)
    assert all(old <= new for old, new in zip(before.total.values, then.total.values, strict=True))
    for hop in MIXED.order:
        assert all(old <= new for old, new in zip(before.after(hop).values, then.after(hop).values, strict=True))


@given(SPREADS, st.sampled_from([0.0, 0.2, 0.9, 1.0]))
def test_a_path_lies_between_its_longest_hop_and_the_sum_and_shortens_as_it_goes(
    medians: list[float], correlation: float
):
    shape = graph("a b c d e f", "a b", "a c", "b d", "c d", "d e", "d f")
    times = {hop: spread(medians, place) for place, hop in enumerate(shape.order)}
    path = path_times(shape, times, correlation)
    tables = [[time.quantile((k + 0.5) / POINTS) for k in range(POINTS)] for time in times.values()]
    longest, shortest = path.total.quantile(1.0), path.total.quantile(0.0)
    assert max(max(table) for table in tables) <= longest <= sum(max(table) for table in tables) * (1 + 1e-9)
    assert sum(min(table) for table in tables[:1]) <= shortest
    assert path.total.mean <= sum(fmean(table) for table in tables) * (1 + 1e-9)
    for edge in shape.edges:
        ahead, behind = path.after(edge.source).values, path.since(edge.target).values
        assert all(left >= right for left, right in zip(ahead, behind, strict=True))
        assert all(left >= right for left, right in zip(behind, path.after(edge.target).values, strict=True))


def test_the_same_hops_give_the_same_answer_and_what_makes_no_sense_is_refused():
    times = same(MIXED, HopTime(lognormal))
    assert path_times(MIXED, times, 0.3).total.values == path_times(MIXED, times, 0.3).total.values
    with pytest.raises(GraphError, match="no time is known for b"):
        path_times(MIXED, {hop: time for hop, time in times.items() if hop != "b"})
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
        path_times(MIXED, times, 1.5)
    with pytest.raises(ValueError, match="100 points: choose 257 or 4099"):
        path_times(MIXED, times, 0.0, 100)
    with pytest.raises(GraphError, match="no hop 'z'"):
        path_times(MIXED, times).after("z")
    with pytest.raises(ValueError, match="not 99"):
        path_times(MIXED, times).total.quantile(99)


# --- the correlation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.2, 0.6])
def test_the_correlation_of_many_pipelines_is_found(rho: float):
    rng, seen = Random(3), Correlation()
    for _ in range(4_000):
        shared = rng.gauss(0, 1)
        seen.observe([sqrt(rho) * shared + sqrt(1 - rho) * rng.gauss(0, 1) for _ in range(rng.randint(1, 8))])
    assert seen.value == pytest.approx(rho, abs=0.03)


def test_little_evidence_counts_little():
    seen = Correlation()
    assert seen.value == 0.0
    seen.observe([2.0])
    assert (seen.pipelines, seen.value) == (0, 0.0)
    seen.observe([1.0, 1.0, 1.0])
    assert seen.value == pytest.approx(1 / 21)
    seen.observe([1.0, -1.0])
    assert seen.value == pytest.approx((3 - 2) / (3 + 2) * 2 / 22)


def test_a_score_is_the_log_ratio_in_standard_deviations():
    assert score(exp(2), 1.0, 0.5) == pytest.approx(4.0)
    assert score(0.0, 1.0, 0.5) == score(1.0, 0.0, 0.5) == score(1.0, 1.0, 0.0) == 0.0


def test_coordinates_hardly_hang_together():
    """Pairs of the first hops' normal scores, and across the change of the power."""
    for points, bound in ((POINTS, 0.2), (FINE_POINTS, 0.05)):
        names = [f"h{number:02}" for number in range(40)]
        alone = graph(" ".join(names))
        columns = []
        for name in names[::3]:
            times = dict.fromkeys(names, fixed(-1e9)) | {name: HopTime(STANDARD.inv_cdf)}
            columns.append(path_times(alone, times, 0.0, points)._own[name])
        for place, left in enumerate(columns):
            for right in columns[:place]:
                assert abs(fmean(x * y for x, y in zip(left, right, strict=True))) < bound
