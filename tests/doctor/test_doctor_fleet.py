"""Workers side by side."""

from pathlib import Path

import pytest
from doctor_kit import doctor, emulated, fabric_toml, proxied, replacing


async def test_alike(tmp_path: Path) -> None:
    async with emulated() as one, emulated() as two:
        result, findings = await doctor("--worker", one.url, "--worker", two.url, folder=tmp_path)
    assert result.exit_code == 0
    assert findings["fleet", "pool llama-3.1-8b"]["level"] == "ok"


@pytest.mark.parametrize(
    ("path", "old", "new", "word"),
    [
        ("/version", b"0.32.0", b"0.28.0", "version differs: 0.32.0+amf.emulator (one), 0.28.0+amf.emulator (two)"),
        ("/v1/models", b'"max_model_len": 65536', b'"max_model_len": 9', "max_model_len differs: 65536 (one), 9 (two)"),
        (
            "/v1/models",
            b'"root": "llama-3.1-8b"',
            b'"root": "m/x-8b-fp8"',
            "weights differs: llama-3.1-8b (one), x-8b-fp8 (two)",
        ),
        ("/metrics", b'cache_dtype="fp8"', b'cache_dtype="fp8_e5m2"', "KV format differs: fp8 (one), fp8_e5m2 (two)"),
        ("/metrics", b'block_size="16"', b'block_size="64"', "block size differs: 16 (one), 64 (two)"),
    ],
)
async def test_what_differs_is_named_with_who_has_what(
    tmp_path: Path, path: str, old: bytes, new: bytes, word: str
) -> None:
    async with emulated() as one, emulated() as two, proxied(two.url, edit=replacing(path, old, new)) as url:
        config = fabric_toml(tmp_path, {"url": one.url, "name": "one"}, {"url": url, "name": "two"})
        result, findings = await doctor("-c", config, folder=tmp_path)
    found = findings["fleet", "pool llama-3.1-8b"]
    assert (found["level"], found["seen"]) == ("warn", word)
    assert found["fix"] and result.exit_code == 0


async def test_in_exact_mode_one_block_size_must_hold(tmp_path: Path) -> None:
    async with emulated() as one, emulated(block_tokens=32) as two:
        config = fabric_toml(tmp_path, {"url": one.url}, {"url": two.url}, tokenizer="engine")
        result, findings = await doctor("-c", config, folder=tmp_path)
    assert findings["fleet", "pool llama-3.1-8b"]["level"] == "fail" and result.exit_code == 1


async def test_workers_of_different_models_are_not_compared(tmp_path: Path) -> None:
    async with emulated() as one, emulated(model="qwen3-8b", block_tokens=32) as two:
        _, findings = await doctor("--worker", one.url, "--worker", two.url, folder=tmp_path)
    assert not [subject for subject, _ in findings if subject == "fleet"]


async def test_one_engine_under_two_names(tmp_path: Path) -> None:
    async with emulated() as emulator:
        again = emulator.url.replace("127.0.0.1", "localhost")
        result, findings = await doctor("--worker", emulator.url, "--worker", again + "/v1", folder=tmp_path)
    found = findings["fleet", "listed twice"]
    assert found["level"] == "fail" and result.exit_code == 1
    assert emulator.url in found["fix"] and again in found["fix"]
