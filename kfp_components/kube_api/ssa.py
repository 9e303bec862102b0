"""Server-side apply: who owns which field of an object, and what an apply does to it. Pure functions on plain JSON.

A *path* is a tuple of FieldsV1 elements: ``f:name`` (field), ``k:{"port":80}`` (item of a list keyed by its fields), ``v:"x"``
(item of a set). A *field set* is a set of paths: leaves always, list items and entries of open maps too, other containers only
when empty or when an update made them. The rules are those of sigs.k8s.io/structured-merge-diff v6:

- `extract`: the field set of an applied configuration. Atomic lists and maps (and lists without a list type) are leaves.
- `compare`: what changed between two objects, as field sets: added, removed, modified.
- `merge`: an applied configuration laid over the live object; null and empty containers remove nothing by themselves.
- `apply`: merge; then what this manager applied last time, does not apply now and nobody else owns is removed; then what
  changed must not belong to others, unless forced. An emptied list or map goes with its last item.
- `update`: any other write: the writer owns what it changed, everybody else loses that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kfp_components.kube_api import schema as schemas
from kfp_components.kube_api.failure import Failure, apply_conflict, json_type

Path = tuple[str, ...]
FieldSet = set[Path]
Schema = Mapping[str, Any]
MISSING: Any = object()
"""Stands for an absent value; None is JSON's null."""

UNTRACKED: FieldSet = (
    {("f:apiVersion",), ("f:kind",), ("f:metadata",)}
    | {
        ("f:metadata", f"f:{name}")
        for name in ("name", "namespace", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink")
    }
    | {("f:metadata", f"f:{name}") for name in ("uid", "generation", "managedFields", "resourceVersion", "generateName")}
)


class Manager(NamedTuple):
    """Who wrote: a name, ``Apply`` or ``Update``, the API version it wrote in, and ``status`` or nothing."""

    name: str
    operation: str
    api_version: str
    subresource: str = ""

    def words(self) -> str:
        """As conflict messages name it."""
        said = f'"{self.name}"' + (f' with subresource "{self.subresource}"' if self.subresource else "")
        return f"{said} using {self.api_version}" if self.operation == "Update" else said


Managers = dict[Manager, FieldSet]


class Changes(NamedTuple):
    """The difference of two objects as field sets."""

    added: FieldSet
    removed: FieldSet
    modified: FieldSet


def apply(schema: Schema, live: dict[str, Any], config: dict[str, Any], managers: Managers, me: Manager, *, force: bool) -> tuple[Any, Managers]:
    """The object and its managers after ``me`` applies ``config``. Raises the 409 of a conflict; changes no argument."""
    mine = extract(schema, config)
    after = {who: set(paths) for who, paths in managers.items()}
    last = after.get(me, set())
    after[me] = mine
    merged = merge(schema, live, config)
    dropped = _with_named_parents(schema, last)
    if dropped:
        dropped -= _with_named_parents(schema, set().union(*after.values()))
    if dropped:
        merged = remove(schema, merged, dropped & _with_named_parents(schema, extract(schema, merged)))
    after[me] = mine - UNTRACKED
    changes = compare(schema, live, merged)
    taken = changes.added | changes.modified
    conflicts = {who: paths & taken for who, paths in after.items() if who != me and paths & taken}
    if conflicts and not force:
        ordered = sorted((who.words(), path_words(path)) for who, paths in conflicts.items() for path in paths)
        raise apply_conflict(ordered)
    for who in after:
        if who != me:
            after[who] = after[who] - conflicts.get(who, set()) - changes.removed
    return merged, {who: paths for who, paths in after.items() if paths}


def update(schema: Schema, old: dict[str, Any], new: dict[str, Any], managers: Managers, me: Manager) -> Managers:
    """The managers after ``me`` replaced ``old`` by ``new``."""
    changes = compare(schema, old, new)
    written = changes.added | changes.modified
    after = {who: paths - changes.removed - (set() if who == me else written) for who, paths in managers.items()}
    after[me] = (after.get(me, set()) | written) - UNTRACKED
    return {who: paths for who, paths in after.items() if paths}


def extract(schema: Schema, value: Any, path: Path = ()) -> FieldSet:
    """The field set of a configuration."""
    shape = _shape(schema, value)
    if shape == "leaf":
        return {path}
    found: FieldSet = set()
    for element, item in _children(schema, value):
        here = (*path, element)
        found |= extract(_child_schema(schema, element), item, here)
        if shape == "list" or item is None or item == {} or not _named(schema, element):
            found.add(here)
    return found


def merge(schema: Schema, live: Any, config: Any) -> Any:
    """``config`` laid over ``live``. Items of keyed lists keep their live order; new ones come last."""
    if config is MISSING:
        return live
    if live is MISSING:
        return config
    shape = _shape(schema, live)
    if config is None and shape != "leaf" and live:
        return live
    if shape == "leaf" or shape != _shape(schema, config) or (not live and not config):
        return config
    theirs, mine = dict(_children(schema, live)), dict(_children(schema, config))
    merged = {
        element: merge(_child_schema(schema, element), theirs.get(element, MISSING), mine.get(element, MISSING))
        for element in dict.fromkeys([*theirs, *mine])
    }
    return {e[2:]: v for e, v in merged.items()} if shape == "map" else list(merged.values())


def compare(schema: Schema, old: Any, new: Any) -> Changes:
    """What differs. A container that appears or goes is listed with all it holds."""
    changes = Changes(set(), set(), set())
    _compare(schema, old, new, (), changes)
    for paths in changes:
        paths.discard(())
    return changes


def _compare(schema: Schema, old: Any, new: Any, path: Path, changes: Changes) -> None:
    if old is new:  # `merge` keeps what a configuration does not mention
        return
    shape = _shape(schema, new if old is MISSING or old is None else old)
    other = _shape(schema, old if new is MISSING or new is None else new)
    if shape != "leaf" and shape == other and not (old in (MISSING, None, {}, []) and new in (MISSING, None, {}, [])):
        before = {} if old is MISSING or old is None else dict(_children(schema, old))
        after = {} if new is MISSING or new is None else dict(_children(schema, new))
        for element in dict.fromkeys([*before, *after]):
            child = _child_schema(schema, element)
            _compare(child, before.get(element, MISSING), after.get(element, MISSING), (*path, element), changes)
    elif old is not MISSING and new is not MISSING and not _same(old, new):
        changes.modified.add(path)
    if old is MISSING:
        changes.added.add(path)
    elif new is MISSING:
        changes.removed.add(path)


def remove(schema: Schema, value: Any, gone: FieldSet) -> Any:
    """``value`` without the paths in ``gone`` and all below them; containers emptied by that go too."""
    shape = _shape(schema, value)
    if shape == "leaf" or not gone:
        return value
    kept: dict[str, Any] = {}
    for element, item in _children(schema, value):
        below = {path[1:] for path in gone if path and path[0] == element}
        if () in below:
            continue
        left = remove(_child_schema(schema, element), item, below) if below else item
        if not (below and left in ({}, []) and item):
            kept[element] = left
    return {e[2:]: v for e, v in kept.items()} if shape == "map" else list(kept.values())


def path_words(path: Path) -> str:
    """A path as messages show it: ``.spec.ports[port=80,protocol="TCP"].name``."""
    said = ""
    for element in path:
        kind, rest = element[0], element[2:]
        if kind == "f":
            said += f".{rest}"
        elif kind == "k":
            said += "[" + ",".join(f"{key}={_json(value)}" for key, value in json.loads(rest).items()) + "]"
        else:
            said += f"[={rest}]"
    return said


def to_fields(paths: FieldSet) -> dict[str, Any]:
    """A field set in the FieldsV1 form of ``metadata.managedFields``."""
    tree: dict[str, Any] = {}
    parents = {path[:n] for path in paths for n in range(1, len(path))}
    for path in sorted(paths):
        node = tree
        for element in path:
            node = node.setdefault(element, {})
        if path in parents:
            node["."] = {}
    return tree


def from_fields(tree: Mapping[str, Any], path: Path = ()) -> FieldSet:
    """The reverse of `to_fields`."""
    found: FieldSet = set()
    for element, below in tree.items():
        if element == ".":
            found.add(path)
        elif below:
            found |= from_fields(below, (*path, element))
        else:
            found.add((*path, element))
    return found


def read_managers(entries: list[dict[str, Any]]) -> Managers:
    """``metadata.managedFields`` as field sets."""
    return {
        Manager(e.get("manager", ""), e["operation"], e["apiVersion"], e.get("subresource", "")): from_fields(e.get("fieldsV1", {})) for e in entries
    }


def write_managers(managers: Managers, before: list[dict[str, Any]], now: str) -> list[dict[str, Any]]:
    """``metadata.managedFields``; an entry that did not change keeps its time."""
    times = {who: (paths, entry.get("time", now)) for entry in before for who, paths in read_managers([entry]).items()}
    entries = []
    for who, paths in managers.items():
        known = times.get(who)
        entry: dict[str, Any] = {"manager": who.name, "operation": who.operation, "apiVersion": who.api_version}
        entry["time"] = known[1] if known and known[0] == paths else now
        entry |= {"fieldsType": "FieldsV1", "fieldsV1": to_fields(paths)}
        entries.append(entry | ({"subresource": who.subresource} if who.subresource else {}))
    return sorted(entries, key=lambda e: (e["operation"], e["time"], e["manager"]))


def check_types(schema: Schema, value: Any, path: Path = ()) -> str | None:
    """Why a configuration does not fit its schema (first fault), or None. Server-side apply refuses such a one with a 500."""
    wanted = schema.get("type")
    if value is None:
        return None
    if schema.get("x-kubernetes-int-or-string"):
        return None if isinstance(value, (int, str)) else f"{path_words(path)}: expected integer or string, got {json_type(value)}"
    if wanted and not schemas.is_type(value, wanted):
        expected = {"object": "map", "array": "list", "integer": "numeric", "number": "numeric"}.get(wanted, wanted)
        return f"{path_words(path) or '.'}: expected {expected}, got {json_type(value)}"
    for item in value if isinstance(value, list) else ():
        fault = check_types(schema.get("items", {}), item, path)
        if fault:
            return fault
    if isinstance(value, list) and schema.get("x-kubernetes-list-type") == "map":
        if None in value:
            return f"{path_words(path)}: associative list with keys may not have null elements"
        for index, item in enumerate(value):
            missing = [k for k in schema["x-kubernetes-list-map-keys"] if k not in item and "default" not in _property(schema["items"], k)]
            if missing:
                words = "associative list with keys has an element that omits key field"
                return f'{path_words(path)}: element {index}: {words} "{missing[0]}"'
    if _shape(schema, value) == "list":
        elements = [element for element, _ in _list_elements(schema, value)]
        twice = next((e for e in elements if elements.count(e) > 1), None)
        if twice:
            return f"{path_words(path)}: duplicate entries for key {path_words((twice,))}"
    items = value.items() if isinstance(value, dict) else ()
    for key, item in items:
        if not schemas.knows(schema, key):
            return f"{path_words((*path, f'f:{key}'))}: field not declared in schema"
        fault = check_types(schemas.child(schema, key), item, (*path, f"f:{key}"))
        if fault:
            return fault
    return None


def typed_failure(where: str, fault: str) -> Failure:
    """The answer to a configuration that does not fit its schema."""
    return Failure(500, "", f"failed to create typed patch object ({where}): {fault}")


def _shape(schema: Schema, value: Any) -> str:
    if isinstance(value, dict):
        return "leaf" if schema.get("x-kubernetes-map-type") == "atomic" else "map"
    if isinstance(value, list) and schema.get("x-kubernetes-list-type") in ("map", "set"):
        return "list"
    return "leaf"


def _children(schema: Schema, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"f:{key}", item) for key, item in value.items())
    else:
        yield from _list_elements(schema, value)


def _list_elements(schema: Schema, value: list[Any]) -> Iterator[tuple[str, Any]]:
    if schema["x-kubernetes-list-type"] == "set":
        yield from ((f"v:{_json(item)}", item) for item in value)
        return
    for item in value:
        key = {k: item.get(k, _property(schema["items"], k).get("default")) for k in sorted(schema["x-kubernetes-list-map-keys"])}
        yield f"k:{_json({k: v for k, v in key.items() if v is not None})}", item


def _child_schema(schema: Schema, element: str) -> Schema:
    return schemas.child(schema, element[2:]) if element.startswith("f:") else schema.get("items", {})


def _named(schema: Schema, element: str) -> bool:
    return element.startswith("f:") and element[2:] in schema.get("properties", {})


def _property(schema: Schema, name: str) -> Schema:
    found: Schema = schema.get("properties", {}).get(name, {})
    return found


def _with_named_parents(schema: Schema, paths: FieldSet) -> FieldSet:
    found: FieldSet = set(paths)
    below: dict[Path, Schema] = {(): schema}
    for parent in sorted({path[:n] for path in paths for n in range(1, len(path))}, key=len):
        above = below[parent[:-1]]
        if _named(above, parent[-1]):
            found.add(parent)
        below[parent] = _child_schema(above, parent[-1])
    return found


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
