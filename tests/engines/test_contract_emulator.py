"""The engine contract on the emulator: with all that it offers, and with as little as it can offer."""

from collections.abc import Iterator

import pytest

from contract.emulated import emulated
from contract.engine_suite import EngineContract
from contract.under_test import EngineUnderTest


class TestEmulator(EngineContract):
    @pytest.fixture(scope="class")
    def under_test(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
        with emulated(tmp_path_factory.mktemp("emulator")) as engine:
            yield engine


class TestBareEmulator(EngineContract):
    @pytest.fixture(scope="class")
    def under_test(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
        with emulated(tmp_path_factory.mktemp("emulator"), advised=False) as engine:
            yield engine
