"""`amf emulate` as an engine under the contract: a process of its own, driven through the `vllm` adapter."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import amf
from amf.engines.engine import Capabilities, EngineInfo
from amf.engines.options import EngineLimits, EngineOptions
from contract.under_test import CHAT, COMPLETIONS, EngineUnderTest
from real.process import Command, free_ports, running

MODEL_NAME, SLOTS, BLOCK_TOKENS, KV_TOKENS = "tiny", 2, 32, 8192
FLAGS = (
    *("--served-model-name", MODEL_NAME, "--max-num-seqs", str(SLOTS), "--block-size", str(BLOCK_TOKENS)),
    *("--kv-tokens", str(KV_TOKENS), "--time-scale", "0.5"),
)
ADVISED = ("--kv-events-port", "0", "--scheduling-policy", "priority", "--enable-force-include-usage")


@contextmanager
def emulated(folder: Path, *, advised: bool = True) -> Iterator[EngineUnderTest]:
    """`advised`: started with the flags that docs/engines.md recommends; else it offers as little as it can."""
    (port,) = free_ports(1)
    command = Command(
        name="the emulator",
        arguments=[sys.executable, "-m", "amf", "emulate", "--port", str(port), *FLAGS, *(ADVISED if advised else ())],
        environment={"PYTHONPATH": str(Path(amf.__file__).parents[1])},
        url=f"http://127.0.0.1:{port}",
        log=folder / "emulator.log",
    )
    capabilities = Capabilities(
        kv_events=advised,
        token_hashes=advised,
        attributed_events=advised,
        priority="lower-first" if advised else "none",
        token_prompts=True,
        tokenize=True,
    )
    with running(command):
        yield EngineUnderTest(
            url=command.url,
            options=EngineOptions(limits=EngineLimits(observe_interval_s=0.02), priority=advised),
            expected=EngineInfo(
                engine="vllm",
                models=(MODEL_NAME,),
                version="0.32.0+amf.emulator",
                block_tokens=BLOCK_TOKENS,
                kv_tokens=KV_TOKENS,
                max_model_tokens=KV_TOKENS,
                capabilities=capabilities,
            ),
            slots=SLOTS,
            long_tokens=7_500,
            counts_by_tokens=BLOCK_TOKENS,
            reset_path="/reset_prefix_cache",
            usage_unasked=(COMPLETIONS, CHAT) if advised else (),
            embeds=True,
        )
