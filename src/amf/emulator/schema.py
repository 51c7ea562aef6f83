"""A value that fits a JSON schema, drawn from a seeded generator: enough of the standard for tools and structured output.

Understood: type (also a list of types), properties, required, items, prefixItems, enum, const, $ref into the same document,
anyOf / oneOf (the first alternative that is not null), allOf (merged), minimum / maximum and their exclusive forms,
minLength / maxLength, minItems / maxItems, and common string formats. Patterns are not.
"""

import math
import random
from collections.abc import Mapping
from typing import Any

from amf.emulator.errors import ApiError
from amf.emulator.words import filler

_MAX_DEPTH = 32
_MAX_VALUES = 10_000  # of one sample, at all depths
_MAX_CHARACTERS = 1 << 20  # of one string
_OPTIONAL_DEPTH = 4  # deeper than this, only required properties
_FORMATS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "email": "someone@example.com",
    "uri": "https://example.com/page",
    "uuid": "6f1c2f0e-3b7a-4d55-9a0b-0c1d2e3f4a5b",
}


def sample(schema: Mapping[str, Any], rng: random.Random) -> Any:
    """Raises ApiError (400) if the schema cannot be followed: malformed, a dangling $ref, no end within 32 levels, or more
    asked for than 10,000 values or a million characters in one string."""
    try:
        return _Sampler(schema, rng).value(schema, 0)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ApiError(400, f"the schema is malformed: {error}") from error


class _Sampler:
    def __init__(self, root: Mapping[str, Any], rng: random.Random) -> None:
        self._root = root
        self._rng = rng
        self._values = 0

    def value(self, schema: Any, depth: int) -> Any:
        self._values += 1
        if self._values > _MAX_VALUES:
            raise _too_much()
        if depth > _MAX_DEPTH:
            raise ApiError(400, f"the schema is nested deeper than {_MAX_DEPTH} levels")
        if not isinstance(schema, Mapping):
            return "" if schema is not False else None
        schema = self._resolve(schema, depth)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._rng.choice(list(schema["enum"]))
        match _kind(schema):
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "integer":
                low, high = _bounds(schema, 1)
                return self._rng.randint(math.ceil(low), max(math.ceil(low), math.floor(high)))
            case "number":
                low, high = _bounds(schema, 1e-3)
                return round(self._rng.uniform(low, high), 3) if high - low > 0.01 else (low + high) / 2
            case "boolean":
                return self._rng.random() < 0.5
            case "null":
                return None
        return self._string(schema)

    def _resolve(self, schema: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
        """Follow $ref, pick an alternative and merge allOf, until none of them is left."""
        for _ in range(_MAX_DEPTH):
            if "$ref" in schema:
                rest = {key: value for key, value in schema.items() if key != "$ref"}
                schema = {**self._target(str(schema["$ref"])), **rest}
            elif choices := schema.get("anyOf") or schema.get("oneOf"):
                concrete = [choice for choice in choices if choice != {"type": "null"}]
                rest = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
                schema = {**rest, **(concrete or [{"type": "null"}])[0]}
            elif "allOf" in schema:
                schema = self._merge(schema, depth)
            else:
                return schema
        raise ApiError(400, "the schema refers to itself without end")

    def _target(self, reference: str) -> Mapping[str, Any]:
        node: Any = self._root
        for part in reference.lstrip("#").strip("/").split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if part and (not isinstance(node, Mapping) or key not in node):
                raise ApiError(400, f"the schema has no {reference!r}")
            node = node[key] if part else node
        return node if isinstance(node, Mapping) else {}

    def _merge(self, schema: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
        if depth > _MAX_DEPTH:
            raise ApiError(400, f"the schema is nested deeper than {_MAX_DEPTH} levels")
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            resolved = self._resolve(part, depth + 1)
            properties = {**merged.get("properties", {}), **resolved.get("properties", {})}
            required = [*merged.get("required", []), *resolved.get("required", [])]
            merged = {**merged, **resolved, "properties": properties, "required": required}
        if not merged["properties"]:
            del merged["properties"]
        return merged

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = list(schema.get("required", ()))
        properties = schema.get("properties", {})
        names = [name for name in properties if name in required or depth < _OPTIONAL_DEPTH]
        names += [name for name in required if name not in properties]
        return {name: self.value(properties.get(name, {}), depth + 1) for name in names}

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        tuple_items = schema.get("prefixItems", [])
        low = int(schema.get("minItems", 0))
        if low > _MAX_VALUES:
            raise _too_much()
        wanted = max(low, min(int(schema.get("maxItems", 2)), 2 if depth < _OPTIONAL_DEPTH else low), len(tuple_items))
        items = [*tuple_items, *[schema.get("items", {"type": "string"})] * max(0, wanted - len(tuple_items))]
        return [self.value(item, depth + 1) for item in items]

    def _string(self, schema: Mapping[str, Any]) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        low, high = int(schema.get("minLength", 0)), int(schema.get("maxLength", _MAX_CHARACTERS))
        if low > _MAX_CHARACTERS:
            raise _too_much()
        length = min(max(low, self._rng.randint(8, 32)), high)
        return filler(self._rng.getrandbits(32), length)


def _too_much() -> ApiError:
    return ApiError(
        400, f"the schema asks for more than {_MAX_VALUES} values or {_MAX_CHARACTERS} characters in a string"
    )


def _kind(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((name for name in kind if name != "null"), "null")
    if kind is None:
        kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
    return str(kind)


def _bounds(schema: Mapping[str, Any], step: float) -> tuple[float, float]:
    """Inclusive bounds; open ends are 0..100, or 100 wide. `step` keeps clear of exclusive ones."""
    low = schema.get("minimum", schema["exclusiveMinimum"] + step if "exclusiveMinimum" in schema else None)
    high = schema.get("maximum", schema["exclusiveMaximum"] - step if "exclusiveMaximum" in schema else None)
    if low is None:
        low = min(0, high - 100) if high is not None else 0
    return low, max(low, high if high is not None else low + 100)
