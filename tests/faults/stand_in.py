"""A stand-in for KubeRay and Ray Serve: it reports what a RayService's ``serveConfigV2`` holds, answers requests to it and counts them.

Routing and counting are the product's own (`kfp_components.router`); time is a clock's. What it cannot do: start anything or be slow; an application
does what its `Behaviour` says. ``make test-all`` runs the same releases on real Ray (tests/e2e).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from kfp_components import names
from kfp_components.clock import Clock
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.router import ledger
from kfp_components.router.control import METHODS, Control

OPERATOR = "kuberay-operator"
GOLDEN = 0.6180339887498949
"""Draws are multiples of it: a share of w % of any 100 requests in a row is w, give or take one."""
LATENCY_S = 0.05
BUCKET = next(index for index, bound in enumerate(ledger.LATENCY_BOUNDS_S) if bound >= LATENCY_S)

Answer = tuple[int, dict[str, str], bytes]
Application = dict[str, Any]


@dataclass
class Behaviour:
    """One application. ``status`` is what Serve reports of it once ``starts_after_s`` are over; ``answer`` the HTTP status of its n-th user request
    (1, 2, ...), None in its place: no answer, the client gives up; no ``answer`` at all: always 200. ``smoke`` is the body that requests get."""

    status: str = "RUNNING"
    message: str = "told by the test"
    starts_after_s: float = 0.0
    answer: Callable[[int], int | None] | None = None
    smoke: dict[str, Any] = field(default_factory=lambda: {"ok": True})
    asked: int = 0
    probe: Callable[[int], bool] = lambda _n: True
    """Whether the n-th request that is no user's gets that body, or a wrong one."""
    probed: int = 0


@functools.cache
def _entries(text: str) -> list[Application]:
    """Nobody changes them."""
    return (yaml.load(text, yaml.CSafeLoader) or {}).get("applications") or []


class Serve:
    """The applications of one RayService."""

    def __init__(self, cluster: Cluster, ref: Ref, clock: Clock) -> None:
        self.cluster, self.ref, self.clock = cluster, ref, clock
        self.behaviours: dict[str, Behaviour] = {}
        self.counts: dict[str, ledger.VersionCounts] = {}  # version -> counts
        self.page: Callable[[str], Answer | None] = lambda _page: None
        """What a page of the router's own answers instead."""
        self.served: dict[str, int] = {}
        """Version -> users' requests that it answered well."""
        self.failed: dict[str, int] = {}
        """Version -> users' requests that it failed."""
        self.lost: list[str] = []
        """Users' requests that reached no running application through no fault of its own: what was asked for, and what was there."""
        self.in_flight = 0
        """What the router says is in flight in it."""
        self.weights: list[float] = []
        """What the router was told, one for each change."""
        self.began_unix_s: dict[str, float] = {}
        self._applications: dict[str, Application] = {}
        self._config: dict[str, Any] = {}
        self._backends: dict[str, dict[str, Any]] = {}
        self._control: Control | None = None
        self._replica, self._started_unix_s = 0, 0.0
        self._draws = 0

    def behaviour(self, application: str) -> Behaviour:
        return self.behaviours.setdefault(application, Behaviour())

    def applications(self) -> dict[str, Application]:
        """Those in ``serveConfigV2``."""
        return self._applications

    def status(self, application: str) -> str:
        behaviour = self.behaviour(application)
        began = self.began_unix_s.get(application, 0.0)
        return "DEPLOYING" if self.clock.now_unix_s() < began + behaviour.starts_after_s else behaviour.status

    def written(self) -> None:
        """The RayService was written: take its applications up, and report."""
        found = self.cluster.get(self.ref)
        text = str(((found or {}).get("spec") or {}).get("serveConfigV2") or "")
        entries = _entries(text)
        self._applications = {entry.get("name", "default"): {"route_prefix": "/", "name": "default", **entry} for entry in entries}
        for name in self._applications:
            self.began_unix_s.setdefault(name, self.clock.now_unix_s())
        for name in set(self.began_unix_s) - set(self._applications):
            del self.began_unix_s[name]
        routers = [entry for entry in entries if entry.get("import_path") == names.ROUTER_IMPORT_PATH]
        self._reconfigure(routers[0]["deployments"][0]["user_config"] if routers else None)

    def _reconfigure(self, config: dict[str, Any] | None) -> None:
        """As the router does: a configuration that is wrong, or of an older epoch than the one in force, is refused and that one goes on."""
        if config is None:
            self._control = None
            return
        control = self._control or self._start_router()
        self._config = config
        self._backends = {backend["version"]: backend for backend in (config["stable"], config.get("candidate")) if backend}
        control.configure(config)
        rules = control.rules
        assert rules is not None
        weight = rules.weight_percent if rules.candidate else 0.0
        if self.weights[-1:] != [weight]:
            self.weights.append(weight)

    def _start_router(self) -> Control:
        self._control = Control("")
        self._replica, self._started_unix_s, self.counts = self._replica + 1, self.clock.now_unix_s(), {}
        return self._control

    def restart_router(self) -> None:
        """Its replica dies, and another one comes with what is written."""
        self._start_router()
        self._reconfigure(self._config)

    def shown(self, rayservice: Manifest | None) -> Manifest | None:
        """The RayService with its status, as the operator has written it by the time that somebody looks."""
        if rayservice is not None:
            rayservice["status"] = self._status(rayservice)
        return rayservice

    def report(self) -> None:
        """Write the status, so that a watch sees that something has changed."""
        found = self.cluster.get(self.ref)
        if found is None:
            return
        metadata = {"name": self.ref.name, "namespace": self.ref.namespace}
        body = {"apiVersion": found["apiVersion"], "kind": "RayService", "metadata": metadata, "status": self._status(found)}
        self.cluster.apply(body, manager=OPERATOR, force=True, subresource="status")

    def _status(self, rayservice: Manifest) -> dict[str, Any]:
        statuses = {name: {"status": self.status(name), "message": self.behaviour(name).message} for name in self._applications}
        return {"observedGeneration": rayservice["metadata"]["generation"], "activeServiceStatus": {"applicationStatuses": statuses}}

    @property
    def starting(self) -> bool:
        """Whether an application's status changes by the passing of time."""
        return any(self.behaviour(name).starts_after_s and self.status(name) == "DEPLOYING" for name in self._applications)

    # --- requests ---

    def owner(self, path: str) -> Application | None:
        """The application with the longest route prefix that ``path`` is below."""
        fitting = [a for a in self._applications.values() if path == a["route_prefix"] or path.startswith(a["route_prefix"].rstrip("/") + "/")]
        return max(fitting, key=lambda entry: len(entry["route_prefix"]), default=None)

    def answer(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        """One request that is no user's, as the proxy of Serve would pass it on."""
        if path == "/-/routes":
            return 200, {}, json.dumps({entry["route_prefix"]: name for name, entry in self._applications.items()}).encode()
        application = self.owner(path)
        if application is None:
            return 404, {}, b"Path not found"
        if application["import_path"] != names.ROUTER_IMPORT_PATH or self._control is None:
            return self._direct(application["name"], {})
        below = path.removeprefix(application["route_prefix"].rstrip("/"))
        if below.startswith("/-/"):
            told = {names.ROUTER_HEADER: application["name"]}
            status, more, body = self.page(below[3:]) or self._own_page(self._control, method, below[3:], headers)
            return status, {**told, **more}, body
        pin = headers.get(names.VERSION_HEADER)
        control, now = self._control, self.clock.now_unix_s()
        assert control.rules is not None
        backend = control.rules.known().get(pin) if pin is not None else control.choose(None, self._draw(), now)
        if backend is None:
            return 400, {}, b"no such version"
        told = {names.VERSION_HEADER: backend.version}
        behind = self._behind(backend)
        return (404, told, b"Path not found") if behind is None else self._direct(behind, told)

    def _behind(self, backend: Any) -> str | None:
        """The application that a version's requests reach: where it stands by now, as the router finds it."""
        name = self._backends.get(backend.version, {}).get("application")
        if name is not None:
            return name if name in self._applications else None
        found = self.owner(backend.route)
        return None if found is None else str(found["name"])

    def _direct(self, application: str, headers: dict[str, str]) -> Answer:
        if self.status(application) != "RUNNING":
            return 503, headers, b"the application does not run"
        behaviour = self.behaviour(application)
        behaviour.probed += 1
        told = behaviour.smoke if behaviour.probe(behaviour.probed) else {"ok": False}
        return 200, headers, json.dumps(told).encode()

    def _own_page(self, control: Control, method: str, page: str, headers: dict[str, str]) -> Answer:
        now, status = self.clock.now_unix_s(), 200
        if METHODS.get(page) != method:
            return 405 if page in METHODS else 404, {}, b"{}"
        if page == "heartbeat":
            status, told = control.heartbeat(headers.get("authorization"), now)
        elif page == "ledger":
            versions = {version: counted.as_dict() for version, counted in self.counts.items()}
            replicas = {f"r{self._replica}": {"started_unix_s": self._started_unix_s, "versions": versions}}
            told = {"now_unix_s": now, "replicas": replicas, "latency_bounds_s": ledger.LATENCY_BOUNDS_S}
        else:
            told = {**control.state(now), "replica": f"r{self._replica}", "in_flight": self.in_flight}
        return status, {}, json.dumps(told).encode()

    # --- users ---

    def users_get(self, route: str) -> tuple[str, ...]:
        """The applications that answer users now, as they are routed now; one that is not there or does not run as a sentence in its place."""
        application = self.owner(route)
        if application is None:
            return (f"nothing at {route}",)
        if application["import_path"] != names.ROUTER_IMPORT_PATH or self._control is None:
            return (self._runs(application["name"]),)
        rules, weight = self._control.rules, self._control.weight_percent(self.clock.now_unix_s())
        assert rules is not None
        backends = ([rules.stable] if weight < 100 else []) + ([rules.candidate] if weight > 0 and rules.candidate else [])
        return tuple(f"nothing at {backend.route}" if (behind := self._behind(backend)) is None else self._runs(behind) for backend in backends)

    def _runs(self, application: str) -> str:
        status = self.status(application)
        return application if status == "RUNNING" else f"{application}, which is {status}"

    def send_users(self, route: str, requests: int) -> None:
        """So many users' requests, split as the router splits them now."""
        application = self.owner(route)
        if application is None:
            self.lost += [f"{requests} requests to {route}: no application has that route"]
            return
        control = self._control
        if application["import_path"] != names.ROUTER_IMPORT_PATH or control is None or control.rules is None:
            self._users_reach(application["name"].split("-", 1)[-1], application["name"], requests, counted=None)
            return
        rules, weight = control.rules, control.weight_percent(self.clock.now_unix_s())
        candidate = sum(self._draw() * 100.0 < weight for _ in range(requests)) if rules.candidate and weight else 0
        for backend, number in ((rules.stable, requests - candidate), (rules.candidate, candidate)):
            if backend is not None and number:
                counted = self.counts.setdefault(backend.version, ledger.VersionCounts())
                self._users_reach(backend.version, self._behind(backend), number, counted=counted)

    def _users_reach(self, version: str, application: str | None, requests: int, counted: ledger.VersionCounts | None) -> None:
        if application is None:
            self.lost += [f"{requests} requests to {version}: its application is not there"]
        behaviour = self.behaviour(application) if application is not None else Behaviour()
        runs = application is not None and self.status(application) == "RUNNING"
        if runs and behaviour.answer is None:
            behaviour.asked += requests
            self.served[version] = self.served.get(version, 0) + requests
            if counted is not None:
                _count_good(counted, requests)
            return
        for _ in range(requests):
            behaviour.asked += 1
            status = 404 if application is None else 503 if not runs else behaviour.answer(behaviour.asked) if behaviour.answer else 200
            outcome = self.served if status is not None and status < 400 else self.failed
            outcome[version] = outcome.get(version, 0) + 1
            if counted is not None and status is None:
                counted.count_disconnect(pinned=False)
            elif counted is not None and status is not None:
                counted.count(LATENCY_S, status, "http_5xx" if status >= 500 else None, pinned=False)

    def _draw(self) -> float:
        self._draws += 1
        return self._draws * GOLDEN % 1.0


def _count_good(counted: ledger.VersionCounts, requests: int) -> None:
    """`VersionCounts.count` so many times, at once where that comes to the same."""
    recent = counted.recent
    if recent["failures"] or recent["client_errors"] or recent["disconnects"]:
        for _ in range(requests):
            counted.count(LATENCY_S, 200, None, pinned=False)
        return
    counted.requests += requests
    counted.latency_counts[BUCKET] += requests
    new = min(requests, ledger.RECENT_REQUESTS - recent["requests"])
    counted._outcomes.extend([None] * new)
    recent["requests"] += new
