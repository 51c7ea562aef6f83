"""The engine contract on real engines. Another engine is another class: what starts it, and what is expected of it.

And the emulator beside the vLLM that it stands for: the same question, the same kind of answer.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from amf.engines.engine import Capabilities, EngineInfo
from amf.engines.options import EngineLimits, EngineOptions
from contract.emulated import KV_TOKENS, emulated
from contract.engine_suite import EngineContract
from contract.refusals import REFUSED, refused
from contract.under_test import CHAT, COMPLETIONS, Answer, EngineUnderTest, bare, prompt
from real.install import SGLANG, VLLM
from real.llamacpp import LlamaCppSetup, llamacpp
from real.server import MODEL_NAME, Setup, vllm
from real.sglang import SglangSetup, sglang

LIMITS = EngineLimits(observe_interval_s=0.05, control_timeout_s=20.0)
SOME = {"prompt": prompt("alike", 100), "max_tokens": 3}
HELLO = {"content": "baceni dofugu gulopa"}
ALIKE: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": (COMPLETIONS, SOME),
    "a stream": (COMPLETIONS, SOME | {"stream": True}),
    "a stream with usage": (COMPLETIONS, SOME | {"stream": True, "stream_options": {"include_usage": True}}),
    "a stream of several": (COMPLETIONS, SOME | {"stream": True, "n": 2}),
    "many answers": (COMPLETIONS, SOME | {"n": 200}),
    "too many answers": (COMPLETIONS, SOME | {"n": 20_000}),
    "several prompts": (COMPLETIONS, SOME | {"prompt": [prompt("one", 100), prompt("other", 70)], "n": 2}),
    "several prompts, streamed": (COMPLETIONS, SOME | {"prompt": [[5] * 50, [6] * 70], "stream": True}),
    "several prompts, one empty": (COMPLETIONS, SOME | {"prompt": [[5] * 50, []]}),
    "up to the end": (COMPLETIONS, SOME | {"prompt": prompt("end", KV_TOKENS - 1)}),
    "beyond the end": (COMPLETIONS, SOME | {"prompt": prompt("end", 4_000), "max_tokens": 200}),
    "beyond the end, unsaid": (COMPLETIONS, SOME | {"prompt": prompt("end", 4_090), "max_tokens": None}),
    "as long as the context": (COMPLETIONS, SOME | {"prompt": prompt("end", KV_TOKENS)}),
    "too short at the end": (
        COMPLETIONS,
        SOME | {"prompt": prompt("end", 4_090), "min_tokens": 50, "max_tokens": None},
    ),
    "more at least than at most": (COMPLETIONS, SOME | {"min_tokens": 4}),
    "a minimum": (COMPLETIONS, SOME | {"min_tokens": 2}),
    "too hot": (COMPLETIONS, SOME | {"temperature": 3}),
    "hot in words": (COMPLETIONS, SOME | {"temperature": "very"}),
    "no choice": (COMPLETIONS, SOME | {"top_p": 0}),
    "too present": (COMPLETIONS, SOME | {"presence_penalty": 9}),
    "too frequent": (COMPLETIONS, SOME | {"frequency_penalty": -9}),
    "the same twice": (COMPLETIONS, SOME | {"n": 2, "temperature": 0}),
    "a seed too large": (COMPLETIONS, SOME | {"seed": 2**70}),
    "five stops": (COMPLETIONS, SOME | {"stop": ["q1", "q2", "q3", "q4", "q5"]}),
    "options for no stream": (COMPLETIONS, SOME | {"stream_options": {"include_usage": True}}),
    "a salt": (COMPLETIONS, SOME | {"cache_salt": "a-b"}),
    "an empty salt": (COMPLETIONS, SOME | {"cache_salt": ""}),
    "a salt like a path": (COMPLETIONS, SOME | {"cache_salt": "a/b"}),
    "a salt too long": (COMPLETIONS, SOME | {"cache_salt": "a" * 129}),
    "a priority": (COMPLETIONS, SOME | {"priority": 5}),
    "a priority in words": (COMPLETIONS, SOME | {"priority": "soon"}),
    "ids and words": (COMPLETIONS, SOME | {"prompt": [5, "b"]}),
    "an object": (COMPLETIONS, SOME | {"prompt": {}}),
    "what nobody knows": (COMPLETIONS, SOME | {"frobnicate": 1}),
    "a role of its own": (CHAT, {"messages": [{"role": "boss", **HELLO}]}),
    "an empty chat": (CHAT, {"messages": []}),
    "a tool, but which": (CHAT, {"messages": [{"role": "user", **HELLO}], "tool_choice": "required"}),
    "an unknown format": (CHAT, {"messages": [{"role": "user", **HELLO}], "response_format": {"type": "poem"}}),
    "no such route": ("/v1/nowhere", {}),
    "tokens": ("/tokenize", {"prompt": HELLO["content"]}),
    "tokens of nothing": ("/tokenize", {}),
}


class TestVllm(EngineContract):
    @pytest.fixture(scope="class")
    def under_test(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
        setup = Setup(kv_blocks=KV_TOKENS // 32 + 1, max_running=2, token_budget=512, scheduling="priority")
        with vllm(setup, tmp_path_factory.mktemp("vllm")) as server:
            yield EngineUnderTest(
                url=server.url,
                options=EngineOptions(limits=LIMITS, priority=True),
                expected=EngineInfo(
                    engine="vllm",
                    models=(MODEL_NAME,),
                    version=VLLM,
                    block_tokens=setup.block_tokens,
                    kv_tokens=setup.kv_tokens,
                    max_model_tokens=setup.context_tokens,
                    capabilities=Capabilities(
                        kv_events=True,
                        token_hashes=True,
                        attributed_events=True,
                        priority="lower-first",
                        token_prompts=True,
                        tokenize=True,
                    ),
                ),
                slots=setup.max_running,
                long_tokens=7_500,
                counts_by_tokens=setup.block_tokens,
                reset_path="/reset_prefix_cache",
            )

    @pytest.fixture(scope="class")
    def stand_in(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
        with emulated(tmp_path_factory.mktemp("emulator")) as emulator:
            yield emulator

    @pytest.mark.parametrize("name", [*REFUSED, *ALIKE])
    async def test_the_emulator_answers_alike(
        self, under_test: EngineUnderTest, stand_in: EngineUnderTest, name: str
    ) -> None:
        """Its words are its own; status, form, kind of error, number and ends of the answers, and usage are vLLM's."""
        kinds = []
        for engine in (under_test, stand_in):
            if name in REFUSED:
                request, _ = refused(engine, name)
            else:
                path, body = ALIKE[name]
                request = engine.request(path, **body)
            kinds.append(kind_of(await bare(engine, request), request.path))
        assert kinds[1] == kinds[0]


class TestLlamaCpp(EngineContract):
    @pytest.fixture(scope="class")
    def under_test(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
        setup = LlamaCppSetup(slots=2, context_tokens=8_192)
        with llamacpp(setup, tmp_path_factory.mktemp("llamacpp")) as server:
            yield EngineUnderTest(
                url=server.url,
                options=EngineOptions(limits=LIMITS),
                expected=EngineInfo(
                    engine="llamacpp",
                    models=(MODEL_NAME,),
                    kv_tokens=setup.context_tokens,
                    max_model_tokens=setup.context_tokens,
                    max_running=setup.slots,
                    capabilities=Capabilities(token_prompts=True),
                ),
                slots=setup.slots,
                long_tokens=7_000,
                counts_by_tokens=1,
                answers_otherwise={
                    "no tokens": 200,
                    "an answer too long": 200,
                    "a temperature below zero": 200,
                    "an empty stop": 200,
                    "an unknown model": 200,
                    "an unknown model to chat": 200,
                },
                usage_unasked=(COMPLETIONS,),
                frees_whole_answers=False,
                frees_the_waiting=False,
                counts_all_answers=False,
            )


class TestSglang(EngineContract):
    @pytest.fixture(scope="class")
    def under_test(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
        setup = SglangSetup(kv_tokens=8192, max_running=2)
        with sglang(setup, tmp_path_factory.mktemp("sglang")) as server:
            yield EngineUnderTest(
                url=server.url,
                options=EngineOptions(limits=LIMITS),
                expected=EngineInfo(
                    engine="sglang",
                    models=(MODEL_NAME,),
                    version=SGLANG,
                    block_tokens=setup.page_tokens,
                    kv_tokens=setup.kv_tokens,
                    max_model_tokens=setup.context_tokens,
                    max_running=setup.max_running,
                    capabilities=Capabilities(
                        kv_events=True,
                        token_hashes=True,
                        attributed_events=True,
                        priority="higher-first",
                        token_prompts=True,
                        tokenize=True,
                    ),
                ),
                slots=setup.max_running,
                long_tokens=6_000,
                counts_by_tokens=setup.page_tokens,
                reset_path="/flush_cache",
                tells_resets_at_once=True,
                answers_otherwise={
                    "an empty stop": 200,
                    "an unknown model": 200,
                    "an unknown model to chat": 200,
                    "an answer beyond the context": 400,
                },
                draws_by_seed=False,
                quotes_bodies=True,
                dies_of=frozenset({"a negative token"}),
                computes=frozenset({"no answers"}),
            )


def kind_of(answer: Answer, path: str) -> dict[str, Any]:
    """What can be compared of answers by two models."""
    kind: dict[str, Any] = {"status": answer.status, "form": sorted(answer.events[-1].keys() & {"error", "detail"})}
    if answer.status >= 400:
        error = answer.events[0].get("error", {})
        return kind | {"type": error.get("type"), "code": error.get("code")}
    told = [event.get("usage") is not None for event in answer.events]
    kind |= {"ends": answer.ends, "told in all": all(told), "told last": told[-1]}
    kind["done"] = answer.body.endswith(b"data: [DONE]\n\n")
    return kind | ({"usage": answer.usage} if path == COMPLETIONS else {})
