"""Questions that no engine can answer, each with the status that OpenAI's API has for it."""

import dataclasses
from typing import Any

from amf.engines.engine import EngineRequest
from contract.under_test import CHAT, COMPLETIONS, EngineUnderTest, prompt, question, words

REFUSED: dict[str, tuple[str, Any, int]] = {
    "not JSON": (COMPLETIONS, b"{", 400),
    "no object": (COMPLETIONS, b'"text"', 400),
    "no prompt": (COMPLETIONS, {"prompt": None}, 400),
    "an empty prompt": (COMPLETIONS, {"prompt": []}, 400),
    "a prompt too long": (COMPLETIONS, {"prompt": prompt("too long", 20_000)}, 400),
    "a chat too long": (CHAT, {"messages": [{"role": "user", "content": words("too long", 20_000)}]}, 400),
    "an answer too long": (COMPLETIONS, {"prompt": [5] * 50, "max_tokens": 1_000_000, "stop": [" "]}, 400),
    "no tokens": (COMPLETIONS, {"prompt": [5] * 50, "max_tokens": 0}, 400),
    "a word for a number": (COMPLETIONS, {"prompt": [5] * 50, "max_tokens": "many"}, 400),
    "a temperature below zero": (COMPLETIONS, {"prompt": [5] * 50, "temperature": -1.0}, 400),
    "an empty stop": (COMPLETIONS, {"prompt": [5] * 50, "stop": [""]}, 400),
    "no answers": (COMPLETIONS, {"prompt": [5] * 50, "n": 0}, 400),
    "a negative token": (COMPLETIONS, {"prompt": [5, -1]}, 400),
    "no messages": (CHAT, {"messages": None}, 400),
    "a number for a text": (CHAT, {"messages": [{"role": "user", "content": 7}]}, 400),
    "an unknown model": (COMPLETIONS, {"prompt": [5] * 50, "model": "no-such-model"}, 404),
    "an unknown model to chat": (CHAT, {**question(CHAT, "whose"), "model": "no-such-model"}, 404),
}


def refused(under_test: EngineUnderTest, name: str) -> tuple[EngineRequest, int]:
    """A question of REFUSED and the status of its answer."""
    path, body, status = REFUSED[name]
    request = under_test.request(path, **({} if isinstance(body, bytes) else body))
    if isinstance(body, bytes):
        request = dataclasses.replace(request, body=body)
    return request, under_test.answers_otherwise.get(name, status)
