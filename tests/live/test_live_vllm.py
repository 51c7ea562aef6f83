"""The gateway on a real vLLM. What its adapter promises is in test_live_contract.py."""

from collections.abc import Iterator

import pytest
from gateway_truth import GatewayTruth, On

from real.server import Setup, vllm

SETUP = Setup(kv_blocks=129, max_running=1, token_budget=512, scheduling="priority")


class TestGateway(GatewayTruth):
    @pytest.fixture(scope="class")
    def on(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[On]:
        with vllm(SETUP, tmp_path_factory.mktemp("vllm")) as server:
            yield On(url=server.url, block_tokens=SETUP.block_tokens, kv_tokens=SETUP.kv_tokens)
