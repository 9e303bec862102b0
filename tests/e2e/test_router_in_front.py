"""The router is put in front of a running version and taken away again, and nobody notices: not while the public route changes hands, and not between.

What a client sees of the version through the router is compared with what it sees without.
"""

import asyncio
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import aiohttp
import httpx
import pytest
import yaml
from patience import seconds, until
from world import NAMESPACE, RAYSERVICE, TINY, clean

from kfp_components import names
from kfp_components.cluster import Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.environment import Embedded

VERSION, ROUTER = "hand-v1", "hand-router"
PUBLIC = "/hand"
INTERNAL, BESIDE = "/.versions/hand/v1", "/.versions/hand/-router"
UPLOAD = os.urandom(3 << 20)
TURNS = 2
MORE = 5
"""Answers of each kind of user that a test waits for before and after each write."""


class Serve:
    """The applications of the RayService, as they are written and as the proxy has them."""

    def __init__(self, cluster: KubernetesCluster) -> None:
        self.cluster = cluster
        endpoint = cluster.endpoint(names.serve_service(RAYSERVICE), NAMESPACE, names.SERVE_PORT)
        self.url, self.host = endpoint.base_url, endpoint.host

    def write(self, routes: dict[str, str], **user_config: Any) -> None:
        """One write: the version at its route, and at every other one a router. Returns when the proxy knows the routes."""
        version = {"import_path": TINY, "args": {"version": "v1"}}
        router = {"import_path": names.ROUTER_IMPORT_PATH, "args": {"model": "hand"}, "deployments": [self.router(user_config)]}
        entries = [{"name": name, "route_prefix": route, **(version if name == VERSION else router)} for name, route in routes.items()]
        config = {"applications": entries}
        self.cluster.patch(Ref("RayService", RAYSERVICE, NAMESPACE), {"spec": {"serveConfigV2": yaml.safe_dump(config)}}, manager="owner")
        wanted = {route: name for name, route in routes.items()}
        until(lambda: self.get("/-/routes").json() == wanted, f"routes {wanted}")

    def router(self, user_config: dict[str, Any]) -> dict[str, Any]:
        stable = {"version": "v1", "route": INTERNAL, "application": VERSION}
        return {"name": names.ROUTER_DEPLOYMENT, "user_config": {"stable": stable, **user_config}}

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=seconds(30), trust_env=False)


@pytest.fixture
def serve(embedded: Embedded, cluster: KubernetesCluster) -> Iterator[Serve]:
    clean(embedded)
    yield Serve(cluster)
    clean(embedded)


User = Callable[[aiohttp.ClientSession, str], Coroutine[Any, Any, str]]


async def small(session: aiohttp.ClientSession, url: str) -> str:
    async with session.post(f"{url}/echo/small", data=b"x" * 2000) as answer:
        assert answer.status == 200, f"{answer.status} {await answer.text()}"
        assert (await answer.json())["bytes"] == 2000
        return answer.headers.get("x-model-version", "direct")


async def uploads(session: aiohttp.ClientSession, url: str) -> str:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(UPLOAD), 1 << 18):
            yield UPLOAD[at : at + (1 << 18)]
            await asyncio.sleep(0)

    async with session.post(f"{url}/echo/upload", data=pieces()) as answer:
        assert answer.status == 200, f"{answer.status} {await answer.text()}"
        assert (await answer.json())["sha256"] == hashlib.sha256(UPLOAD).hexdigest()
        return answer.headers.get("x-model-version", "direct")


async def talks(session: aiohttp.ClientSession, url: str) -> str:
    async with session.ws_connect(f"{url}/chat") as socket:
        for number in range(3):
            await socket.send_str(str(number))
            assert (await socket.receive_str(timeout=seconds(30))) == str(number)
        return str(socket._response.headers.get("x-model-version", "direct"))


class Traffic:
    """Users of each kind, without pause, and a few who stay: streams and WebSockets that are open all the while."""

    def __init__(self, url: str, kinds: dict[str, int], staying: tuple[str, ...]) -> None:
        self.answered: dict[str, Counter[str]] = {}
        self.failed: list[str] = []
        self.steps: dict[str, int] = dict.fromkeys(staying, 0)
        self._url, self._kinds = url, kinds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait(self) -> None:
        """For `MORE` answers of each kind, and a step of each who stays."""
        before = {kind: self._count(kind) for kind in self._kinds} | dict(self.steps)
        until(
            lambda: (
                self.failed
                or (
                    all(self._count(kind) >= before[kind] + MORE for kind in self._kinds)
                    and all(step > before[name] for name, step in self.steps.items())
                )
            ),
            f"more answers ({self.answered}, {self.steps})",
        )
        assert not self.failed, self.failed[:10]

    def _count(self, kind: str) -> int:
        return sum(self.answered.get(kind, Counter()).values())

    async def _all(self) -> None:
        timeout = aiohttp.ClientTimeout(total=seconds(60))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            tasks = [self._user(session, kind) for kind, number in self._kinds.items() for _ in range(number)]
            await asyncio.gather(*tasks, *(self._stays(session, name) for name in self.steps))

    async def _user(self, session: aiohttp.ClientSession, kind: str) -> None:
        doing: User = {"small": small, "uploads": uploads, "talks": talks}[kind]
        while not self._stop.is_set():
            try:
                self.answered.setdefault(kind, Counter())[await doing(session, self._url)] += 1
            except (aiohttp.ClientError, AssertionError, TimeoutError, TypeError) as error:
                self.failed.append(f"{kind}: {type(error).__name__} {error}")
            await asyncio.sleep(0.01)

    async def _stays(self, session: aiohttp.ClientSession, name: str) -> None:
        try:
            async with session.ws_connect(f"{self._url}/chat", timeout=aiohttp.ClientWSTimeout(ws_receive=None)) as socket:
                while not self._stop.is_set():
                    await socket.send_bytes(b"still here")
                    assert await socket.receive_bytes(timeout=seconds(30)) == b"still here"
                    self.steps[name] += 1
                    await asyncio.sleep(0.05)
        except (aiohttp.ClientError, AssertionError, TypeError, TimeoutError) as error:
            self.failed.append(f"{name}: {type(error).__name__} {error}")


@pytest.mark.parametrize("public", [PUBLIC, "/v1", "/"])
def test_d7_the_route_changes_hands_under_all_kinds_of_traffic(serve: Serve, public: str) -> None:
    serve.write({VERSION: public})
    url = serve.url + public.rstrip("/")
    until(lambda: httpx.get(f"{url}/v2/health/live", trust_env=False).status_code == 200, "the version to answer")
    with Traffic(url, {"small": 3, "uploads": 1, "talks": 1}, ("before",)) as traffic:
        traffic.wait()
        serve.write({VERSION: public, ROUTER: BESIDE})
        until(lambda: serve.get(f"{BESIDE}/v2/health/live").headers.get("x-model-version") == "v1", "the router to answer beside it")
        for turn in range(TURNS):
            with Traffic(url, {}, ("during",)) as staying:
                traffic.wait()
                serve.write({VERSION: INTERNAL, ROUTER: public} if turn % 2 else {ROUTER: public, VERSION: INTERNAL})
                traffic.wait()
                staying.wait()
                serve.write({VERSION: public, ROUTER: BESIDE} if turn % 2 else {ROUTER: BESIDE, VERSION: public})
                traffic.wait()
                staying.wait()
            assert not staying.failed, staying.failed
    assert not traffic.failed, (len(traffic.failed), traffic.failed[:10], traffic.answered)
    for kind, seen in traffic.answered.items():
        assert seen["v1"] and seen["direct"], (kind, seen)


@pytest.mark.core
def test_d7_what_is_in_flight_ends_as_it_should_after_the_router_is_gone(serve: Serve, embedded: Embedded) -> None:
    def applications() -> dict[str, Any]:
        with embedded.serve() as rest:
            found: dict[str, Any] = rest.get_status()["applications"]
            return found

    def told(piece: int) -> None:
        httpx.post(f"{serve.url}{PUBLIC}/stream/s/next", trust_env=False)
        assert piece == 4 or next(pieces) == f"data: {piece + 1}\n\n"

    async def stays(go_on: threading.Event) -> tuple[str, int | None, int | None]:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{serve.url}{PUBLIC}/chat") as socket:
            opened.set()
            await asyncio.to_thread(go_on.wait)
            await socket.send_str("still here")
            answer = await socket.receive_str()
            await socket.send_str("close")
            return answer, (await socket.receive()).data, socket.close_code

    serve.write({VERSION: INTERNAL, ROUTER: PUBLIC})
    until(lambda: serve.get(f"{PUBLIC}/v2/health/live").status_code == 200, "the router to answer")
    opened, go_on, talked = threading.Event(), threading.Event(), list[Any]()
    talking = threading.Thread(target=lambda: talked.append(asyncio.run(stays(go_on))))
    talking.start()
    try:
        with httpx.stream("GET", f"{serve.url}{PUBLIC}/stream/s", timeout=seconds(60), trust_env=False) as stream:
            pieces = stream.iter_text()
            assert stream.headers["x-model-version"] == "v1" and next(pieces) == "data: 0\n\n"
            opened.wait()
            assert serve.get(f"{PUBLIC}/-/router").json()["in_flight"] == 2
            serve.write({VERSION: PUBLIC})
            told(0)
            assert applications()[ROUTER]["status"] == "DELETING" and "x-model-version" not in serve.get(f"{PUBLIC}/v2/health/live").headers
            serve.write({VERSION: PUBLIC, f"{ROUTER}-2": BESIDE})
            serve.write({VERSION: PUBLIC, f"{ROUTER}-2": BESIDE}, request_timeout_s=7.0)
            until(lambda: serve.get(f"{BESIDE}/-/router").json().get("request_timeout_s") == 7.0, "a router of another name to be told something")
            assert applications()[f"{ROUTER}-2"]["status"] == "RUNNING" and ROUTER in applications(), "beside one that is not gone yet"
            for piece in range(1, 5):
                told(piece)
            assert list(pieces) == []
    finally:
        go_on.set()
        talking.join()
    assert talked == [("still here", 4001, 4001)]
    until(lambda: ROUTER not in applications(), "the router to be gone, now that nothing is in flight")


# --- what passes ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(embedded: Embedded, cluster_of_module: KubernetesCluster) -> Iterator[Serve]:
    """The router at `PUBLIC`, the version behind it."""
    clean(embedded)
    found = Serve(cluster_of_module)
    found.write({VERSION: INTERNAL, ROUTER: PUBLIC})
    until(lambda: found.get(f"{PUBLIC}/v2/health/live").status_code == 200, "the router to answer")
    yield found
    clean(embedded)


def counted(serve: Serve) -> dict[str, Any]:
    (replica,) = serve.get(f"{PUBLIC}/-/ledger").json()["replicas"].values()
    found: dict[str, Any] = replica["versions"]["v1"]
    return found


def settled(serve: Serve) -> dict[str, Any]:
    """Counts, when nothing is in flight."""
    until(lambda: not serve.get(f"{PUBLIC}/-/router").json()["in_flight"], "nothing to be in flight")
    return counted(serve)


async def chats(url: str) -> list[Any]:
    """Everything that a WebSocket client sees."""
    seen: list[Any] = []
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{url}/chat?x=1", protocols=("one", "two"), max_msg_size=0) as socket:
            await socket.send_str("gr\xfc\xdf dich")
            await socket.send_bytes(bytes(range(256)))
            await socket.send_bytes(b"\0" * (9 << 20))
            await socket.ping(b"are you there")
            seen += [await socket.receive_str(), await socket.receive_bytes(), len(await socket.receive_bytes()), socket.protocol]
            await socket.close(code=4002, message=b"bye")
            seen.append(socket.close_code)
        for told in ("close", "break"):
            async with session.ws_connect(f"{url}/chat") as socket:
                await socket.send_str(told)
                message = await socket.receive()
                seen.append((told, message.type, message.data, message.extra, socket.close_code, socket.protocol))
        for code in (403, 418, 429, 500, 503):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{url}/chat/refused/{code}")
            seen.append((refused.value.status, (refused.value.headers or {}).get("location", "").replace(INTERNAL, PUBLIC)))
    return seen


@pytest.mark.core
def test_case_08_a_websocket_client_sees_the_same_with_the_router_and_without(both: Serve) -> None:
    before = settled(both)
    through, directly = (asyncio.run(chats(both.url + route)) for route in (PUBLIC, INTERNAL))
    assert through == directly
    assert through[:5] == ["gr\xfc\xdf dich", bytes(range(256)), 9 << 20, "two", 4002] and through[5][2:4] == (4001, "as you wish")
    until(lambda: [4002, "bye"] in both.get(f"{PUBLIC}/chat/left").json(), "the version to be told how the client left")
    after = settled(both)
    grown = {kind: after[kind] - before[kind] for kind in ("requests", "failures", "client_errors_4xx", "client_disconnects")}
    asked_left = after["requests"] - before["requests"] - 8
    assert grown == {"requests": 8 + asked_left, "failures": 3, "client_errors_4xx": 3, "client_disconnects": 0} and asked_left >= 1
    assert after["by_class"]["stream_broken"] == before["by_class"]["stream_broken"] + 1


def test_case_08_the_handshake_says_the_version_and_the_connection_counts_until_its_end(both: Serve) -> None:
    async def go() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{both.url}{PUBLIC}/chat", headers={"x-model-version": "v1"}) as socket:
                told = socket._response.headers
                assert (told["x-model-version"], told["set-cookie"]) == ("v1", f"k=v; Path={PUBLIC}")
                assert [len(told.getall(name, [])) for name in ("date", "server", "x-model-version")] == [1, 1, 1]
                state = await asyncio.to_thread(lambda: both.get(f"{PUBLIC}/-/router").json())
                assert state["in_flight"] == 1
                seen = await asyncio.to_thread(counted, both)
                assert (seen["in_flight"], seen["waiting"], seen["waits_s"]) == (1, 0, [])
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{both.url}{PUBLIC}/chat", headers={"x-model-version": "v9"})
            assert refused.value.status == 400

    before = settled(both)["pinned"]
    asyncio.run(go())
    assert settled(both)["pinned"] == before + 1


def links(serve: Serve, route: str) -> dict[str, Any]:
    """What leads somewhere else in the answers of a version at ``route``, seen by a client."""
    found: dict[str, Any] = {}
    for path in ("/items", "/items/", "/see-other", "", "/echo/x", "/nothing"):
        answer = serve.get(route + path)
        kept = ("location", "content-location", "refresh", "link", "set-cookie")
        found[path] = [answer.status_code, {name: answer.headers.get_list(name) for name in kept}]
        assert [len(answer.headers.get_list(name)) for name in ("date", "server", "x-request-id")] == [1, 1, 1], answer.headers
    return found


@pytest.mark.core
@pytest.mark.parametrize("public", [PUBLIC, "/v1", "/"])
def test_case_13_a_client_is_led_the_same_ways_with_the_router_and_without(both: Serve, public: str) -> None:
    both.write({VERSION: INTERNAL, ROUTER: public})
    root = public.rstrip("/")
    until(lambda: both.get(f"{root}/v2/health/live").headers.get("x-model-version") == "v1", "the router to answer")
    through = links(both, root)
    assert INTERNAL not in str(through)
    directly = json.dumps(links(both, INTERNAL)).replace(f"{INTERNAL}/", f"{root}/")
    assert through == json.loads(directly.replace(INTERNAL, root or "/"))
    assert through["/items"][1]["location"] == [f"{both.url}{root}/items/"]
    followed = httpx.get(f"{both.url}{root}/items", follow_redirects=True, trust_env=False)
    assert followed.headers["x-model-version"] == "v1" and followed.json() == {"root_path": INTERNAL, "prefix": public}
    both.write({VERSION: INTERNAL, ROUTER: PUBLIC})


@pytest.mark.core
def test_case_20_an_answer_may_take_as_long_as_it_takes_and_a_limit_is_asked_for(both: Serve) -> None:
    def limited(limit_s: float | None) -> None:
        both.write({VERSION: INTERNAL, ROUTER: PUBLIC}, **({} if limit_s is None else {"request_timeout_s": limit_s}))
        until(lambda: both.get(f"{PUBLIC}/-/router").json()["request_timeout_s"] == limit_s, f"the limit of {limit_s}")

    limited(0.5)
    late = both.get(f"{PUBLIC}/held/limited")
    assert late.status_code == 504 and "gave no answer in 0.5 s" in late.json()["error"]
    limited(None)
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(both.get(f"{PUBLIC}/held/unlimited")))
    waiting.start()
    until(lambda: max(counted(both)["waits_s"], default=0.0) > 1.0, "a request that waits for longer than the limit was")
    assert counted(both)["waiting"] == 1
    httpx.post(f"{both.url}{PUBLIC}/held/unlimited/go", trust_env=False)
    waiting.join()
    assert answers[0].status_code == 200 and answers[0].headers["x-model-version"] == "v1"
    assert (counted(both)["waiting"], counted(both)["waits_s"]) == (0, [])
