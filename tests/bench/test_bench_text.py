"""Laws of text and messages: text is shared exactly as far as block ids are, and messages agree that far."""

from itertools import combinations, takewhile

from hypothesis import given, settings
from hypothesis import strategies as st

from amf.bench.messages import Conversation
from amf.bench.text import BYTES_PER_TOKEN, prompt_text, tail_text
from amf.sim.plan import CallPlan, PipelinePlan, PromptPlan
from amf.sim.workload.blocks import SHARED_BLOCKS, block_namespace

IDS = st.integers(min_value=0, max_value=2**40)


def run_text(namespace: str, first: int, count: int, block_tokens: int) -> bytes:
    prompt = PromptPlan(namespace=namespace, block_tokens=block_tokens, runs=((first, count),))
    return prompt_text([(namespace, first, count)], prompt, "nobody")


def block_text(namespace: str, block: int, block_tokens: int) -> bytes:
    return run_text(namespace, block, 1, block_tokens)


@given(IDS, IDS, st.integers(8, 80))
def test_blocks_are_equal_exactly_when_their_ids_are(a: int, b: int, block_tokens: int) -> None:
    first, second = (block_text("n", each, block_tokens) for each in (a, b))
    assert len(first) == block_tokens * BYTES_PER_TOKEN
    assert (first[:32] == second[:32]) == (a == b)


@given(IDS, st.integers(1, 20), st.integers(1, 80))
def test_a_run_is_its_blocks_in_order(first: int, count: int, block_tokens: int) -> None:
    blocks = b"".join(block_text("n", first + index, block_tokens) for index in range(count))
    assert run_text("n", first, count, block_tokens) == blocks


def test_namespaces_and_tails_are_their_own() -> None:
    texts = [block_text("a", 5, 64), block_text("b", 5, 64), tail_text("p/0", 64), tail_text("p/1", 64)]
    assert len({text[:32] for text in texts}) == 4
    assert all(word.isalpha() and len(word) == 3 for text in texts for word in text.decode().split())


@st.composite
def pipelines(draw: st.DrawFn) -> PipelinePlan:
    """Histories that grow, are rewound and forked, over a shared or a private beginning, as sessions and lanes do."""
    block_tokens = draw(st.sampled_from((8, 16, 64)))
    shared = draw(st.integers(0, 5))
    chains: list[tuple[int, ...]] = []
    fresh = SHARED_BLOCKS
    for _ in range(draw(st.integers(1, 8))):
        base = draw(st.sampled_from([(), tuple(range(shared)), *chains]))
        kept = base[: draw(st.integers(0, len(base)))] if draw(st.booleans()) else base
        grown = draw(st.integers(0 if kept else 1, 12))
        chains.append((*kept, *range(fresh, fresh + grown)))
        fresh += grown + draw(st.integers(0, 1))
    calls = [
        CallPlan(
            index=index,
            hop="main",
            pool="m",
            prompt=PromptPlan(
                namespace="g/p",
                block_tokens=block_tokens,
                runs=tuple((block, 1) for block in chain),
                tail_tokens=draw(st.integers(0, block_tokens - 1)),
            ),
            output_tokens=draw(st.integers(1, 5 * block_tokens)),
        )
        for index, chain in enumerate(chains)
    ]
    return PipelinePlan(pipeline_id="p", graph="g", calls=tuple(calls))


def _ids(call: CallPlan) -> list[tuple[str, int]]:
    return [
        (block_namespace(call.prompt, block), block)
        for first, count in call.prompt.runs
        for block in range(first, first + count)
    ]


def _shared(a: list, b: list) -> int:  # type: ignore[type-arg]
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


@settings(max_examples=200, deadline=None)
@given(pipelines())
def test_two_prompts_share_text_exactly_as_far_as_their_blocks(pipeline: PipelinePlan) -> None:
    conversation = Conversation(pipeline)
    for a, b in combinations(pipeline.calls, 2):
        block_bytes = a.prompt.block_tokens * BYTES_PER_TOKEN
        texts = ["".join(message.content for message in conversation.messages(call)) for call in (a, b)]
        assert [len(text) for text in texts] == [call.prompt.total_tokens * BYTES_PER_TOKEN for call in (a, b)]
        assert texts[0].encode() == conversation.prompt(a)
        blocks = [[text[at : at + block_bytes] for at in range(0, len(text), block_bytes)] for text in texts]
        full = [pieces[: call.prompt.blocks] for pieces, call in zip(blocks, (a, b), strict=True)]
        assert _shared(*full) == _shared(_ids(a), _ids(b))


@settings(max_examples=200, deadline=None)
@given(pipelines())
def test_two_histories_agree_on_every_message_within_the_shared_blocks(pipeline: PipelinePlan) -> None:
    conversation = Conversation(pipeline)
    for a, b in combinations(pipeline.calls, 2):
        block_bytes = a.prompt.block_tokens * BYTES_PER_TOKEN
        shared_bytes = _shared(_ids(a), _ids(b)) * block_bytes
        ours, theirs = conversation.messages(a), conversation.messages(b)
        end = 0
        for index, message in enumerate(ours[:-1]):
            end += len(message.content)
            if end >= shared_bytes:
                break
            assert theirs[index] == message
            assert end % block_bytes in (0, block_bytes // 2)


@settings(max_examples=200, deadline=None)
@given(pipelines())
def test_roles_are_what_any_chat_template_accepts(pipeline: PipelinePlan) -> None:
    conversation = Conversation(pipeline)
    for call in pipeline.calls:
        roles = [message.role for message in conversation.messages(call)]
        assert roles == ["system", *(["user", "assistant"] * len(roles))][: len(roles)]
        assert roles[-1] == "user"
        assert all(message.content for message in conversation.messages(call))


def test_a_growing_history_extends_the_earlier_one_message_by_message() -> None:
    prompts = [
        PromptPlan(namespace="g/p", block_tokens=16, runs=((0, 4), (SHARED_BLOCKS, grown)), tail_tokens=0)
        for grown in (6, 12, 13)
    ]
    calls = tuple(
        CallPlan(index=index, hop="main", pool="m", prompt=prompt, output_tokens=20)
        for index, prompt in enumerate(prompts)
    )
    conversation = Conversation(PipelinePlan(pipeline_id="p", graph="g", calls=calls))
    lengths = [[len(message.content) // 64 for message in conversation.messages(call)] for call in calls]
    assert lengths == [[4, 6], [4, 6, 2, 4], [4, 6, 2, 4, 0, 0]]
    assert conversation.messages(calls[2])[:4] == conversation.messages(calls[1])
