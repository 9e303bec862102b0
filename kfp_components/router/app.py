"""The router: ``build(args)`` is the application that ``serveConfigV2`` names. Configured by ``user_config`` alone (see `policy`).

A request is forwarded over loopback HTTP to the version's own route at the very proxy that it arrived at, body and answer streamed as they are. Every
answer says which version gave it. ``x-model-version`` on a request pins it to a version. ``/{model}/-/ledger`` and ``/{model}/-/router`` are the
router's own pages; they only tell. ``POST /{model}/-/heartbeat`` makes the candidate's weight hold on (see `control`); it needs the token whose hash
stands in the RayService, and can do nothing else.

Each version has a bulkhead: so many requests in flight, and one more is answered 503 at once. A version that hangs fills its own and no other's.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any
from urllib.parse import quote

import aiohttp
from multidict import CIMultiDict
from ray import serve
from yarl import URL

from kfp_components.router import ledger, policy
from kfp_components.router.control import METHODS, Control

VERSION_HEADER = "x-model-version"
OWN_PAGES = "/-/"
REPLAYABLE_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 5.0
IN_FLIGHT_PER_VERSION = 1000
OWN_REQUESTS = 200
"""Requests that the deployment takes beside two full bulkheads: the own pages, and what is answered 503."""

KEEP_ALIVE_S = 30.0
"""Below the 90 s of Serve's proxy, so that we never write to a connection that it is just closing."""

HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
}

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
        self._serve_url = serve_url
        self._max_in_flight = max_in_flight_per_version
        self._control = Control(model)
        self._session: aiohttp.ClientSession | None = None
        self._counts: dict[str, ledger.VersionCounts] = {}
        self._started_unix_s = time.time()
        self._replica = replica_id()
        _current = self

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve calls this with every new ``user_config``. A wrong one is refused and the old one goes on: raising would stop the replica."""
        self._control.configure(config)

    async def handle(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One request."""
        rules = self._control.rules
        if rules is None:
            await _answer(send, 503, {"error": f"router of {self.model}: not configured yet"})
            return
        path = scope["path"]
        root = scope.get("root_path") or ""
        below = path[len(root) :] if root and path.startswith(root) else path
        if below.startswith(OWN_PAGES):
            await self._own_page(below[len(OWN_PAGES) :], scope, send)
            return
        headers = scope["headers"]
        pin = _header(headers, VERSION_HEADER)
        if pin is not None:
            known = rules.known()
            if pin not in known:
                message = f"router of {self.model}: no version {pin!r}; known are {', '.join(known)}"
                await _answer(send, 400, {"error": message, "known": list(known)})
                return
            backend = known[pin]
        else:
            sticky = _header(headers, rules.sticky_header) if rules.sticky_header else None
            backend = self._control.choose(sticky, random.random(), time.time())
        counts = self._counts.setdefault(backend.version, ledger.VersionCounts())
        if counts.in_flight >= self._max_in_flight:
            counts.count(0.0, 503, "overloaded", pin is not None)
            message = f"version {backend.version} has {counts.in_flight} requests in flight, which is its limit; ask again"
            await _answer(send, 503, {"error": message}, backend.version, retry_after_s=1)
            return
        counts.in_flight += 1
        try:
            await self._forward(scope, receive, send, backend, below, counts, rules.request_timeout_s, pinned=pin is not None)
        finally:
            counts.in_flight -= 1

    async def _forward(
        self,
        scope: dict[str, Any],
        receive: Any,
        send: Any,
        backend: policy.Backend,
        below: str,
        counts: ledger.VersionCounts,
        timeout_s: float,
        *,
        pinned: bool,
    ) -> None:
        started = time.perf_counter()
        begun = False  # whether the client has been sent the head of the answer
        status = 502

        def done(failure: str | None) -> None:
            counts.count(time.perf_counter() - started, status, failure, pinned)

        try:
            body = await _request_body(scope, receive)
            async with self._upstream().request(
                scope["method"],
                self._url(scope, backend, below),
                data=body,
                headers=_forwarded_headers(scope["headers"]),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s),
            ) as answer:
                status = answer.status
                await send({"type": "http.response.start", "status": status, "headers": _answer_headers(answer, backend.version)})
                begun = True
                async for chunk in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (asyncio.CancelledError, ClientGone):
            counts.count_disconnect(pinned)
            raise
        except TimeoutError:
            status = 504
            done("timeout")
            if begun:
                raise
            await _answer(send, 504, {"error": f"version {backend.version} gave no answer in {timeout_s:g} s"}, backend.version)
        except aiohttp.ClientError as error:
            done("stream_broken" if begun else "connect")
            if begun:
                raise
            await _answer(send, 502, {"error": f"version {backend.version}: {type(error).__name__}: {error}"}, backend.version)
        else:
            overloaded = status == 503 and "retry-after" in answer.headers
            done("overloaded" if overloaded else "http_5xx" if status >= 500 else None)

    def _upstream(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    def _url(self, scope: dict[str, Any], backend: policy.Backend, below: str) -> Any:
        if self._serve_url is not None:
            base = self._serve_url
        else:
            host, port = scope["server"]  # the proxy that the request arrived at
            base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        raw = scope.get("raw_path")
        root = (scope.get("root_path") or "").encode()
        path = raw[len(root) :].decode("ascii") if raw and raw.startswith(root) else _quote(below)
        query = scope.get("query_string", b"").decode("ascii")
        return URL(f"{base}{backend.route}{path}" + (f"?{query}" if query else ""), encoded=True)

    async def _own_page(self, page: str, scope: dict[str, Any], send: Any) -> None:
        method = METHODS.get(page)
        if method is None:
            await _answer(send, 404, {"error": f"router of {self.model}: no page {page!r}; there are {', '.join(METHODS)}"})
        elif scope["method"] != method:
            told = f"router of {self.model}: {OWN_PAGES}{page} takes {method} alone; the weight is changed in the RayService"
            await _answer(send, 405, {"error": told})
        elif page == "heartbeat":  # a body is not read
            status, found = self._control.heartbeat(_header(scope["headers"], "authorization"), time.time())
            await _answer(send, status, found)
        elif page == "ledger":
            versions = {version: counts.as_dict() for version, counts in self._counts.items()}
            mine = {"started_unix_s": self._started_unix_s, "versions": versions}
            found = {"model": self.model, "now_unix_s": time.time(), "replicas": {self._replica: mine}}
            await _answer(send, 200, {**found, "latency_bounds_s": ledger.LATENCY_BOUNDS_S})
        else:
            await _answer(send, 200, {**self._control.state(time.time()), "replica": self._replica})


class ClientGone(Exception):
    """The client went away while it was sending."""


async def _request_body(scope: dict[str, Any], receive: Any) -> Any:
    """The body as bytes when it is whole and small, else as a stream."""
    first = await receive()
    if first["type"] == "http.disconnect":
        raise ClientGone
    body = first.get("body", b"")
    if not first.get("more_body"):
        return body or None
    length = _header(scope["headers"], "content-length")
    if length is not None and int(length) <= REPLAYABLE_BYTES:
        parts = [body]
        async for part in _rest(receive):
            parts.append(part)
        return b"".join(parts)

    async def stream() -> Any:
        yield body
        async for part in _rest(receive):
            yield part

    return stream()


async def _rest(receive: Any) -> Any:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return


def _forwarded_headers(headers: list[tuple[bytes, bytes]]) -> CIMultiDict[str]:
    forwarded: CIMultiDict[str] = CIMultiDict()
    for name, value in headers:
        key = name.decode("latin-1")
        if key.lower() not in HOP_BY_HOP:
            forwarded.add(key, value.decode("latin-1"))
    return forwarded


def _answer_headers(answer: aiohttp.ClientResponse, version: str) -> list[tuple[bytes, bytes]]:
    kept = [(name.lower(), value) for name, value in answer.raw_headers if name.decode("latin-1").lower() not in (*HOP_BY_HOP, VERSION_HEADER)]
    return [*kept, (VERSION_HEADER.encode(), version.encode())]


async def _answer(send: Any, status: int, body: dict[str, Any], version: str | None = None, retry_after_s: int | None = None) -> None:
    payload = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(payload)).encode())]
    if version is not None:
        headers.append((VERSION_HEADER.encode(), version.encode()))
    if retry_after_s is not None:
        headers.append((b"retry-after", str(retry_after_s).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": payload, "more_body": False})


def _header(headers: list[tuple[bytes, bytes]], name: str) -> str | None:
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in headers if key.lower() == wanted), None)


def _quote(path: str) -> str:
    return quote(path, safe="/:@!$&'()*+,;=~-._")


def replica_id() -> str:
    """Of the replica that this process is."""
    return str(serve.get_replica_context().replica_id.unique_id)


def build(args: dict[str, Any]) -> serve.Application:
    """The application.

    ``args``: model; optionally serve_url (default: the proxy that a request arrived at) and max_in_flight_per_version, a number of requests. Raises
    ValueError for anything else. It is one replica: each would count, and lease the weight, for itself.
    """
    model, serve_url, limit = _checked(args)
    deployment = serve.deployment(
        name="Router",
        num_replicas=1,
        logging_config={"enable_access_log": False},  # a line a request costs as much as a small model
        max_ongoing_requests=2 * limit + OWN_REQUESTS,
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=30,
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
