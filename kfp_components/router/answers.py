"""Answers of the router's own: JSON to a request, and to a WebSocket's handshake a refusal with a status where the server can send one."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from kfp_components.router.headers import VERSION_HEADER

DENIAL = "websocket.http.response"
"""The ASGI extension for it. Without it a refused handshake is 403, whatever we say."""


async def answer(
    scope: dict[str, Any], send: Any, status: int, body: dict[str, Any], version: str | None = None, headers: dict[str, str] | None = None
) -> None:
    """One whole answer."""
    payload = json.dumps(body).encode()
    told = [(b"content-type", b"application/json")]
    if version is not None:
        told.append((VERSION_HEADER.encode(), version.encode()))
    told += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send_whole(scope, send, status, told, payload)


async def send_whole(scope: dict[str, Any], send: Any, status: int, headers: list[tuple[bytes, bytes]], payload: bytes) -> None:
    """Headers without ``content-length``, and the body."""
    kind = "http.response"
    if scope["type"] == "websocket":
        if DENIAL not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1011 if status >= 500 else 1008})
            return
        kind, status = DENIAL, _known(status)
    whole = [*headers, (b"content-length", str(len(payload)).encode())]
    await send({"type": f"{kind}.start", "status": status, "headers": whole})
    await send({"type": f"{kind}.body", "body": payload, "more_body": False})


def _known(status: int) -> int:
    """Servers refuse handshakes only with a status that has a name."""
    return status if status in HTTPStatus._value2member_map_ else status // 100 * 100
