"""What `kubectl get` prints: objects as rows of a `Table`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from kfp_components.kube_api.kinds import Kind

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
