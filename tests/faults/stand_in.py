"""A stand-in for KubeRay and Ray Serve: it reports what a RayService's ``serveConfigV2`` holds as running, and answers requests to it over HTTP.

Routing and counting are the product's own (`kfp_components.router`). What it cannot do: start anything, be slow, or take time; an application does what
its `Behaviour` says. ``make test-all`` runs the same releases on real Ray (tests/e2e).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import yaml

from kfp_components import names
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.router import ledger, policy

OPERATOR = "kuberay-operator"
GOLDEN = 0.6180339887498949
"""Draws are multiples of it: a share of w % of any 100 requests in a row is w, give or take one."""

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Behaviour:
    """One application. ``status`` is what Serve reports of it; ``answer`` the HTTP status of its n-th user request (1, 2, ...); None: no answer, the client
    gives up. ``smoke`` is the body that pinned requests get."""

    status: str = "RUNNING"
    answer: Callable[[int], int | None] = lambda _n: 200
    smoke: dict[str, Any] = field(default_factory=lambda: {"ok": True})
    asked: int = 0


class Serve:
    """The applications of one RayService."""

    def __init__(self, cluster: Cluster, ref: Ref) -> None:
        self.cluster, self.ref = cluster, ref
        self.behaviours: dict[str, Behaviour] = {}
        self.counts: dict[str, dict[str, ledger.VersionCounts]] = {}  # model -> version -> counts
        self.users_per_look = 40
        self.page: Callable[[str], Answer | None] = lambda _page: None
        """What a page of the router's own answers instead."""
        self.failed: dict[str, int] = {}  # version -> users' requests that it failed
        self._draws = 0

    def behaviour(self, application: str) -> Behaviour:
        return self.behaviours.setdefault(application, Behaviour())

    def applications(self) -> dict[str, dict[str, Any]]:
        found = self.cluster.get(self.ref)
        text = str(((found or {}).get("spec") or {}).get("serveConfigV2") or "")
        return {entry["name"]: entry for entry in (yaml.safe_load(text) or {}).get("applications") or []}

    def report(self) -> None:
        """Write the status, as the operator does after each change."""
        found = self.cluster.get(self.ref)
        if found is None:
            return
        statuses = {name: {"status": self.behaviour(name).status, "message": "told by the test"} for name in self.applications()}
        status = {"observedGeneration": found["metadata"]["generation"], "activeServiceStatus": {"applicationStatuses": statuses}}
        metadata = {"name": self.ref.name, "namespace": self.ref.namespace}
        body = {"apiVersion": found["apiVersion"], "kind": "RayService", "metadata": metadata, "status": status}
        self.cluster.apply(body, manager=OPERATOR, force=True, subresource="status")

    def answer(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        """One request, as the proxy of Serve would pass it on."""
        model, _, below = path.lstrip("/").partition("/")
        router = self.applications().get(names.router_application(model))
        if router is None:
            return 404, {}, b"Path not found"
        rules = policy.parse(router["deployments"][0]["user_config"])
        if below.startswith("-/"):
            return self.page(below[2:]) or self._own_page(model, rules, below[2:])
        pin = headers.get(names.VERSION_HEADER)
        if pin is not None:
            backend = rules.known().get(pin)
            if backend is None:
                return 400, {}, b"no such version"
        else:
            backend = rules.stable
        version = backend.version
        if names.application(model, version) not in self.applications():
            return 404, {names.VERSION_HEADER: version}, b"Path not found"
        return 200, {names.VERSION_HEADER: version}, json.dumps(self.behaviour(names.application(model, version)).smoke).encode()

    def send_users(self, model: str, requests: int) -> None:
        """So many users' requests, split as the router is told now."""
        found = self.applications()
        rules = policy.parse(found[names.router_application(model)]["deployments"][0]["user_config"])
        for _ in range(requests):
            self._draws += 1
            version = rules.choose(None, self._draws * GOLDEN % 1.0, 0.0).version
            application = names.application(model, version)
            counted = self.counts.setdefault(model, {}).setdefault(version, ledger.VersionCounts())
            behaviour = self.behaviour(application)
            behaviour.asked += 1
            status = behaviour.answer(behaviour.asked) if application in found else 404
            if status is None:
                counted.client_disconnects += 1
            else:
                counted.count(0.05, status, "http_5xx" if status >= 500 else None, pinned=False)
            if status is None or status >= 400:
                self.failed[version] = self.failed.get(version, 0) + 1

    def _own_page(self, model: str, rules: policy.Policy, page: str) -> Answer:
        if page == "ledger":
            self.send_users(model, self.users_per_look)
            versions = {version: counted.as_dict() for version, counted in self.counts.get(model, {}).items()}
            told: dict[str, Any] = {"replicas": {"r1": {"versions": versions}}, "latency_bounds_s": ledger.LATENCY_BOUNDS_S}
        else:
            candidate = None if rules.candidate is None else vars(rules.candidate)
            told = {"stable": vars(rules.stable), "candidate": candidate, "weight_percent_effective": rules.weight_percent if candidate else 0.0}
        return 200, {}, json.dumps(told).encode()


class Operated(KubernetesCluster):
    """The real client; after each of its writes of the RayService the stand-in operator reports."""

    serve: Serve | None = None

    def apply(self, manifest: Manifest, *, manager: str, force: bool = False, subresource: Literal["status"] | None = None) -> Manifest:
        written = super().apply(manifest, manager=manager, force=force, subresource=subresource)
        if self.serve is not None and manifest["kind"] == "RayService" and subresource is None:
            self.serve.report()
        return written


def listen(serve: Serve) -> tuple[ThreadingHTTPServer, threading.Thread]:
    """Serve it on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def _go(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            status, headers, body = serve.answer(self.command, self.path, {key.lower(): value for key, value in self.headers.items()})
            self.send_response(status)
            for key, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _go

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    return server, thread
