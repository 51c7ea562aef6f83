"""Tokenising a conversation that grows, without tokenising again what it was before.

A tokenizer takes its special tokens out of the text first and works on what lies between them apart. So a text may be cut
before any special token, its pieces tokenised one by one, and the ids put together; and since chat templates put special
tokens around every message, all pieces of an earlier turn are known. They are kept by their hash, least recently used ones
going beyond `max_bytes` of ids.

Not every tokenizer is that regular: some strip blanks before a special token, some treat a text's beginning apart. So the
claim is checked and not assumed: the first `checks` texts that have more than one piece are also tokenised whole, and on a
difference cutting ends for good. A text without special tokens is one piece.
"""

import logging
import re
from array import array
from collections import OrderedDict
from threading import Lock
from typing import Any, Protocol

from xxhash import xxh3_128_digest

from amf.engines.keys import UINT32

log = logging.getLogger("amf.exact")


class Tokenizer(Protocol):
    """What is used of `tokenizers.Tokenizer`."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Any: ...

    def get_added_tokens_decoder(self) -> dict[int, Any]: ...


class Segments:
    """Ids of texts. May be called from several threads."""

    def __init__(self, tokenizer: Tokenizer, max_bytes: int = 64 * 1024 * 1024, checks: int = 8) -> None:
        self._tokenizer = tokenizer
        self._max_bytes = max_bytes
        self._checks = checks
        self._known: OrderedDict[bytes, array[int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()
        self._cut = _before_special(tokenizer)
        self.tokenised_chars = 0  # of pieces that were not known

    def ids(self, text: str) -> list[int]:
        """The text's ids, special tokens in it recognised and none added."""
        starts = [match.start() for match in self._cut.finditer(text)] if self._cut is not None else []
        pieces = [text[begin:end] for begin, end in zip([0, *starts], [*starts, len(text)], strict=True) if begin < end]
        if len(pieces) < 2:
            return self._whole(text)
        found: list[int] = []
        for piece in pieces:
            found += self._piece(piece).tolist()
        if self._checks > 0:
            whole = self._whole(text)
            self._checks -= 1
            if whole != found:
                self._cut = None
                log.warning("this tokenizer is not the same in pieces: every prompt is tokenised whole")
                return whole
        return found

    def _piece(self, piece: str) -> "array[int]":
        key = xxh3_128_digest(piece.encode("utf-8", "surrogatepass"))
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        made = array(UINT32, self._whole(piece))
        with self._lock:
            if key not in self._known:
                self._known[key] = made
                self._bytes += _bytes_of(made)
            while self._bytes > self._max_bytes:
                self._bytes -= _bytes_of(self._known.popitem(last=False)[1])
        return made

    def _whole(self, text: str) -> list[int]:
        self.tokenised_chars += len(text)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _before_special(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Where a text may be cut; None if nowhere."""
    tokens = [
        token.content
        for token in tokenizer.get_added_tokens_decoder().values()
        if token.special and not (token.normalized or token.lstrip or token.single_word)
    ]
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _bytes_of(ids: "array[int]") -> int:
    """With what an entry takes beside its ids, about."""
    return len(ids) * ids.itemsize + 200
