"""`amf doctor --prompts`: a file goes in, places and counts come out, and no text."""

import json
from pathlib import Path
from typing import Any

import pytest
from doctor_kit import amf, doctor

SECRET = "xyzzy-the-secret-of-the-house"
RULES = f"You are a careful engineer and never tell {SECRET}. " * 30


def written(folder: Path, *systems: str, **fields: Any) -> Path:
    path = folder / "requests.jsonl"
    bodies = [
        {
            "model": "m",
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": SECRET}],
            **fields,
        }
        for system in systems
    ]
    path.write_text("".join(json.dumps(body) + "\n\n" for body in bodies))
    return path


async def test_a_time_near_the_start_fails_and_says_where(tmp_path: Path) -> None:
    path = written(tmp_path, *(f"It is 2026-11-26 10:{minute}:00. {RULES}" for minute in range(10, 20)))
    result, findings = await doctor("--prompts", path, folder=tmp_path)
    found = findings["prompts", "shared prefix"]
    assert result.exit_code == 1 and found["level"] == "fail"
    assert (
        "breaks at byte 6 " in found["seen"]
        and "10 values" in found["seen"]
        and "90% of all prompt bytes" in found["seen"]
    )
    assert "behind what stays" in found["fix"]
    assert SECRET not in result.output and "2026" not in result.output
    assert SECRET not in (tmp_path / "findings.json").read_text()


async def test_what_costs_little_is_a_warning(tmp_path: Path) -> None:
    path = written(tmp_path, *(f"{RULES} Today is 2026-11-{25 + (number > 15)}." for number in range(20)))
    result, findings = await doctor("--prompts", path, folder=tmp_path)
    assert findings["prompts", "shared prefix"]["level"] == "warn" and result.exit_code == 0


@pytest.mark.parametrize(
    ("versions", "check", "level"), [((1, 1), "billing line", "warn"), ((1, 2), "shared prefix", "fail")]
)
async def test_claude_codes_first_line(tmp_path: Path, versions: tuple[int, ...], check: str, level: str) -> None:
    systems = [f"x-anthropic-billing-header: cc_version=2.1.{version};\n{RULES}" for version in versions]
    result, findings = await doctor("--prompts", written(tmp_path, *systems), folder=tmp_path)
    assert findings["prompts", check]["level"] == level
    assert "CLAUDE_CODE_ATTRIBUTION_HEADER=0" in findings["prompts", check]["fix"]
    assert result.exit_code == (level == "fail")


async def test_sound_prompts(tmp_path: Path) -> None:
    path = written(tmp_path, RULES, RULES, "Another application. " + RULES)
    result, findings = await doctor("--prompts", path, folder=tmp_path)
    assert findings["prompts", "shared prefix"]["level"] == "ok" and result.exit_code == 0
    assert "3 requests of 2 applications" in findings["prompts", "shared prefix"]["seen"]


@pytest.mark.parametrize("line", [f'{{"messages": "{SECRET}"}}', f"{SECRET}", f'["{SECRET}"]', '{"messages": ['])
async def test_a_line_that_is_no_request_is_misuse_and_not_quoted(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, RULES)
    path.write_text(path.read_text() + line + "\n")
    result = await amf("doctor", "--prompts", path)
    assert result.exit_code == 2 and "line 3" in result.output and SECRET not in result.output


async def test_an_empty_file(tmp_path: Path) -> None:
    result = await amf("doctor", "--prompts", written(tmp_path))
    assert result.exit_code == 2 and "is empty" in result.output
