"""The documentation says what is so: keys and defaults, routes, codes, names of code and tests, links, commands, and the
worked example, which is run. Where a page and the code differ, one of them is wrong; mend that one."""

import ast
import dataclasses
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from amf import config
from amf.cli import app
from amf.core.config import FabricConfig
from amf.core.graph import graph_from_dict
from amf.core.policy.bundles import BUNDLES
from amf.core.presets import GPUS, MODEL_CONFIGS
from amf.gateway.app import _CALL_ROUTES
from amf.gateway.identity import _EXPLICIT_HEADERS, _HARNESS
from amf.gateway.problem import _REFUSALS
from amf.gateway.slo import SERVICE_TIERS, SLO_HEADERS
from amf.sim import scenario
from amf.sim.report import ReportContext, RunRecords, summarise
from amf.sim.workload import GRAPHS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "amf"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
REQUIRED = dataclasses.MISSING


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- keys and defaults ----------------------------------------------------------------------------------------------------


def documented(text: str, heading: str) -> dict[str, Any]:
    """Key -> default of every table row under `heading`, to the next of its level; "-" is None."""
    _, _, rest = text.partition(f"\n{heading}\n")
    assert rest, f"there is no section {heading}"
    end = re.search(rf"^#{{2,{len(heading.split()[0])}}} ", rest, re.MULTILINE)
    section = rest[: end.start()] if end else rest
    rows: dict[str, Any] = {}
    for key, default in re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE):
        assert key not in rows, f"{heading} documents `{key}` twice"
        rows[key] = None if default == "-" else tomllib.loads(f"x = {default.strip('`')}")["x"]
    return rows


def declared(kind: type, *required: str) -> dict[str, Any]:
    """Field -> default of a dataclass; tuples as lists, as TOML has them. `required` fields have none."""
    defaults = {}
    for field in dataclasses.fields(kind):
        assert (field.default is REQUIRED) == (field.name in required), field.name
        value = None if field.default is REQUIRED else field.default
        defaults[field.name] = list(value) if isinstance(value, tuple) else value
    return defaults


@pytest.mark.parametrize(
    ("name", "heading", "expected"),
    [
        ("configuration.md", "## `[server]`", declared(config.ServerConfig)),
        (
            "configuration.md",
            "## `[fabric]`",
            {"policy": config.ServeConfig().policy, **declared(FabricConfig, "tenant_weights")},
        ),
        ("configuration.md", "## `[[worker]]`", declared(config.WorkerConfig, "url")),
        ("configuration.md", '## `[pools."MODEL"]`', declared(config.PoolConfig, "tokenizer")),
        ("configuration.md", "## `[journal]`", declared(config.JournalConfig)),
        ("configuration.md", "## `[record]`", declared(config.RecordConfig)),
        ("configuration.md", "## `[residency]`", declared(config.ResidencyOptions)),
        ("configuration.md", "## `[limits]`", declared(config.LimitsConfig)),
        (
            "configuration.md",
            "## `[slo]`",
            declared(config.SloConfig, "graphs", "keys") | declared(config.SloTarget),
        ),
        ("scenarios.md", "### `[workload]`", declared(scenario.WorkloadSpec, "kind")),
        ("scenarios.md", "### `[[workload.mix]]`", declared(scenario.PartSpec, "kind")),
        ("scenarios.md", "### `[[pool]]`", declared(scenario.PoolSpec, "model")),
        ("scenarios.md", "### `[faults]`", declared(scenario.FaultSpec)),
        ("scenarios.md", "### `[run]`", declared(scenario.RunSpec)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_key_is_documented_with_its_default_and_no_other(name: str, heading: str, expected: dict[str, Any]):
    assert documented(page(f"docs/{name}"), heading) == expected


def test_every_table_of_the_configuration_has_a_section():
    headings = re.findall(r"^## `\[+(\w+)", page("docs/configuration.md"), re.MULTILINE)
    assert sorted(headings) == sorted(config._TABLES)


def test_toml_and_yaml_examples_are_accepted():
    for path in PAGES:
        for language, block in FENCE.findall(path.read_text(encoding="utf-8")):
            if language == "toml":
                document = tomllib.loads(block)
                if "workload" in document:
                    scenario.scenario_from_dict(document, path)
                else:
                    config.config_from_dict(document, str(path))
            elif language == "yaml":
                graph_from_dict(yaml.safe_load(block))


# --- the wire -------------------------------------------------------------------------------------------------------------


def test_every_error_code_is_documented_with_its_status():
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", page("docs/wire.md"), re.MULTILINE)
    told = {code: int(status) for status, code in rows}
    raised = {code: status for code, (status, _, _) in _REFUSALS.items()} | dict(_codes_raised())
    raised.pop("http_error")  # whatever status aiohttp gives
    assert told == raised
    for code in _codes_refused():
        assert code in _REFUSALS, f"{code}: the core refuses with it, the gateway has no status for it"


def _codes_raised() -> Iterator[tuple[str, int]]:
    """Codes in calls of Problem(status, code, ...) and bad_request(..., code=...) all over the gateway."""
    for path in sorted((SOURCE / "gateway").glob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            called = ast.unparse(call.func)
            if called == "Problem" and isinstance(call.args[1], ast.Constant):
                status = call.args[0].value if isinstance(call.args[0], ast.Constant) else 0
                yield str(call.args[1].value), int(str(status))
            elif called == "bad_request":
                code = next((word.value for word in call.keywords if word.arg == "code"), None)
                yield (str(code.value) if isinstance(code, ast.Constant) else "invalid_request"), 400


def _codes_refused() -> Iterator[str]:
    """Codes with which the core refuses: the constant second argument of Verdict(...), refusal(...) and _refuse(...)."""
    for path in sorted((SOURCE / "core").rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            refuses = ast.unparse(call.func).split(".")[-1] in ("Verdict", "refusal", "_refuse")
            if refuses and len(call.args) > 1 and isinstance(call.args[1], ast.Constant):
                yield str(call.args[1].value)


def test_every_route_is_documented():
    text = page("docs/wire.md")
    sources = (SOURCE / "gateway" / name for name in ("app.py", "control.py"))
    routes = {
        (method.upper(), path)
        for source in sources
        for method, path in re.findall(r'web\.(get|post|delete|put)\("(/[^"]+)"', source.read_text())
    } | {("POST", path) for path in _CALL_ROUTES}
    missing = [f"{method} {path}" for method, path in sorted(routes) if f"{method} {path}" not in text]
    assert len(routes) > 15 and missing == []


def test_the_identity_ladder_is_the_implemented_one():
    text = page("docs/wire.md")
    rungs = re.findall(r"^\| \d{1,2} \| `([^`]+)` \| (.*) \|$", text, re.MULTILINE)
    body = re.findall(r'^        \("(body:[\w.]+)"', (SOURCE / "gateway" / "identity.py").read_text(), re.MULTILINE)
    harness = [source for source, _, _ in _HARNESS]
    assert [rung for rung, _ in rungs] == ["explicit", "baggage", *harness, *body, "traceparent", "derived"]
    said = dict(rungs)
    for source, names, parents in _HARNESS:
        for name in (*names, *parents):
            assert f"`{name}`" in said[source], f"{source}: {name} is read and not documented"


def test_every_header_is_documented():
    text = page("docs/wire.md")
    sent = re.findall(
        r'"(x-(?:amf|request|should)-[a-z-]+|retry-after\S*?)"', (SOURCE / "gateway/forward.py").read_text()
    )
    sent += re.findall(r'"(x-should-retry|retry-after-ms|retry-after)"', (SOURCE / "gateway/problem.py").read_text())
    assert len(sent) > 10
    for header in (*sent, *(header for _, header in _EXPLICIT_HEADERS)):
        assert f"`{header}`" in text, header


def test_what_is_read_and_measured_of_time_and_branches_is_documented():
    text = page("docs/wire.md")
    for name in (*SLO_HEADERS, *SERVICE_TIERS):
        assert f"`{name}`" in text, name
    metrics = re.findall(r'(?:Counter|Histogram)\("(amf_\w+)"', (SOURCE / "gateway/slo_metrics.py").read_text())
    assert len(metrics) == 4
    metrics += re.findall(r'"(amf_branch\w+)"', (SOURCE / "gateway/branch_metrics.py").read_text())
    assert len(metrics) == 6
    for name in metrics:
        assert f"`{name}" in text, name


# --- names ----------------------------------------------------------------------------------------------------------------


def test_policies_graphs_models_and_report_fields_are_documented():
    policies, scenarios, configuration = (
        page("docs/policies.md"),
        page("docs/scenarios.md"),
        page("docs/configuration.md"),
    )
    assert re.findall(r"^\| `([\w-]+)` \|", policies, re.MULTILINE) == list(BUNDLES)
    for name in GRAPHS:
        assert f"| `{name}` |" in scenarios, f"graph {name}"
    for kind in (*scenario.KINDS, *scenario.ARRIVALS):
        assert f"`{kind}`" in scenarios, kind
    for model in (*MODEL_CONFIGS, *GPUS):
        assert f"`{model}`" in configuration, model
    empty = summarise(RunRecords(pipelines=[], calls=[]), ReportContext(policy="", workload="", seed=0, duration_s=0.0))
    for field, value in empty.items():
        parts = [f"{field}.{part}" for part in value] if field in ("bytes", "bound", "decision_us") else [field]
        for part in parts:
            assert f"`{part}`" in scenarios, part


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_names_of_code_and_tests_exist(path: Path):
    text = path.read_text(encoding="utf-8")
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        assert (ROOT / file).is_file(), f"{file} does not exist"
        assert not name or re.search(rf"^(?:async )?(?:def|class) {name}\b|^{name} = ", page(file), re.MULTILINE), name
    for file, name in re.findall(r"`([\w/]+\.py):([\w.]+)`", text):
        assert (SOURCE / file).is_file(), f"src/amf/{file} does not exist"
        assert _defines(SOURCE / file, name), f"src/amf/{file} does not define {name}"
    for file in re.findall(r"`((?:src|bench|examples)/[\w/.-]+)`", text):
        assert (ROOT / file.rstrip("/")).exists(), f"{file} does not exist"


def _defines(path: Path, name: str) -> bool:
    body: list[ast.stmt] = ast.parse(path.read_text()).body
    for part in name.split("."):
        found = [node for node in body if part in _bound_names(node)]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


def _bound_names(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [ast.unparse(target) for target in targets]
        case ast.AnnAssign(target=target):
            return [ast.unparse(target)]
    return []


# --- links and commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path):
    prose = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = path if not file else path.parent / file
        assert there.exists(), f"{target}: there is no such file"
        if anchor:
            assert anchor in _anchors(there.read_text(encoding="utf-8")), f"{target}: there is no such heading"


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_and_their_options_exist(path: Path):
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    text = path.read_text(encoding="utf-8")
    blocks = [
        block.replace("\\\n", " ") for language, block in FENCE.findall(text) if language in ("sh", "bash", "console")
    ]
    quoted = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    for line in [line.removeprefix("$ ") for block in blocks for line in block.splitlines()] + quoted:
        match = re.match(r"(?:\.venv/bin/)?amf +([a-z][\w-]*)(.*)", line)
        if match is None:
            continue
        name, rest = match.group(1), match.group(2).partition(" #")[0]
        assert name in known, f"{path.name}: there is no command `amf {name}`"
        command = known[name]
        if part := re.match(r" +([a-z]+)", rest) if hasattr(command, "commands") else None:
            assert part[1] in command.commands, f"{path.name}: `amf {name}` has no command {part[1]}"
            command = command.commands[part[1]]
        options = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(?<![\w-])(--?[a-z][\w-]*)", rest):
            assert option in options, f"{path.name}: `amf {name}` has no option {option}"


def test_every_option_of_the_emulator_is_documented():
    text = page("docs/engines.md")
    for parameter in typer.main.get_command(app).commands["emulate"].params:
        for option in parameter.opts:
            assert option == "--help" or f"`{option}`" in text, option


# --- the worked example -----------------------------------------------------------------------------------------------------


def test_the_worked_example_prints_what_the_page_says():
    blocks = FENCE.findall(page("docs/policies.md"))
    place = next(i for i, (language, _) in enumerate(blocks) if language == "python")
    program, said = blocks[place][1], blocks[place + 1][1]
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    printed = "\n".join(line.rstrip() for line in ran.stdout.rstrip().splitlines()) + "\n"
    assert printed == said, f"the price has changed; put this into docs/policies.md and read the page again:\n{printed}"
