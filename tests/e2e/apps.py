"""A tiny Serve application for tests of the rollout itself: it answers at once, so a canary takes seconds. Runs inside Ray."""

import asyncio
import gzip
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ray import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

_settings: dict[str, Any] = {}
_pieces: dict[str, asyncio.Event] = {}
_left: list[list[Any]] = []
_asked = 0


class Tiny:
    def __init__(self, settings: dict[str, Any]) -> None:
        _settings.update(settings)


async def _ok(_request: Request) -> JSONResponse:
    return JSONResponse({"ok": True, "version": _settings["version"]})


async def _embed(request: Request) -> JSONResponse:
    global _asked
    body = await request.json()
    _asked += 1
    if "fails_while" in _settings and Path(_settings["fails_while"]).exists():
        return JSONResponse({"error": "declared fault"}, status_code=500)
    fail_every = _settings.get("fail_every")
    if fail_every and _asked % fail_every == 0:
        return JSONResponse({"error": "declared fault"}, status_code=500)
    wrong = _asked % 3 == 0 and "wrong_while" in _settings and Path(_settings["wrong_while"]).exists()
    return JSONResponse({"count": -1 if wrong else len(body["texts"]), "version": _settings.get("version")})


async def _pid(_request: Request) -> JSONResponse:
    return JSONResponse(os.getpid())


async def _echo(request: Request) -> Response:
    body = await request.body()
    raw = request.scope.get("raw_path", b"").decode()
    told = {
        "method": request.method,
        "path": request.url.path,
        "raw_path": raw,
        "query": request.url.query,
        "headers": [[name.decode(), value.decode()] for name, value in request.headers.raw],
        "sha256": hashlib.sha256(body).hexdigest(),
        "bytes": len(body),
    }
    headers = {"set-cookie": "a=1; Path=/"}
    answer = JSONResponse(told, headers=headers)
    answer.raw_headers.append((b"set-cookie", b"b=2; Path=/"))
    return answer


async def _stream(request: Request) -> StreamingResponse:
    """Five pieces, each only after the client has said that it has the one before (``/stream/{name}/next``)."""
    asked_for = _pieces.setdefault(request.path_params["name"], asyncio.Event())

    async def pieces() -> AsyncIterator[str]:
        for number in range(5):
            yield f"data: {number}\n\n"
            await asked_for.wait()
            asked_for.clear()

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def _next(request: Request) -> JSONResponse:
    _pieces[request.path_params["name"]].set()
    return JSONResponse({"ok": True})


async def _breaks(_request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        yield "half an answ"
        await asyncio.sleep(0.1)
        raise RuntimeError("broke in the middle")

    return StreamingResponse(pieces())


async def _slow(request: Request) -> JSONResponse:
    await asyncio.sleep(float(request.query_params["s"]))
    return JSONResponse({"slept": True})


async def _status(request: Request) -> Response:
    code = int(request.path_params["code"])
    headers = {"retry-after": "3"} if code == 503 else {"location": "/elsewhere"} if code == 302 else {}
    return Response(b"" if code in (204, 304) else b"told", status_code=code, headers=headers)


async def _gzip(_request: Request) -> Response:
    return Response(gzip.compress(b"squeezed"), headers={"content-encoding": "gzip"})


async def _items(request: Request) -> JSONResponse:
    """At ``/items/``; without the slash at the end Starlette redirects to it."""
    answer = JSONResponse({"root_path": request.scope["root_path"], "prefix": request.headers.get("x-forwarded-prefix")})
    root = request.scope["root_path"]
    answer.headers["link"] = f"<{request.url_for('items')}?page=2>; rel=next, <{root}/items/>; rel=first"
    answer.headers["content-location"] = f"{root}/items/"
    answer.headers["refresh"] = f"5; url={root}/items/"
    answer.set_cookie("session", "1", path=root or "/")
    return answer


async def _see_other(request: Request) -> RedirectResponse:
    return RedirectResponse(request.url_for("items"), status_code=303)


async def _waiting(_request: Request) -> JSONResponse:
    """Names of the streams and held answers that have begun."""
    return JSONResponse(list(_pieces))


async def _held(request: Request) -> JSONResponse:
    """Answers when it is told to, and then at once (``/held/{name}/go``)."""
    await _pieces.setdefault(request.path_params["name"], asyncio.Event()).wait()
    return JSONResponse({"version": _settings["version"]})


async def _chat(socket: WebSocket) -> None:
    """Sends back what it gets; closes or breaks when it is told to. Takes the last subprotocol that it is offered."""
    offered = socket.scope["subprotocols"]
    await socket.accept(subprotocol=offered[-1] if offered else None, headers=[(b"set-cookie", f"k=v; Path={socket.scope['root_path']}".encode())])
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            _left.append([message["code"], message.get("reason") or ""])
            return
        if message.get("bytes") is not None:
            await socket.send_bytes(message["bytes"])
        elif message["text"] == "close":
            await socket.close(4001, "as you wish")
            return
        elif message["text"] == "break":
            raise RuntimeError("told to break")
        else:
            await socket.send_text(message["text"])


async def _refuse(socket: WebSocket) -> None:
    code = int(socket.path_params["code"])
    if code == 403:
        await socket.close()  # which servers tell as 403
    elif code == 500:
        raise RuntimeError("told to fail")
    else:
        await socket.send_denial_response(JSONResponse({"refused": code}, status_code=code, headers={"location": f"{socket.scope['root_path']}/x"}))


async def _how_they_left(_request: Request) -> JSONResponse:
    return JSONResponse(_left)


METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
ROUTES = [
    Route("/v2/health/live", _ok),
    Route("/v2/health/ready", _ok),
    Route("/v2/models/{model}/ready", _ok),
    Route("/embed", _embed, methods=["POST"]),
    Route("/pid", _pid),
    Route("/echo/{rest:path}", _echo, methods=METHODS),
    Route("/stream/{name}", _stream),
    Route("/stream/{name}/next", _next, methods=["POST"]),
    Route("/breaks", _breaks),
    Route("/slow", _slow),
    Route("/status/{code}", _status),
    Route("/gzip", _gzip),
    Route("/items/", _items, name="items"),
    Route("/see-other", _see_other),
    Route("/waiting", _waiting),
    Route("/held/{name}", _held),
    Route("/held/{name}/go", _next, methods=["POST"]),
    WebSocketRoute("/chat", _chat),
    WebSocketRoute("/chat/refused/{code}", _refuse),
    Route("/chat/left", _how_they_left),
]
asgi = Starlette(routes=ROUTES)


def build(args: dict[str, Any]) -> serve.Application:
    options = {"num_cpus": 0.1}
    return serve.deployment(name="Tiny", ray_actor_options=options, max_ongoing_requests=100)(serve.ingress(asgi)(Tiny)).bind(args)
