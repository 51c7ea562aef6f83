"""Workers side by side: those of one model should be alike, and none should be there twice."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any
from urllib.parse import urlsplit

from amf.doctor.findings import Finding, fail, ok, warn
from amf.doctor.patient import Patient

_ALIKE: tuple[tuple[str, Callable[[Patient], Any], str], ...] = (
    ("engine", lambda p: p.info and p.info.engine, "run one engine behind one model, or give them names of their own"),
    (
        "version",
        lambda p: p.info and p.info.version,
        "bring them to one release: their behaviour and metrics may differ",
    ),
    (
        "max_model_len",
        lambda p: p.info and p.info.max_model_tokens,
        "start all with one --max-model-len: a long call is refused where it does not fit",
    ),
    ("KV format", lambda p: p.info and p.info.kv_format, "start all with one --kv-cache-dtype: answers may differ"),
    (
        "weights",
        lambda p: (p.info.roots.get(p.model) or "").rstrip("/").rsplit("/", 1)[-1] or None if p.info else None,
        "load the same weights under one name, or serve others under another name",
    ),
)


async def fleet(patients: Sequence[Patient]) -> list[Finding]:
    found = await _listed_twice(patients)
    met = [patient for patient in patients if patient.info is not None]
    for model in dict.fromkeys(patient.model for patient in met):
        pool = [patient for patient in met if patient.model == model]
        if len(pool) > 1:
            found += _alike(model, pool)
    return found


def _alike(model: str, pool: Sequence[Patient]) -> list[Finding]:
    check = f"pool {model}"
    found = []
    for what, of, fix in _ALIKE:
        if seen := _differing(what, pool, of):
            found.append(warn(check, seen, fix))
    if seen := _differing("block size", pool, lambda patient: patient.block_tokens):
        if any(patient.tokenizer for patient in pool):
            seen += "; in exact mode one size holds for the pool, so the others' warmth is not seen"
            found.append(fail(check, seen, "start all with one --block-size"))
        else:
            found.append(warn(check, seen, "start all with one --block-size"))
    return found or [ok(check, f"{len(pool)} workers, alike in what can be seen of them")]


def _differing(what: str, pool: Sequence[Patient], of: Callable[[Patient], Any]) -> str:
    """Who says what, where those who say something differ; else ""."""
    said: dict[Any, list[str]] = {}
    for patient in pool:
        value = of(patient)
        if value is not None:
            said.setdefault(value, []).append(patient.name)
    if len(said) < 2:
        return ""
    return f"{what} differs: " + ", ".join(f"{value} ({', '.join(names)})" for value, names in said.items())


async def _listed_twice(patients: Sequence[Patient]) -> list[Finding]:
    """By the address behind the name. One engine behind two addresses cannot be told from two engines."""
    where = [await _addresses(patient.url) for patient in patients]
    return [
        fail(
            "listed twice",
            f"{one.name} and {other.name} are one engine, at {min(ours & theirs)}: its load and memory are counted twice",
            f"remove one of {one.url} and {other.url}",
        )
        for (one, ours), (other, theirs) in combinations(zip(patients, where, strict=True), 2)
        if ours & theirs
    ]


async def _addresses(url: str) -> set[str]:
    """host:port, with every address that the host name stands for, and the path behind."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = parts.hostname or ""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        hosts = {str(address[4][0]) for address in found}
    except OSError:
        hosts = {host}
    return {f"{each}:{port}{parts.path}" for each in hosts}
