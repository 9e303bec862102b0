"""Readers of Gateway API HTTPRoutes: which requests from outside a route of Serve gets by them. They are told, and never touched."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any


def reaching(found: Mapping[str, Any], services: Collection[str], route: str, routes: Collection[str]) -> list[str]:
    """Sentences about the rules of one HTTPRoute that send requests to one of these Services of its namespace, on a path that gets to ``route``.

    ``routes`` are all that Serve has there: the longest one that fits gets a request. A path that is rewritten counts as it is then; one that
    is a regular expression counts, as nobody can tell. A backend of weight 0 gets nothing.
    """
    spec, name, namespace = found.get("spec") or {}, found["metadata"]["name"], found["metadata"]["namespace"]
    hosts = " and ".join(spec.get("hostnames") or []) or "any host"
    told = []
    for rule in spec.get("rules") or []:
        backends = [str(backend["name"]) for backend in rule.get("backendRefs") or [] if _is_one(backend, services, namespace)]
        matches = rule.get("matches") or [{}]
        paths = [_told(kind, value) for kind, value in map(_path, matches) if _gets_to(*_rewritten(rule, kind, value), route, routes)]
        for backend in dict.fromkeys(backends) if paths else ():
            told.append(f"HTTPRoute {namespace}/{name} sends {' and '.join(dict.fromkeys(paths))} of {hosts} to Service {backend}: it is not touched")
    return told


def _is_one(backend: Mapping[str, Any], services: Collection[str], namespace: str) -> bool:
    of_core = backend.get("group") in (None, "") and backend.get("kind") in (None, "Service")
    return of_core and backend.get("namespace") in (None, namespace) and backend.get("name") in services and backend.get("weight") != 0


def _path(match: Mapping[str, Any]) -> tuple[str, str]:
    """Type and value of a match's path; without one it is every path."""
    path = match.get("path") or {}
    return str(path.get("type") or "PathPrefix"), str(path.get("value") or "/")


def _told(kind: str, value: str) -> str:
    return {"PathPrefix": value, "Exact": f"{value} alone"}.get(kind, f"{kind} {value}")


def _rewritten(rule: Mapping[str, Any], kind: str, value: str) -> tuple[str, str]:
    """Type and value of what the backend gets, by the rule's filter URLRewrite."""
    for path in _rewrites(rule):
        if path.get("type") == "ReplaceFullPath":
            return "Exact", str(path.get("replaceFullPath") or "/")
        if path.get("type") == "ReplacePrefixMatch" and kind == "PathPrefix":
            return kind, str(path.get("replacePrefixMatch") or "/")
    return kind, value


def _rewrites(rule: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for one in rule.get("filters") or []:
        yield (one.get("urlRewrite") or {}).get("path") or {}


def _gets_to(kind: str, value: str, route: str, routes: Collection[str]) -> bool:
    """Whether Serve gives ``route`` requests on that path, or on paths below it."""
    if kind not in ("PathPrefix", "Exact"):
        return True
    fitting = [one for one in routes if _below(value, one)]
    return max(fitting, key=len, default=None) == route or (kind == "PathPrefix" and _below(route, value))


def _below(path: str, prefix: str) -> bool:
    return f"{path.rstrip('/')}/".startswith(f"{prefix.rstrip('/')}/")
