"""OpenAPI v3 structural schemas at work: find a child's schema, fill in defaults, drop unknown fields, validate. Pure, apart from
`default` and `prune`, which change the object that they are given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kfp_components.kube_api.failure import Cause, bad_type, bad_value, duplicate, not_one_of, required
from kfp_components.kube_api.plain import clone

Schema = Mapping[str, Any]
OPEN = "x-kubernetes-preserve-unknown-fields"


def child(schema: Schema, key: str) -> Schema:
    """The schema of a field or map entry; empty (anything goes) where the schema says nothing."""
    properties: Mapping[str, Schema] = schema.get("properties", {})
    extra = schema.get("additionalProperties")
    return properties.get(key) or (extra if isinstance(extra, Mapping) else {})


def knows(schema: Schema, key: str) -> bool:
    """Whether a field of that name may stand here."""
    return key in schema.get("properties", {}) or "additionalProperties" in schema or bool(schema.get(OPEN)) or not schema.get("type")


def is_type(value: Any, wanted: str) -> bool:
    """Whether a JSON value has a JSON Schema type."""
    if wanted == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, {"object": dict, "array": list, "string": str, "boolean": bool}[wanted])


def default(schema: Schema, value: Any) -> None:
    """Fill in the defaults, and drop nulls of fields that do not allow null."""
    if isinstance(value, dict):
        for key in [k for k, v in value.items() if v is None and not child(schema, k).get("nullable")]:
            del value[key]
        for key, below in schema.get("properties", {}).items():
            if key not in value and "default" in below:
                value[key] = clone(below["default"])
        for key, item in value.items():
            default(child(schema, key), item)
    elif isinstance(value, list):
        for item in value:
            default(schema.get("items", {}), item)


def prune(schema: Schema, value: Any, path: str = "") -> list[str]:
    """Drop fields that the schema does not know; returns their paths."""
    dropped: list[str] = []
    if not schema:
        return dropped
    if isinstance(value, dict):
        for key in list(value):
            here = f"{path}.{key}" if path else key
            if knows(schema, key):
                dropped += prune(child(schema, key), value[key], here)
            else:
                del value[key]
                dropped.append(here)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            dropped += prune(schema.get("items", {}), item, f"{path}[{index}]")
    return dropped


def validate(schema: Schema, value: Any, path: str = "") -> Iterator[Cause]:
    """Every fault of a value, in document order."""
    if not schema or (value is None and schema.get("nullable")):
        return
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, (int, str)) or isinstance(value, bool):
            yield bad_type(path, value, "integer,string")
        return
    wanted = schema.get("type")
    if wanted and not is_type(value, wanted):
        yield bad_type(path, value, wanted)
        return
    if "enum" in schema and value not in schema["enum"]:
        yield not_one_of(path, value, schema["enum"])
    if isinstance(value, str):
        yield from _string(schema, value, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _number(schema, value, path)
    elif isinstance(value, list):
        yield from _list(schema, value, path)
    elif isinstance(value, dict):
        for key in schema.get("required", ()):
            if key not in value:
                yield required(f"{path}.{key}" if path else key)
        for key, item in value.items():
            yield from validate(child(schema, key), item, f"{path}.{key}" if path else key)


def _string(schema: Schema, value: str, path: str) -> Iterator[Cause]:
    if len(value) < schema.get("minLength", 0):
        yield bad_value(path, value, f"{path} in body should be at least {schema['minLength']} chars long")
    if len(value) > schema.get("maxLength", len(value)):
        yield Cause("FieldValueTooLong", path, f"Too long: may not be more than {schema['maxLength']} bytes")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield bad_value(path, value, f"{path} in body should match '{schema['pattern']}'")


def _number(schema: Schema, value: float, path: str) -> Iterator[Cause]:
    if value < schema.get("minimum", value):
        yield bad_value(path, value, f"{path} in body should be greater than or equal to {schema['minimum']}")
    if value > schema.get("maximum", value):
        yield bad_value(path, value, f"{path} in body should be less than or equal to {schema['maximum']}")


def _list(schema: Schema, value: list[Any], path: str) -> Iterator[Cause]:
    if len(value) < schema.get("minItems", 0):
        yield bad_value(path, len(value), f"{path} in body should have at least {schema['minItems']} items")
    if len(value) > schema.get("maxItems", len(value)):
        yield Cause("FieldValueTooMany", path, f"Too many: {len(value)}: must have at most {schema['maxItems']} items")
    for index, item in enumerate(value):
        yield from validate(schema.get("items", {}), item, f"{path}[{index}]")
    keys = schema.get("x-kubernetes-list-map-keys", ()) if schema.get("x-kubernetes-list-type") == "map" else ()
    seen: list[Any] = []
    for index, item in enumerate(value if schema.get("x-kubernetes-list-type") in ("map", "set") else ()):
        identity = {k: item.get(k) for k in keys} if keys and isinstance(item, dict) else item
        if identity in seen:
            yield duplicate(f"{path}[{index}]", identity)
        seen.append(identity)
