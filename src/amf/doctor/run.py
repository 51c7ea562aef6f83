"""The whole examination: each engine, the engines side by side, what lies below their KV memory, the gateway, the prompts."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from amf.config import PoolConfig, WorkerConfig
from amf.doctor.basics import look, meet
from amf.doctor.clock import clock
from amf.doctor.events import events
from amf.doctor.findings import Finding, about, fail, skip
from amf.doctor.fleet import fleet
from amf.doctor.gateway import Gateway
from amf.doctor.hashes import hashes
from amf.doctor.patient import Patient
from amf.doctor.probe import probe
from amf.doctor.prompts import prompts
from amf.doctor.residency import residency
from amf.doctor.vllm import flags
from amf.engines.engine import EngineError
from amf.engines.http import open_session
from amf.engines.options import ResidencyOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`probe`: whether engines may be sent tiny calls. `api_key`: the gateway's."""

    workers: tuple[WorkerConfig, ...] = ()
    pools: Mapping[str, PoolConfig] = field(default_factory=dict)
    residency: ResidencyOptions = field(default_factory=ResidencyOptions)
    gateway: str | None = None
    api_key: str | None = None
    probe: bool = False
    prompts: Path | None = None


async def diagnose(asked: Asked) -> list[Finding]:
    """Findings by subject, in the order of the configuration. Raises PromptsError."""
    found = about("prompts", prompts(asked.prompts)) if asked.prompts is not None else []
    async with open_session() as session:
        patients = [Patient(worker, session, asked.pools) for worker in asked.workers]
        examined = await asyncio.gather(*(_examine(patient, asked.probe) for patient in patients))
        side_by_side = await fleet(patients)
        below = await residency(asked.residency, session, patients, probing=asked.probe)
        gateway = await _gateway(session, asked)
    engines = [finding for findings in examined for finding in findings]
    more = (("fleet", side_by_side), ("residency", below), ("gateway", gateway))
    return [*engines, *(finding for subject, findings in more for finding in about(subject, findings)), *found]


async def _examine(patient: Patient, probing: bool) -> list[Finding]:
    found = await meet(patient)
    if patient.info is None or patient.engine is None:
        return about(patient.name, found)
    try:
        found += await _closer(patient, probing)
    except EngineError as error:
        found.append(fail("reachable", f"it stopped answering: {error}", "look into the engine's log, and try again"))
    finally:
        await patient.engine.close()
    return about(patient.name, found)


async def _closer(patient: Patient, probing: bool) -> list[Finding]:
    assert patient.info is not None
    found = await look(patient)
    found.append(clock(await patient.ask("GET", "/v1/models")))
    if patient.info.engine == "vllm":
        found += await flags(patient)
    found += await events(patient)
    found += await hashes(patient)
    if probing:
        return found + await probe(patient)
    unseen = (
        "cached tokens, usage of streams, priority, headers: only calls show them (--probe sends a few of one token)"
    )
    return [*found, skip("probe", unseen)]


async def _gateway(session: aiohttp.ClientSession, asked: Asked) -> list[Finding]:
    if asked.gateway is None:
        return []
    return await Gateway(session, asked.gateway, asked.api_key).examine(probe=asked.probe)
