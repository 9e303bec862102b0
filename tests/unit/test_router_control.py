"""The router without Ray: the lease of the weight, the heartbeat that renews it, and a bulkhead for each version."""

import ast
import asyncio
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from kfp_components.router import policy
from kfp_components.router.control import Control
from kfp_components.traffic import Split
from kfp_components.traffic.ray_router import from_user_config, new_token, to_user_config

_path = list(sys.path)
from kfp_components.router import app  # noqa: E402

sys.path[:] = _path  # Ray puts packages of its own in front, and other tests look which ones are installed

TOKEN = "what only the run knows"
SHA256 = hashlib.sha256(TOKEN.encode()).hexdigest()
NOW = 1_780_000_000.0
LEASE_S = 60.0


def config(**changes: Any) -> dict[str, Any]:
    """v2 beside v1 with 10 %, until `LEASE_S` from `NOW` on; a change to None leaves the key out."""
    found = {
        "stable": {"version": "v1", "route": "/.versions/m/v1"},
        "candidate": {"version": "v2", "route": "/.versions/m/v2"},
        "weight_percent": 10.0,
        "lease_expires_unix_s": NOW + LEASE_S,
        "lease_s": LEASE_S,
        "heartbeat_sha256": SHA256,
        "epoch": 3,
        **changes,
    }
    return {key: value for key, value in found.items() if value is not None}


def control(**changes: Any) -> Control:
    found = Control("m")
    found.configure(config(**changes))
    return found


def beat(found: Control, now: float, token: str = TOKEN) -> tuple[int, dict[str, Any]]:
    return found.heartbeat(f"Bearer {token}", now)


# --- the lease ------------------------------------------------------------------------------------------------------------------------


def test_a_weight_holds_as_long_as_it_is_written_and_from_each_heartbeat_on() -> None:
    found = control()
    assert found.weight_percent(NOW + LEASE_S - 0.1) == 10.0 and found.weight_percent(NOW + LEASE_S) == 0.0
    assert beat(found, NOW + 50.0) == (
        200,
        {"lapsed": False, "weight_percent_effective": 10.0, "lease_expires_unix_s": NOW + 110.0, "lease_left_s": LEASE_S},
    )
    assert found.weight_percent(NOW + 109.9) == 10.0 and found.weight_percent(NOW + 110.0) == 0.0
    assert beat(found, NOW + 200.0)[1]["lapsed"] is True and found.weight_percent(NOW + 259.9) == 10.0


def test_a_router_that_restarts_gives_nothing_until_the_next_heartbeat() -> None:
    found = control()
    for second in range(0, 300, 20):
        assert beat(found, NOW + second)[0] == 200
    again = control()
    assert again.weight_percent(NOW + 300.0) == 0.0 and again.choose(None, 0.0, NOW + 300.0).version == "v1"
    assert beat(again, NOW + 301.0)[1]["lapsed"] is True
    assert again.choose(None, 0.0, NOW + 301.0).version == "v2"


def test_the_same_configuration_again_is_no_new_lease_and_another_one_is() -> None:
    found = control()
    beat(found, NOW + 50.0)
    found.configure(config())
    assert found.weight_percent(NOW + 100.0) == 10.0
    found.configure(config(weight_percent=25.0, lease_expires_unix_s=NOW + 70.0))
    assert found.weight_percent(NOW + 69.0) == 25.0 and found.weight_percent(NOW + 70.0) == 0.0


def test_d5_an_older_epoch_is_refused_and_its_token_with_it() -> None:
    found = control()
    found.configure(config(epoch=2, heartbeat_sha256="0" * 64, weight_percent=90.0))
    assert found.refused == "router user_config: epoch 2 is older than 3, which is in force"
    assert found.weight_percent(NOW) == 10.0 and beat(found, NOW)[0] == 200


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", f"Bearer {SHA256}", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN} x", "Bearer \udcff\xe9"]
)
def test_d5_a_heartbeat_without_the_token_changes_nothing(authorization: str | None) -> None:
    found = control()
    before = found.state(NOW + 30.0)
    if authorization and "\udcff" in authorization:
        authorization = authorization.encode("utf-8", "surrogateescape").decode("latin-1")  # as the router reads a header
    status, told = found.heartbeat(authorization, NOW + 30.0)
    assert status == 401 and TOKEN not in json.dumps(told) and "authorization: Bearer TOKEN" in told["error"]
    assert found.state(NOW + 30.0) == before


@pytest.mark.parametrize("changes", [{"weight_percent": 0.0}, {"candidate": None}, {"lease_s": None, "heartbeat_sha256": None}])
def test_where_no_weight_waits_a_heartbeat_is_told_how_it_stands(changes: dict[str, Any]) -> None:
    found = control(**changes)
    status, told = beat(found, NOW + 30.0)
    assert status == 409 and told["stable"]["version"] == "v1" and "lapsed" not in told
    assert found.expires_unix_s == NOW + LEASE_S


def test_no_page_holds_what_a_heartbeat_needs() -> None:
    found = control()
    assert not {TOKEN, SHA256} & set(json.dumps([found.state(NOW), beat(found, NOW), repr(found.rules)]).split('"'))
    assert SHA256 not in repr(found.rules)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lease_s": None}, "lease_s and heartbeat_sha256 go together"),
        ({"heartbeat_sha256": None}, "lease_s and heartbeat_sha256 go together"),
        ({"lease_s": 0.0}, "lease_s 0 is not a positive number"),
        ({"lease_s": float("nan")}, "lease_s nan is not a positive number"),
        ({"heartbeat_sha256": SHA256.upper()}, "heartbeat_sha256 is not a SHA-256"),
        ({"heartbeat_sha256": TOKEN}, "heartbeat_sha256 is not a SHA-256"),
    ],
)
def test_a_configuration_of_which_no_heartbeat_could_come_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        policy.parse(config(**changes))


@pytest.mark.parametrize(("given", "limit_s"), [({}, None), ({"request_timeout_s": 60}, 60.0), ({"request_timeout_s": 0.5}, 0.5)])
def test_case_20_there_is_no_time_limit_unless_somebody_asks_for_one(given: dict[str, Any], limit_s: float | None) -> None:
    assert policy.parse(config(**given)).request_timeout_s == limit_s
    assert policy.parse({**config(), "request_timeout_s": given.get("request_timeout_s")}).request_timeout_s == limit_s


@pytest.mark.parametrize("limit_s", [0, -1, float("nan"), float("inf")])
def test_case_20_a_limit_that_is_none_is_refused(limit_s: float) -> None:
    with pytest.raises(ValueError, match="is not a positive number of seconds; leave it out for no limit"):
        policy.parse(config(request_timeout_s=limit_s))


def test_d7_the_application_of_a_version_is_optional_and_a_key_that_nobody_knows_is_refused() -> None:
    assert control().state(NOW)["stable"] == {"version": "v1", "route": "/.versions/m/v1", "application": None}
    named = {"version": "v1", "route": "/.versions/m/v1/", "application": "m-v1"}
    assert control(stable=named).state(NOW)["stable"] == {**named, "route": "/.versions/m/v1"}
    with pytest.raises(ValueError, match="'applicaton' of v1 is not a known key; known are application, route, version"):
        policy.parse(config(stable={"version": "v1", "route": "/x", "applicaton": "m-v1"}))
    with pytest.raises(ValueError, match="'wieght' is not a known key"):
        policy.parse(config(wieght=1))


def test_the_keys_that_the_protocol_stands_for() -> None:
    """Who adds a key raises `policy.PROTOCOL` here and there: the library asks for it before it writes the key."""
    keys = {
        *("stable", "candidate", "weight_percent", "lease_expires_unix_s", "lease_s", "heartbeat_sha256"),
        *("sticky_header", "request_timeout_s", "epoch"),
    }
    assert policy.PROTOCOL == 2
    assert keys == policy.KEYS
    assert sorted(policy.BACKEND_KEYS) == ["application", "route", "version"]
    assert control().state(NOW)["protocol"] == Control("m").state(NOW)["protocol"] == 2


def test_a_split_comes_back_from_what_is_written_and_only_a_weight_has_a_lease() -> None:
    split = Split("v1", "v2", 10.0, NOW + LEASE_S, "x-user", 30.0, LEASE_S)
    assert from_user_config(to_user_config("m", split)) == split
    for without in (Split("v1", "v2", lease_s=LEASE_S), Split("v1", lease_s=LEASE_S)):
        assert "lease_s" not in to_user_config("m", without)
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100 and min(map(len, tokens)) >= 43, "32 bytes by chance"


# --- the ASGI application, in front of a server that holds requests open ---------------------------------------------------------------


class Backend:
    """Both versions on one server. v2 answers only when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.held: asyncio.Queue[str] = asyncio.Queue()

    async def handle(self, request: web.Request) -> web.Response:
        if request.path.startswith("/.versions/m/v2"):
            await self.held.put(request.path)
            await self.go_on.wait()
        return web.json_response({"path": request.path})

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        application = web.Application()
        application.router.add_route("*", "/{rest:.*}", self.handle)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


class Answered:
    """What one request to the router came to."""

    def __init__(self, sent: list[dict[str, Any]]) -> None:
        self.status: int = sent[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        self.json = json.loads(b"".join(message["body"] for message in sent[1:]))


async def ask(router: app.Router, path: str, method: str = "GET", **headers: str) -> Answered:
    sent: list[dict[str, Any]] = []
    bodies = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(bodies)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    told = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await router.handle({"type": "http", "method": method, "path": f"/m{path}", "root_path": "/m", "headers": told}, receive, send)
    return Answered(sent)


def with_router(test: Callable[[app.Router, Backend], Coroutine[Any, Any, None]], **changes: Any) -> None:
    """Run ``test`` with a router whose bulkheads hold two requests each."""

    async def go() -> None:
        backend = Backend()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app, "identity", lambda: ("r1", "m-router"))
            async with backend.served() as url:
                router = app.Router("m", url, 2)
                router.reconfigure(config(lease_expires_unix_s=None, **changes))
                try:
                    await test(router, backend)
                finally:
                    backend.go_on.set()
                    await router.close()

    asyncio.run(go())


async def counted(router: app.Router, version: str) -> dict[str, Any]:
    page = (await ask(router, "/-/ledger")).json
    found: dict[str, Any] = page["replicas"]["r1"]["versions"][version]
    return found


@pytest.mark.parametrize("pinned", [False, True])
def test_d20_a_version_that_hangs_fills_its_own_bulkhead_and_no_other(pinned: bool) -> None:
    async def test(router: app.Router, backend: Backend) -> None:
        to_v2 = {"x_model_version": "v2"} if pinned else {}
        waiting = [asyncio.ensure_future(ask(router, "/embed", **to_v2)) for _ in range(2)]
        for _ in waiting:
            await backend.held.get()
        third = asyncio.ensure_future(ask(router, "/embed", **to_v2))
        reached = asyncio.ensure_future(backend.held.get())
        await asyncio.wait({third, reached}, return_when=asyncio.FIRST_COMPLETED)
        assert not reached.done(), "it hangs with the others"
        reached.cancel()
        full = await third
        assert (full.status, full.headers["retry-after"], full.headers["x-model-version"]) == (503, "1", "v2")
        assert "version v2 has 2 requests in flight, which is its limit" in full.json["error"]
        for page, method in (("router", "GET"), ("ledger", "GET"), ("heartbeat", "POST")):
            assert (await ask(router, f"/-/{page}", method, authorization=f"Bearer {TOKEN}")).status == 200
        stable = await ask(router, "/embed", x_model_version="v1")
        assert (stable.status, stable.headers["x-model-version"]) == (200, "v1")
        found = await counted(router, "v2")
        assert found["in_flight"] == 2
        if pinned:
            assert (found["pinned"], found["pinned_failures"], found["requests"]) == (1, 1, 0)
        else:
            assert (found["requests"], found["failures"], found["by_class"]["overloaded"], found["pinned"]) == (1, 1, 1, 0)
        assert (await counted(router, "v1"))["failures"] == 0
        assert found["waiting"] == len(found["waits_s"]) == (0 if pinned else 2)
        assert found["waits_s"] == sorted(found["waits_s"], reverse=True) and all(wait_s > 0 for wait_s in found["waits_s"])
        assert (await ask(router, "/-/router")).json["in_flight"] == 2
        backend.go_on.set()
        assert [(await answered).status for answered in waiting] == [200, 200]
        assert (await ask(router, "/embed", **to_v2)).status == 200 and (await counted(router, "v2"))["in_flight"] == 0
        assert (await ask(router, "/-/router")).json["in_flight"] == 0 and (await counted(router, "v2"))["waits_s"] == []

    with_router(test, weight_percent=100.0)


def test_d5_the_heartbeat_over_http() -> None:
    async def test(router: app.Router, _backend: Backend) -> None:
        assert (await ask(router, "/-/heartbeat", authorization=f"Bearer {TOKEN}")).status == 405
        assert (await ask(router, "/-/router", "POST")).status == 405
        assert (await ask(router, "/-/nothing")).status == 404
        refused = await ask(router, "/-/heartbeat", "POST")
        assert refused.status == 401 and refused.headers["www-authenticate"] == "Bearer"
        good = await ask(router, "/-/heartbeat", "POST", authorization=f"bearer {TOKEN}")
        assert good.status == 200 and good.json["weight_percent_effective"] == 10.0 and 0 < good.json["lease_left_s"] <= LEASE_S
        state = (await ask(router, "/-/router")).json
        assert state["lease_expires_unix_s"] == good.json["lease_expires_unix_s"] and state["replica"] == "r1" and state["epoch"] == 3

    with_router(test)


def test_the_pages_tell_what_the_library_shakes_hands_on() -> None:
    async def test(router: app.Router, _backend: Backend) -> None:
        for page in ("router", "ledger"):
            told = (await ask(router, f"/-/{page}")).json
            assert told["protocol"] == policy.PROTOCOL and told["router_version"] == version("kfp-serving-components")
        assert (await ask(router, "/-/router")).json["application"] == "m-router"

    with_router(test)


# --- how it is built ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"model": "m", "num_replicas": 2}, "num_replicas 2: the router is one replica"),
        ({"model": "m", "num_replicas": "auto"}, "num_replicas auto: the router is one replica"),
        ({"model": "m", "replicas": 1}, "'replicas' is not known; known are model, serve_url, max_in_flight_per_version"),
        ({}, "model is missing"),
        ({"model": "m", "max_in_flight_per_version": 0}, "max_in_flight_per_version 0 lets no request through"),
    ],
)
def test_d23_arguments_that_the_router_does_not_take_are_refused(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        app.build(args)


@pytest.mark.parametrize(("args", "limit"), [({}, 1000), ({"max_in_flight_per_version": 5}, 5), ({"num_replicas": 1}, 1000)])
def test_d20_two_full_bulkheads_leave_room_for_the_own_pages(args: dict[str, Any], limit: int) -> None:
    deployment = app.build({"model": "m", **args})._bound_deployment
    assert deployment.max_ongoing_requests == 2 * limit + app.OWN_REQUESTS and deployment.num_replicas == 1
    assert deployment.init_args == ("m", None, limit)


def test_the_router_needs_nothing_but_ray_and_aiohttp() -> None:
    allowed = {*sys.stdlib_module_names, "aiohttp", "multidict", "yarl", "ray", "kfp_components"}
    for module in Path(app.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            found = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in found:
                assert name.split(".")[0] in allowed and not name.startswith("ray."), f"{module.name} imports {name}"
                assert not name.startswith("kfp_components") or name.startswith("kfp_components.router"), f"{module.name} imports {name}"


def test_the_router_works_from_a_zip_of_its_own_modules(tmp_path: Path) -> None:
    folder, bare = Path(app.__file__).parent, tmp_path / "router.zip"
    with zipfile.ZipFile(bare, "w") as archive:
        archive.writestr("kfp_components/__init__.py", "")
        for module in folder.glob("*.py"):
            archive.write(module, f"kfp_components/router/{module.name}")
    script = (
        "from kfp_components.router import app, policy; app.DISTRIBUTION = 'not-installed-here'; "
        "print(app.__file__, app.build({'model': 'm'}) is not None, app.package_version(), policy.PROTOCOL)"
    )
    environment = {"PYTHONPATH": str(bare), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.split() == [f"{bare}/kfp_components/router/app.py", "True", "None", "2"], done.stderr
