"""Block keys of planned prompts: two are the same just where the prompts are the same up to there."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from amf.sim.keys import PromptKeys
from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.workload.blocks import SHARED_BLOCKS, block_namespace

RUNS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 6), st.integers(SHARED_BLOCKS - 4, SHARED_BLOCKS + 6)),
        st.integers(0, 6),
    ),
    max_size=5,
)
PROMPTS = st.builds(
    PromptPlan,
    namespace=st.sampled_from(["graph/one", "graph/two"]),
    block_tokens=st.just(16),
    runs=RUNS.map(tuple),
    tail_tokens=st.integers(0, 15),
)


def calls(prompts: list[PromptPlan]) -> list[CallPlan]:
    return [
        CallPlan(index=index, hop="hop", pool="pool", prompt=prompt, output_tokens=40)
        for index, prompt in enumerate(prompts)
    ]


def pipeline(name: str, planned: list[CallPlan]) -> PipelinePlan:
    return PipelinePlan(pipeline_id=name, graph="graph", calls=tuple(planned))


def blocks(prompt: PromptPlan) -> list[tuple[str, int]]:
    ids = [block_id for first, count in prompt.runs for block_id in range(first, first + count)]
    return [(block_namespace(prompt, block_id), block_id) for block_id in ids]


def agreeing(one: object, other: object) -> int:
    count = 0
    for mine, theirs in zip(one, other, strict=False):  # type: ignore[call-overload]
        if mine != theirs:
            break
        count += 1
    return count


@given(st.lists(PROMPTS, min_size=1, max_size=6))
def test_keys_agree_exactly_as_far_as_blocks_do(prompts: list[PromptPlan]) -> None:
    """Whether or not a lane's earlier prompts are at hand, and from no depth on again."""
    planned = calls(prompts)
    along = PromptKeys(pipeline("p", planned))
    keys = [along.prefix(call).keys for call in planned]
    for call, known in zip(planned, keys, strict=True):
        assert PromptKeys(pipeline("q", planned)).prefix(call).keys == known
        assert len(set(known)) == len(known) == call.prompt.blocks
    for prompt, mine in zip(prompts, keys, strict=True):
        for other, theirs in zip(prompts, keys, strict=True):
            same = agreeing(blocks(prompt), blocks(other))
            assert agreeing(mine, theirs) == same
            assert set(mine[same:]).isdisjoint(theirs[same:])


def test_output_is_shared_with_nobody() -> None:
    prompt = PromptPlan(namespace="graph/one", block_tokens=16, runs=((SHARED_BLOCKS, 3),), tail_tokens=15)
    planned = calls([prompt, prompt])
    keys = PromptKeys(pipeline("p", planned))
    prefix = keys.prefix(planned[0])
    chains = [keys.chain(call, prefix) for call in planned]
    chains.append(PromptKeys(pipeline("q", planned)).chain(planned[0], prefix))
    assert [len(chain) for chain in chains] == [(3 * 16 + 15 + 40) // 16] * 3
    assert all(chain[:3] == prefix.keys for chain in chains)
    outputs = [key for chain in chains for key in chain[3:]]
    assert len(set(outputs)) == len(outputs) == 9
    short = replace(planned[0], output_tokens=0)
    assert keys.chain(short, prefix) == prefix.keys
