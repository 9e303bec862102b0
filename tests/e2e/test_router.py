"""The router on real Ray, through the alias: what passes, what is counted, who answers."""

import hashlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from patience import seconds, until
from world import NAMESPACE, RAYSERVICE, clean, first, tiny

from kfp_components import names, rollout
from kfp_components.cluster import Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.judge import counts
from kfp_components.local.environment import Embedded
from kfp_components.traffic import Split
from kfp_components.traffic.ray_router import RayRouter

MODEL = "routed"
TIMEOUT_S = seconds(3)
"""Of a request through the router."""


@pytest.fixture(scope="module")
def run(embedded: Embedded, cluster_of_module: KubernetesCluster) -> Iterator[rollout.Run]:
    """v1 stable, v2 beside it and smoke-tested, at weight 0; given up at the end."""
    first(cluster_of_module, tiny(MODEL, "v1"))
    run = rollout.open_run(tiny(MODEL, "v2", request_timeout_s=TIMEOUT_S, sticky_header="x-user", lease_s=3600.0), cluster_of_module)
    rollout._deploy_and_smoke(run, first_version=False)
    rollout.shift_traffic(run, 1.0)
    yield run
    rollout.roll_back(run, "the tests are over")
    clean(embedded)


@pytest.fixture
def client(run: rollout.Run, cluster: KubernetesCluster) -> Iterator[httpx.Client]:
    endpoint = cluster.endpoint(names.alias(MODEL), NAMESPACE, names.SERVE_PORT)
    with httpx.Client(base_url=f"{endpoint.base_url}/{MODEL}", headers={"host": endpoint.host}, timeout=seconds(30), trust_env=False) as sending:
        yield sending


def router(run: rollout.Run) -> RayRouter:
    assert isinstance(run.router, RayRouter)
    return run.router


def set_split(run: rollout.Run, weight: float, *, lease_s: float = 3600.0, sticky: str | None = None) -> None:
    split = Split("v1", "v2", weight, time.time() + lease_s, sticky, TIMEOUT_S)
    run.router.set_weight(split)
    run.router.wait_until_applied(split, seconds(60))


def test_every_answer_says_its_version_and_a_pin_chooses_it(run: rollout.Run, client: httpx.Client) -> None:
    set_split(run, 0)
    assert client.get("/v2/health/ready").headers["x-model-version"] == "v1"
    assert client.get("/v2/health/ready", headers={"x-model-version": "v2"}).json()["version"] == "v2"
    refused = client.get("/v2/health/ready", headers={"x-model-version": "v9"})
    assert refused.status_code == 400 and refused.json()["known"] == ["v1", "v2"]


def test_requests_pass_as_they_are(client: httpx.Client) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        told = client.request(method, "/echo/a%2Fb%20c/%C3%BC?x=1&x=2&y=%26", headers=[("x-many", "1"), ("x-many", "2"), ("cookie", "k=v")]).json()
        assert told["method"] == method
        assert told["raw_path"].endswith("/echo/a%2Fb%20c/%C3%BC")
        assert told["query"] == "x=1&x=2&y=%26"
        assert [value for name, value in told["headers"] if name == "x-many"] == ["1", "2"]
        assert ["cookie", "k=v"] in told["headers"]
        assert ["host", names.service_host(names.alias(MODEL), NAMESPACE)] in told["headers"]


@pytest.mark.parametrize("size", [0, 10, 1 << 20, 5 << 20])
def test_bodies_pass_whole(client: httpx.Client, size: int) -> None:
    body = os.urandom(size)
    assert client.post("/echo/x", content=body).json()["sha256"] == hashlib.sha256(body).hexdigest()
    pieces = (body[at : at + 100_000] for at in range(0, size, 100_000))
    assert client.post("/echo/x", content=pieces).json()["sha256"] == hashlib.sha256(body).hexdigest()


def test_answers_pass_as_they_are(client: httpx.Client) -> None:
    assert client.get("/echo/x").headers.get_list("set-cookie") == ["a=1; Path=/", "b=2; Path=/"]
    squeezed = client.get("/gzip")
    assert squeezed.headers["content-encoding"] == "gzip" and squeezed.text == "squeezed"
    moved = client.get("/status/302")
    assert (moved.status_code, moved.headers["location"]) == (302, "/elsewhere")
    for code in (204, 304, 404, 418):
        assert client.get(f"/status/{code}").status_code == code
    full = client.get("/status/503")
    assert (full.status_code, full.headers["retry-after"]) == (503, "3")


def test_a_stream_arrives_piece_by_piece(client: httpx.Client) -> None:
    arrived = 0
    with client.stream("GET", "/stream/one") as answer:
        assert answer.headers["x-model-version"] == "v1"
        for piece in answer.iter_text():  # the next piece is sent only after this one is here
            assert piece == f"data: {arrived}\n\n"
            arrived += 1
            client.post("/stream/one/next")
    assert arrived == 5


def test_failures_are_counted_by_class(run: rollout.Run, client: httpx.Client) -> None:
    before = counted(run)["by_class"]
    assert client.get("/status/500").status_code == 500
    assert client.get("/status/503").status_code == 503
    late = client.get("/slow?s=600")
    assert late.status_code == 504 and late.headers["x-model-version"] == "v1"
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/breaks")
    until(lambda: counted(run)["by_class"]["stream_broken"] > before["stream_broken"], "the broken stream to be counted")
    after = counted(run)["by_class"]
    assert {kind: after[kind] - before[kind] for kind in after} == {"http_5xx": 1, "overloaded": 1, "timeout": 1, "connect": 0, "stream_broken": 1}


def test_a_client_that_goes_away_is_counted_apart(run: rollout.Run, client: httpx.Client) -> None:
    before = counted(run)
    with pytest.raises(httpx.ReadTimeout):
        client.get("/slow?s=600", timeout=TIMEOUT_S / 3)
    until(lambda: counted(run)["client_disconnects"] > before["client_disconnects"] and not counted(run)["in_flight"], "the disconnect to be counted")
    after = counted(run)
    assert after["client_disconnects"] == before["client_disconnects"] + 1
    assert (after["requests"], after["failures"]) == (before["requests"], before["failures"])
    assert after["in_flight"] == 0


def counted(run: rollout.Run, version: str = "v1") -> dict[str, Any]:
    (replica,) = router(run).ledger()["replicas"].values()
    found: dict[str, Any] = replica["versions"][version]
    return found


def test_the_ledger_is_what_clients_saw_and_the_split_what_was_asked(run: rollout.Run, client: httpx.Client) -> None:
    set_split(run, 25)
    cursor = counts.start(router(run).ledger())
    seen = Counter(client.get("/v2/health/live").headers["x-model-version"] for _ in range(1000))
    tick, _ = counts.advance(cursor, router(run).ledger(), "v1", "v2")
    assert (tick.stable.requests, tick.candidate.requests) == (seen["v1"], seen["v2"])
    assert sum(tick.candidate.latency_counts) == seen["v2"]
    assert 190 <= seen["v2"] <= 310  # binomial(1000, 0.25): all but 2 in 100,000 lie within


def test_sticky_users_stay_on_the_candidate_as_it_grows(run: rollout.Run, client: httpx.Client) -> None:
    def who(user: int) -> str:
        return str(client.get("/v2/health/live", headers={"x-user": str(user)}).headers["x-model-version"])

    set_split(run, 10, sticky="x-user")
    early = {user for user in range(150) if who(user) == "v2"}
    assert early == {user for user in range(150) if who(user) == "v2"}
    set_split(run, 50, sticky="x-user")
    late = {user for user in range(150) if who(user) == "v2"}
    assert early < late


def test_the_weight_changes_under_load_without_a_failed_request(run: rollout.Run, client: httpx.Client, users: Any) -> None:
    with users(MODEL, 50.0) as sending:
        for weight in (10, 50, 0, 25, 90, 0):
            set_split(run, weight)
            sending.wait_for_answers(20)
        tally = sending.stop()
    assert not tally.failed, tally
    assert tally.answered["v2"] > 0


def test_a_lapsed_lease_gives_everything_to_stable(run: rollout.Run, client: httpx.Client) -> None:
    set_split(run, 100, lease_s=seconds(10))
    assert client.get("/v2/health/live").headers["x-model-version"] == "v2"
    until(lambda: router(run).observed_weight().weight_percent == 0.0, "the lease to lapse")
    assert {client.get("/v2/health/live").headers["x-model-version"] for _ in range(20)} == {"v1"}
    assert router(run).observed_weight().weight_percent == 0.0


def router_replicas() -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if f"{MODEL}-router:Router" in " ".join(process.info["cmdline"] or [])]


def kill_router(run: rollout.Run) -> None:
    """And wait for the next replica."""
    before = router(run).read("router")["replica"]
    victims = router_replicas()
    assert victims
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    until(lambda: router(run).read("router")["replica"] != before, "a new router")


def test_d5_heartbeats_hold_a_weight_and_a_router_that_restarts_waits_for_the_next_one(run: rollout.Run, client: httpx.Client) -> None:
    def who() -> set[str]:
        return {client.get("/v2/health/live").headers["x-model-version"] for _ in range(20)}

    ends = time.time() + seconds(20)
    split = Split("v1", "v2", 100.0, ends, None, TIMEOUT_S, lease_s=3600.0)
    run.router.set_weight(split)
    run.router.wait_until_applied(split, seconds(60))
    assert client.post("/-/heartbeat").status_code == 401
    assert client.post("/-/heartbeat", headers={"authorization": "Bearer guessed"}, content=b"x" * (5 << 20)).status_code == 401
    assert client.get("/-/heartbeat").status_code == 405
    assert run.router.renew(split) in ("renewed", "lapsed")
    until(lambda: time.time() > ends, "what was written to be over")
    assert who() == {"v2"} and run.router.renew(split) == "renewed"
    kill_router(run)
    assert run.router.observed_weight().weight_percent == 0.0 and who() == {"v1"}
    assert run.router.renew(split) == "lapsed" and who() == {"v2"}
    other = RayRouter(run.cluster, run.request)
    assert other.renew(split) == "refused"
    set_split(run, 0)
    assert run.router.renew(split) == "refused" and client.post("/-/heartbeat").status_code == 409


def test_d20_a_version_that_hangs_does_not_starve_the_other(run: rollout.Run, client: httpx.Client) -> None:
    from kfp_components.cluster.changes import Edit, write
    from kfp_components.serving import rayservice

    application = names.router_application(MODEL)

    def limit(args: dict[str, Any]) -> None:
        """The same router with other arguments: Serve starts another replica."""

        def change(text: str) -> str:
            return rayservice.with_application(text, {**rayservice.applications(text)[application], "args": {"model": MODEL, **args}})

        before = router(run).read("router")["replica"]
        write(run.cluster, Edit(Ref("RayService", RAYSERVICE, NAMESPACE), change, frozenset({application}), "limited"))
        until(lambda: router(run).read("router")["replica"] != before, "a router with other arguments")

    set_split(run, 0)
    limit({"max_in_flight_per_version": 2})
    v2 = {"x-model-version": "v2"}
    with client.stream("GET", "/stream/first", headers=v2) as first_one, client.stream("GET", "/stream/second", headers=v2) as second:
        assert first_one.status_code == second.status_code == 200
        full = client.get("/v2/health/live", headers=v2)
        assert (full.status_code, full.headers["retry-after"], full.headers["x-model-version"]) == (503, "1", "v2")
        assert client.get("/v2/health/live").headers["x-model-version"] == "v1"
        assert counted(run, "v2")["in_flight"] == 2 and router(run).read("router")["weight_percent"] == 0.0
    until(lambda: client.get("/v2/health/live", headers=v2).status_code == 200, "room for v2")
    limit({})


def test_its_own_pages_only_tell(client: httpx.Client) -> None:
    assert client.get("/-/router").json()["stable"]["version"] == "v1"
    assert client.post("/-/router", json={"weight_percent": 100}).status_code == 405
    assert client.get("/-/nothing").status_code == 404


def test_a_wrong_configuration_is_refused_and_the_old_one_stays(run: rollout.Run, client: httpx.Client) -> None:
    from kfp_components.cluster.changes import Edit, write
    from kfp_components.serving import rayservice

    set_split(run, 0)
    application = names.router_application(MODEL)
    wrong = {"stable": {"version": "v1", "route": "/.versions/routed/v1"}, "wieght": 5}
    ref = Ref("RayService", RAYSERVICE, NAMESPACE)
    write(run.cluster, Edit(ref, lambda text: rayservice.with_user_config(text, application, "Router", wrong), frozenset({application}), "wrong"))

    def refusal() -> Any:
        return client.get("/-/router").json()["refused_config"]

    assert "'wieght' is not a known key" in until(refusal, "the router to refuse")
    assert client.get("/v2/health/live").headers["x-model-version"] == "v1"
    set_split(run, 0)
    until(lambda: refusal() is None, "the refusal to be over")


def test_a_killed_router_comes_back_and_nothing_is_counted_twice(run: rollout.Run, client: httpx.Client) -> None:
    set_split(run, 50)
    cursor = counts.start(router(run).ledger())
    for _ in range(20):
        client.get("/v2/health/live")
    tick, cursor = counts.advance(cursor, router(run).ledger(), "v1", "v2")
    assert tick.stable.requests + tick.candidate.requests == 20
    kill_router(run)
    tick, cursor = counts.advance(cursor, router(run).ledger(), "v1", "v2")
    assert tick.broken is None and tick.stable.requests + tick.candidate.requests == 0
    for _ in range(10):
        assert client.get("/v2/health/live").status_code == 200
    tick, _ = counts.advance(cursor, router(run).ledger(), "v1", "v2")
    assert tick.stable.requests + tick.candidate.requests == 10


def test_many_clients_at_once(client: httpx.Client) -> None:
    wrong: list[int] = []

    def go() -> None:
        for _ in range(20):
            status = client.get("/v2/health/live").status_code
            if status != 200:
                wrong.append(status)

    threads = [threading.Thread(target=go) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
