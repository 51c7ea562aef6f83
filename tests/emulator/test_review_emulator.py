"""What a user can get wrong about an emulated worker, and schemas that would eat its memory."""

import math
from pathlib import Path
from typing import Any

import pytest
from emulator_kit import chat, served

from amf.emulator import EmulatorConfig, Faults

NESTED: dict[str, Any] = {"type": "string"}
for _ in range(12):
    NESTED = {"type": "array", "minItems": 8, "items": NESTED}


@pytest.mark.parametrize(
    "changes",
    [
        {"time_scale": math.inf},
        {"time_scale": math.nan},
        {"flush_ms": math.nan},
        {"max_waiting": -1},
        {"kv_events_port": -1},
        {"kv_events_port": 65_535},
        {"embedding_dim": 10**9},
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes)).split("_")[0].replace("max", "max-num-queued-reqs")):
        EmulatorConfig(**changes)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("fault", ["evict_silently_tokens_per_s", "die_after_s", "stall_after_s", "slow", "garbage"])
def test_faults_that_cannot_be(fault: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"number|factor|probabilities"):
        Faults(**{fault: value})


def test_a_model_file_that_holds_no_object(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[1]")
    with pytest.raises(ValueError, match="JSON object"):
        _ = EmulatorConfig(model=str(path)).spec


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 10**10, "maxLength": 10**10},
        {"type": "array", "minItems": 10**9},
        NESTED,
    ],
    ids=["text", "list", "nested"],
)
async def test_a_schema_without_measure_is_refused(schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    async with served() as (_, client):
        async with client.post("/v1/chat/completions", json=chat("hi", response_format=wanted)) as response:
            assert response.status == 400
            assert "schema" in (await response.json())["error"]["message"]
        async with client.post("/v1/chat/completions", json=chat("hi", max_tokens=1)) as response:
            assert response.status == 200
