"""Label and field selectors of lists and watches."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from kfp_components.kube_api.failure import bad_request
from kfp_components.kube_api.kinds import Kind

Object = dict[str, Any]


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
