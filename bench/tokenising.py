"""What an exact prompt costs when a conversation grows: tokenised whole at every turn, and in pieces (gateway/segments.py).

    .venv/bin/python bench/tokenising.py [--tokens 32000,262144] [--json out/bench/tokenising.json]

One conversation in ChatML grows by turns of about 2,000 tokens up to a length; the last five turns are timed, whole and in
pieces in turn, as the chat template leaves them. The tokenizer is a byte-level BPE trained on the spot from generated text.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from amf.gateway.segments import Segments

TURN_WORDS = 600
TIMED_TURNS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="32000,262144", help="lengths of the conversation, comma separated")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    rng = Random(7)
    words = ["".join(rng.choices("etaoinshrdlucmfw", k=rng.randint(2, 9))) for _ in range(3_000)]
    tokenizer = trained(words, rng)
    rows = [row(tokenizer, words, rng, int(tokens)) for tokens in arguments.tokens.split(",")]
    print(f"{'tokens':>8}{'whole ms':>10}{'pieces ms':>11}{'whole / pieces':>16}")
    for each in rows:
        print(f"{each['tokens']:>8}{each['whole_ms']:>10.1f}{each['pieces_ms']:>11.2f}{each['ratio']:>15.1f}x")
    if arguments.json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        report = {"date": datetime.now(UTC).date().isoformat(), "machine": machine, "seed": 7, "rows": rows}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def trained(words: list[str], rng: Random) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4_096, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((" ".join(rng.choices(words, k=50)) for _ in range(400)), trainer)
    special = ("<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in special])
    return tokenizer


def row(tokenizer: Tokenizer, words: list[str], rng: Random, tokens: int) -> dict[str, Any]:
    """Medians over the last turns of a conversation of about so many tokens."""
    pieces, text, whole_ms, pieces_ms = Segments(tokenizer), "", [], []
    lengths = [0]
    while lengths[-1] < tokens:
        text += f"<|im_start|>user\n{' '.join(rng.choices(words, k=TURN_WORDS))}<|im_end|>\n"
        ids, spent_ms = timed(lambda text=text: pieces.ids(text))
        pieces_ms.append(spent_ms)
        lengths.append(len(ids))
        if lengths[-1] >= tokens - TIMED_TURNS * (lengths[-1] - lengths[-2]):
            same, spent_ms = timed(lambda text=text: tokenizer.encode(text, add_special_tokens=False).ids)
            whole_ms.append(spent_ms)
            assert same == ids
    whole, in_pieces = median(whole_ms), median(pieces_ms[-len(whole_ms) :])
    return {"tokens": lengths[-1], "whole_ms": whole, "pieces_ms": in_pieces, "ratio": whole / in_pieces}


def timed(work: Callable[[], list[int]]) -> tuple[list[int], float]:
    started_s = time.perf_counter()
    ids = work()
    return ids, 1000 * (time.perf_counter() - started_s)


if __name__ == "__main__":
    raise SystemExit(main())
