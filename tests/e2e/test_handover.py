"""The public route changes hands under traffic of all kinds, in single declarative writes, and nobody notices."""

import asyncio
import hashlib
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
        """One write; returns when the proxy knows the routes."""
        entries: dict[str, dict[str, Any]] = {
            VERSION: {"import_path": TINY, "args": {"version": "v1"}},
            ROUTER: {"import_path": names.ROUTER_IMPORT_PATH, "args": {"model": "hand"}, "deployments": [self.router(user_config)]},
        }
        config = {"applications": [{"name": name, "route_prefix": route, **entries[name]} for name, route in routes.items()]}
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


@pytest.mark.parametrize("public", ["/hand", "/v1", "/"])
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
                assert serve.get(f"{public.rstrip('/')}/-/router").json()["in_flight"] >= 0
                serve.write({VERSION: public, ROUTER: BESIDE} if turn % 2 else {ROUTER: BESIDE, VERSION: public})
                traffic.wait()
                staying.wait()
            assert not staying.failed, staying.failed
    assert not traffic.failed, (len(traffic.failed), traffic.failed[:10], traffic.answered)
    for kind, seen in traffic.answered.items():
        assert seen["v1"] and seen["direct"], (kind, seen)
