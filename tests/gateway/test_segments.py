"""Tokenising in pieces: the same ids as whole, and only what is new costs anything."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from amf.gateway.segments import Segments

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|im|>")
CORPUS = [
    "the quick brown fox jumps over the lazy dog, again and again\n",
    "def f(x):\n    return x + 1\n",
    "né à Zürich 東京",
]


def byte_level(**options: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False, **options) for each in SPECIAL])
    return tokenizer


def metaspace(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in SPECIAL])
    return tokenizer


BYTE_LEVEL = byte_level()
TEXTS = st.lists(
    st.sampled_from([*SPECIAL, " ", "\n", "  \n", *CORPUS, "<|im_", "|>", "x"]) | st.text(max_size=8), max_size=12
)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_in_pieces_and_whole_are_the_same(parts):
    text = "".join(parts)
    pieces = Segments(BYTE_LEVEL, checks=0)
    for _ in range(2):  # tokenised, then known
        assert pieces.ids(text) == BYTE_LEVEL.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "tokenizer", [metaspace("first"), metaspace("always"), byte_level(lstrip=True), byte_level(rstrip=True)]
)
def test_a_tokenizer_that_is_not_the_same_in_pieces_is_found_out(tokenizer):
    """Whatever it does, what is returned is what it says of the whole text."""
    pieces = Segments(tokenizer)
    for number in range(30):
        text = f"<|im_start|> user {number} \n <|im_end|> <|im_start|>  again <|im_end|>"
        assert pieces.ids(text) == tokenizer.encode(text, add_special_tokens=False).ids


def turns(count: int) -> str:
    return "".join(f"<|im_start|>user\n{number} {CORPUS[number % 3] * 10}<|im_end|>\n" for number in range(count))


def test_of_a_conversation_that_grows_only_what_is_new_is_tokenised():
    pieces = Segments(BYTE_LEVEL, checks=1)
    pieces.ids(turns(2))
    for count in range(3, 40):
        before = pieces.tokenised_chars
        assert pieces.ids(turns(count)) == BYTE_LEVEL.encode(turns(count), add_special_tokens=False).ids
        assert pieces.tokenised_chars - before < 1_000


def test_what_is_kept_is_bounded_and_the_least_recently_used_goes():
    pieces = Segments(BYTE_LEVEL, max_bytes=20_000, checks=0)
    system = "<|im_start|>system\n" + CORPUS[0] * 5 + "<|im_end|>"
    for number in range(200):
        pieces.ids(system + f"<|im_start|>user\n{number} {CORPUS[1] * 5}<|im_end|>")
        assert pieces._bytes <= 20_000
    assert pieces._bytes == sum(4 * len(ids) + 200 for ids in pieces._known.values())
    before = pieces.tokenised_chars
    pieces.ids(system)
    assert pieces.tokenised_chars == before, "it was used each time"


def test_without_special_tokens_a_text_is_one_piece():
    plain = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert Segments(plain).ids("a b a") == [0, 1, 0]
    assert Segments(plain).ids("") == []


def test_threads_may_share_it():
    pieces = Segments(BYTE_LEVEL, max_bytes=30_000)
    texts = [turns(count) for count in range(1, 25)] * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(pieces.ids, texts))
    assert found == [BYTE_LEVEL.encode(text, add_special_tokens=False).ids for text in texts]
