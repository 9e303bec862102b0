"""The router: ``build(args)`` is the application that ``serveConfigV2`` names. Configured by ``user_config`` alone (see `policy`).

A request is forwarded over loopback HTTP to the version's own route at the very proxy that it arrived at, body and answer streamed as they are. Every
answer says which version gave it. ``x-model-version`` on a request pins it to a version. ``/{model}/-/ledger`` and ``/{model}/-/router`` are the
router's own pages; they only tell. ``POST /{model}/-/heartbeat`` makes the candidate's weight hold on (see `control`); it needs the token whose hash
stands in the RayService, and can do nothing else.

Where the version's application is, is looked up when it is not where it was (see `routes`): the public route changes hands while requests are under
way. What it says of itself by its internal route is told to the client by the public one (see `headers`); pages that it makes (``/docs`` of FastAPI)
lead to the internal route all the same: Serve takes an application's ``root_path`` from its route alone.

Each version has a bulkhead: so many requests in flight, and one more is answered 503 at once. A version that hangs fills its own and no other's.
"""

from __future__ import annotations

import random
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ray import serve

from kfp_components.router import http, ledger, policy, websocket
from kfp_components.router.answers import answer
from kfp_components.router.control import METHODS, Control
from kfp_components.router.headers import ROUTER_HEADER, VERSION_HEADER, header
from kfp_components.router.upstream import Arrived, Upstream

DISTRIBUTION = "kfp-serving-components"
OLDEST_PYTHON = (3, 10)
"""That of Ray 2.60's images; as a zip the router comes to any. The rest of the library needs 3.11."""

OWN_PAGES = "/-/"
IN_FLIGHT_PER_VERSION = 1000
OWN_REQUESTS = 200
"""Requests that the deployment takes beside two full bulkheads: the own pages, and what is answered 503."""

DRAIN_S = 3600.0
"""For what is in flight when the router is removed: that ends by itself, however long it takes.

Meanwhile Serve says DELETING of the application, which holds up no other one. But a router of the same name that comes before the old one is gone
gets no other ``user_config`` than its first (measured with Ray 2.60): so no weight. Who removes a router waits until ``in_flight`` at ``/-/router``
is 0, or gives the next one another name.
"""

_current: Router | None = None


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The ASGI application: one replica a process, so the replica is the module's."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    assert _current is not None
    await _current.handle(scope, receive, send)


def asgi_app() -> Any:
    """What ``serve.ingress`` calls in the replica to get the application."""
    return asgi


class Router:
    """One replica of the router."""

    def __init__(self, model: str, serve_url: str | None = None, max_in_flight_per_version: int = IN_FLIGHT_PER_VERSION) -> None:
        global _current
        self.model = model
        self._max_in_flight = max_in_flight_per_version
        self._control = Control(model)
        self._replica, self._application = identity()
        self._upstream = Upstream(self._application, serve_url)
        self._counts: dict[str, ledger.VersionCounts] = {}
        self._started_unix_s = time.time()
        self._version = package_version()
        _current = self

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve calls this with every new ``user_config``. A wrong one is refused and the old one goes on: raising would stop the replica."""
        self._control.configure(config)
        self._upstream.routes.forget()

    async def close(self) -> None:
        """All connections to the versions."""
        await self._upstream.close()

    async def handle(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One request, or one WebSocket."""
        arrived = Arrived.of(scope)
        if arrived.below.startswith(OWN_PAGES):
            await self._own_page(arrived.below[len(OWN_PAGES) :], scope, send)
            return
        rules = self._control.rules
        if rules is None:
            await answer(scope, send, 503, {"error": f"router of {self.model}: not configured yet"})
            return
        if arrived.header(ROUTER_HEADER) == self._application:
            told = f"router of {self.model}: no version is at {arrived.root or '/'}, this router is"
            await answer(scope, send, 508, {"error": told}, headers={ROUTER_HEADER: self._application})
            return
        pin = arrived.header(VERSION_HEADER)
        if pin is not None and pin not in rules.known():
            known = list(rules.known())
            message = f"router of {self.model}: no version {pin!r}; known are {', '.join(known)}"
            await answer(scope, send, 400, {"error": message, "known": known})
            return
        await self._to_version(arrived, receive, send, rules, pin)

    async def _to_version(self, arrived: Arrived, receive: Any, send: Any, rules: policy.Policy, pin: str | None) -> None:
        if pin is not None:
            backend = rules.known()[pin]
        else:
            sticky = arrived.header(rules.sticky_header) if rules.sticky_header else None
            backend = self._control.choose(sticky, random.random(), time.time())
        counts = self._counts.setdefault(backend.version, ledger.VersionCounts())
        if counts.in_flight >= self._max_in_flight:
            counts.count(0.0, 503, "overloaded", pin is not None)
            message = f"version {backend.version} has {counts.in_flight} requests in flight, which is its limit; ask again"
            await answer(arrived.scope, send, 503, {"error": message}, backend.version, {"retry-after": "1"})
            return
        forward = websocket.forward if arrived.scope["type"] == "websocket" else http.forward
        counting = ledger.Counting(counts, pin is not None)
        try:
            await forward(self._upstream, arrived, receive, send, backend, counting, rules.request_timeout_s)
        finally:
            counting.over()

    async def _own_page(self, page: str, scope: dict[str, Any], send: Any) -> None:
        """Answered with the router's name: a version that has the route by now may answer anything."""
        method, asked = METHODS.get(page), scope.get("method", "a WebSocket")
        mine = {ROUTER_HEADER: self._application}
        if method is None:
            await answer(scope, send, 404, {"error": f"router of {self.model}: no page {page!r}; there are {', '.join(METHODS)}"}, headers=mine)
        elif asked != method:
            told = f"router of {self.model}: {OWN_PAGES}{page} takes {method} alone; the weight is changed in the RayService"
            await answer(scope, send, 405, {"error": told}, headers=mine)
        elif page == "heartbeat":  # a body is not read
            status, found = self._control.heartbeat(header(scope["headers"], "authorization"), time.time())
            await answer(scope, send, status, found, headers=mine | ({"www-authenticate": "Bearer"} if status == 401 else {}))
        else:
            await answer(scope, send, 200, self._ledger() if page == "ledger" else self._state(), headers=mine)

    def _ledger(self) -> dict[str, Any]:
        versions = {version: counts.as_dict() for version, counts in self._counts.items()}
        mine = {"started_unix_s": self._started_unix_s, "versions": versions}
        found = {"model": self.model, "now_unix_s": time.time(), "replicas": {self._replica: mine}}
        return {**found, "latency_bounds_s": ledger.LATENCY_BOUNDS_S, "protocol": policy.PROTOCOL, "router_version": self._version}

    def _state(self) -> dict[str, Any]:
        """``in_flight``: requests of users and WebSockets that are not over yet, of all versions. Who takes the router away waits for 0."""
        in_flight = sum(counts.in_flight for counts in self._counts.values())
        mine = {"replica": self._replica, "application": self._application, "router_version": self._version, "in_flight": in_flight}
        return {**self._control.state(time.time()), **mine}


def identity() -> tuple[str, str]:
    """Of the replica that this process is, and of its application in Serve."""
    context = serve.get_replica_context()
    return str(context.replica_id.unique_id), context.app_name


def package_version() -> str | None:
    """Of the distribution that this is part of; None where only these modules are there."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return None


def build(args: dict[str, Any]) -> serve.Application:
    """The application.

    ``args``: model; optionally serve_url (default: the proxy that a request arrived at) and max_in_flight_per_version, a number of requests. Raises
    ValueError for anything else. It is one replica: each would count, and lease the weight, for itself.
    """
    model, serve_url, limit = _checked(args)
    if sys.version_info < OLDEST_PYTHON:
        raise RuntimeError(f"router: it needs Python {'.'.join(map(str, OLDEST_PYTHON))} or later, this Ray has {sys.version.split()[0]}")
    deployment = serve.deployment(
        name="Router",
        num_replicas=1,
        logging_config={"enable_access_log": False},  # a line a request costs as much as a small model
        max_ongoing_requests=2 * limit + OWN_REQUESTS,
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=DRAIN_S,
    )
    return deployment(serve.ingress(asgi_app)(Router)).bind(model, serve_url, limit)


def _checked(args: dict[str, Any]) -> tuple[str, str | None, int]:
    known = ("model", "serve_url", "max_in_flight_per_version")
    if args.get("num_replicas", 1) != 1:
        raise ValueError(f"router args: num_replicas {args['num_replicas']}: the router is one replica, whose counts are all there are; take it out")
    unknown = sorted(set(args) - {*known, "num_replicas"})
    if unknown or "model" not in args:
        raise ValueError(f"router args: {f'{unknown[0]!r} is not known' if unknown else 'model is missing'}; known are {', '.join(known)}")
    limit = int(args.get("max_in_flight_per_version", IN_FLIGHT_PER_VERSION))
    if limit < 1:
        raise ValueError(f"router args: max_in_flight_per_version {limit} lets no request through; give 1 or more")
    return str(args["model"]), args.get("serve_url"), limit
