"""A fast, reversible tokenizer for a model that does not exist: four UTF-8 bytes are one token.

Tokens travel as `bytes`, four to a token; a token's id is those four bytes as a little-endian unsigned integer. The last
token of a text is padded with 0xFF, and the chat template's marks start with 0xFE: neither byte occurs in UTF-8, so text,
padding and marks never collide and decoding loses nothing. A text's tokens depend on its own bytes only. Hence prompts
that agree on their first messages agree on their first tokens, and an answer sent back in the next turn's history has
the tokens with which it was generated.

A block's key is a chained hash, `xxh3_64(block bytes, seed=parent key)`; the first block's parent is 0, or the hash of
the request's cache salt. The chain is inherently sequential: about 0.1 µs a block in the tight loop below.
"""

from collections.abc import Sequence

import numpy as np
from xxhash import xxh3_64_intdigest

BYTES_PER_TOKEN = 4
PADDING = 0xFF
MARK = 0xFE
_MAX_ID = 0xFFFF_FFFF


def encode(text: str) -> bytes:
    """The tokens of one text."""
    raw = text.encode()
    return raw + bytes([PADDING]) * (-len(raw) % BYTES_PER_TOKEN)


def mark(kind: int) -> bytes:
    """The token of one of the chat template's marks (0 <= kind < 254)."""
    return bytes([MARK, kind, MARK, MARK])


def decode(tokens: bytes) -> str:
    """The text of the tokens. Marks are left out; ids that are no UTF-8 become U+FFFD."""
    if MARK in tokens:
        words = np.frombuffer(tokens, dtype=np.uint8).reshape(-1, BYTES_PER_TOKEN)
        tokens = words[words[:, 0] != MARK].tobytes()
    return tokens.translate(None, bytes([PADDING])).decode(errors="replace")


def count(tokens: bytes) -> int:
    return len(tokens) // BYTES_PER_TOKEN


def to_ids(tokens: bytes) -> list[int]:
    ids: list[int] = np.frombuffer(tokens, dtype="<u4").tolist()
    return ids


def from_ids(ids: Sequence[int]) -> bytes:
    """Raises ValueError if an id is outside 0..2^32-1."""
    if ids and not (min(ids) >= 0 and max(ids) <= _MAX_ID):
        raise ValueError(f"token ids must lie in 0..{_MAX_ID}")
    return np.array(ids, dtype="<u4").tobytes()


def salt_key(salt: str) -> int:
    """The key before the first block."""
    return xxh3_64_intdigest(salt.encode()) if salt else 0


def block_keys(tokens: bytes, block_tokens: int, salt: str = "", known: Sequence[int] = ()) -> list[int]:
    """Chained keys of every full block. `known` are the keys of the first blocks, where they are known already."""
    size = block_tokens * BYTES_PER_TOKEN
    keys = list(known)
    key = keys[-1] if keys else salt_key(salt)
    digest, append = xxh3_64_intdigest, keys.append
    for start in range(len(keys) * size, len(tokens) - size + 1, size):
        key = digest(tokens[start : start + size], key)
        append(key)
    return keys
