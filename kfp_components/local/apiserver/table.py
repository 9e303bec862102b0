"""What `kubectl get` prints: objects as rows of a `Table`, selectors for lists and watches."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from kfp_components.local.apiserver.failure import bad_request
from kfp_components.local.apiserver.kinds import Kind

Object = dict[str, Any]


def as_table(kind: Kind, objects: list[Object], metadata: Object, include: str) -> Object:
    """A `meta.k8s.io/v1` Table of these objects; ``include`` is None, Metadata or Object."""
    extra = [] if kind.kind == "Event" else [("Age", "date", 0)]
    lead = [("Last Seen", "date", 0)] if kind.kind == "Event" else [("Name", "string", 0)]
    columns = [*lead, *((c.name, "string", int(c.wide)) for c in kind.columns), *extra]
    definitions = [
        {"name": name, "type": "string", "format": "name" if name == "Name" else "", "description": "", "priority": priority}
        for name, _, priority in columns
    ]
    rows = []
    for obj in objects:
        first = _age(obj.get("lastTimestamp") or obj["metadata"]["creationTimestamp"]) if kind.kind == "Event" else obj["metadata"]["name"]
        cells = [first, *(c.cell(obj) for c in kind.columns), *(_age(obj["metadata"]["creationTimestamp"]) for _ in extra)]
        rows.append({"cells": ["" if c is None else c for c in cells], "object": _row_object(obj, include)})
    return {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": definitions, "rows": rows}


def _row_object(obj: Object, include: str) -> Object | None:
    if include == "None":
        return None
    if include == "Object":
        return obj
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def _age(timestamp: str) -> str:
    try:
        since = datetime.fromisoformat(timestamp.replace("Z", "+00:00"))
    except ValueError:
        return "<unknown>"
    seconds = max(0, int((datetime.now(UTC) - since).total_seconds()))
    for unit, length, until in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172800)):
        if seconds < until:
            return f"{seconds // length}{unit}"
    return f"{seconds // 86400}d"


def matcher(kind: Kind, labels: str, fields: str) -> Callable[[Object], bool]:
    """Whether an object satisfies a label and a field selector; raises 400 for selectors that make no sense."""
    tests = [_label_test(part) for part in _split(labels)] + [_field_test(kind, part) for part in fields.split(",") if part]
    return lambda obj: all(test(obj) for test in tests)


def _split(selector: str) -> list[str]:
    return [part.strip() for part in re.split(r",(?![^(]*\))", selector) if part.strip()]


def _label_test(part: str) -> Callable[[Object], bool]:
    def value(obj: Object, key: str) -> str | None:
        found: str | None = (obj["metadata"].get("labels") or {}).get(key)
        return found

    if found := re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", part):
        key, how, listed = found.groups()
        allowed = {v.strip() for v in listed.split(",")}
        return lambda obj: (value(obj, key) in allowed) == (how == "in")
    if found := re.fullmatch(r"([^\s=!]+)\s*(==|=|!=)\s*([-\w.]*)", part):
        key, how, wanted = found.groups()
        return lambda obj: (value(obj, key) == wanted) == (how != "!=")
    if found := re.fullmatch(r"(!?)\s*([-\w./]+)", part):
        absent, key = found.groups()
        return lambda obj: (value(obj, key) is None) == bool(absent)
    raise bad_request(f"unable to parse requirement: {part!r}: found something that is not key, !key, key=value, key!=value or key in (...)")


def _field_test(kind: Kind, part: str) -> Callable[[Object], bool]:
    found = re.fullmatch(r"([\w.]+)(==|=|!=)(.*)", part)
    if not found:
        raise bad_request(f"invalid selector: {part!r}; can't understand")
    key, how, wanted = found.groups()
    if key not in ("metadata.name", *(("metadata.namespace",) if kind.namespaced else ()), *kind.field_selectors):
        if kind.builtin and not kind.field_selectors:
            raise bad_request(f'"{key}" is not a known field selector: only "metadata.name", "metadata.namespace"')
        raise bad_request(f"field label not supported: {key}")

    def test(obj: Object) -> bool:
        value: Any = obj
        for step in ["source", "component"] if key == "source" else key.split("."):
            value = value.get(step, "") if isinstance(value, dict) else ""
        return (str(value) == wanted) == (how != "!=")

    return test
