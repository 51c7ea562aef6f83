"""A prompt as a chain of keys, without a tokenizer.

Two prompts share a prefix in the engine's cache when the rendered tokens agree; the gateway sees messages, not tokens, so
it hashes what the tokens come from. Each message is a small header (role, name, tool call id) and its content; its bytes
are cut in 1 KiB blocks, and each block's key is xxh3 of the block seeded with the key before. A message ends its last
block, so a conversation that grows keeps every earlier key. Tools come first, as chat templates render them.

Lengths in tokens are an estimate: bytes over the pool's bytes per token, which is learned from the engines' own usage
reports. Keys do not depend on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from xxhash import xxh3_64_intdigest

from amf.core.types import Prefix
from amf.engines.keys import root_key, text_keys, token_keys
from amf.gateway.body import Message, part_text

BLOCK_BYTES = 1024
_BILLING_HEADER = b"x-anthropic-billing-header:"  # Claude Code's first system line; changes with its version


@dataclass(frozen=True, slots=True)
class TextChain:
    """Keys and cumulative byte ends of a prompt. `boundaries[i]` is the key at the end of message i."""

    keys: tuple[int, ...] = ()
    ends_bytes: Sequence[int] = ()
    boundaries: tuple[int, ...] = ()
    total_bytes: int = 0

    def prefix(self, bytes_per_token: float) -> Prefix:
        """The same chain measured in tokens, `ends` made strictly increasing."""
        ends: list[int] = []
        last = 0
        for end in self.ends_bytes:
            last = max(last + 1, int(end / bytes_per_token))
            ends.append(last)
        total = max(last, 1, round(self.total_bytes / bytes_per_token))
        return Prefix(keys=self.keys, ends=tuple(ends), total_tokens=total)


def chain_messages(messages: list[Message], tools: bytes = b"", salt: str = "") -> TextChain:
    """The chain of a chat prompt. `salt` separates caches the engine keeps apart; `tools` is the definitions' JSON."""
    chain = _Chain(salt)
    if tools and tools != b"null":
        chain.add(tools)
    boundaries = []
    for index, message in enumerate(messages):
        chain.add(_message_bytes(message, first=index == 0))
        boundaries.append(chain.key)
    return TextChain(tuple(chain.keys), tuple(chain.ends_bytes), tuple(boundaries), chain.total_bytes)


def chain_text(text: str, salt: str = "") -> TextChain:
    """The chain of a plain text prompt. Only whole blocks get a key: the text may go on where it ends."""
    data = text.encode()
    keys = text_keys(data, BLOCK_BYTES, root_key(salt))
    return TextChain(keys, range(BLOCK_BYTES, len(data) + 1, BLOCK_BYTES), total_bytes=len(data))


def token_prefix(token_ids: Sequence[object], block_tokens: int, salt: str = "") -> Prefix:
    """The exact prefix of a tokenised prompt. Raises ValueError if an id is no token."""
    keys = token_keys(cast(Sequence[int], token_ids), block_tokens, root_key(salt))
    total = len(token_ids)
    return Prefix(keys=keys, ends=range(block_tokens, total + 1, block_tokens), total_tokens=total)


class _Chain:
    def __init__(self, salt: str) -> None:
        self.key = root_key(salt)
        self.keys: list[int] = []
        self.ends_bytes: list[int] = []
        self.total_bytes = 0

    def add(self, data: bytes) -> None:
        """Append `data` and end the block there."""
        view = memoryview(data)
        key, total = self.key, self.total_bytes
        for start in range(0, len(data), BLOCK_BYTES):
            block = view[start : start + BLOCK_BYTES]
            key = xxh3_64_intdigest(block, seed=key)
            total += len(block)
            self.keys.append(key)
            self.ends_bytes.append(total)
        self.key, self.total_bytes = key, total


def _message_bytes(message: Message, *, first: bool) -> bytes:
    header = f"{message.role}\x1f{message.name or ''}\x1f{message.tool_call_id or ''}\x1e".encode()
    content = message.content
    if content is None:
        text = b""
    elif isinstance(content, str):
        text = content.encode()
    else:
        text = b"\x1d".join(part_text(part) for part in content)
    if first and text.startswith(_BILLING_HEADER):
        text = text.partition(b"\x1d" if b"\x1d" in text else b"\n")[2]
    calls = bytes(message.tool_calls)
    return header + text + (b"\x1c" + calls if calls and calls != b"null" else b"")


class BytesPerToken:
    """The mean length of a token in one pool's prompts, learned from usage: the mean of the first ten, exponentially weighted
    after. Starts at 4 bytes; bounded to [1, 12]."""

    def __init__(self, start: float = 4.0, share: float = 0.1) -> None:
        self.value = start
        self._share = share
        self._count = 0

    def learn(self, prompt_bytes: int, prompt_tokens: int) -> None:
        if prompt_bytes <= 0 or prompt_tokens <= 0:
            return
        seen = min(12.0, max(1.0, prompt_bytes / prompt_tokens))
        self._count += 1
        self.value += max(1.0 / self._count, self._share) * (seen - self.value)
