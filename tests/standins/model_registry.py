"""A stand-in for Kubeflow's Model Registry: what its REST contract says of models, versions and artifacts, in memory on loopback.

It answers as the real server was seen to (v0.3.10 on PostgreSQL; the same tests run against both): names are looked up by SQL's LIKE, several finds are a
404, all custom properties are replaced at once, lists are paged, errors are ``{"code", "message"}``. What it cannot do: everything else of the API (other
kinds of objects, ``filterQuery``, order, archiving, experiments), the limits of a database (255 characters in a name), other databases' spelling of equal
names, two writers at the same moment, authentication beyond one token.

The `Door` in front of it, and of a real server, holds every body that goes either way against the models of the registry's own client.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

import httpx
import mr_openapi

SENT: dict[str, Any] = {
    r"POST /registered_models": mr_openapi.RegisteredModelCreate,
    r"PATCH /registered_models/\w+": mr_openapi.RegisteredModelUpdate,
    r"POST /model_versions": mr_openapi.ModelVersionCreate,
    r"PATCH /model_versions/\w+": mr_openapi.ModelVersionUpdate,
    r"POST /model_versions/\w+/artifacts": mr_openapi.Artifact,
}
ANSWERED: dict[str, Any] = {
    r"GET /registered_model": mr_openapi.RegisteredModel,
    r"GET /registered_models": mr_openapi.RegisteredModelList,
    r"(POST|PATCH) /registered_models(/\w+)?": mr_openapi.RegisteredModel,
    r"GET /registered_models/\w+/versions": mr_openapi.ModelVersionList,
    r"GET /model_version": mr_openapi.ModelVersion,
    r"(POST|PATCH) /model_versions(/\w+)?": mr_openapi.ModelVersion,
    r"POST /model_versions/\w+/artifacts": mr_openapi.Artifact,
    r"GET /model_versions/\w+/artifacts": mr_openapi.ArtifactList,
    r"GET /model_artifact": mr_openapi.ModelArtifact,
}

Query = Mapping[str, str]
Answer = tuple[int, bytes]
Server = Callable[[str, str, Query, bytes], Answer]
"""Method, path below the API's version, query and body -> status and body."""


@dataclass
class Door:
    """Where a server is reached under one version of the API. ``told`` collects what the contract does not allow; empty is right."""

    url: str
    told: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)


@contextmanager
def door(server: Server, api_version: str, token: str | None = None) -> Iterator[Door]:
    """The server on loopback. With a token, who does not show it is refused as Istio does."""
    prefix = f"/api/model_registry/{api_version}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # it would hold each body back for 40 ms

        def answer(self) -> None:
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if token and self.headers.get("authorization") != f"Bearer {token}":
                self.send(403, b"RBAC: access denied", "text/plain")
            elif not path.startswith(f"{prefix}/"):
                self.send(404, b"404 page not found\n", "text/plain; charset=utf-8")
            else:
                call = f"{self.command} {path.removeprefix(prefix)}"
                found.calls.append(call)
                if body:
                    check(SENT, call, body)
                status, answered = server(self.command, path.removeprefix(prefix), dict(parse_qsl(query)), body)
                check(ANSWERED if status < 400 else {".*": mr_openapi.Error}, call, answered)
                self.send(status, answered, "application/json; charset=UTF-8")

        def send(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = answer

        def log_message(self, *_about: Any) -> None:
            return

    def check(models: dict[str, Any], call: str, body: bytes) -> None:
        model = next((model for pattern, model in models.items() if re.fullmatch(pattern, call)), None)
        try:
            assert model is not None, "not in the contract"
            assert model.from_json(body.decode()) is not None
            unknown = json.loads(body).keys() - known_keys(model)
            assert not unknown, f"unknown {unknown}"
        except Exception as error:
            found.told.append(f"{call}: {error}: {body[:300]!r}")

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    found = Door(f"http://127.0.0.1:{listening.server_address[1]}")
    threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield found
    finally:
        listening.shutdown()
        listening.server_close()


def known_keys(model: Any) -> set[str]:
    """Field names as they are sent; of an artifact those of a model artifact."""
    model = mr_openapi.ModelArtifact if model is mr_openapi.Artifact else model
    return {about.alias or name for name, about in model.model_fields.items()}


@contextmanager
def real(url: str) -> Iterator[Server]:
    """A real server that speaks v1alpha3, whatever version its door speaks."""

    def answer(method: str, path: str, query: Query, body: bytes) -> Answer:
        headers = {"content-type": "application/json"} if body else {}
        found = client.request(method, f"/api/model_registry/v1alpha3{path}", params=dict(query), content=body, headers=headers)
        return found.status_code, found.content

    with httpx.Client(base_url=url, timeout=30) as client:
        yield answer


class StandIn:
    """The objects, by number. Callable as a `Server`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, dict[str, Any]] = {}
        self._versions: dict[str, dict[str, Any]] = {}
        self._artifacts: dict[str, tuple[str, dict[str, Any]]] = {}
        self._last = 0

    def __call__(self, method: str, path: str, query: Query, body: bytes) -> Answer:
        with self._lock:
            try:
                status, answer = self._answer(method, path.strip("/").split("/"), query, decoded(json.loads(body)) if body else {})
            except ValueError as error:
                status, answer = 400, {"code": "Bad Request", "message": f"error setting field CustomProperties: bad request: {error}"}
            return status, json.dumps(answer).encode()

    def _answer(self, method: str, path: list[str], query: Query, body: dict[str, Any]) -> tuple[int, Any]:
        match method, path:
            case "POST", ["registered_models"]:
                return self._make(self._models, body, self._models.values())
            case "POST", ["model_versions"]:
                siblings = [version for version in self._versions.values() if version["registeredModelId"] == body["registeredModelId"]]
                return self._make(self._versions, body, siblings)
            case "POST", ["model_versions", number, "artifacts"]:
                siblings = [artifact for of, artifact in self._artifacts.values() if of == number]
                made: dict[str, Any] = {}
                status, answer = self._make(made, body, siblings)
                self._artifacts |= {key: (number, value) for key, value in made.items()}
                return status, answer
            case "PATCH", ["registered_models", number] if number in self._models:
                return 200, self._changed(self._models[number], body)
            case "PATCH", ["model_versions", number] if number in self._versions:
                return 200, self._changed(self._versions[number], body)
            case "GET", ["registered_model"]:
                return self._one(self._models.values(), query["name"])
            case "GET", ["model_version"]:
                return self._one((v for v in self._versions.values() if v["registeredModelId"] == query["parentResourceId"]), query["name"])
            case "GET", ["model_artifact"]:
                return self._one((artifact for of, artifact in self._artifacts.values() if of == query["parentResourceId"]), query["name"])
            case "GET", ["registered_models"]:
                return page(self._models.values(), query)
            case "GET", ["registered_models", number, "versions"]:
                return page((version for version in self._versions.values() if version["registeredModelId"] == number), query)
            case "GET", ["model_versions", number, "artifacts"]:
                return page((artifact for of, artifact in self._artifacts.values() if of == number), query)
        return 404, {"code": "Not Found", "message": f"nothing found for {'/'.join(path)}: not found"}

    def _make(self, into: dict[str, Any], body: dict[str, Any], siblings: Any) -> tuple[int, Any]:
        if not body.get("name"):
            return 422, {"code": "Bad Request", "message": "required field 'name' is zero value."}
        if any(other["name"] == body["name"] for other in siblings):
            return 409, {"code": "Conflict", "message": f"{body['name']} already exists: conflict"}
        self._last += 1
        made = {"customProperties": {}, "state": "LIVE", **body, "id": str(self._last), "createTimeSinceEpoch": "1", "lastUpdateTimeSinceEpoch": "1"}
        if "artifactType" in body:
            del made["state"]
        into[made["id"]] = made
        return 201, made

    def _changed(self, found: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        found.update(body)
        return found

    def _one(self, among: Any, name: str) -> tuple[int, Any]:
        pattern = re.compile("".join({"%": ".*", "_": "."}.get(piece, re.escape(piece)) for piece in name), re.DOTALL)
        found = [item for item in among if pattern.fullmatch(item["name"])]
        if len(found) != 1:
            return 404, {"code": "Not Found", "message": f"{'multiple' if found else 'no'} objects found for name={name}: not found"}
        return 200, found[0]


def decoded(body: dict[str, Any]) -> dict[str, Any]:
    """Structures come in base64 and are given back as JSON. Raises `ValueError` for others."""
    for value in body.get("customProperties", {}).values():
        if "struct_value" in value:
            value["struct_value"] = json.dumps(json.loads(base64.b64decode(value["struct_value"], validate=True)))
    return body


def page(items: Any, query: Query) -> tuple[int, Any]:
    """By number; the token is the last number of the page before."""
    size, after = int(query.get("pageSize", 20)), int(query.get("nextPageToken") or 0)
    rest = [item for item in items if int(item["id"]) > after]
    token = rest[size - 1]["id"] if len(rest) > size else ""
    return 200, {"items": rest[:size], "nextPageToken": token, "pageSize": size, "size": len(rest[:size])}
