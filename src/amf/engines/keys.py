"""The fabric's own names for prompt blocks: chained 64-bit hashes, the same wherever a prompt is met.

Intake names a prompt with them before any engine has seen it, the adapters name what an engine reports to hold, and the
two meet in the prefix registry. The formula: key = xxh3_64(block bytes, seed = key of the block before), tokens being
32-bit little-endian; the chain starts from `root_key`. Only full blocks have a key. Equal keys therefore mean an equal
prompt up to that block, in the same cache namespace (up to 64-bit collisions).
"""

import struct
import sys
from array import array
from collections.abc import Sequence

from numpy import ndarray
from xxhash import xxh3_64_intdigest

UINT32 = next(code for code in "IL" if array(code).itemsize == 4)


def root_key(cache_salt: str) -> int:
    """Where a chain starts: 0, or a hash of the salt that keeps one tenant's cache apart from all others."""
    return xxh3_64_intdigest(cache_salt.encode("utf-8", "surrogatepass")) if cache_salt else 0


def namespace(cache_salt: str, adapter: str) -> str:
    """The salt of what is computed with an adapter of the model: engines share its KV with nobody else's."""
    return f"{cache_salt}\0{adapter}" if adapter else cache_salt


def token_keys(token_ids: Sequence[int] | ndarray, block_tokens: int, parent: int = 0) -> tuple[int, ...]:
    """One key for each full block of `block_tokens` tokens, chained on from `parent`.

    Raises ValueError if an id is not an integer of 0..2^32-1, or `block_tokens` is below 1.
    """
    try:
        tokens = array(UINT32, token_ids.tolist() if isinstance(token_ids, ndarray) else token_ids)
    except (OverflowError, TypeError) as error:
        raise ValueError("token ids must be integers of 0..2^32-1") from error
    if sys.byteorder == "big":
        tokens.byteswap()
    return text_keys(tokens.tobytes(), 4 * block_tokens, parent)


def text_keys(data: bytes, block_bytes: int, parent: int = 0) -> tuple[int, ...]:
    """One key for each full block of `block_bytes` bytes, chained on from `parent`. Raises ValueError below 1 byte."""
    if block_bytes < 1:
        raise ValueError("a block holds at least one token or byte")
    full_bytes = len(data) - len(data) % block_bytes
    keys = []
    for (block,) in struct.iter_unpack(f"{block_bytes}s", memoryview(data)[:full_bytes]):
        parent = xxh3_64_intdigest(block, parent)
        keys.append(parent)
    return tuple(keys)
