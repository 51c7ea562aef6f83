"""The client of LMCache's controller, against a fake of the documented shapes."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from engine_fakes import answering, raw_server
from hypothesis import given
from hypothesis import strategies as st

from amf.core.types import Tier
from amf.engines.http import open_session
from amf.engines.lmcache import Controller, ControllerError, Held, Lookup
from fake_lmcache import DISK, FAULTS, HOST_MEMORY, fake_controller

TOKENS = list(range(1000, 2300))  # five whole chunks, and 20 tokens more
CALLS: dict[str, Callable[[Controller], Awaitable[Any]]] = {
    "lookup": lambda c: c.lookup(TOKENS),
    "pin": lambda c: c.pin("a", HOST_MEMORY, TOKENS),
    "move": lambda c: c.move(("a", HOST_MEMORY), ("b", HOST_MEMORY), TOKENS, copy=True),
    "clear": lambda c: c.clear("a", HOST_MEMORY),
    "health": lambda c: c.health("a"),
    "ranks": lambda c: c.ranks(),
}


def held(instance: str, tokens: int, location: str = HOST_MEMORY) -> Held:
    return Held(instance=instance, location=location, tokens=tokens)


async def test_a_lookup_says_who_surely_holds_how_much(session: aiohttp.ClientSession) -> None:
    async with fake_controller("a", "b", "c") as fake:
        controller = Controller(fake.url + "/", session, timeout_s=5)
        assert await controller.lookup(TOKENS) == Lookup(())
        assert (await controller.lookup(TOKENS)).longest_tokens == 0
        fake.hold("a", TOKENS[:600])
        fake.hold("b", TOKENS, DISK)
        fake.hold("c", TOKENS[:1024])
        found = await controller.lookup(TOKENS)
        assert found == Lookup((held("a", 512), held("b", 1280, DISK)))
        assert (found.longest_tokens, found.of("c")) == (1280, None)  # c has four chunks, credited to others
        assert [each.tier for each in found.held] == [Tier.DRAM, Tier.DISK]
    assert fake.asked[0] == ("/lookup", {"tokens": TOKENS})


async def test_pin_move_and_clear(session: aiohttp.ClientSession) -> None:
    async with fake_controller("a", "b") as fake:
        controller = Controller(fake.url, session, timeout_s=5)
        fake.hold("a", TOKENS)
        assert await controller.pin("a", HOST_MEMORY, TOKENS) == 1280
        assert await controller.pin("a", DISK, TOKENS) == 0
        assert await controller.move(("a", HOST_MEMORY), ("b", DISK), TOKENS[:600], copy=True) == 512
        assert (await controller.lookup(TOKENS)).held == (held("a", 1280),)
        assert await controller.move(("a", HOST_MEMORY), ("b", DISK), TOKENS, copy=False) == 1280
        assert (await controller.lookup(TOKENS)).held == (held("b", 1280, DISK),)
        assert await controller.clear("b", DISK) == 1280
        assert (await controller.lookup(TOKENS)).held == ()
    moved = next(body for path, body in fake.asked if path == "/move")
    assert moved["copy"] is moved["should_copy"] is True  # releases differ in its name
    assert (moved["old_position"], moved["new_position"]) == (["a", HOST_MEMORY], ["b", DISK])


async def test_who_is_registered_and_well(session: aiohttp.ClientSession) -> None:
    async with fake_controller("a", "b") as fake:
        controller = Controller(fake.url, session, timeout_s=5)
        assert [(rank.instance, rank.rank, rank.address) for rank in await controller.ranks()] == [
            ("a", 0, "127.0.0.1:8001"),
            ("b", 0, "127.0.0.1:8001"),
        ]
        assert [rank.heartbeat_s for rank in await controller.ranks("b")] == [1764139060.5]
        assert await controller.ranks("z") == ()
        assert await controller.health("a") == {0: 0, 1: 0}
        with pytest.raises(ControllerError, match="/health: status 500") as refused:
            await controller.health("z")
        assert "not registered" in refused.value.detail


async def test_health_as_older_releases_tell_it(session: aiohttp.ClientSession) -> None:
    body = b'{"event_id":"e","error_code":3}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with raw_server(answering(head + body)) as url:
        assert await Controller(url, session, timeout_s=5).health("a") == {0: 3}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
async def test_every_fault_is_one_kind_of_error(session: aiohttp.ClientSession, call: str, fault: str) -> None:
    async with fake_controller("a", "b") as fake:
        fake.fault = fault
        controller = Controller(fake.url, session, timeout_s=0.1 if fault == "slow" else 5)
        for _ in range(5 if fault == "wrong" else 1):
            with pytest.raises(ControllerError) as error:
                await CALLS[call](controller)
            assert len(str(error.value)) < 200 and not str(error.value).endswith(": ")
        fake.fault = ""
        await CALLS[call](controller)  # and the next question is answered


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no.such.host.invalid:9000"])
async def test_nobody_there(session: aiohttp.ClientSession, url: str) -> None:
    with pytest.raises(ControllerError, match=r"controller|resolve"):
        await Controller(url, session, timeout_s=5).lookup(TOKENS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
layouts = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.tuples(st.sampled_from([HOST_MEMORY, DISK]), st.integers(0, 2**70)) | json_values,
)
answers = st.fixed_dictionaries({"event_id": st.just("e"), "layout_info": layouts | json_values}) | json_values


@given(st.binary(max_size=64) | answers.map(lambda value: json.dumps(value).encode("utf-8", "replace")))
def test_any_answer_is_understood_or_refused(body: bytes) -> None:
    """Never more than was asked about, never less than nothing, and no other error."""

    async def ask() -> Lookup:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        async with raw_server(answering(head + body)) as url, open_session() as session:
            return await Controller(url, session, timeout_s=5).lookup(TOKENS)

    try:
        found = asyncio.run(ask())
    except ControllerError:
        return
    assert 0 <= found.longest_tokens <= len(TOKENS)
    assert all(0 <= each.tokens <= len(TOKENS) and found.of(each.instance) == each for each in found.held)
    assert {each.instance for each in found.held} == set(json.loads(body)["layout_info"])
