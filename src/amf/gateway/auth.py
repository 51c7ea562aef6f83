"""Who may ask: API keys, compared in constant time. Without configured keys everybody may, and everybody is one tenant."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from amf.config import tenant_of
from amf.gateway.problem import Problem


@dataclass(frozen=True, slots=True)
class Caller:
    """`tenant` names the key without being it; "" when no keys are configured. `trusted`: may steer engines and the fleet."""

    tenant: str = ""
    trusted: bool = False


class Keys:
    """Keys are kept as digests. Trusted keys are API keys too."""

    def __init__(self, api_keys: tuple[str, ...] = (), trusted_keys: tuple[str, ...] = ()) -> None:
        keys = dict.fromkeys((*api_keys, *trusted_keys))
        self._known = [(_digest(key), Caller(tenant_of(key), key in trusted_keys)) for key in keys]
        self._fleet_needs_trust = bool(trusted_keys)

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Raises Problem (401) if keys are configured and none of them is sent."""
        if not self._known:
            return Caller()
        scheme, _, token = headers.get("authorization", "").partition(" ")
        sent = _digest(token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", ""))
        found = None
        for digest, caller in self._known:
            if hmac.compare_digest(digest, sent):
                found = caller
        if found is None:
            message = "The API key is missing or unknown: send `Authorization: Bearer KEY` or `x-api-key: KEY`."
            raise Problem(401, "invalid_api_key", message, "authentication_error", retry=False)
        return found

    def check_fleet_access(self, caller: Caller) -> None:
        """Raises Problem (403) if changing the fleet is reserved to trusted keys and this is none."""
        if self._fleet_needs_trust and not caller.trusted:
            message = "Changing workers and graphs needs a trusted key."
            raise Problem(403, "forbidden", message, "permission_error", retry=False)


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
