"""What was told of lower tiers, as news for the fabric: each block told once and taken back once."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from amf.core.state.observed import Observed
from amf.core.types import Prefix, Tier
from amf.gateway.offloaded import News, Offloaded

CHAIN = tuple(range(1, 9))
FORK = (1, 2, 3, 11, 12, 13)


def told(book: Offloaded, present: Sequence[int], absent: Sequence[int] = (), at_s: float = 0.0) -> News:
    return book.told(present, absent, Tier.DRAM, at_s)


def test_only_what_changed_is_news() -> None:
    book = Offloaded(max_blocks=100, believe_s=60)
    assert told(book, CHAIN[:4]) == News(stored={Tier.DRAM: [4, 3, 2, 1]})
    assert told(book, CHAIN[:4]) == News()
    assert told(book, CHAIN[:5], CHAIN[6:]) == News(stored={Tier.DRAM: [5]})
    assert told(book, CHAIN[:2], CHAIN[2:]) == News(evicted={Tier.DRAM: [3, 4, 5]})
    assert told(book, (), CHAIN[3:]) == News() and len(book) == 2


def test_a_block_that_went_to_another_tier_is_taken_back_from_the_first() -> None:
    book = Offloaded(max_blocks=100, believe_s=60)
    told(book, CHAIN[:2])
    news = book.told(CHAIN[:3], (), Tier.DISK, 1.0)
    assert news == News(stored={Tier.DISK: [3, 2, 1]}, evicted={Tier.DRAM: [2, 1]})


def test_what_was_not_confirmed_for_long_is_believed_no_more() -> None:
    book = Offloaded(max_blocks=100, believe_s=60)
    told(book, CHAIN, at_s=0)
    told(book, FORK[:3], at_s=50)
    assert told(book, (), at_s=60) == News()
    assert told(book, (), at_s=61) == News(evicted={Tier.DRAM: [8, 7, 6, 5, 4]})
    assert book.forget() == News(evicted={Tier.DRAM: [3, 2, 1]}) and len(book) == 0


def test_the_bound_takes_the_longest_untold_and_their_ends_first() -> None:
    book = Offloaded(max_blocks=8, believe_s=60)
    told(book, CHAIN, at_s=0)
    news = told(book, FORK, at_s=1)
    assert news == News(stored={Tier.DRAM: [13, 12, 11]}, evicted={Tier.DRAM: [8, 7, 6]}) and len(book) == 8


prompts = st.sampled_from((CHAIN, FORK, (21, 22)))
answers = st.tuples(prompts, st.integers(0, 8), st.integers(0, 8), st.sampled_from(Tier), st.integers(0, 30))


@given(st.lists(answers, max_size=30), st.integers(1, 12))
def test_the_fabric_believes_what_the_book_holds_and_nothing_once(row: list, max_blocks: int) -> None:
    """Fed with the news, the registry never counts a block twice, what was just told is believed as far as the bound allows,
    what was just denied is not, and all of it can be taken back."""
    book, registry, now_s = Offloaded(max_blocks=max_blocks, believe_s=60), Observed(), 0.0
    registry.add_worker("w")

    def apply(news: News) -> None:
        for tier, keys in news.stored.items():
            registry.stored("w", tuple(keys), tier)
        for tier, keys in news.evicted.items():
            registry.evicted("w", tuple(keys), tier)

    for keys, one, other, tier, pause_s in row:
        now_s += pause_s
        held, end = sorted((min(one, len(keys)), min(other, len(keys))))
        apply(book.told(keys[:held], keys[end:], tier, now_s))
        assert registry.blocks("w") == len(book) <= max_blocks
        prompt = Prefix(keys=keys, ends=range(16, 16 * len(keys) + 1, 16), total_tokens=16 * len(keys) + 1)
        believed_tokens, hbm_tokens = registry.hit("w", prompt)
        assert 16 * min(held, max_blocks) <= believed_tokens <= 16 * end
        assert tier is not Tier.HBM or hbm_tokens >= 16 * min(held, max_blocks)
    apply(book.forget())
    assert registry.blocks("w") == 0 and len(book) == 0
