"""A GPU-free stand-in for a vLLM server: the simulated worker on the wall clock, behind vLLM's wire protocol."""

from amf.emulator.config import EmulatorConfig
from amf.emulator.emulator import Emulator
from amf.emulator.faults import Faults
from amf.emulator.server import create_app, running, serve

__all__ = ["Emulator", "EmulatorConfig", "Faults", "create_app", "running", "serve"]
