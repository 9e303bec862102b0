"""Merge patch (RFC 7386), JSON patch (RFC 6902) and the simple form of Kubernetes' strategic merge patch. Pure functions.

Strategic merge here: maps merge; lists with a merge key in the schema (Service ``ports`` by port, ``ownerReferences`` by uid,
conditions by type) merge item by item; ``finalizers`` merge as a set; other lists are replaced. The directives ``$patch``
(replace, delete, merge), ``$retainKeys`` and ``$deleteFromPrimitiveList`` work; ``$setElementOrder`` is read past: items keep
their live order and new ones come last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp_components.kube_api import schema as schemas
from kfp_components.kube_api.failure import Failure, bad_request
from kfp_components.kube_api.plain import clone


def merge_patch(live: Any, patch: Any) -> Any:
    """``live`` with an RFC 7386 merge patch laid over it."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def json_patch(live: Any, operations: Any) -> Any:
    """``live`` after an RFC 6902 patch. Raises 400 for a malformed patch, 422 when an operation does not fit the object."""
    if not isinstance(operations, list):
        raise bad_request("error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    document = clone(live)
    for operation in operations:
        if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
            raise bad_request("error decoding patch: each operation needs op and path")
        try:
            document = _step(document, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise _unfit(f"{operation.get('op')} operation does not apply at {operation['path']}: {error}") from error
    return document


def strategic_merge(schema: Mapping[str, Any], live: Any, patch: Any) -> Any:
    """``live`` with a strategic merge patch laid over it."""
    if not isinstance(patch, dict):
        return patch
    if patch.get("$patch") == "replace":
        return {k: v for k, v in patch.items() if k != "$patch"}
    merged = dict(live) if isinstance(live, dict) else {}
    if "$retainKeys" in patch:
        merged = {k: v for k, v in merged.items() if k in patch["$retainKeys"]}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.partition("/")[2]
            merged[field] = [item for item in merged.get(field, []) if item not in value]
        elif key.startswith("$"):
            continue
        elif value is None:
            merged.pop(key, None)
        elif isinstance(value, list):
            merged[key] = _strategic_list(schemas.child(schema, key), merged.get(key) or [], value)
        elif isinstance(value, dict) and value.get("$patch") == "delete":
            merged.pop(key, None)
        else:
            merged[key] = strategic_merge(schemas.child(schema, key), merged.get(key), value)
    return merged


def _strategic_list(schema: Mapping[str, Any], live: list[Any], patch: list[Any]) -> list[Any]:
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if "$patch" not in item]
    if schema.get("x-kubernetes-patch-strategy") == "merge":
        return [*live, *(item for item in patch if item not in live)]
    key = schema.get("x-kubernetes-patch-merge-key")
    if not key:
        return patch
    merged = list(live)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        at = next((n for n, other in enumerate(merged) if other.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            if at is not None:
                del merged[at]
        elif at is None:
            merged.append(strategic_merge(schema["items"], {}, item))
        else:
            merged[at] = strategic_merge(schema["items"], merged[at], item)
    return merged


def _step(document: Any, operation: dict[str, Any]) -> Any:
    kind, path = operation.get("op"), _pointer(operation["path"])
    if kind == "test":
        if _get(document, path) != operation.get("value"):
            raise _unfit(f"testing value {operation['path']} failed: test failed")
        return document
    if kind == "remove":
        return _remove(document, path)
    if kind == "add":
        return _add(document, path, clone(operation["value"]))
    if kind == "replace":
        _get(document, path)
        return _add(_remove(document, path), path, clone(operation["value"])) if path else operation["value"]
    if kind in ("move", "copy"):
        source = _pointer(operation["from"])
        value = clone(_get(document, source))
        return _add(_remove(document, source) if kind == "move" else document, path, value)
    raise bad_request(f"Unexpected kind: {kind}")


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError(f"a JSON pointer starts with a slash, found {text!r}")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _get(document: Any, path: list[str]) -> Any:
    for part in path:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def _remove(document: Any, path: list[str]) -> Any:
    parent = _get(document, path[:-1])
    del parent[int(path[-1]) if isinstance(parent, list) else path[-1]]
    return document


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent = _get(document, path[:-1])
    if not isinstance(parent, list):
        parent[path[-1]] = value
    elif path[-1] == "-":
        parent.append(value)
    elif 0 <= int(path[-1]) <= len(parent):
        parent.insert(int(path[-1]), value)
    else:
        raise IndexError(f"index {path[-1]} is beyond the list of {len(parent)}")
    return document


def _unfit(message: str) -> Failure:
    return Failure(422, "Invalid", f"the server rejected our request due to an error in our request: {message}", {})
