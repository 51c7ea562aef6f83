"""The architecture, as a test: sizes, import direction, purity. Each complaint names what to do instead."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "amf"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
PARAMETERS_MAX = 6

CORE_STDLIB = {
    "bisect", "collections", "dataclasses", "enum", "functools", "hashlib", "heapq", "itertools", "math", "operator", "typing",
}  # fmt: skip
SIM_FORBIDDEN = {"asyncio", "socket", "threading", "time", "aiohttp", "zmq", "subprocess", "uvloop"}

# What each package may import of the others. Direction: cli -> gateway -> engines -> core; cli -> sim -> core.
MAY_IMPORT = {
    "core": {"core"},
    "engines": {"engines", "core"},
    "gateway": {"gateway", "engines", "core", "config"},
    "workers": {"workers", "engines"},
    "doctor": {"doctor", "workers", "gateway", "engines", "config"},
    "cache": {"cache", "workers", "gateway", "engines", "config"},
    "sim": {"sim", "core"},
    "emulator": {"emulator", "sim", "core"},
    "bench": {"bench", "sim", "core"},
    "demo": {"demo", "bench", "sim", "core"},
    "simulate": {"simulate", "bench", "sim", "core"},
    "experiment": {"experiment", "simulate", "bench", "sim", "core"},
    "slo": {"slo", "simulate", "bench", "sim", "core"},
    "config": {"core", "engines"},
    "commands": {
        *(
            "bench",
            "cache",
            "config",
            "core",
            "demo",
            "doctor",
            "emulator",
            "experiment",
            "gateway",
            "sim",
            "simulate",
            "slo",
            "workers",
        )
    },
    "cli": {"commands"},
}
# Inside core: fabric -> policy -> state -> graph, cost -> types. Lower number = deeper; nobody imports upwards.
CORE_LAYERS = {
    "types": 0, "config": 0, "graph_parts": 0, "model": 0, "graph_form": 1, "graph": 2, "path": 3, "cost": 1, "presets": 2,
    "events": 3, "decisions": 0, "state": 4, "policy": 5, "pump": 6, "branching": 6, "journal": 6, "fabric": 7,
}  # fmt: skip


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: use absolute imports"
            assert node.module is not None
            for alias in node.names:  # `from amf import x` imports amf.x
                yield (f"{node.module}.{alias.name}" if node.module == "amf" else node.module), node.lineno
                module = PACKAGE.parent / Path(*node.module.split(".")) / f"{alias.name}.py"
                if module.exists():
                    yield f"{node.module}.{alias.name}", node.lineno


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sizes(path: Path):
    lines = len(path.read_text().splitlines())
    assert lines <= FILE_LINES_MAX, f"{lines} lines: one idea per file, split it"
    for function in functions(TREES[path]):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= FUNCTION_LINES_MAX, f"{function.name} has {length} lines: split it"
        if path.parent.name == "commands":
            continue  # a command's parameters are its options
        arguments = function.args
        names = [
            a.arg
            for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
            if a.arg not in ("self", "cls")
        ]
        assert len(names) <= PARAMETERS_MAX, f"{function.name} takes {len(names)} parameters: group them in a dataclass"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_stand_at_the_top(path: Path):
    for function in functions(TREES[path]):
        for node in ast.walk(function):
            assert not isinstance(node, ast.Import | ast.ImportFrom), (
                f"line {node.lineno}: import at the top of the file"
            )


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_packages_import_only_what_lies_below(path: Path):
    package = package_of(path)
    if package in ("__init__", "__main__"):
        return
    for module, line in imports(TREES[path]):
        parts = module.split(".")
        if parts[0] == "amf" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in MAY_IMPORT[package], f"line {line}: {package} may not import {module}"


CORE = [path for path in SOURCES if package_of(path) == "core"]


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_core_is_pure(path: Path):
    tree = TREES[path]
    for module, line in imports(tree):
        top = module.split(".")[0]
        assert top == "amf" or top in CORE_STDLIB, f"line {line}: core may not import {module}; facts arrive as events"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), f"line {node.lineno}: no async in core"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("Exception", "BaseException", "everything"), (
                f"line {node.lineno}: catch what you mean"
            )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "open", "input", "eval", "exec"), f"line {node.lineno}: no I/O in core"
        if isinstance(node, ast.For | ast.comprehension) and isinstance(node.iter, ast.Set | ast.SetComp):
            raise AssertionError(f"{path}: do not iterate over a set, its order is not the same everywhere: sort it")


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_core_layers_point_down(path: Path):
    here = path.relative_to(PACKAGE / "core").parts[0].removesuffix(".py")
    if here == "__init__":
        return
    assert here in CORE_LAYERS, f"say in CORE_LAYERS where {here} belongs"
    for module, line in imports(TREES[path]):
        parts = module.split(".")
        if parts[:2] == ["amf", "core"] and len(parts) > 2 and parts[2] != here:
            assert CORE_LAYERS[parts[2]] <= CORE_LAYERS[here], f"line {line}: {here} may not import {parts[2]} above it"


@pytest.mark.parametrize("path", [p for p in CORE if "policy" in p.parts], ids=name_of)
def test_policies_read_and_never_write(path: Path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                assert not isinstance(target, ast.Attribute), f"line {node.lineno}: a policy's memory lives in state/"
    assert all(module != "amf.core.fabric" for module, _ in imports(TREES[path]))


@pytest.mark.parametrize("path", [p for p in SOURCES if package_of(p) == "sim"], ids=name_of)
def test_sim_is_sans_io(path: Path):
    for module, line in imports(TREES[path]):
        assert module.split(".")[0] not in SIM_FORBIDDEN, f"line {line}: the simulator has no {module}; time is data"


def test_no_import_cycle():
    modules = {".".join(("amf", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in SOURCES}
    graph = {
        name: sorted({m for m, _ in imports(TREES[path]) if m in modules and m != name})
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_nothing_is_left_over():
    for path in sorted([*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]):
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for word in ("TODO", "FIXME", "XXX", "HACK"):
                assert word not in line, f"{path}:{number}: finish it or write it in an issue"
