"""What the fabric learns outlives the gateway, and a file that cannot be used is named before anybody is served."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from gateway_kit import FakeEngine, config, fake_engine, gateway_of, until

from amf.config import ConfigError, JournalConfig, ProfilesConfig, config_from_dict
from amf.core.config import FabricConfig
from amf.core.state.prediction import Source
from amf.core.state.profiles import Profiles
from amf.gateway.learned import ProfileKeeper, load_profiles
from amf.gateway.replay import replay
from amf.gateway.service import running_gateway

PLACE = ("", "ask", "tiny")
CALLS = 9


async def ask(client, number: int) -> None:
    answer = await client.chat("a very secret prompt", headers={"x-amf-run-id": f"run-{number}", "x-amf-hop": "ask"})
    assert answer.status == 200


async def test_a_gateway_that_starts_again_still_knows(tmp_path: Path) -> None:
    path = tmp_path / "learned.jsonl"
    async with fake_engine() as engine:
        async with gateway_of(engine, profiles=ProfilesConfig(path=str(path))) as (gateway, client):
            assert gateway.fabric.book.profiles.predict("output_tokens", PLACE).source is Source.DEFAULT
            for number in range(CALLS):
                await ask(client, number)
        async with gateway_of(engine, profiles=ProfilesConfig(path=str(path))) as (gateway, client):
            known = gateway.fabric.book.profiles.predict("output_tokens", PLACE)
            assert (known.value, known.evidence, known.source) == (3.0, CALLS, Source.POSITION)
            await ask(client, CALLS)
        async with gateway_of(engine) as (gateway, _):
            assert gateway.fabric.book.profiles.predict("output_tokens", PLACE).source is Source.DEFAULT
    again = load_profiles(path, FabricConfig()).predict("output_tokens", PLACE)
    assert again.evidence == CALLS + 1
    assert b"secret" not in path.read_bytes() and b"run-" not in path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "nothing is left beside it"


async def test_it_is_saved_while_calls_go_on(tmp_path: Path) -> None:
    path = tmp_path / "learned.jsonl"
    kept = ProfilesConfig(path=str(path), save_interval_s=0.02)
    async with fake_engine() as engine, gateway_of(engine, profiles=kept) as (_, client):
        for number in range(CALLS):
            await ask(client, number)
        await until(lambda: load_profiles(path, FabricConfig()).predict("service_s", PLACE).evidence == CALLS)


async def test_a_journal_begins_with_what_was_known(tmp_path: Path) -> None:
    learned, journal = ProfilesConfig(path=str(tmp_path / "learned")), JournalConfig(path=str(tmp_path / "journal"))
    async with fake_engine(FakeEngine(prompt_tokens=40_000)) as engine:
        for _ in range(2):
            async with gateway_of(engine, policy="fabric", profiles=learned, journal=journal) as (_, client):
                for number in range(CALLS):
                    await ask(client, number)
    header, *events = (tmp_path / "journal").read_bytes().splitlines()
    assert replay(tmp_path / "journal").differences == ()
    forgetful = {key: value for key, value in msgspec.json.decode(header).items() if key != "profiles"}
    (tmp_path / "journal").write_bytes(b"\n".join([msgspec.json.encode(forgetful), *events]))
    assert replay(tmp_path / "journal").differences, "decisions do follow from what was known"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not begin as learned profiles"),
        (b"[server]\nport = 1\n", "JSON is malformed"),
        (b"\xff\xfe", "holds no learned profiles"),
        (b"[" * 100_000, "holds no learned profiles"),
        (b'{"amf_profiles":2,"records":0}\n', "of format 1"),
        (b'{"amf_profiles":1,"records":3}\n', "should have 3 records and has 0"),
        (b'{"amf_profiles":1,"records":1}\n{"pool":"m"}\n', "record 1 is damaged"),
    ],
)
async def test_a_damaged_or_foreign_file_is_named_with_a_remedy_and_left_alone(
    content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "learned.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        async with running_gateway(config(profiles=ProfilesConfig(path=str(path)))):
            pass
    assert str(path) in str(caught.value) and "Remove it to learn anew" in str(caught.value)
    assert path.read_bytes() == content


async def test_a_place_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        async with running_gateway(config(profiles=ProfilesConfig(path=str(tmp_path / "no" / "learned")))):
            pass


async def test_a_disk_that_fails_later_costs_the_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, profiles = tmp_path / "learned", Profiles(FabricConfig())
    keeper = ProfileKeeper(path, profiles, 0.01)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    saving = asyncio.create_task(keeper.save_forever())
    await until(lambda: caplog.text.count("cannot be saved") >= 2)
    profiles.observe_return("m", returned=True)
    saving.cancel()
    keeper.close()
    assert path.read_bytes() == before, "the old file is whole"


def test_the_table_is_checked() -> None:
    with pytest.raises(ConfigError, match="did you mean `path`"):
        config_from_dict({"profiles": {"paths": "x"}})
    with pytest.raises(ConfigError, match="save_interval_s is 0"):
        config_from_dict({"profiles": {"save_interval_s": 0}})
