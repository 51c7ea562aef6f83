"""What bench/fidelity.py is made of, as far as it needs no engine: an account that differs is not called equal."""

import importlib
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"
LOG = (
    "INFO Iteration({}): 2 context requests, 300 context tokens, 3 generation requests, 3 generation tokens, "
    "iteration elapsed time: 12.50 ms, CPU KV cache usage: 1.0%\n"
)


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    for name in ("install", "iterations", "mirror", "pace", "page", "seen", "server", "streams", "traffic"):
        importlib.import_module(f"real.{name}")
    return importlib.import_module("real")


def account(real: ModuleType):
    """Two waves of a stream, served by the simulated worker in place of both."""
    shape = real.streams.cases(seed=3, share=0.01)["late"].shape
    setup, stream, outputs, waves = real.streams.FCFS, real.traffic.Stream(shape), {}, []
    while (wave := stream.next_wave(outputs)) is not None:
        waves.append(wave)
        outputs |= {ask.name: tuple(range(ask.output_tokens)) for ask in wave}
    arrivals = dict.fromkeys(outputs, 0)
    return real.mirror.mirror(waves, real.seen.Seen(outputs=outputs, arrivals=arrivals), setup)


def test_a_stream_is_the_same_every_time_and_goes_on_with_the_answers(real: ModuleType) -> None:
    shape = real.traffic.Shape(seed=1, waves=30, width=(1, 1), new_session=0.2, twice=0.0)
    streams = [real.traffic.Stream(shape) for _ in range(2)]
    outputs: dict[str, tuple[int, ...]] = {}
    prompts = []
    while (wave := streams[0].next_wave(outputs)) is not None:
        assert wave == streams[1].next_wave(outputs)
        (ask,) = wave
        prompts.append(ask.prompt + (7,) * ask.output_tokens)
        outputs[ask.name] = (7,) * ask.output_tokens
    assert any(prompt[: len(other)] == other for prompt in prompts for other in prompts if len(other) < len(prompt))


def test_an_account_equals_itself_and_nothing_else(real: ModuleType) -> None:
    seen = account(real)
    seen.held_up = dict.fromkeys(seen.ends, 1)
    agreement = real.seen.compare(seen, seen)
    assert agreement.exact and agreement.preemptions[0] > 0 and agreement.evictions[0] > 0
    name = next(iter(seen.cached))
    swapped = [replace(step, removed=step.removed[::-1]) for step in seen.steps]
    assert swapped != seen.steps
    for other in (
        replace(seen, cached=seen.cached | {name: seen.cached[name] + 32}),
        replace(seen, ends={name: -end for name, end in seen.ends.items()}),
        replace(seen, steps=seen.steps[1:]),
        replace(seen, steps=swapped),
        replace(seen, iteration_tokens=[*seen.iteration_tokens, 1]),
        replace(seen, preemptions=0),
    ):
        assert not real.seen.compare(other, seen).exact


def test_ends_that_were_held_up_have_no_order(real: ModuleType) -> None:
    simulated = real.seen.Seen(cached={"w-0": 0, "w-1": 0}, ends={"w-0": 5.0, "w-1": 9.0})
    for last, together in ((1, 0), (5, 1)):
        reversed_ = replace(simulated, ends={"w-0": 2.0, "w-1": 1.0}, held_up={"w-0": 1, "w-1": last})
        agreement = real.seen.compare(reversed_, simulated)
        assert (agreement.pairs, agreement.pairs_in_order, agreement.pairs_together) == (1, 0, together)


def test_tokens_that_come_faster_than_iterations_were_held_up(real: ModuleType) -> None:
    held_up = importlib.import_module("real.play").held_up
    assert held_up([0.0, 1.0, 2.0], 0.5) == 1
    assert held_up([0.0, 1.0, 2.0, 2.1, 2.2], 0.5) == 4
    assert held_up([2.0] * 7, 0.5) == 7


def test_the_log_of_iterations_is_read(real: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(LOG.format(1) + "something else\n" + LOG.format(0))
    first, second = real.iterations.read_iterations(log)
    assert (first.number, first.tokens, first.decode_requests, first.elapsed_s) == (0, 303, 3, 0.0125)
    assert real.iterations.read_iterations(log, first=1) == [second]


def test_a_time_form_without_noise_is_found_again(real: ModuleType) -> None:
    pace, play = real.pace, importlib.import_module("real.play")
    asks = pace.asks(seed=5, count=30)
    true = real.mirror.compute_profile(0.004, 2e-5, 1e-8)
    answers = []
    for ask in asks:
        worker = real.pace.SimWorker(real.mirror.worker_config(pace.SETUP, true))
        worker.submit(real.mirror.sim_request(ask, range(ask.output_tokens), pace.SETUP), 0.0)
        at_s = {}
        while (next_s := worker.next_event_s()) is not None:
            at_s |= {type(event).__name__: event.at_s + 0.006 for event in worker.advance(next_s)}
        tokens = list(range(ask.output_tokens))
        answers.append(
            play.Answer(sent_s=0.0, first_token_s=at_s["FirstTokenOut"], end_s=at_s["Finished"], tokens=tokens)
        )
    fit = pace.fit(asks, answers)
    assert (fit.iteration_s, fit.token_s, fit.pair_s, fit.way_s) == pytest.approx((0.004, 2e-5, 1e-8, 0.006), rel=0.02)
    assert fit.total.p95 < 0.01


def test_figures_go_between_the_marks_and_nowhere_else(real: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{real.page.BEGIN}\nold\n{real.page.END}\nafter\n")
    real.page.write_page(page, {})
    assert page.read_text() == f"before\n{real.page.BEGIN}\n\n\n{real.page.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks"):
        real.page.write_page(page, {})


def test_an_installation_that_stands_is_left_alone(real: ModuleType, tmp_path: Path) -> None:
    install = real.install
    (tmp_path / ".installed").write_text(f"vllm {install.VLLM}, torch {install.TORCH}")
    install.install(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".installed"]
    (tmp_path / ".installed").write_text(f"xllamacpp {install.LLAMACPP}, gguf {install.GGUF}")
    install.install_llamacpp(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".installed"]
    on = f"vllm {install.VLLM}, torch {install.TORCH}"
    (tmp_path / ".installed").write_text(on)
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / ".installed").write_text(f"sglang {install.SGLANG}, orjson {install.ORJSON}, {on}")
    install.install_sglang(tmp_path / "sglang", tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".installed", ".installed", "sglang"]


def test_what_sglang_imports_in_vain_is_a_name_and_never_computes() -> None:
    script = """
import real.sglang_serve
from sgl_kernel.scalar_type import ScalarType
import torchvision.transforms.functional as functional
assert repr(functional.InterpolationMode.NEAREST).startswith("<module 'torchvision.transforms.functional.Inter")
for call in (ScalarType, functional.resize):
    try:
        call(1, size=2)
    except NotImplementedError as error:
        print(error)
try:
    import not_named_there
except ModuleNotFoundError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(BENCH)}, check=True, capture_output=True, text=True
    )
    assert said.stdout.splitlines() == [
        "sgl_kernel.scalar_type.ScalarType is not installed",
        "torchvision.transforms.functional.resize is not installed",
        "No module named 'not_named_there'",
    ]


def test_a_machine_that_cannot_is_told_why(real: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install = real.install
    monkeypatch.setattr(install.sys, "version_info", (3, 10, 1))
    with pytest.raises(install.CannotInstall, match=r"needs CPython 3\.11 or 3\.12"):
        install.install(tmp_path / "venv")
    monkeypatch.undo()
    monkeypatch.setattr(install, "DISK_BYTES", 10**18)
    with pytest.raises(install.CannotInstall, match=r"takes 1000000000 GB|needs CPython|needs Linux|AVX2"):
        install.install(tmp_path / "venv")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_outlives_who_holds_the_pipe(tmp_path: Path) -> None:
    """The command's own child goes as well."""
    mark = tmp_path / "alive"
    script = f"touch {mark}; sleep 600 & echo $! > {mark}; wait"
    keeper = subprocess.Popen([sys.executable, BENCH / "real" / "keeper.py", "sh", "-c", script], stdin=subprocess.PIPE)
    give_up_s = time.monotonic() + 20
    while not (mark.exists() and mark.read_text().strip()):
        assert time.monotonic() < give_up_s
        time.sleep(0.02)
    assert keeper.stdin is not None
    keeper.stdin.close()
    assert keeper.wait(20) != 0
    state = Path(f"/proc/{mark.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
