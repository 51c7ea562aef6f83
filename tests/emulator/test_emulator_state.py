"""What the emulator says about itself, and that it lets go of what its clients gave up."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from emulator_kit import chat, numbers, post, served, until

from amf.core.presets import MODEL_CONFIGS
from amf.emulator.retrieval import embed

SLOW = {"time_scale": 1.0}
ENDLESS = {"max_tokens": 100_000, "ignore_eos": True}


async def test_metrics_agree_with_usage_to_the_token():
    async with served(max_running=4) as (_, client):
        bodies = [chat(f"{word} " * 40 * size, max_tokens=size) for word in ("one", "two") for size in range(1, 7)] * 2
        answers = await asyncio.gather(*(post(client, "/v1/chat/completions", body) for body in bodies))
        found = await numbers(client)
    usages = [answer["usage"] for answer in answers]
    prompt = sum(usage["prompt_tokens"] for usage in usages)
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    output = sum(usage["completion_tokens"] for usage in usages)
    assert cached > 0
    assert found["prompt_tokens_total"] == found["prefix_cache_queries_total"] == prompt
    assert found["prompt_tokens_cached_total"] == found["prefix_cache_hits_total"] == cached
    assert found["prompt_tokens_by_source_total{local_compute}"] == prompt - cached
    assert found["generation_tokens_total"] == output
    assert found["request_success_total{length}"] + found["request_success_total{stop}"] == len(bodies)
    assert found["time_to_first_token_seconds_count"] == found["e2e_request_latency_seconds_count"] == len(bodies)
    assert found["inter_token_latency_seconds_count"] == output - len(bodies)
    assert 0 < found["time_to_first_token_seconds_sum"] < found["e2e_request_latency_seconds_sum"]
    assert found["num_requests_running"] == found["num_requests_waiting"] == found["kv_cache_usage_perc"] == 0


async def test_gauges_show_what_runs_and_waits():
    async with served(max_running=1, **SLOW) as (_, client):
        body = {"prompt": "word" * 1000, "stream": True, **ENDLESS}
        async with client.post("/v1/completions", json=body) as first, client.post("/v1/completions", json=body):
            await first.content.readline()
            found = await numbers(client)
    assert (found["num_requests_running"], found["num_requests_waiting"]) == (1, 1)
    assert 0.005 <= found["kv_cache_usage_perc"] < 0.01


async def test_capacity_is_discoverable():
    async with served(kv_tokens=160_005, block_tokens=32) as (_, client):
        async with client.get("/metrics") as response:
            info = next(line for line in (await response.text()).splitlines() if line.startswith("vllm:cache_config"))
        async with client.get("/v1/models") as response:
            (model,) = (await response.json())["data"]
    for label in ('block_size="32"', 'num_gpu_blocks="5001"', 'kv_cache_size_tokens="160032"', 'engine="0"'):
        assert label in info
    assert model["id"] == "llama-3.1-8b"
    assert model["max_model_len"] == 160_000  # as far as the memory holds it


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_the_worker(stream: bool):
    async with served(**SLOW) as (emulator, client):
        request = asyncio.create_task(post(client, "/v1/completions", {"prompt": "a", "stream": stream, **ENDLESS}))
        await until(lambda: emulator.worker.stats.running == 1)
        request.cancel()
        await until(lambda: emulator.worker.stats.running == 0)
        emulator.worker.check_invariants()
        assert emulator.worker.stats.aborted == 1
        assert (await numbers(client))["request_success_total{abort}"] == 1


async def test_leaving_an_open_stream_frees_running_and_waiting_sequences():
    async with served(max_running=2, **SLOW) as (emulator, client):
        body = {"prompt": "a", "stream": True, "n": 4, **ENDLESS}
        async with client.post("/v1/completions", json=body) as response:
            await response.content.readline()
            assert (emulator.worker.stats.running, emulator.worker.stats.waiting) == (2, 2)
        await until(lambda: emulator.worker.stats.running + emulator.worker.stats.waiting == 0)
        assert emulator.worker.stats.aborted == 4


async def test_resetting_the_cache_makes_prompts_cold_but_not_under_a_running_request():
    async with served(**SLOW) as (_, client):
        body = {"prompt": "word" * 200, "max_tokens": 1}
        await post(client, "/v1/completions", body)
        assert await post(client, "/reset_prefix_cache", None) == {"success": True}
        again = await post(client, "/v1/completions", body)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        running = {"prompt": "a" * 99, "stream": True, "max_tokens": 100_000, "ignore_eos": True}
        async with client.post("/v1/completions", json=running) as response:
            await response.content.readline()
            assert await post(client, "/reset_prefix_cache", None) == {"success": False}


async def test_embeddings_in_every_form():
    async with served(embedding_dim=64) as (emulator, http):
        async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="none", max_retries=0) as client:
            texts = ["the cat sat", "a cat sat there", "stock prices fell"]
            answer = await client.embeddings.create(model="llama-3.1-8b", input=texts)  # as base64
            vectors = np.array([item.embedding for item in answer.data])
        ids = (await post(http, "/tokenize", {"prompt": texts[0]}))["tokens"]
        plain = await post(http, "/v1/embeddings", {"input": ids})
        sized = await post(http, "/v1/embeddings", {"input": texts[0], "dimensions": 7})
        assert (await numbers(http))["prompt_tokens_total"] == answer.usage.prompt_tokens + 2 * len(ids)
    assert vectors.shape == (3, 64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert plain["data"][0]["embedding"] == pytest.approx(vectors[0].tolist(), abs=1e-6)
    assert len(sized["data"][0]["embedding"]) == 7
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 3 + 4 + 5


def test_a_text_without_words_has_an_embedding_too():
    assert math.isclose(float(np.linalg.norm(embed("?!", 16))), 1)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_rerank(path: str):
    body: dict[str, Any] = {"query": "red fox", "documents": ["blue whale", {"text": "a red fox"}, "a fox"]}
    async with served(model="bge-reranker-v2-m3") as (_, client):
        answer = await post(client, path, body)
        short = await post(client, path, {**body, "top_n": 1, "return_documents": False})
    assert [result["index"] for result in answer["results"]] == [1, 2, 0]
    assert [result["relevance_score"] for result in answer["results"]] == [1.0, 0.5, 0.0]
    assert answer["results"][0]["document"] == {"text": "a red fox"}
    assert short["results"] == [{"index": 1, "relevance_score": 1.0}]
    assert answer["usage"]["prompt_tokens"] > 0


async def test_a_config_json_is_served_under_its_folders_name_or_another(tmp_path: Path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(MODEL_CONFIGS["llama-3.2-3b"])))
    for served_name, name in ((None, "my-model"), ("other", "other")):
        async with served(model=str(folder / "config.json"), served_name=served_name) as (_, client):
            answer = await post(client, "/v1/chat/completions", chat("hi", model=name, max_tokens=1))
        assert answer["model"] == name


async def test_time_scale_is_a_faster_engine():
    took = []
    for scale in (20.0, 200.0):
        async with served(time_scale=scale) as (_, client):
            await post(client, "/v1/completions", {"prompt": "a", "max_tokens": 200, "ignore_eos": True})
            took.append((await numbers(client))["e2e_request_latency_seconds_sum"])
    assert took[0] == pytest.approx(10 * took[1], rel=1e-6)


async def test_health_and_version():
    async with served() as (_, client):
        async with client.get("/health") as response:
            assert response.status == 200
        async with client.get("/version") as response:
            assert (await response.json())["version"].startswith("0.32.0")
        async with client.get("/kv_event_sources") as response:
            assert await response.json() == {}
