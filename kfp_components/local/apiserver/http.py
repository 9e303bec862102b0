"""One request: who sends it, what it names, which verb it is, how the answer is written. A Starlette app over `Verbs`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from kfp_components.kube_api import failure
from kfp_components.kube_api.access import Account, authenticate
from kfp_components.kube_api.failure import Failure
from kfp_components.kube_api.kinds import BY_PATH, KNOWN_ELSEWHERE, OLD_VERSIONS, Kind
from kfp_components.kube_api.selectors import matcher
from kfp_components.kube_api.store import Change, Store
from kfp_components.kube_api.verbs import Call, Verbs
from kfp_components.local.apiserver import discovery, proto
from kfp_components.local.apiserver.table import as_table

Object = dict[str, Any]
LOG = logging.getLogger(__name__)
OPEN_PATHS = ("healthz", "readyz", "livez")
MAX_BODY_BYTES = 3 * 1024 * 1024
BOOKMARK_EVERY_S = 60.0
DEFAULT_WATCH_S = 1800.0
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


@dataclass(frozen=True)
class Target:
    """What a path names: a kind, perhaps a namespace, an object and its subresource."""

    kind: Kind
    namespace: str
    name: str
    sub: str
    api_version: str
    """As the path says it: objects are stored in the kind's own and shown in this one."""

    @property
    def resource(self) -> str:
        """As access rules name it."""
        return f"{self.kind.plural}/{self.sub}" if self.sub else self.kind.plural

    def stored(self, body: Any) -> Any:
        """The body of a request in the version that is stored."""
        if self.api_version == self.kind.api_version or not isinstance(body, dict):
            return body
        said = body.get("apiVersion")
        if said == self.kind.api_version:  # the path says otherwise
            message = f"{said}, Kind={self.kind.kind} cannot be handled as {self.api_version}, Kind={self.kind.kind}"
            raise failure.bad_request(f"the object provided is unrecognized (must be of type {self.kind.kind}): {message}")
        return {**body, "apiVersion": self.kind.api_version} if said == self.api_version else body

    def shown(self, obj: Object) -> Object:
        """An object as it was stored, in the version of the path."""
        return {**obj, "apiVersion": self.api_version} if obj.get("apiVersion") == self.kind.api_version else obj


class Api:
    """The application. ``closing`` is set when the server stops, so that watches end."""

    def __init__(self, store: Store, accounts: Mapping[str, Account]) -> None:
        self.store, self.accounts, self.verbs = store, accounts, Verbs(store)
        self.closing = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.app = Starlette(routes=[Route("/{path:path}", self.handle, methods=METHODS)])

    async def handle(self, request: Request) -> Response:
        """Answer a request; every refusal becomes a `Status`."""
        self.loop = asyncio.get_running_loop()
        parts = [p for p in request.url.path.split("/") if p]
        if len(parts) == 1 and parts[0] in OPEN_PATHS:
            return PlainTextResponse("ok")
        try:
            account = authenticate(request.headers.get("authorization", ""), self.accounts)
            if not parts or parts[0] not in ("api", "apis") or len(parts) <= (2 if parts[0] == "api" else 3):
                return _documents(request, parts)
            if parts[1:3] == ["authorization.k8s.io", "v1"] and parts[3:] in (["selfsubjectaccessreviews"], ["selfsubjectrulesreviews"]):
                return await _review(request, account, rules=parts[3] == "selfsubjectrulesreviews")
            target = _target(parts)
            return await self._act(request, account, target)
        except Failure as refused:
            return JSONResponse(refused.status(), refused.code)
        except Exception as error:
            LOG.exception("%s %s", request.method, request.url.path)
            return JSONResponse(Failure(500, "InternalError", f"Internal error occurred: {error!r}").status(), 500)

    async def _act(self, request: Request, account: Account, target: Target) -> Response:
        method, kind = request.method, target.kind
        watching = request.query_params.get("watch", "").lower() in ("true", "1")
        read = "get" if target.name else "watch" if watching else "list"
        verb = {"GET": read, "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]
        if method == "DELETE" and not target.name:
            verb = "deletecollection"
        account.require(
            verb,
            kind.group,
            target.resource,
            target.namespace or (target.name if kind.plural == "namespaces" else ""),
            target.name,
        )
        if verb == "watch":
            return self._watch(request, target)
        if verb == "list":
            return self._list(request, target)
        if verb == "get":
            return _answer(request, kind, target.shown(self.verbs.get(kind, target.namespace, target.name)))
        if (
            (bool(target.name) == (verb in ("create", "deletecollection")))
            or (target.sub and verb == "delete")
            or (verb == "deletecollection" and not kind.namespaced)
            or (kind.namespaced and not target.namespace)
        ):
            raise failure.NOT_ALLOWED
        return await self._change(request, account, target, verb)

    async def _change(self, request: Request, account: Account, target: Target, verb: str) -> Response:
        kind, query = target.kind, request.query_params
        content_type = request.headers.get("content-type", "application/json").split(";")[0].strip()
        body = target.stored(await _body(request, content_type))
        call = _call(request)
        if verb in ("delete", "deletecollection"):
            options = body if isinstance(body, dict) else {}
            policy = query.get("propagationPolicy")
            options |= {"propagationPolicy": policy} if policy else {}
            dry = call.dry_run or "All" in options.get("dryRun", [])
            if verb == "delete":
                return JSONResponse(target.shown(self.verbs.delete(kind, target.namespace, target.name, options, dry_run=dry)))
            match = matcher(kind, query.get("labelSelector", ""), query.get("fieldSelector", ""))
            doomed = [o for o in self.store.find(kind, target.namespace) if match(o)]
            self.verbs.delete_collection(kind, doomed, options, dry_run=dry)
            return JSONResponse({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
        if verb != "patch" and not isinstance(body, dict):
            raise failure.bad_request("the body of the request is not an object")
        code = 200
        if verb == "create":
            stored, code = self.verbs.create(kind, target.namespace, body, call), 201
        elif verb == "update":
            stored = self.verbs.update(kind, target.namespace, target.name, body, call, target.sub)
        elif Verbs.patch_type(kind, content_type) == "apply":
            if not query.get("fieldManager"):
                raise Failure(
                    422,
                    "Invalid",
                    'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch',
                )
            if self.store.get(kind, target.namespace, target.name) is None and not target.sub:
                account.require("create", kind.group, kind.plural, target.namespace, target.name)
            stored, new = self.verbs.apply(kind, target.namespace, target.name, body, call, target.sub)
            code = 201 if new else 200
        else:
            if call.force:
                raise Failure(
                    422,
                    "Invalid",
                    'PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch',
                )
            stored = self.verbs.patch(kind, target.namespace, target.name, content_type, body, call, target.sub)
        answer = _answer(request, kind, target.shown(stored), code)
        for warning in call.warnings:
            answer.headers.append("Warning", f"299 - {json.dumps(warning)}")
        return answer

    def _list(self, request: Request, target: Target) -> Response:
        query, kind = request.query_params, target.kind
        if query.get("continue"):
            raise Failure(410, "Expired", "continue tokens are not supported by the embedded API server: lists are answered whole")
        match = matcher(kind, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        found = [o for o in self.store.find(kind, target.namespace) if match(o)]
        metadata = {"resourceVersion": str(self.store.version)}
        if _wants_table(request):
            return JSONResponse(as_table(kind, found, metadata, query.get("includeObject", "Metadata")))
        items = [{k: v for k, v in o.items() if k not in ("apiVersion", "kind")} if kind.builtin else target.shown(o) for o in found]
        return JSONResponse({"kind": f"{kind.kind}List", "apiVersion": target.api_version, "metadata": metadata, "items": items})

    def _watch(self, request: Request, target: Target) -> Response:
        query, kind = request.query_params, target.kind
        if query.get("sendInitialEvents"):
            raise Failure(422, "Invalid", "sendInitialEvents: Forbidden: sendInitialEvents is not supported by the embedded API server")
        match = matcher(kind, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        if target.name:
            raise failure.NOT_ALLOWED
        try:
            timeout_s = float(query.get("timeoutSeconds") or DEFAULT_WATCH_S)
            asked = int(query.get("resourceVersion") or 0)
        except ValueError as error:
            raise failure.bad_request(f"resourceVersion or timeoutSeconds: {error}; give whole numbers") from error
        table, bookmarks = _wants_table(request), query.get("allowWatchBookmarks", "").lower() in ("true", "1")
        include = query.get("includeObject", "Metadata")

        def line(change: str, obj: Object) -> str:
            shown = as_table(kind, [obj], {"resourceVersion": obj["metadata"]["resourceVersion"]}, include) if table else target.shown(obj)
            return json.dumps({"type": change, "object": shown}) + "\n"

        def bookmark(version: int) -> str:
            bare = {
                "kind": kind.kind,
                "apiVersion": target.api_version,
                "metadata": {"resourceVersion": str(version), "creationTimestamp": None},
            }
            return json.dumps({"type": "BOOKMARK", "object": bare}) + "\n"

        async def stream() -> AsyncIterator[str]:
            seen = asked or self.store.version
            deadline, next_bookmark = time.monotonic() + timeout_s, time.monotonic() + BOOKMARK_EVERY_S
            if not asked:
                for obj in self.store.find(kind, target.namespace):
                    if match(obj):
                        yield line("ADDED", obj)
            changed = asyncio.Event()
            with self.store.listening(changed.set):
                while not self.closing:
                    changed.clear()
                    if seen < self.store.oldest:
                        yield json.dumps({"type": "ERROR", "object": failure.expired(seen, self.store.oldest).status()}) + "\n"
                        return
                    latest = max(seen, self.store.version)
                    for change in self.store.since(kind, target.namespace, seen):
                        shown = _seen_through(change, match)
                        if shown:
                            yield line(*shown)
                    seen, now = latest, time.monotonic()
                    if bookmarks and (now >= next_bookmark or now >= deadline):
                        next_bookmark = now + BOOKMARK_EVERY_S
                        yield bookmark(seen)
                    if now >= deadline:
                        return
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), min(deadline, next_bookmark) - now)

        return StreamingResponse(stream(), media_type="application/json")


def _seen_through(change: Change, match: Any) -> tuple[str, Object] | None:
    """A change as a watcher with a selector sees it: an object that stops matching is DELETED for it."""
    if change.type == "DELETED":
        return ("DELETED", change.body) if match(change.previous) else None
    after, before = match(change.body), change.previous is not None and match(change.previous)
    if after:
        return ("MODIFIED" if before else "ADDED"), change.body
    if before and change.previous is not None:
        gone = change.previous | {"metadata": change.previous["metadata"] | {"resourceVersion": str(change.version)}}
        return "DELETED", gone
    return None


def _target(parts: list[str]) -> Target:
    """Read a resource path; 404 in the real server's words for what is not here."""
    group, rest = ("", parts[1:]) if parts[0] == "api" else (parts[1], parts[2:])
    version, rest = rest[0], rest[1:]
    namespace = ""
    if len(rest) >= 3 and rest[0] == "namespaces" and rest[2] != "status" and (group or rest[2] != "finalize"):
        namespace, rest = rest[1], rest[2:]
    if group and group not in discovery.GROUPS:
        hint = f"{rest[0]} of {group} are not served by the embedded API server" if rest[0] in KNOWN_ELSEWHERE else ""
        raise failure.no_resource(hint)
    old = {kind.plural: kind for kind in OLD_VERSIONS.get((group, version), ())}
    kind = BY_PATH.get((group, version, rest[0])) or old.get(rest[0])
    if kind is None:
        hint = f"{rest[0]} are not served by the embedded API server" if rest[0] in KNOWN_ELSEWHERE else ""
        raise failure.no_resource(hint)
    name, sub = (rest[1] if len(rest) > 1 else ""), (rest[2] if len(rest) > 2 else "")
    if len(rest) > 3 or (sub and not (sub == "status" and kind.status)) or (namespace and not kind.namespaced):
        raise failure.no_resource()
    if name and kind.namespaced and not namespace:
        raise failure.no_resource()
    return Target(kind, namespace, name, sub, f"{group}/{version}" if old else kind.api_version)


def _documents(request: Request, parts: list[str]) -> Response:
    """Discovery, version and OpenAPI."""
    if request.method != "GET":
        raise failure.NOT_ALLOWED
    match parts:
        case []:
            return JSONResponse({"paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]})
        case ["api"]:
            return JSONResponse(discovery.api_versions())
        case ["apis"]:
            return JSONResponse(discovery.groups())
        case ["version"]:
            return JSONResponse(discovery.VERSION)
        case ["api", "v1"]:
            return JSONResponse(discovery.resources("", "v1"))
        case ["apis", group] if group in discovery.GROUPS:
            return JSONResponse(discovery.group(group))
        case ["apis", group, version] if (group, version) in discovery.SERVED:
            return JSONResponse(discovery.resources(group, version))
        case ["openapi", "v2"]:
            if "protobuf" in request.headers.get("accept", "") and "json" not in request.headers.get("accept", ""):
                return Response(discovery.openapi_v2_head(), media_type=discovery.OPENAPI_V2_PROTOBUF)
            return JSONResponse(discovery.openapi_v2())
        case ["openapi", "v3"]:
            return JSONResponse(discovery.openapi_v3_index())
        case ["openapi", "v3", "api", "v1"]:
            return JSONResponse(discovery.openapi_v3(""))
        case ["openapi", "v3", "apis", group, version] if (group, version) in discovery.SERVED:
            return JSONResponse(discovery.openapi_v3(group, version))
    raise failure.no_resource()


async def _review(request: Request, account: Account, *, rules: bool) -> Response:
    """SelfSubjectAccessReview: whether this account may do something. SelfSubjectRulesReview: what it may do in a namespace."""
    if request.method != "POST":
        raise failure.NOT_ALLOWED
    body = await _body(request, request.headers.get("content-type", "application/json").split(";")[0].strip())
    spec = body.get("spec", {}) if isinstance(body, dict) else {}
    if rules:
        return JSONResponse(_reviewed("SelfSubjectRulesReview", spec, _rules_of(account, str(spec.get("namespace") or ""))), 201)
    asked = spec.get("resourceAttributes") or {}
    resource = asked.get("resource", "") + (f"/{asked['subresource']}" if asked.get("subresource") else "")
    allowed = account.may(asked.get("verb", ""), asked.get("group", ""), resource, asked.get("namespace", ""))
    if spec.get("nonResourceAttributes"):
        allowed = True
    status = {"allowed": allowed} | ({"reason": f"account {account.name}"} if allowed else {})
    return JSONResponse(_reviewed("SelfSubjectAccessReview", spec, status), 201)


def _reviewed(kind: str, spec: Any, status: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "apiVersion": "authorization.k8s.io/v1", "metadata": {}, "spec": spec, "status": status}


def _rules_of(account: Account, namespace: str) -> dict[str, Any]:
    if not namespace:
        raise failure.bad_request("no namespace on request")
    found = [rule for rule in account.rules if "*" in rule.namespaces or namespace in rule.namespaces]
    listed = [{"verbs": list(rule.verbs), "apiGroups": list(rule.groups), "resources": list(rule.resources)} for rule in found]
    return {"resourceRules": listed, "nonResourceRules": [], "incomplete": False}


async def _body(request: Request, content_type: str) -> Any:
    try:
        raw = await request.body()
    except ClientDisconnect as error:
        raise failure.bad_request("the client went away") from error
    if len(raw) > MAX_BODY_BYTES:
        raise Failure(413, "RequestEntityTooLarge", f"Request entity too large: limit is {MAX_BODY_BYTES}")
    if not raw:
        return None
    if content_type == "application/vnd.kubernetes.protobuf":
        return proto.decode(raw)
    if "cbor" in content_type:
        raise Failure(415, "UnsupportedMediaType", f"{content_type} is not accepted by the embedded API server; send JSON or YAML")
    try:
        return json.loads(raw, parse_constant=_no_constant)
    except ValueError as error:
        if "yaml" not in content_type:
            raise failure.bad_request(f"error decoding the body as JSON: {error}") from error
    try:
        reader = YAML(typ="safe", pure=True)
        reader.version = "1.1"  # as Kubernetes reads it: a bare y, yes or on is true
        return json.loads(json.dumps(reader.load(raw.decode()), default=_plain))
    except (YAMLError, ValueError, TypeError) as error:
        raise failure.bad_request(f"error decoding YAML: {error}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _plain(value: Any) -> str:
    """YAML reads bare timestamps as dates; objects carry them as strings."""
    return str(value.isoformat() + ("" if getattr(value, "tzinfo", None) or not hasattr(value, "hour") else "Z"))


def _call(request: Request) -> Call:
    query = request.query_params
    dry, validation = query.get("dryRun", ""), query.get("fieldValidation") or "Warn"
    if dry not in ("", "All"):
        raise Failure(422, "Invalid", f'dryRun: Unsupported value: "{dry}": supported values: "All"')
    if validation not in ("Strict", "Warn", "Ignore"):
        raise Failure(422, "Invalid", f'fieldValidation: Unsupported value: "{validation}": supported values: "Ignore", "Strict", "Warn"')
    manager = query.get("fieldManager") or request.headers.get("user-agent", "unknown").split("/")[0][:128]
    return Call(manager, dry == "All", validation, query.get("force", "").lower() in ("true", "1"))


def _wants_table(request: Request) -> bool:
    return "as=Table" in request.headers.get("accept", "")


def _answer(request: Request, kind: Kind, obj: Object, code: int = 200) -> Response:
    if _wants_table(request):
        metadata = {"resourceVersion": obj["metadata"]["resourceVersion"]}
        return JSONResponse(as_table(kind, [obj], metadata, request.query_params.get("includeObject", "Metadata")), code)
    return JSONResponse(obj, code)
