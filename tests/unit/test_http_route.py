"""Which HTTPRoutes bring users to a route of Serve."""

from typing import Any

import pytest

from kfp_components.serving import http_route

SERVICES = ("bge-predictor", "ai-serve-svc")
ROUTES = ("/", "/bge", "/bge/large", "/whisper")


def found(*rules: dict[str, Any], hosts: tuple[str, ...] = ()) -> dict[str, Any]:
    spec = {"rules": list(rules), **({"hostnames": list(hosts)} if hosts else {})}
    return {"kind": "HTTPRoute", "metadata": {"name": "models", "namespace": "ai-ml"}, "spec": spec}


def rule(value: str | None = None, kind: str | None = None, rewritten: dict[str, str] | None = None, **backend: Any) -> dict[str, Any]:
    path = {**({"type": kind} if kind else {}), **({"value": value} if value else {})}
    filters = {"filters": [{"type": "URLRewrite", "urlRewrite": {"path": rewritten}}]} if rewritten else {}
    return {"backendRefs": [{"name": "bge-predictor", "port": 8000, **backend}], **({"matches": [{"path": path}]} if path else {}), **filters}


REACHING = {
    "the route": (rule("/bge"), "/bge", "/bge"),
    "below it": (rule("/bge/embed"), "/bge", "/bge/embed"),
    "above it": (rule("/"), "/bge", "/"),
    "no match at all": (rule(), "/bge", "/"),
    "exactly the route": (rule("/bge", "Exact"), "/bge", "/bge alone"),
    "an expression": (rule("/b.*", "RegularExpression"), "/bge", "RegularExpression /b.*"),
    "rewritten to it": (rule("/embeddings", rewritten={"type": "ReplacePrefixMatch", "replacePrefixMatch": "/bge/"}), "/bge", "/embeddings"),
    "rewritten to a path": (rule("/e", rewritten={"type": "ReplaceFullPath", "replaceFullPath": "/bge/embed"}), "/bge", "/e"),
    "the route /": (rule("/anything"), "/", "/anything"),
    "the serve Service": (rule("/bge", name="ai-serve-svc"), "/bge", "/bge"),
    "said in full": (rule("/bge", group="", kind="PathPrefix") | {"matches": [{"path": {"type": "PathPrefix", "value": "/bge"}}]}, "/bge", "/bge"),
    "of a namespace": (rule("/bge", namespace="ai-ml", weight=1), "/bge", "/bge"),
}
NOT_REACHING = {
    "another route": (rule("/whisper"), "/bge"),
    "a name that begins so": (rule("/bge2"), "/bge"),
    "a longer route of Serve": (rule("/bge/large/x"), "/bge"),
    "exactly above it": (rule("/", "Exact"), "/bge"),
    "a longer one than /": (rule("/whisper"), "/"),
    "rewritten away": (rule("/bge", rewritten={"type": "ReplacePrefixMatch", "replacePrefixMatch": "/whisper"}), "/bge"),
    "another Service": (rule("/bge", name="web"), "/bge"),
    "another kind": (rule("/bge") | {"backendRefs": [{"name": "bge-predictor", "kind": "ServiceImport", "group": "multicluster.x-k8s.io"}]}, "/bge"),
    "another namespace": (rule("/bge", namespace="other"), "/bge"),
    "no weight": (rule("/bge", weight=0), "/bge"),
    "no backend": ({"matches": [{"path": {"value": "/bge"}}]}, "/bge"),
}


@pytest.mark.parametrize("case", REACHING)
def test_what_brings_users_is_told(case: str) -> None:
    one, route, path = REACHING[case]
    service = one["backendRefs"][0]["name"]
    told = http_route.reaching(found(one), SERVICES, route, ROUTES)
    assert told == [f"HTTPRoute ai-ml/models sends {path} of any host to Service {service}: it is not touched"]


@pytest.mark.parametrize("case", NOT_REACHING)
def test_what_brings_nobody_is_not(case: str) -> None:
    one, route = NOT_REACHING[case]
    assert http_route.reaching(found(one), SERVICES, route, ROUTES) == []


def test_hosts_and_paths_are_told_together() -> None:
    one = {
        "backendRefs": rule()["backendRefs"] * 2,
        "matches": [{"path": {"value": "/bge"}}, {"path": {"value": "/bge/v2"}}, {"path": {"value": "/no"}}],
    }
    told = http_route.reaching(found(one, rule("/whisper"), hosts=("a.example", "*.b.example")), SERVICES, "/bge", ROUTES)
    assert told == ["HTTPRoute ai-ml/models sends /bge and /bge/v2 of a.example and *.b.example to Service bge-predictor: it is not touched"]
    assert http_route.reaching({"metadata": {"name": "x", "namespace": "y"}}, SERVICES, "/bge", ROUTES) == []
