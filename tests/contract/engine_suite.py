"""What every engine promises through its adapter, whatever it is: the emulator, and each real engine.

The promises are judged by what the probe declares. A capability that is declared must be seen at work; one that is not must
be missed in the stated way (docs/engines.md says it to users):

- no KV events: nothing is observed but load, and cached tokens are told by the answers alone;
- no attribution: events name no session;
- no priority: the waiting are served in the order of their arrival, whatever their urgency;
- no /tokenize: the question finds no tokens, and is no harm;
- no embeddings: an error of the engine's own, passed through.

How an engine differs beyond its capabilities is said in its `EngineUnderTest`, and is seen here as well. A module of tests
derives a class from `EngineContract` and gives it a fixture `under_test` that starts the engine.
"""

import asyncio
import dataclasses
import json
import random
from collections.abc import AsyncIterator
from itertools import takewhile

import aiohttp
import pytest

from amf.engines.choose import connect
from amf.engines.engine import Engine, LoadReport
from amf.engines.http import open_session
from amf.engines.keys import root_key, token_keys
from contract.refusals import REFUSED, refused
from contract.under_test import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    SESSION_ID,
    EngineUnderTest,
    ask,
    bare,
    complete,
    occupied,
    prompt,
    question,
    within,
    words,
)
from engine_belief import Belief, believing

SOON_S = 5.0  # within it an engine has noticed what it should, if it does notice
PATIENCE_S = 30.0  # for what will come about sooner or later
TEMPLATE_TOKENS = 16  # with which a chat template begins every prompt, at most
PROBED = ("engine", "models", "block_tokens", "kv_tokens", "max_model_tokens", "max_running", "capabilities")
CERTAIN = {"max_tokens": 4, "temperature": 0.0, "seed": 7}


class EngineContract:
    @pytest.fixture
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        async with open_session() as session:
            yield session

    @pytest.fixture
    async def engine(self, under_test: EngineUnderTest, session: aiohttp.ClientSession) -> AsyncIterator[Engine]:
        engine = await connect(under_test.url, session, under_test.options)
        yield engine
        await engine.close()

    async def test_it_is_recognised_and_tells_what_it_was_started_with(
        self, under_test: EngineUnderTest, session: aiohttp.ClientSession
    ) -> None:
        engine = await connect(under_test.url, session, dataclasses.replace(under_test.options, kind="auto"))
        info, expected = await engine.probe(), under_test.expected
        assert {name: getattr(info, name) for name in PROBED} == {name: getattr(expected, name) for name in PROBED}
        assert (info.version or "").startswith(expected.version or "")
        assert await engine.healthy()
        await engine.close()
        assert not await engine.healthy()

    # --- answers ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
    async def test_a_prompt_is_cold_first_and_then_warm_and_every_form_of_answer_says_so(
        self, under_test: EngineUnderTest, engine: Engine, path: str
    ) -> None:
        body = question(path, f"warm {path}") | CERTAIN
        cold = (await complete(engine, under_test.request(path, **body))).usage
        whole = await complete(engine, under_test.request(path, **body))
        options = {"include_usage": True}
        stream = await complete(engine, under_test.request(path, stream=True, stream_options=options, **body))
        silent = await complete(engine, under_test.request(path, stream=True, **body))
        assert cold is not None
        assert cold["cached"] == 0 or (path == CHAT and cold["cached"] <= TEMPLATE_TOKENS)
        warm = under_test.warm_tokens(cold["prompt"], cold["prompt"])
        assert whole.usage == stream.usage == {"prompt": cold["prompt"], "output": 4, "cached": warm}
        assert silent.usage == (whole.usage if path in under_test.usage_unasked else None)
        for streamed in (stream, silent):
            assert streamed.body.endswith(b"data: [DONE]\n\n")
            assert streamed.ends == whole.ends == {0: "length"}
            assert streamed.text() == whole.text() != ""

    async def test_a_shared_beginning_is_warm_to_where_prompts_part(
        self, under_test: EngineUnderTest, engine: Engine
    ) -> None:
        first = prompt("shared", 400)
        await complete(engine, under_test.request(prompt=first))
        for shared_tokens in (300, 128):
            other = first[:shared_tokens] + prompt(f"parted at {shared_tokens}", 90)
            answer = await complete(engine, under_test.request(prompt=other))
            assert answer.cached_tokens == under_test.warm_tokens(shared_tokens, len(other))

    @pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
    async def test_the_adapter_changes_no_answer(self, under_test: EngineUnderTest, engine: Engine, path: str) -> None:
        body = question(path, f"bare {path}") | CERTAIN
        await complete(engine, under_test.request(path, **body))  # what is warm is computed alike
        for stream in (False, True):
            request = under_test.request(path, stream=stream, **body)
            ours, theirs = await ask(engine, request), await bare(under_test, request)
            assert (ours.status, ours.text(), ours.ends) == (theirs.status, theirs.text(), theirs.ends)
            assert ours.usage == theirs.usage

    async def test_as_many_tokens_and_answers_as_are_asked_for(
        self, under_test: EngineUnderTest, engine: Engine
    ) -> None:
        ours = prompt("lengths", 100)
        for tokens in (1, 7):
            answer = await complete(engine, under_test.request(prompt=ours, max_tokens=tokens))
            assert answer.ends == {0: "length"} and answer.usage is not None
            assert (answer.usage["prompt"], answer.usage["output"]) == (100, tokens)
        several = await complete(engine, under_test.request(prompt=ours, max_tokens=7, n=2))
        assert several.ends == {0: "length", 1: "length"} and several.usage is not None
        expected = 14 if under_test.counts_all_answers else 7
        assert (several.usage["prompt"], several.usage["output"]) == (100, expected)

    async def test_several_prompts_are_answered_one_by_one(self, under_test: EngineUnderTest, engine: Engine) -> None:
        prompts = [prompt("one of two", 100), prompt("two of two", 70)]
        alone = [await complete(engine, under_test.request(prompt=each, **CERTAIN)) for each in prompts]
        alone = [await complete(engine, under_test.request(prompt=each, **CERTAIN)) for each in prompts]
        both = await complete(engine, under_test.request(prompt=prompts, **CERTAIN))
        assert both.ends == {0: "length", 1: "length"}
        assert [both.text(0), both.text(1)] == [answer.text() for answer in alone]
        if under_test.counts_all_answers:
            assert both.usage is not None and (both.usage["prompt"], both.usage["output"]) == (170, 8)

    async def test_an_answer_is_cut_where_the_context_ends(self, under_test: EngineUnderTest, engine: Engine) -> None:
        context_tokens = under_test.expected.max_model_tokens
        assert context_tokens is not None
        ours = prompt("to the end", context_tokens - 20)
        answer = await ask(engine, under_test.request(prompt=ours, max_tokens=100))
        assert answer.status == under_test.answers_otherwise.get("an answer beyond the context", 200)
        if answer.status == 200:
            assert answer.ends == {0: "length"} and answer.usage is not None
            assert 19 <= answer.usage["output"] <= 20
        else:
            assert answer.complaint

    async def test_a_stop_ends_the_answer_before_it(self, under_test: EngineUnderTest, engine: Engine) -> None:
        body = {"prompt": prompt("stops", 100), "temperature": 0.0, "max_tokens": 60}
        await complete(engine, under_test.request(**body))
        text = (await complete(engine, under_test.request(**body))).text()
        pieces = [text[place : place + 3] for place in range(len(text) // 3, len(text) - 3)]
        stop = next(piece for piece in pieces if piece.isascii() and piece.isalpha())
        for stream in (False, True):
            stopped = await complete(engine, under_test.request(stop=stop, stream=stream, **body))
            assert stopped.text() == text[: text.index(stop)]
            assert stopped.ends == {0: "stop"}

    async def test_a_seed_draws_the_same_answer_again(self, under_test: EngineUnderTest, engine: Engine) -> None:
        if not under_test.draws_by_seed:
            pytest.skip("this engine draws without heeding seeds")
        body = {"prompt": prompt("seeds", 100), "temperature": 1.0, "max_tokens": 20}
        await complete(engine, under_test.request(**body))
        texts = [(await complete(engine, under_test.request(seed=seed, **body))).text() for seed in (1, 2, 1)]
        assert texts[0] == texts[2] != texts[1]

    @pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
    async def test_its_tokenizer_names_the_tokens_that_it_computes(
        self, under_test: EngineUnderTest, engine: Engine, session: aiohttp.ClientSession, path: str
    ) -> None:
        """Where it has none that speaks as vLLM's does, it finds no tokens in the question, and is no harm."""
        body = question(CHAT, "tokens") if path == CHAT else {"prompt": words("tokens", 100)}
        async with session.post(under_test.url + "/tokenize", json={"model": under_test.model, **body}) as response:
            told = json.loads(await response.read())
        if not under_test.expected.capabilities.tokenize:
            assert not told.get("tokens") and await engine.healthy()
            return
        tokens = told["tokens"]
        answer = await complete(engine, under_test.request(path, **body))
        assert answer.usage is not None and answer.usage["prompt"] == told["count"] == len(tokens)
        again = await complete(engine, under_test.request(COMPLETIONS, prompt=tokens))
        assert again.cached_tokens == under_test.warm_tokens(len(tokens), len(tokens)) > 0

    async def test_embeddings(self, under_test: EngineUnderTest, engine: Engine) -> None:
        answer = await ask(engine, under_test.request(EMBEDDINGS, input=[words("first", 30), words("second", 30)]))
        if under_test.embeds:
            told = json.loads(answer.body)
            first, second = (item["embedding"] for item in told["data"])
            assert answer.status == 200 and told["usage"]["prompt_tokens"] > 0
            assert len(first) == len(second) > 0 and first != second
        else:
            assert answer.status >= 400 and answer.complaint
            assert await engine.healthy()

    # --- what it refuses ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", REFUSED)
    async def test_what_it_cannot_serve_is_refused_in_its_own_words(
        self, under_test: EngineUnderTest, engine: Engine, name: str
    ) -> None:
        if name in under_test.dies_of:
            pytest.skip("this engine does not survive the question")
        request, status = refused(under_test, name)
        ours, theirs = await ask(engine, request), await bare(under_test, request)
        assert ours.status == theirs.status == status
        if status >= 400:
            assert ours.complaint == theirs.complaint != "" or under_test.quotes_bodies

    async def test_what_it_refuses_changes_nothing(self, under_test: EngineUnderTest, engine: Engine) -> None:
        known = under_test.request(prompt=prompt("known", 325))
        async with believing(engine) as seen:
            await complete(engine, known)
            warm = (await complete(engine, known)).cached_tokens
            await idle(seen)
            if under_test.expected.capabilities.kv_events:  # what was there before is told together with it
                keys = token_keys(prompt("known", 325), under_test.expected.block_tokens)
                await within(PATIENCE_S, lambda: all(seen.copies[key] for key in keys))
            before = +seen.copies
            harmful = under_test.dies_of | under_test.computes
            requests = [refused(under_test, name) for name in REFUSED if name not in harmful]
            answers = await asyncio.gather(*(ask(engine, request) for request, status in requests if status >= 400))
            assert all(answer.status >= 400 for answer in answers)
            await idle(seen)
            assert (await complete(engine, known)).cached_tokens == warm
            assert +seen.copies == before
            assert await engine.healthy()

    # --- load and order -----------------------------------------------------------------------------------------------

    async def test_more_calls_than_slots_are_counted_and_all_answered(
        self, under_test: EngineUnderTest, engine: Engine
    ) -> None:
        async with believing(engine) as seen:
            async with asyncio.TaskGroup() as group, occupied(engine, under_test, under_test.slots):
                bodies = [{"prompt": prompt(f"many {number}", 60), "stream": bool(number % 2)} for number in range(5)]
                requests = [under_test.request(max_tokens=12, **body) for body in bodies]
                calls = [group.create_task(complete(engine, request)) for request in requests]
                await within(PATIENCE_S, lambda: seen.loads[-1].waiting == 5)
                assert seen.loads[-1].running == under_test.slots
                assert 0 < seen.loads[-1].kv_used_ratio <= 1
            assert [call.result().ends for call in calls] == [{0: "length"}] * 5
            await idle(seen)

    @pytest.mark.parametrize("urgencies_s", [(0.0, 0.0, 0.0, 0.0), (9.0, 5.0, -9.0, 7.0), (-9.0, 7.0, 5.0, 9.0)])
    async def test_the_waiting_are_served_by_urgency_where_it_is_heard_and_else_as_they_came(
        self, under_test: EngineUnderTest, engine: Engine, urgencies_s: tuple[float, ...]
    ) -> None:
        served: list[int] = []

        async def send(number: int, urgency_s: float) -> None:
            body = {"prompt": prompt(f"order {number} of {urgencies_s}", 60), "max_tokens": 12}
            await complete(engine, under_test.request(urgency_s=urgency_s, **body))
            served.append(number)

        async with (
            believing(engine) as seen,
            occupied(engine, under_test, under_test.slots - 1),
            asyncio.TaskGroup() as group,
            occupied(engine, under_test, 1),
        ):
            for number, urgency_s in enumerate(urgencies_s):
                group.create_task(send(number, urgency_s))
                await within(PATIENCE_S, lambda waiting=number + 1: seen.loads[-1].waiting == waiting)
        arrived = list(range(len(urgencies_s)))
        heard = under_test.expected.capabilities.priority != "none"
        assert served == (sorted(arrived, key=lambda number: urgencies_s[number]) if heard else arrived)

    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_call_that_is_left_frees_what_it_held(
        self, under_test: EngineUnderTest, engine: Engine, stream: bool
    ) -> None:
        if not stream and not under_test.frees_whole_answers:
            pytest.skip("this engine lets a call that is not streamed run to its end")
        body = {"prompt": prompt(f"left {stream}", 100), "max_tokens": under_test.long_tokens, "stream": stream}
        async with believing(engine) as seen:
            call = asyncio.create_task(ask(engine, under_test.request(**body)))
            await within(PATIENCE_S, lambda: seen.loads[-1].running == 1 and seen.loads[-1].kv_used_ratio > 0)
            call.cancel()
            await idle(seen)
        assert call.cancelled()

    async def test_a_waiting_call_that_is_left_waits_no_more(self, under_test: EngineUnderTest, engine: Engine) -> None:
        async with believing(engine) as seen:
            async with occupied(engine, under_test, under_test.slots):
                request = under_test.request(prompt=prompt("left waiting", 60), max_tokens=500, stream=True)
                call = asyncio.create_task(ask(engine, request))
                await within(PATIENCE_S, lambda: seen.loads[-1].waiting == 1)
                call.cancel()
                if under_test.frees_the_waiting:
                    await within(SOON_S, lambda: seen.loads[-1].waiting == 0)
                    assert seen.loads[-1].running == under_test.slots
            await idle(seen)

    # --- the truth about its cache ------------------------------------------------------------------------------------

    async def test_events_name_blocks_by_our_keys_and_who_comes_late_hears_them_again(
        self, under_test: EngineUnderTest, engine: Engine, session: aiohttp.ClientSession
    ) -> None:
        size = block_tokens(under_test)
        first, second, third = (prompt(f"event {name}", 325) for name in ("first", "second", "third"))
        late = await connect(under_test.url, session, under_test.options)
        async with believing(engine) as seen:
            await complete(engine, under_test.request(prompt=first))
            await within(PATIENCE_S, lambda: all(seen.copies[key] == 1 for key in token_keys(first, size)))
            await complete(engine, under_test.request(prompt=second, cache_salt="tenant"))
            salted = token_keys(second, size, root_key("tenant"))
            await within(PATIENCE_S, lambda: all(seen.copies[key] == 1 for key in salted))
            assert not any(seen.copies[key] for key in token_keys(second, size))
            assert seen.index.orphans == seen.index.unknown == 0
            assert (SESSION_ID in seen.sessions) == under_test.expected.capabilities.attributed_events
            async with believing(late) as replayed:
                await complete(
                    late, under_test.request(prompt=third)
                )  # its batch has a number: what was before is asked for
                for belief in (seen, replayed):
                    await within(PATIENCE_S, lambda belief=belief: belief.copies[token_keys(third, size)[-1]] == 1)
                assert +replayed.copies == +seen.copies

    async def test_what_its_events_say_is_there_is_what_its_answers_find(
        self, under_test: EngineUnderTest, engine: Engine
    ) -> None:
        """Prompts of shared and own parts, together several times what the cache holds."""
        size, draw, asked_tokens = block_tokens(under_test), random.Random(3), 0
        stems = [prompt(f"stem {number}", draw.randrange(200, 600)) for number in range(4)]
        kv_tokens = under_test.expected.kv_tokens
        assert kv_tokens is not None
        async with believing(engine) as seen:
            while asked_tokens < 5 * kv_tokens:
                ours = draw.choice(stems) + prompt(f"leaf {asked_tokens}", draw.randrange(1, 400))
                asked_tokens += len(ours)
                keys = token_keys(ours, size)
                believed = len(list(takewhile(lambda key: seen.copies[key] > 0, keys)))
                found = (await complete(engine, under_test.request(prompt=ours))).cached_tokens
                assert found == under_test.warm_tokens(believed * size, len(ours))
                await within(PATIENCE_S, lambda keys=keys: all(seen.copies[key] > 0 for key in keys))
            assert seen.index.orphans == seen.index.unknown == 0
            assert kv_tokens // 2 < (+seen.copies).total() * size <= kv_tokens

    async def test_a_reset_of_its_cache_is_noticed(
        self, under_test: EngineUnderTest, engine: Engine, session: aiohttp.ClientSession
    ) -> None:
        """And what it generates is in its cache as well, but for the last token, which it never computed on."""
        if under_test.reset_path is None:
            pytest.skip("its cache cannot be reset")
        size, before, after = block_tokens(under_test), prompt("before", 325), prompt("after", 325)
        async with believing(engine) as seen:
            await complete(engine, under_test.request(prompt=before))
            await within(PATIENCE_S, lambda: all(seen.copies[key] for key in token_keys(before, size)))
            async with session.post(under_test.url + under_test.reset_path) as response:
                assert response.status == 200
            resets = len(seen.clears)
            if under_test.tells_resets_at_once:
                await within(SOON_S, lambda: len(seen.clears) > resets)
            else:
                await idle(seen)
                assert len(seen.clears) == resets and +seen.copies
            await complete(engine, under_test.request(prompt=after, max_tokens=100))
            stored = (len(after) + 99) // size
            await within(PATIENCE_S, lambda: len(seen.clears) > resets and (+seen.copies).total() == stored)
            assert seen.clears[-1] == "the engine reset its cache"
            assert all(seen.copies[key] == 1 for key in token_keys(after, size))
            assert (await complete(engine, under_test.request(prompt=before))).cached_tokens == 0

    async def test_without_events_nothing_is_observed_but_load(
        self, under_test: EngineUnderTest, engine: Engine
    ) -> None:
        if under_test.expected.capabilities.kv_events:
            pytest.skip("it tells its KV events")
        async with believing(engine) as seen:
            await complete(engine, under_test.request(prompt=prompt("unobserved", 325)))
            await idle(seen)
            assert not seen.copies and not seen.clears


def block_tokens(under_test: EngineUnderTest) -> int:
    if not under_test.expected.capabilities.kv_events:
        pytest.skip("it tells no KV events: warmth is predicted, and put right by its answers")
    assert under_test.expected.block_tokens is not None
    return under_test.expected.block_tokens


async def idle(seen: Belief) -> None:
    """Soon the engine says of itself that it does nothing and keeps nothing in use."""
    told = len(seen.loads) + 1  # one may be on its way
    nothing = LoadReport(running=0, waiting=0, kv_used_ratio=0.0)
    await within(SOON_S, lambda: len(seen.loads) > told and seen.loads[-1] == nothing)
