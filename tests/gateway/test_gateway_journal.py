"""A live journal replays to the same decisions."""

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from gateway_kit import FakeEngine, fake_engine, gateway_of

from amf.config import JournalConfig
from amf.core.config import FabricConfig
from amf.core.events import Woke
from amf.gateway.journal import JournalWriter
from amf.gateway.replay import replay


@pytest.mark.parametrize("policy", ["fabric", "session-affinity", "essay"])
async def test_a_live_journal_replays_to_identical_decisions(policy: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = JournalConfig(path=str(path), flush_interval_s=0.05)
    async with (
        fake_engine() as one,
        fake_engine(FakeEngine(fault="500")) as two,
        gateway_of(one, two, policy=policy, journal=journal) as (_, client),
    ):
        for turn in range(3):
            history = [word for i in range(turn) for word in (f"q{i}", f"a{i}")]
            calls = (client.chat(*history, f"q{turn}", f"run {i}", "go", stream=i % 2 == 0) for i in range(6))
            await asyncio.gather(*calls)
        await client.request("DELETE", "/amf/v1/workers/w1")
        await client.chat("last", headers={"x-amf-deadline-ms": "5000", "x-amf-run-id": "r"})
    result = replay(path)
    assert result.differences == ()
    assert result.events > 40 and result.decisions > 20


async def test_a_changed_decision_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    async with fake_engine() as one, gateway_of(one, journal=JournalConfig(path=str(path))) as (_, client):
        await client.chat("hi")
    lines = path.read_bytes().splitlines()
    changed = [line.replace(b'"w0"', b'"w9"') if b'"dispatch"' in line.lower() else line for line in lines]
    assert changed != lines
    path.write_bytes(b"\n".join(changed))
    assert replay(path).differences
    path.write_bytes(b'{"journal": 99}\n')
    with pytest.raises(ValueError):
        replay(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[server]\nport = 1\n", "line 1 is not JSON"),
        (b'{"journal":1,"policy":"fabric","config":{}}\n{"event":{"ty', "line 2 is not JSON"),
        (b'{"journal":1,"version":"9.0","policy":"fabric","config":{"x":1}}\n', "written by amf 9.0"),
        (b'{"journal":2}\n', "no journal of format 1"),
        (b"", "no journal of format 1"),
    ],
)
def test_what_is_no_whole_journal_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        replay(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("max_buffer_bytes", [100, 1_000_000])
async def test_the_end_is_on_disk_although_the_flush_was_cut_short(tmp_path: Path, max_buffer_bytes: int) -> None:
    """Even while all of the event loop's own threads are busy."""
    path, release = tmp_path / "journal.jsonl", threading.Event()
    threads = ThreadPoolExecutor(max_workers=1)
    asyncio.get_running_loop().set_default_executor(threads)
    threads.submit(release.wait)
    writer = JournalWriter(path, FabricConfig(), "fabric", flush_interval_s=0.0, max_buffer_bytes=max_buffer_bytes)
    flushing = asyncio.create_task(writer.lines.flush_forever())
    for number in range(200):
        writer.write(Woke(at_s=float(number)), [])
        await asyncio.sleep(0)
    flushing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await flushing
    writer.lines.close()
    release.set()
    _, *lines = map(msgspec.json.decode, path.read_bytes().splitlines())
    assert [line["event"].get("at_s", 0.0) for line in lines] == list(range(200)), "all of them, in order"


async def test_no_prompt_is_ever_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal.jsonl"
    journal = JournalConfig(path=str(path))
    async with fake_engine(FakeEngine(fault="500")) as one, gateway_of(one, journal=journal) as (_, client):
        with caplog.at_level("DEBUG", logger="amf"):
            await client.chat("a very secret prompt")
            await client.request("POST", "/v1/chat/completions", data=b'{"model":"tiny","messages":[very secret')
    assert b"secret" not in path.read_bytes()
    assert "secret" not in caplog.text
    assert msgspec.json.decode(path.read_bytes().splitlines()[0])["journal"] == 1
