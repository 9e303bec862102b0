"""What clients read before they start: groups, versions, resources and OpenAPI documents, all made from the table of kinds."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from kfp_components.kube_api.kinds import KINDS, OLD_VERSIONS, Kind

Object = dict[str, Any]
VERSION = {"major": "1", "minor": "34", "gitVersion": "v1.34.0-kfp-serving-embedded", "platform": "embedded/local"}
GROUPS = {k.group: k.version for k in KINDS if k.group} | {"authorization.k8s.io": "v1"}
SERVED = [*GROUPS.items(), *OLD_VERSIONS]
"""Groups and versions."""
CRUD = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
REVIEWS = ("SelfSubjectAccessReview", "SelfSubjectRulesReview")
META = "io.k8s.apimachinery.pkg.apis.meta.v1"


def api_versions() -> Object:
    """`/api`."""
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}


def group(name: str) -> Object:
    """`/apis/{group}`."""
    versions = [{"groupVersion": f"{name}/{version}", "version": version} for of, version in SERVED if of == name]
    return {"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": versions, "preferredVersion": versions[0]}


def groups() -> Object:
    """`/apis`."""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group(name) for name in GROUPS]}


def resources(name: str, version: str) -> Object:
    """`/api/v1` and `/apis/{group}/{version}`."""
    found: list[Object] = []
    for kind in _kinds(name, version):
        verbs = CRUD if kind.namespaced else [verb for verb in CRUD if verb != "deletecollection"]
        entry = {
            "name": kind.plural,
            "singularName": kind.kind.lower(),
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": verbs,
        }
        found.append(entry | ({"shortNames": list(kind.short)} if kind.short else {}))
        if kind.status:
            sub = {"name": f"{kind.plural}/status", "singularName": "", "namespaced": kind.namespaced, "kind": kind.kind}
            found.append(sub | {"verbs": ["get", "patch", "update"]})
    if name == "authorization.k8s.io":
        for kind_name in REVIEWS:
            singular = kind_name.lower()
            found.append({"name": f"{singular}s", "singularName": singular, "namespaced": False, "kind": kind_name, "verbs": ["create"]})
    group_version = f"{name}/{version}" if name else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": found}


def openapi_v3_index() -> Object:
    """`/openapi/v3`."""
    places = ["api/v1", *(f"apis/{name}/{version}" for name, version in SERVED)]
    return {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}"} for place in places}}


def _kinds(name: str, version: str) -> list[Kind]:
    """The kinds of a group in one of its versions."""
    old = [replace(kind, version=version) for kind in OLD_VERSIONS.get((name, version), ())]
    return old or [kind for kind in KINDS if kind.group == name]


@cache
def openapi_v3(name: str, version: str = "v1") -> Object:
    """`/openapi/v3/...` of one group: enough for validation on the server's side, `kubectl explain` and typed clients."""
    kinds = _kinds(name, version)
    components = {_component(k): _published(k) for k in kinds}
    paths = {path: item for k in kinds for path, item in _paths(k).items()}
    return {"openapi": "3.0.0", "info": INFO, "paths": paths, "components": {"schemas": components}}


@cache
def openapi_v2() -> Object:
    """`/openapi/v2`, as JSON only."""
    definitions = {_component(k): _published(k) for k in KINDS}
    return {"swagger": "2.0", "info": INFO, "paths": {}, "definitions": definitions}


OPENAPI_V2_PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"


def openapi_v2_head() -> bytes:
    """`/openapi/v2` as protobuf: the head of the document without a definition. kubectl asks for it about a kind that no other document has, finds
    none, and says in its own words that there is no such kind."""
    return b"\n\x032.0"


INFO = {"title": "kfp-serving embedded Kubernetes API", "version": VERSION["gitVersion"]}


def _component(kind: Kind) -> str:
    reverse = ".".join(reversed((kind.group or "core.api.k8s.io").split(".")))
    return f"{reverse}.{kind.version}.{kind.kind}"


def _published(kind: Kind) -> Object:
    return {**kind.schema, "description": DESCRIPTION.format(kind.kind), "x-kubernetes-group-version-kind": [_gvk(kind)]}


DESCRIPTION = "{} as the embedded API server knows it: the fields that this project and its users write."


def _gvk(kind: Kind) -> Object:
    return {"group": kind.group, "version": kind.version, "kind": kind.kind}


def _paths(kind: Kind) -> Object:
    root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    where = f"{root}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"{root}/{kind.plural}"
    names = ("dryRun", "fieldManager", "fieldValidation")
    writing = [{"name": n, "in": "query", "schema": {"type": "string", "uniqueItems": True}} for n in names]
    schema = {"$ref": f"#/components/schemas/{_component(kind)}"}

    def operation(action: str, *, write: bool) -> Object:
        answer = {"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}}
        basics = {"x-kubernetes-action": action, "x-kubernetes-group-version-kind": _gvk(kind), "responses": answer}
        return basics | {"operationId": f"{action}{kind.kind}"} | ({"parameters": writing} if write else {})

    one = {"get": operation("get", write=False), "put": operation("put", write=True), "patch": operation("patch", write=True)}
    return {
        where: {"get": operation("list", write=False), "post": operation("post", write=True)},
        f"{where}/{{name}}": one | {"delete": operation("delete", write=False)},
    }
