"""Asking a running gateway, over its control API."""

from typing import Any

import aiohttp

from amf.engines.http import decoded

DEFAULT_GATEWAY = "http://127.0.0.1:8080"
_TIMEOUT = aiohttp.ClientTimeout(total=10.0)


class GatewayError(Exception):
    """The gateway cannot be asked; the message says what to do."""


def gateway_url(text: str) -> str:
    """Without a trailing slash or /v1. Raises GatewayError for what is no URL."""
    if not text.startswith(("http://", "https://")):
        raise GatewayError(f"--gateway {text}: is no URL; write it as http://HOST:PORT")
    return text.rstrip("/").removesuffix("/v1")


def login(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key.strip()}"} if api_key else {}


async def list_workers(url: str, api_key: str | None) -> list[dict[str, Any]]:
    """The gateway's workers, as docs/wire.md describes them. Raises GatewayError."""
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.get(f"{url}/amf/v1/workers", headers=login(api_key), allow_redirects=False) as response,
        ):
            status, body = response.status, await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        why = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        raise GatewayError(
            f"no gateway answers at {url} ({why}): start one with `amf serve`, or say with --gateway where it listens"
        ) from error
    if status == 401:
        raise GatewayError(f"{url} wants an API key it knows: give --api-key, or set AMF_API_KEY")
    listing = decoded(body) if status == 200 else None
    workers = listing.get("workers") if isinstance(listing, dict) else None
    if not isinstance(workers, list) or not all(isinstance(each, dict) and "name" in each for each in workers):
        raise GatewayError(
            f"{url} answers GET /amf/v1/workers with status {status} and is no gateway of AMF: is it an engine, or a proxy?"
        )
    return workers
