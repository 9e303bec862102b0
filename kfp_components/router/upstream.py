"""Requests to the versions: by HTTP, at the very proxy that the user's request arrived at, to where the version's application is just now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from kfp_components.router import headers
from kfp_components.router.body import Body
from kfp_components.router.policy import Backend
from kfp_components.router.routes import Routes

CONNECT_TIMEOUT_S = 5.0
MORE_TRIES = 2
"""After a try that did not reach the version. It is not sent again for anything else."""

EXPECT_WAIT_S = 10.0
"""For ``100 Continue``, after which a proxy counts as one that does not know it."""

KEEP_ALIVE_S = 30.0
"""Below the 90 s of Serve's proxy, so that we never write to a connection that it is just closing."""


class Closable(Protocol):
    """What came of a try."""

    def close(self) -> None:
        """Give it up."""


T = TypeVar("T", bound=Closable)


@dataclass(frozen=True)
class Arrived:
    """A user's request, as it reached the router: ``root`` is the public route (nothing for ``/``), ``below`` what follows it."""

    scope: dict[str, Any]
    root: str
    below: str

    @classmethod
    def of(cls, scope: dict[str, Any]) -> Arrived:
        """From the ASGI scope."""
        path, root = scope["path"], (scope.get("root_path") or "").rstrip("/")
        return cls(scope, root, path[len(root) :] if path.startswith(root) else path)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Of the request."""
        found: list[tuple[bytes, bytes]] = self.scope["headers"]
        return found

    @property
    def proxy(self) -> str:
        """The one that it arrived at."""
        host, port = self.scope["server"]
        return f"{f'[{host}]' if ':' in host else host}:{port}"

    def header(self, name: str) -> str | None:
        """The first one of that (small) name."""
        return headers.header(self.headers, name)

    def raw_below(self) -> str:
        """``below`` and the query, as they were written."""
        raw, root = self.scope.get("raw_path"), self.root.encode()
        path = raw[len(root) :].decode("ascii") if raw and raw.startswith(root) else quote(self.below, safe="/:@!$&'()*+,;=~-._")
        query = self.scope.get("query_string", b"").decode("ascii")
        return f"{path}?{query}" if query else path


class Upstream:
    """All connections of one router to the versions."""

    def __init__(self, application: str, serve_url: str | None = None) -> None:
        self.application = application
        self.routes = Routes(self.session, application)
        self._serve_url = serve_url
        self._session: aiohttp.ClientSession | None = None
        self._sockets: aiohttp.ClientSession | None = None
        self._no_continue: set[str] = set()  # proxies that take no notice of `expect`

    def session(self) -> aiohttp.ClientSession:
        """Made at the first request, which is where a loop runs."""
        if self._session is None:
            self._session = _session()
        return self._session

    def sockets(self, trace: aiohttp.TraceConfig) -> aiohttp.ClientSession:
        """The session for WebSockets; ``trace`` sees the answers to their handshakes."""
        if self._sockets is None:
            self._sockets = _session(trace)
        return self._sockets

    async def close(self) -> None:
        """All connections."""
        for session in (self._session, self._sockets):
            if session is not None:
                await session.close()

    def base(self, arrived: Arrived) -> str:
        """Where Serve is asked: the proxy that the request arrived at, unless another one was named."""
        return self._serve_url if self._serve_url is not None else f"http://{arrived.proxy}"

    def prefixes(self, arrived: Arrived, route: str) -> headers.Prefixes:
        """What the client is told instead of ``route``."""
        others = (arrived.proxy,) if self._serve_url is None else (self._serve_url.partition("//")[2],)
        return headers.Prefixes.of(route, arrived.root, headers.known_hosts(arrived.headers, *others))

    async def open(self, arrived: Arrived, body: Body, backend: Backend, timeout_s: float | None) -> tuple[aiohttp.ClientResponse, str]:
        """The begin of the version's answer, and the route that gave it. Raises what aiohttp raises."""
        base = self.base(arrived)

        async def once(route: str) -> tuple[aiohttp.ClientResponse, bool]:
            answer = await self._send(arrived, base, route, body, timeout_s)
            return answer, missed(answer, arrived.root) and body.replayable

        # at / the version gets everything as soon as it has its route back, also what was meant for its internal one, and takes the body
        answer, route = await self.reach(base, backend, arrived.root, once, look=body.streamed and not arrived.root)
        body.forget()
        return answer, route

    async def reach(
        self, base: str, backend: Backend, arrived_at: str, once: Callable[[str], Awaitable[tuple[T, bool]]], *, look: bool = False
    ) -> tuple[T, str]:
        """What ``once(route)`` comes to where the version is, and that route. It says too whether it may have missed the version and be repeated."""
        route, looked = await self.routes.where(base, backend, arrived_at, look)
        for _ in range(MORE_TRIES if looked and backend.application else 0):
            found, repeat = await once(route)
            try:
                elsewhere = await self.routes.elsewhere(base, str(backend.application), route) if repeat else None
            except BaseException:
                found.close()
                raise
            if elsewhere is None:
                return found, route
            found.close()
            route = elsewhere
        found, _ = await once(route)
        return found, route

    async def _send(self, arrived: Arrived, base: str, route: str, body: Body, timeout_s: float | None) -> aiohttp.ClientResponse:
        def request(*, expect: bool) -> Awaitable[aiohttp.ClientResponse]:
            return self.session().request(
                arrived.scope["method"],
                URL(f"{base}{route}{arrived.raw_below()}", encoded=True),
                data=body.data(),
                headers=headers.forwarded(arrived.headers, self.application, arrived.root),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                allow_redirects=False,
                expect100=expect,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s),
            )

        if not body.streamed or body.begun.is_set() or base in self._no_continue:
            return await request(expect=False)
        sending = asyncio.ensure_future(request(expect=True))
        begun = asyncio.ensure_future(body.begun.wait())
        try:
            await asyncio.wait({sending, begun}, timeout=EXPECT_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() or body.begun.is_set():
                return await sending
        except BaseException:
            sending.cancel()
            raise
        finally:
            begun.cancel()
        sending.cancel()  # nothing of the body was sent
        self._no_continue.add(base)
        return await request(expect=False)


def _session(*traces: aiohttp.TraceConfig) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        trace_configs=[*traces],
    )


def missed(answer: aiohttp.ClientResponse, root: str) -> bool:
    """Whether it may not be the version's answer to this request: Serve has no such route, or the router itself has it.

    Or who stands at / has, which after a release is the version. It is asked for a path then that it does not know, and some say 405 to that.
    """
    return answer.status == 404 or (answer.status == 405 and not root) or (answer.status == 508 and headers.ROUTER_HEADER in answer.headers)
