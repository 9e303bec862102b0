"""The router: ``build(args)`` is the application that ``serveConfigV2`` names. Configured by ``user_config`` alone (see `policy`).

A request is forwarded over loopback HTTP to the version's own route at the very proxy that it arrived at, body and answer streamed as they are. Every
answer says which version gave it. ``x-model-version`` on a request pins it to a version. ``/{model}/-/ledger`` and ``/{model}/-/router`` are the
router's own pages; they only tell, so there is nothing to protect but the RayService itself.
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

VERSION_HEADER = "x-model-version"
OWN_PAGES = "/-/"
REPLAYABLE_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 5.0
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

    def __init__(self, model: str, serve_url: str | None = None) -> None:
        global _current
        self.model = model
        self._serve_url = serve_url
        self._policy: policy.Policy | None = None
        self._refused: str | None = None  # why the last user_config is not in force
        self._session: aiohttp.ClientSession | None = None
        self._counts: dict[str, ledger.VersionCounts] = {}
        self._started_unix_s = time.time()
        self._replica = serve.get_replica_context().replica_id.unique_id
        _current = self

    def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve calls this with every new ``user_config``. A wrong one is refused and the old one goes on: raising would stop the replica."""
        try:
            found = policy.parse(config)
            if self._policy is not None and 0 < found.epoch < self._policy.epoch:
                raise ValueError(f"router user_config: epoch {found.epoch} is older than {self._policy.epoch}, which is in force")
            self._policy, self._refused = found, None
        except ValueError as error:
            if self._policy is None:
                raise
            self._refused = str(error)

    async def handle(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One request."""
        if self._policy is None:
            await _answer(send, 503, {"error": f"router of {self.model}: not configured yet"})
            return
        path = scope["path"]
        root = scope.get("root_path") or ""
        below = path[len(root) :] if root and path.startswith(root) else path
        if below.startswith(OWN_PAGES):
            await self._own_page(below[len(OWN_PAGES) :], scope["method"], send)
            return
        headers = scope["headers"]
        pin = _header(headers, VERSION_HEADER)
        rules = self._policy
        if pin is not None:
            known = rules.known()
            if pin not in known:
                message = f"router of {self.model}: no version {pin!r}; known are {', '.join(known)}"
                await _answer(send, 400, {"error": message, "known": list(known)})
                return
            backend = known[pin]
        else:
            sticky = _header(headers, rules.sticky_header) if rules.sticky_header else None
            backend = rules.choose(sticky, random.random(), time.time())
        counts = self._counts.setdefault(backend.version, ledger.VersionCounts())
        counts.in_flight += 1
        try:
            await self._forward(scope, receive, send, backend, below, counts, pinned=pin is not None)
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
        *,
        pinned: bool,
    ) -> None:
        assert self._policy is not None
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
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=self._policy.request_timeout_s),
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
            await _answer(send, 504, {"error": f"version {backend.version} gave no answer in {self._policy.request_timeout_s:g} s"}, backend.version)
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

    async def _own_page(self, page: str, method: str, send: Any) -> None:
        assert self._policy is not None
        if method != "GET":
            await _answer(send, 405, {"error": f"router of {self.model}: {OWN_PAGES}{page} is read only; the weight is changed in the RayService"})
        elif page == "ledger":
            versions = {version: counts.as_dict() for version, counts in self._counts.items()}
            mine = {"started_unix_s": self._started_unix_s, "versions": versions}
            found = {"model": self.model, "now_unix_s": time.time(), "replicas": {self._replica: mine}}
            await _answer(send, 200, {**found, "latency_bounds_s": ledger.LATENCY_BOUNDS_S})
        elif page == "router":
            await _answer(send, 200, self._state())
        else:
            await _answer(send, 404, {"error": f"router of {self.model}: no page {page!r}; there are ledger and router"})

    def _state(self) -> dict[str, Any]:
        assert self._policy is not None
        rules, now = self._policy, time.time()
        return {
            "model": self.model,
            "stable": vars(rules.stable),
            "candidate": vars(rules.candidate) if rules.candidate else None,
            "weight_percent": rules.weight_percent,
            "weight_percent_effective": rules.effective_weight(now),
            "lease_expires_unix_s": rules.lease_expires_unix_s,
            "lease_left_s": None if rules.lease_expires_unix_s is None else max(0.0, rules.lease_expires_unix_s - now),
            "config_sha256": rules.digest,
            "refused_config": self._refused,
            "replica": self._replica,
        }


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


async def _answer(send: Any, status: int, body: dict[str, Any], version: str | None = None) -> None:
    payload = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(payload)).encode())]
    if version is not None:
        headers.append((VERSION_HEADER.encode(), version.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": payload, "more_body": False})


def _header(headers: list[tuple[bytes, bytes]], name: str) -> str | None:
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in headers if key.lower() == wanted), None)


def _quote(path: str) -> str:
    return quote(path, safe="/:@!$&'()*+,;=~-._")


def build(args: dict[str, Any]) -> serve.Application:
    """The application. ``args``: model; optionally serve_url (default: the proxy that a request arrived at) and num_replicas."""
    deployment = serve.deployment(
        name="Router",
        num_replicas=int(args.get("num_replicas", 1)),
        logging_config={"enable_access_log": False},  # a line a request costs as much as a small model
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=30,
    )
    return deployment(serve.ingress(asgi_app)(Router)).bind(args["model"], args.get("serve_url"))
