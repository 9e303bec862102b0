"""The router finds a version where its application is: in front of a stand-in of Serve's proxy on uvicorn, whose routes change as a test wants."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
import uvicorn
from aiohttp import web
from test_router_control import app

from kfp_components.router import body, routes, upstream

INTERNAL = "/.versions/m/v1"
BIG = 3 * body.REPLAYABLE_BYTES
STABLE = {"version": "v1", "route": INTERNAL, "application": "m-v1"}


class Proxy:
    """Routes requests by ``table``, as Serve's proxy does. ``/as-public/m/...`` always reaches the router, as a request that it has taken already."""

    def __init__(self, router: app.Router) -> None:
        self.router = router
        self.table: dict[str, str] = {INTERNAL: "m-v1", "/m": "m-router"}
        self.broken = False
        self.pages = self.looped = 0
        self.asked: list[str] = []
        self.on_page: Callable[[], None] = lambda: None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path: str = scope["path"]
        if path == "/-/routes":
            self.pages += 1
            self.on_page()
            told = {"/elsewhere": "m-v1"} if self.broken else self.table
            await say(send, 500 if self.broken else 200, json.dumps(told).encode())
        elif path.startswith("/as-public"):
            scope["path"], scope["raw_path"] = (scope[key][len("/as-public") :] for key in ("path", "raw_path"))
            scope["root_path"] = "/m" if scope["path"].startswith("/m") else ""
            await self.router.handle(scope, receive, send)
        else:
            await self._route(path, scope, receive, send)

    async def _route(self, path: str, scope: dict[str, Any], receive: Any, send: Any) -> None:
        fitting = [route for route in self.table if path == route or path.startswith(route.rstrip("/") + "/")]
        if not fitting:
            await say(send, 404, b"Path not found. Ping http://.../-/routes for available routes.")  # to a WebSocket too: then uvicorn makes it 500
            return
        route = max(fitting, key=len)
        scope["root_path"] = route.rstrip("/")
        first: list[Any] = [await receive()]  # Serve's proxy begins to read at once, so that the client goes on to send

        async def rest() -> Any:
            return first.pop() if first else await receive()

        if self.table[route] == "m-router":
            self.looped += any(name == b"x-model-router" for name, _ in scope["headers"])
            await self.router.handle(scope, rest, send)
        else:
            self.asked.append(f"{self.table[route]} {path}")
            await self._version(path[len(route.rstrip("/")) :], scope, rest, send)

    async def _version(self, below: str, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            if below.startswith("/.versions"):
                await send({"type": "websocket.close"})
                return
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": below})
            await send({"type": "websocket.close", "code": 4000, "reason": "done"})
            return
        if below.startswith(("/nothing", "/.versions")):
            await say(send, 405 if scope["method"] == "DELETE" else 404, b'{"detail":"Not Found"}')
            return
        received, more = 0, True
        while more:
            message = await receive()
            received, more = received + len(message.get("body", b"")), message.get("more_body", False)
        await say(send, 200, json.dumps({"below": below, "bytes": received}).encode())


async def say(send: Any, status: int, payload: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", str(len(payload)).encode())]})
    await send({"type": "http.response.body", "body": payload})


Test = Callable[[Proxy, aiohttp.ClientSession, str], Coroutine[Any, Any, None]]


@contextmanager
def router_of(user_config: dict[str, Any], url: str | None = None) -> Iterator[app.Router]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "identity", lambda: ("r1", "m-router"))
        patch.setattr(routes, "WAIT_S", 0.5)
        router = app.Router("m", url)
        router.reconfigure(user_config)
        yield router


def with_proxy(test: Test, stable: dict[str, Any] = STABLE) -> None:
    """Run ``test`` with the proxy, a client, and the URL at which the router takes requests whatever the table says."""

    async def go() -> None:
        with router_of({"stable": stable}) as router:
            proxy = Proxy(router)
            server = uvicorn.Server(uvicorn.Config(proxy, host="127.0.0.1", port=0, lifespan="off", log_config=None))
            serving = asyncio.ensure_future(server.serve())
            while not (server.started or serving.done()):
                await asyncio.sleep(0.01)
            host, port = server.servers[0].sockets[0].getsockname()
            try:
                async with aiohttp.ClientSession() as client:
                    await test(proxy, client, f"http://{host}:{port}")
            finally:
                await router.close()
                server.should_exit = True
                await serving

    asyncio.run(go())


async def get(client: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    async with client.get(url) as answer:
        return answer.status, (await answer.read()).decode()


async def pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(0, size, 1 << 16):
        yield b"x" * (1 << 16)
        await asyncio.sleep(0)


async def put(client: aiohttp.ClientSession, url: str, data: Any) -> tuple[int, Any]:
    async with client.put(url, data=data) as answer:
        return answer.status, (await answer.read()).decode()


def counted(proxy: Proxy) -> dict[str, Any]:
    found: dict[str, Any] = proxy.router._counts["v1"].as_dict()
    return found


BODIES: dict[str, Callable[[], Any]] = {
    "small": lambda: b"x" * 2000,
    "a stream of 128 KiB": lambda: pieces(1 << 17),
    "a stream of 3 MiB": lambda: pieces(BIG),
    "3 MiB at once": lambda: io.BytesIO(b"x" * BIG),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("public", ["/m", "/"])
def test_d7_a_request_whose_version_has_just_moved_is_sent_after_it_once(public: str, kind: str) -> None:
    async def test(proxy: Proxy, client: aiohttp.ClientSession, url: str) -> None:
        taken = f"{url}/as-public{public.rstrip('/')}"
        proxy.table = {INTERNAL: "m-v1", public: "m-router"}
        assert (await get(client, f"{taken}/a"))[0] == 200
        proxy.asked.clear()
        proxy.table = {public: "m-v1"}
        size = BIG if "3 MiB" in kind else 1 << 17 if "128" in kind else 2000
        status, told = await put(client, f"{taken}/b", BODIES[kind]())
        assert status == 200 and json.loads(told) == {"below": "/b", "bytes": size}
        assert proxy.asked[-1] == f"m-v1 {public.rstrip('/')}/b" and len(proxy.asked) == (2 if public == "/" and kind == "small" else 1)
        found = counted(proxy)
        assert (found["requests"], found["failures"], found["client_errors_4xx"], found["in_flight"]) == (2, 0, 0, 0)

    with_proxy(test)


def test_d7_of_a_body_that_somebody_else_took_the_begin_of_as_much_as_was_kept_is_sent_again() -> None:
    """By the private route of the router, while the public one changes hands: the router meets its own request."""

    async def test(proxy: Proxy, client: aiohttp.ClientSession, url: str) -> None:
        proxy.table = {"/m": "m-v1", "/.versions/m/-router": "m-router"}
        assert (await get(client, f"{url}/.versions/m/-router/a"))[0] == 200
        proxy.table = {"/m": "m-router", "/.versions/m/-router": "m-router", INTERNAL: "m-v1"}
        size = 1 << 17
        status, told = await put(client, f"{url}/.versions/m/-router/b", pieces(size))
        assert status == 200 and json.loads(told) == {"below": "/b", "bytes": size}
        assert counted(proxy)["requests"] == 2

    with_proxy(test)


def test_d7_a_404_of_the_version_itself_passes_and_it_is_asked_once() -> None:
    async def test(proxy: Proxy, client: aiohttp.ClientSession, url: str) -> None:
        for _ in range(3):
            assert await get(client, f"{url}/m/nothing") == (404, '{"detail":"Not Found"}')
        assert proxy.asked == [f"m-v1 {INTERNAL}/nothing"] * 3
        assert counted(proxy)["client_errors_4xx"] == 3

    with_proxy(test)


def test_d7_at_the_root_a_version_that_has_it_back_may_say_405_to_what_was_meant_for_its_internal_route() -> None:
    async def test(proxy: Proxy, client: aiohttp.ClientSession, url: str) -> None:
        proxy.table = {"/": "m-router", INTERNAL: "m-v1"}
        assert (await get(client, f"{url}/a"))[0] == 200
        proxy.table = {"/": "m-v1"}
        async with client.delete(f"{url}/as-public/b") as answer:
            assert answer.status == 200 and json.loads(await answer.read())["below"] == "/b"

    with_proxy(test)


def test_d7_many_404s_at_once_share_the_readings_of_the_routes() -> None:
    async def test(proxy: Proxy, client: aiohttp.ClientSession, url: str) -> None:
        assert {status for status, _ in await asyncio.gather(*(get(client, f"{url}/m/nothing") for _ in range(50)))} == {404}
        assert proxy.pages <= 25, proxy.pages

    with_proxy(test)


def test_d7_a_version_that_has_no_route_yet_is_waited_for() -> None:
    async def test(proxy: Proxy, client: aiohttp.ClientSession, url: str) -> None:
        def appear() -> None:
            if proxy.pages == 3:
                proxy.table = {INTERNAL: "m-v1", "/m": "m-router"}

        proxy.table, proxy.on_page = {"/m": "m-router"}, appear
        assert (await put(client, f"{url}/m/a", pieces(BIG)))[0] == 200
        assert proxy.asked == [f"m-v1 {INTERNAL}/a"]

    with_proxy(test)


@pytest.mark.parametrize("table", [{}, {"/m": "m-router"}, {"/": "m-router"}, {INTERNAL: "m-router"}])
def test_d7_a_version_that_is_nowhere_ends_with_an_answer_and_never_in_a_loop(table: dict[str, str]) -> None:
    async def test(proxy: Proxy, client: aiohttp.ClientSession, url: str) -> None:
        proxy.table = table
        status, told = await get(client, f"{url}/as-public/m/a")
        assert (status, proxy.asked) == (508 if set(table) & {"/", INTERNAL} else 404, [])
        if status == 508:
            assert "no version is at" in told
        assert counted(proxy)["requests"] == 1

    with_proxy(test)


def test_d7_before_the_route_changes_hands_the_router_finds_the_version_at_the_public_one() -> None:
    async def test(proxy: Proxy, client: aiohttp.ClientSession, url: str) -> None:
        proxy.table = {"/m": "m-v1", "/.versions/m/-router": "m-router"}
        assert (await get(client, f"{url}/.versions/m/-router/a"))[0] == 200
        assert proxy.asked == ["m-v1 /m/a"]
        proxy.table = {"/m": "m-router", INTERNAL: "m-v1"}
        assert (await put(client, f"{url}/m/a", pieces(BIG)))[0] == 200
        assert proxy.asked == ["m-v1 /m/a", f"m-v1 {INTERNAL}/a"], "where it is now"
        assert proxy.looped == 0, "a request that came by /m says that /m is the router's"

    with_proxy(test)


@pytest.mark.parametrize("stable", [{"version": "v1", "route": INTERNAL}, {**STABLE, "application": "m-router"}])
def test_d7_a_version_without_an_application_of_its_own_is_where_it_was_said_to_be(stable: dict[str, Any]) -> None:
    async def test(proxy: Proxy, client: aiohttp.ClientSession, url: str) -> None:
        assert (await get(client, f"{url}/m/a"))[0] == 200
        proxy.table = {"/m": "m-v1"}
        assert (await get(client, f"{url}/as-public/m/a"))[0] == 404 and proxy.pages == 0

    with_proxy(test, stable)


def test_d7_when_nobody_tells_the_routes_the_answer_passes_as_it_came() -> None:
    async def test(proxy: Proxy, client: aiohttp.ClientSession, url: str) -> None:
        proxy.broken = True
        assert (await get(client, f"{url}/m/a"))[0] == 200
        assert (await get(client, f"{url}/m/nothing")) == (404, '{"detail":"Not Found"}')

    with_proxy(test)


@pytest.mark.parametrize("public", ["/m", "/"])
def test_case_08_a_websocket_whose_version_has_just_moved_is_connected_to_it(public: str) -> None:
    async def test(proxy: Proxy, client: aiohttp.ClientSession, url: str) -> None:
        root = public.rstrip("/")
        for table in ({INTERNAL: "m-v1", public: "m-router"}, {public: "m-v1"}):
            proxy.table = table
            async with client.ws_connect(f"{url}/as-public{root}/chat") as socket:
                assert await socket.receive_str() == "/chat"
                assert (await socket.receive()).type == aiohttp.WSMsgType.CLOSE and socket.close_code == 4000
        assert proxy.asked == [f"m-v1 {INTERNAL}/chat"] * (1 if root else 2) + [f"m-v1 {root}/chat"]
        while counted(proxy)["in_flight"]:
            await asyncio.sleep(0.01)
        found = counted(proxy)
        assert (found["requests"], found["failures"], found["in_flight"]) == (2, 0, 0)

    with_proxy(test)


@pytest.mark.parametrize("knows", [True, False])
def test_d7_a_proxy_that_does_not_know_expect_gets_the_body_all_the_same(knows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    async def expected(_request: web.Request) -> None:
        if knows and _request.transport is not None:
            _request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def handle(request: web.Request) -> web.Response:
        if request.path == "/-/routes":
            return web.json_response({INTERNAL: "m-v1"})
        asked.append(request.headers.get("expect"))
        return web.json_response({"bytes": len(await request.read())})

    async def go() -> None:
        monkeypatch.setattr(upstream, "EXPECT_WAIT_S", 10.0 if knows else 0.2)
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{rest:.*}", handle, expect_handler=expected)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        try:
            with router_of({"stable": STABLE}, f"http://127.0.0.1:{runner.addresses[0][1]}") as router:
                for _ in range(2):
                    left = iter([b"x" * (1 << 20)] * 3)

                    async def receive(left: Iterator[bytes] = left) -> dict[str, Any]:
                        piece = next(left, None)
                        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

                    await router.handle({"type": "http", "method": "PUT", "path": "/m/a", "root_path": "/m", "headers": []}, receive, send)
                await router.close()
        finally:
            await runner.cleanup()
        answers = [json.loads(message["body"]) for message in sent if message.get("body")]
        assert answers == [{"bytes": BIG}] * 2
        assert asked == (["100-continue"] * 2 if knows else ["100-continue", None, None])

    asyncio.run(go())
