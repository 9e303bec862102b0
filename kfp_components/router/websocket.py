"""WebSockets: the handshake with the version first, the client's after it, then everything both ways until one of them ends. No limits of ours."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from kfp_components.router import answers, headers
from kfp_components.router.ledger import Counting
from kfp_components.router.policy import Backend
from kfp_components.router.upstream import Arrived, Upstream

NO_STATUS = 1005
ABNORMAL = 1006
NEVER_SENT = {0: 1000, NO_STATUS: 1000, ABNORMAL: 1001}
"""Codes that stand for the absence of one, and what is sent in their place."""

FAILURES = {ABNORMAL, 1011}
"""How a version ends a connection that it fails."""


class VersionBroke(Exception):
    """The version's end is gone without a word. Raised, so that Serve breaks the client's off as it would without a router."""


@dataclass
class Handshake:
    """The version's answer to a handshake; ``socket`` when it accepted."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    socket: aiohttp.ClientWebSocketResponse[Any] | None = None

    def close(self) -> None:
        """A refused one holds nothing."""


_handshake: ContextVar[Handshake] = ContextVar("handshake")


async def _keep(_session: Any, _context: Any, end: aiohttp.TraceRequestEndParams) -> None:
    """``ws_connect`` keeps the answer to itself; a trace sees it."""
    kept = _handshake.get()
    kept.status, kept.headers = end.response.status, [*end.response.raw_headers]
    if kept.status != 101:
        kept.body = await end.response.read()


TRACE = aiohttp.TraceConfig()
TRACE.on_request_end.append(_keep)


async def forward(
    upstream: Upstream, arrived: Arrived, receive: Any, send: Any, backend: Backend, counting: Counting, timeout_s: float | None
) -> None:
    """One connection, from its handshake to its end. It is counted once, then; as its time that of the handshake: the rest is up to the client."""
    try:
        await receive()  # websocket.connect
        handshake, route = await asyncio.wait_for(_connect(upstream, arrived, backend), timeout_s)
    except asyncio.TimeoutError:
        counting.done(504, "timeout")
        told = f"version {backend.version} did not accept a WebSocket in {timeout_s or 0.0:g} s"
        await answers.answer(arrived.scope, send, 504, {"error": told}, backend.version)
        return
    except aiohttp.ClientError as error:
        counting.done(502, "connect")
        told = f"version {backend.version}: {type(error).__name__}: {error}"
        await answers.answer(arrived.scope, send, 502, {"error": told}, backend.version)
        return
    except asyncio.CancelledError:
        counting.gone()
        raise
    counting.begun(socket=True)
    told_headers = _answered(upstream, arrived, handshake, backend, route)
    if handshake.socket is None:
        counting.done(handshake.status, "http_5xx" if handshake.status >= 500 else None)
        await answers.send_whole(arrived.scope, send, handshake.status, told_headers, handshake.body)
        return
    await send({"type": "websocket.accept", "subprotocol": handshake.socket.protocol, "headers": told_headers})
    await _talk(receive, send, handshake.socket, counting)


def _answered(upstream: Upstream, arrived: Arrived, handshake: Handshake, backend: Backend, route: str) -> list[tuple[bytes, bytes]]:
    prefixes = upstream.prefixes(arrived, route)
    told = headers.answered(handshake.headers, backend.version, prefixes, arrived.header(headers.REQUEST_ID_HEADER))
    return [(name, value) for name, value in told if name.decode("latin-1") not in {*headers.SOCKET_HEADERS, "content-length"}]


async def _connect(upstream: Upstream, arrived: Arrived, backend: Backend) -> tuple[Handshake, str]:
    base = upstream.base(arrived)
    asked = headers.forwarded(arrived.headers, upstream.application, arrived.root)
    for name in headers.SOCKET_HEADERS:
        asked.popall(name, None)

    async def once(route: str) -> tuple[Handshake, bool]:
        handshake = Handshake()
        _handshake.set(handshake)
        try:
            handshake.socket = await upstream.sockets(TRACE).ws_connect(
                URL(f"{base}{route}{arrived.raw_below()}", encoded=True),
                protocols=arrived.scope.get("subprotocols") or (),
                headers=asked,
                max_msg_size=0,
            )
        except aiohttp.WSServerHandshakeError:
            if handshake.status == 101:
                raise
        # whatever the status: Serve refuses a handshake on a route that it does not know with 500, most applications one on a path of theirs with 403
        return handshake, handshake.socket is None

    return await upstream.reach(base, backend, arrived.root, once)


async def _talk(receive: Any, send: Any, socket: aiohttp.ClientWebSocketResponse, counting: Counting) -> None:
    up = asyncio.ensure_future(_from_client(receive, socket))
    down = asyncio.ensure_future(_from_version(socket, send))
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        if up.done() and (left := up.result()) is not None:
            await socket.close(code=NEVER_SENT.get(left[0], left[0]), message=left[1].encode())
            if left[0] == ABNORMAL:
                counting.gone()
            else:
                counting.done(101, None)
            return
        code, reason = await down
        counting.done(101, "stream_broken" if code in FAILURES else None)
        if code == ABNORMAL:
            raise VersionBroke("the version broke the connection off")
        await send({"type": "websocket.close", "code": NEVER_SENT.get(code, code), "reason": reason})
    except asyncio.CancelledError:
        counting.gone()
        raise
    finally:
        up.cancel()
        down.cancel()
        await asyncio.gather(up, down, socket.close(code=1001), return_exceptions=True)


async def _from_client(receive: Any, socket: aiohttp.ClientWebSocketResponse) -> tuple[int, str] | None:
    """Until the client leaves: its code and reason. None when there is nobody any more to give its messages to."""
    try:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return message.get("code") or NO_STATUS, message.get("reason") or ""
            if message.get("text") is not None:
                await socket.send_str(message["text"])
            else:
                await socket.send_bytes(message["bytes"])
    except ConnectionError:
        return None


async def _from_version(socket: aiohttp.ClientWebSocketResponse, send: Any) -> tuple[int, str]:
    """Until the version ends: its code and reason."""
    while True:
        message = await socket.receive()
        if message.type == aiohttp.WSMsgType.TEXT:
            await send({"type": "websocket.send", "text": message.data})
        elif message.type == aiohttp.WSMsgType.BINARY:
            await send({"type": "websocket.send", "bytes": message.data})
        elif message.type == aiohttp.WSMsgType.CLOSE:
            return message.data or NO_STATUS, message.extra or ""
        else:
            return socket.close_code or ABNORMAL, ""
