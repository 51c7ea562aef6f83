"""`amf serve` is told to stop while it streams: what runs may finish, nothing new comes in, nothing is left behind."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from e2e_kit import MODEL, Process, is_idle, listens, processes, until
from openai import AsyncOpenAI

HELLO = [{"role": "user", "content": "Tell me a long story."}]
EMULATE = ("emulate", "--port", "0", "--model", MODEL)  # at the speed of life: a stream lasts


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    with processes(EMULATE) as (emulator,):
        yield emulator.url


def serving(engine: str, *more: str) -> list[str]:
    return ["serve", "--port", "0", "--worker", engine, *more]


class Reader:
    """A client that reads one stream to its end."""

    def __init__(self, url: str) -> None:
        self.client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        self.text = ""
        self.finish_reason = ""
        self.error: openai.APIError | None = None

    async def read(self, max_tokens: int) -> None:
        async with self.client as client:
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=HELLO,
                max_tokens=max_tokens,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            try:
                async for chunk in stream:
                    self.text += chunk.choices[0].delta.content or ""
                    self.finish_reason = chunk.choices[0].finish_reason or self.finish_reason
            except openai.APIError as error:
                self.error = error


async def ended(process: Process, limit_s: float) -> int:
    async with asyncio.timeout(limit_s):
        return await asyncio.to_thread(process.popen.wait)


async def test_streams_finish_within_the_grace(engine: str) -> None:
    with processes(serving(engine)) as (serve,):
        readers = [Reader(serve.url) for _ in range(3)]
        tasks = [asyncio.create_task(each.read(400)) for each in readers]
        await until(lambda: all(each.text for each in readers))
        serve.popen.send_signal(signal.SIGTERM)
        await until(lambda: not listens(serve.port), limit_s=5)
        assert serve.popen.poll() is None and not any(task.done() for task in tasks), "the streams still run"
        await asyncio.gather(*tasks)
        assert await ended(serve, 10) == 0
        assert serve.is_group_gone()
    for each in readers:
        assert each.error is None and each.finish_reason == "length" and len(each.text) == 400 * 4


async def test_what_does_not_finish_is_cut_when_the_grace_is_over(engine: str, tmp_path: Path) -> None:
    config = tmp_path / "fabric.toml"
    config.write_text("[server]\nshutdown_grace_s = 0.3\n")
    with processes(serving(engine, "-c", str(config))) as (serve,):
        reader = Reader(serve.url)
        task = asyncio.create_task(reader.read(100_000))
        await until(lambda: bool(reader.text))
        serve.popen.send_signal(signal.SIGTERM)
        assert await ended(serve, 10) == 0
        assert serve.is_group_gone()
        async with asyncio.timeout(5):
            await task
    assert reader.finish_reason == "" and reader.error is not None, "a cut stream is not taken for a whole one"
    await until(lambda: is_idle(engine))  # the engine does not work for nobody


async def test_a_second_signal_ends_it_at_once(engine: str) -> None:
    with processes(serving(engine)) as (serve,):
        reader = Reader(serve.url)
        task = asyncio.create_task(reader.read(100_000))
        await until(lambda: bool(reader.text))
        serve.popen.send_signal(signal.SIGTERM)
        await until(lambda: not listens(serve.port), limit_s=5)
        serve.popen.send_signal(signal.SIGTERM)
        assert await ended(serve, 5) == -signal.SIGTERM
        assert serve.is_group_gone()
        async with asyncio.timeout(5):
            await task
    await until(lambda: is_idle(engine))


def test_idle_processes_stop_at_once() -> None:
    with processes(EMULATE) as (emulate,), processes(serving(emulate.url)) as (serve,):
        for each in (serve, emulate):
            each.popen.send_signal(signal.SIGINT)
            assert each.popen.wait(timeout=5) == 0
            assert each.is_group_gone() and not listens(each.port)
