"""Block ids become text with exactly the sharing they name.

A block is `block_tokens` words of four bytes each, three letters and a space, so a tokenizer of four bytes a token
(the emulator's) counts it exactly; common English words are also about one token each for the tokenizers of real
models.

Which words a block holds is a pure function of (namespace, block id): a counter-based generator (splitmix64, Steele,
Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) started at a 64-bit seed of the
namespace plus the id times an odd constant. Both steps are one-to-one on 64 bits, so two ids of one namespace always
differ within their first eight words, and ids of different namespaces do so but for a hash collision. A stream that is
counted, not iterated, is computed for a whole prompt at once with numpy: nothing is cached, and a 100 K-token prompt
takes about half a millisecond.
"""

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from amf.sim.plan import PromptPlan

BYTES_PER_TOKEN = 4
_WORDS = """
ace act add age ago aid aim air ale all and ant any ape arc are arm art ash ask ate awe axe bad bag ban bar bat bay
bed bee beg bet bid big bin bit bow box boy bud bug bun bus but buy cab can cap car cat cop cow cry cup cut dad day
den dew did die dig dim dip dog dot dry due dug ear eat egg ego elk elm end era eve eye fan far fat fax fed fee few
fig fin fir fit fix fly fog for fox fun fur gap gas gel gem get god got gum gun gut guy gym had ham has hat hay hen
her hid him hip his hit hot how hub hug hut ice icy ill ink inn ion its ivy jam jar jaw jet job jog joy key kid kin
kit lab lad lag lap law lay led leg let lid lie lip lit log lot low mad man map mat may men met mid mix mob mod mom
mud mug nap net new nil nod nor not now nut oak oar odd off oil old one orb ore our out owl own pad pan paw pay pea
pen pet pie pig pin pit pop pot pro pub put ram ran rat raw ray red rib rid rim rip rob rod row rub rug run sad sat
saw say sea see set she shy sir sit six ski sky son spy sum sun tax tea ten the tie tin tip toe
"""
_TABLE = np.frombuffer("".join(f"{word} " for word in _WORDS.split()).encode(), dtype=np.uint32)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ID_STEP = np.uint64(0xD1342543DE82EF95)


def tail_text(owner: str, tokens: int) -> bytes:
    """`tokens` words that only `owner` (one call of one pipeline) has."""
    return _render(_seeds(f"tail/{owner}", 0, 1), tokens)


def prompt_text(spans: Iterable[tuple[str, int, int]], prompt: PromptPlan, owner: str) -> bytes:
    """The whole prompt: `spans` are its runs as (namespace, first id, count), then `owner`'s tail."""
    seeds = [_seeds(*span) for span in spans]
    blocks = _render(np.concatenate(seeds), prompt.block_tokens) if seeds else b""
    return blocks + tail_text(owner, prompt.tail_tokens)


@lru_cache(maxsize=4096)
def _namespace_seed(namespace: str) -> int:
    return int.from_bytes(blake2b(namespace.encode(), digest_size=8).digest(), "little")


def _seeds(namespace: str, first_id: int, count: int) -> NDArray[np.uint64]:
    ids = np.arange(first_id, first_id + count, dtype=np.int64).astype(np.uint64)
    return ids * _ID_STEP + np.uint64(_namespace_seed(namespace))


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _render(seeds: NDArray[np.uint64], tokens: int) -> bytes:
    """Row i holds the first `tokens` words of the stream that starts at seeds[i]."""
    steps = np.arange((tokens + 7) // 8, dtype=np.uint64) * _GOLDEN
    stream = _mix(_mix(seeds)[:, None] + steps[None, :])
    picks = stream.view(np.uint8)[:, :tokens]
    return _TABLE[picks].tobytes()
