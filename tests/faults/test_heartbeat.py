"""The candidate's weight holds as long as heartbeats come: what they cost, what is known of a lapse, and who may send them (D5, D10, D22, D23)."""

import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from memory_world import MODEL, NAMESPACE, RAYSERVICE, Chosen, Process, World, asked, live, routed
from test_engine import PATIENT, in_canary, smoked

from kfp_components import errors, names, rollout
from kfp_components.cluster import Ref
from kfp_components.cluster.faults import Record, Script
from kfp_components.release import Release
from kfp_components.serving import rayservice
from kfp_components.traffic.ray_router import RayRouter

HEARTBEAT = f"/{MODEL}/-/heartbeat"
LEASE_S = 20.0
REQUEST = asked(judge=PATIENT, lease_s=LEASE_S)


def config(world: World) -> dict[str, Any]:
    return rayservice.user_config(world.text(), f"{MODEL}-router", "Router") or {}


def rayservice_writes(script: Script) -> list[Record]:
    return [call for call in script.writes if call.what.startswith("RayService ")]


def heartbeats(script: Script) -> int:
    return sum(call.what == HEARTBEAT for call in script.calls)


def once_in_canary(act: Callable[[Release], None]) -> Callable[[Release], None]:
    """A watcher that acts at the third look."""
    done: list[Release] = []

    def watch(record: Release) -> None:
        if in_canary(record) and len(record.timeline) >= 3 and not done:
            done.append(record)
            act(record)

    return watch


def foreign_write(world: World, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    world.rayservice(rayservice.with_user_config(world.text(), f"{MODEL}-router", "Router", change(config(world))))


def well(process: Process, command: Callable[[], Release]) -> None:
    end = process.outcome(command)
    assert end.exit_code == 0, str(end)


def takes_over(world: World) -> Process:
    """The same command by another process, when the first one's Lease is over; killed once it has shifted."""
    world.clock.sleep(2 * LEASE_S)
    world.killed_when(in_canary, REQUEST)
    return world.process()


# --- D22: what a canary costs ---------------------------------------------------------------------------------------------------------


def test_d22_while_a_step_judges_the_rayservice_is_not_written(world: World) -> None:
    process, _run = smoked(world, REQUEST)
    script = Script(clock=world.clock)
    process = Process(world, process.holder, script)
    began = world.clock.monotonic()
    well(process, lambda: rollout.canary_step(process.open(REQUEST), 0))
    assert world.clock.monotonic() - began > 1.5 * LEASE_S, "the weight would have lapsed"
    assert heartbeats(script) > 9 and len(rayservice_writes(script)) == 2, "the router takes the route, and the share"
    assert all(point.weight_percent == 20.0 for point in world.record().timeline) and not world.serve.failed


def test_d22_a_process_that_judges_what_another_one_shifted_writes_once(world: World) -> None:
    _, run = smoked(world, REQUEST)
    rollout.shift_traffic(run, 20.0)
    before = config(world)["heartbeat_sha256"]
    script = Script(clock=world.clock)
    process = Process(world, run.holder, script)
    well(process, lambda: rollout.judge_canary(process.open(REQUEST), 0))
    assert len(rayservice_writes(script)) == 1, "its token has to stand there"
    assert config(world)["heartbeat_sha256"] != before and heartbeats(script) > 9


def test_d22_a_router_that_is_slow_to_take_a_weight_up_gets_a_heartbeat_and_no_write(world: World) -> None:
    told: list[float] = []

    def slow(page: str) -> Any:
        """Until 30 s after the first look at it, the router does not know of a weight."""
        if page != "router" or config(world).get("weight_percent") != 20.0:
            return None
        told.append(world.clock.monotonic())
        old = {"stable": {"version": "v1"}, "candidate": None, "weight_percent_effective": 0.0}
        return (200, {}, json.dumps(old).encode()) if told[-1] - told[0] < 30.0 else None

    _, run = smoked(world, REQUEST)
    world.serve.page = slow
    script = Script(clock=world.clock)
    process = Process(world, run.holder, script)
    well(process, lambda: rollout.shift_traffic(process.open(REQUEST), 20.0))
    assert told[-1] - told[0] >= 30.0 and len(rayservice_writes(script)) == 2 and heartbeats(script) >= 3
    assert world.users_get() == ("v1", "v2"), "it has not lapsed, though what was written has"


# --- D10: what is known of a lapse ----------------------------------------------------------------------------------------------------


def silent(world: World, seconds: float) -> tuple[Chosen, Callable[[Release], None]]:
    """Heartbeats get no answer for so long, from the third look on; everything else does."""
    until: list[float] = []

    def choose(call: Record) -> errors.Unreachable | None:
        gone = bool(until) and call.what == HEARTBEAT and call.at_s < until[0]
        return errors.Unreachable("no answer") if gone else None

    return Chosen(world.clock, choose), once_in_canary(lambda _record: until.append(world.clock.monotonic() + seconds))


def unwatched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One for each look: whether the judge was told that nobody held the weight."""
    from kfp_components.judge.verdict import Judge

    told: list[bool] = []
    observe = Judge.observe

    def counted(self: Judge, *args: Any, **options: Any) -> Any:
        told.append(options["unwatched"])
        return observe(self, *args, **options)

    monkeypatch.setattr(Judge, "observe", counted)
    return told


def test_d10_a_few_heartbeats_without_an_answer_are_harmless(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told = unwatched(monkeypatch)
    world.rayservice(live())
    script, watch = silent(world, LEASE_S / 2)
    assert world.process(script, watch).promote(REQUEST).phase == "promoted"
    assert sum(told) == 2, "the first look of each step"


def test_d10_a_lapse_of_ones_own_is_known_and_judged_by_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told = unwatched(monkeypatch)
    lapsed: list[float] = []
    world.serve.page = lambda page: lapsed.append(world.clock.monotonic()) if world.users_get() == ("v1",) else None  # type: ignore[func-returns-value]
    world.rayservice(live())
    script, watch = silent(world, LEASE_S + 25.0)
    process = world.process(script, watch)
    end = process.outcome(lambda: process.promote(REQUEST))
    assert end.exit_code == 0, str(end)
    assert lapsed and 20 <= sum(told) <= 32, "those in which it had lapsed, the one that found it so, and the first of each step"
    assert len(rayservice_writes(script)) == 7, "the candidate, the route, two shifts, the promotion, the route, and what goes: none to renew"


def test_d10_heartbeats_that_stay_away_end_the_step(world: World) -> None:
    world.rayservice(live())
    script, watch = silent(world, 600.0)
    process = world.process(script, watch)
    end = process.outcome(lambda: process.promote(REQUEST))
    assert end.exit_code == 3 and world.record().phase == "canary" and world.users_get() == ("v1",), str(end)


def test_d10_an_api_that_is_away_for_longer_than_the_lease_takes_no_weight_away(world: World) -> None:
    from_s: list[float] = []

    def away(call: Record) -> errors.Unreachable | None:
        gone = bool(from_s) and call.owner == "cluster" and from_s[0] <= call.at_s < from_s[0] + 3 * LEASE_S
        return errors.Unreachable("API away") if gone else None

    got: list[tuple[str, ...]] = []
    begins = once_in_canary(lambda _record: from_s.append(world.clock.monotonic()))

    def watch(record: Release) -> None:
        begins(record)
        if from_s and world.clock.monotonic() < from_s[0] + 3 * LEASE_S:
            got.append(world.users_get())

    world.rayservice(live())
    process = world.process(Chosen(world.clock, away), watch)
    narrow = asked(judge={**PATIENT, "error_margin_percent": 0.2}, lease_s=LEASE_S)  # so that the step is not over meanwhile
    end = process.outcome(lambda: process.promote(narrow))
    assert end.exit_code == 0, str(end)
    assert len(got) > 2 * LEASE_S and set(got) == {("v1", "v2")}


def test_d10_a_router_that_restarts_gives_stable_everything_until_the_next_heartbeat(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told = unwatched(monkeypatch)
    got: list[tuple[str, ...]] = []

    def restarts() -> None:
        world.serve.restart_router()
        got.append(world.users_get())

    def watch(record: Release) -> None:
        if in_canary(record) and len(record.timeline) == 30 and not got:  # what was written has lapsed
            world.soon = restarts

    world.rayservice(live())
    assert world.promote(REQUEST, watch).phase == "promoted"
    assert got == [("v1",)] and sum(told) == 3, "the first look of each step, and the one after the restart"


# --- D5: whose heartbeats count -------------------------------------------------------------------------------------------------------


def heartbeat(world: World, authorization: str | None = None, method: str = "POST", path: str = HEARTBEAT) -> httpx.Response:
    headers = {} if authorization is None else {"authorization": authorization}
    status, told, body = world.serve.answer(method, path, headers)
    return httpx.Response(status, headers=told, content=body)


def test_d5_a_heartbeat_needs_the_token_of_the_run_that_wrote_the_weight(world: World) -> None:
    _, run = smoked(world, REQUEST)
    beside = f"{names.router_route(MODEL)}/-/heartbeat"
    assert heartbeat(world, path=beside).status_code == 409, "at weight 0 there is nothing to renew"
    rollout.shift_traffic(run, 20.0)
    assert isinstance(run.router, RayRouter)
    token = run.router._token
    assert hashlib.sha256(token.encode()).hexdigest() == config(world)["heartbeat_sha256"]
    for wrong in (None, "", token, f"Basic {token}", f"Bearer {token}x", "Bearer ", f"Bearer {config(world)['heartbeat_sha256']}"):
        refused = heartbeat(world, wrong)
        assert refused.status_code == 401 and "the token of the run that wrote the weight" in refused.json()["error"]
    good = heartbeat(world, f"Bearer {token}")
    assert good.status_code == 200 and good.json()["weight_percent_effective"] == 20.0
    assert good.json()["lease_left_s"] == pytest.approx(LEASE_S) and good.json()["lapsed"] is False
    assert heartbeat(world, f"Bearer {token}", method="GET").status_code == 405


def test_d5_who_was_taken_over_from_is_told_so_by_its_first_heartbeat(world: World) -> None:
    seen: list[Any] = []

    def another() -> None:
        takes_over(world)
        seen.append((world.text(), world.record().phase))
        world.cluster.delete(Ref("Lease", names.release(MODEL), NAMESPACE))  # else it is the Lease that tells
        assert lease is not None
        world.cluster.create(lease)

    lease: Any = None

    def remember(_record: Release) -> None:
        nonlocal lease
        found = world.lease()
        assert found is not None
        lease = {key: found[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": names.release(MODEL), "namespace": NAMESPACE}}
        world.soon = another

    world.rayservice(live())
    process = world.process(watch=once_in_canary(remember))
    end = process.outcome(lambda: process.promote(REQUEST))
    assert isinstance(end.error, errors.ReleaseHeld), str(end)
    assert seen == [(world.text(), world.record().phase)]


@pytest.mark.parametrize("change", ["without a hash", "another weight", "another hash"])
def test_d5_after_somebody_elses_write_the_run_puts_its_own_back_once(world: World, change: str) -> None:
    changes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "without a hash": lambda found: {key: value for key, value in found.items() if key not in ("heartbeat_sha256", "lease_s")},
        "another weight": lambda found: {**found, "weight_percent": 90.0},
        "another hash": lambda found: {**found, "heartbeat_sha256": "0" * 64},
    }
    before: list[dict[str, Any]] = []

    def somebody(_record: Release) -> None:
        before.append(config(world))
        foreign_write(world, changes[change])

    _, run = smoked(world, REQUEST)
    script = Script(clock=world.clock)
    process = Process(world, run.holder, script, once_in_canary(somebody))
    well(process, lambda: rollout.canary_step(process.open(REQUEST), 0))
    assert len(rayservice_writes(script)) == 3, "the route, the shift, and putting it back"
    for key in ("weight_percent", "heartbeat_sha256", "lease_s"):
        assert config(world)[key] == before[0][key]


def test_d5_the_token_is_written_nowhere(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    reprs: list[str] = []
    words: list[str] = []
    world.rayservice(live())
    for version, fault in (("v2", False), ("v3", True)):
        if fault:
            world.serve.behaviour(f"{MODEL}-{version}").answer = lambda n: 500 if n % 3 == 0 else 200
        script, watch = silent(world, 30.0)
        process = world.process(script, watch)
        request = asked(version, judge=PATIENT)
        run = process.open(request)
        end = process.outcome(lambda run=run: rollout.promote_with_canary(run))  # type: ignore[misc]
        reprs += [repr(run), repr(run.router), repr(vars(run)), *map(repr, script.calls)]
        words.append(str(end) + end.words)
        assert isinstance(run.router, RayRouter) and run.router._token.startswith("token-")
    objects = [world.cluster.list(kind, NAMESPACE) for kind in ("ConfigMap", "Event", "RayService", "InferenceService", "Service")]
    assert "token-" not in json.dumps(objects) + caplog.text + "".join(reprs + words)


@pytest.mark.parametrize("end", ["promoted", "rolled_back", "held", "left"])
def test_d5_no_hash_stays_where_nobody_runs(world: World, end: str) -> None:
    request = REQUEST
    watch: Callable[[Release], None] = lambda _record: None  # noqa: E731
    if end == "rolled_back":
        world.serve.behaviour(f"{MODEL}-v2").answer = lambda n: 500 if n % 3 == 0 else 200
    if end == "held":
        world.rate_per_s, request = 0.1, asked(judge={**PATIENT, "max_minutes": 0.5}, lease_s=LEASE_S)
    if end == "left":

        def stops(_record: Release) -> None:
            raise KeyboardInterrupt

        def soon(_record: Release) -> None:
            world.soon = lambda: stops(_record)

        watch = once_in_canary(soon)
    hashes: list[str] = []

    def look(record: Release) -> None:
        hashes.extend(config(world).get("heartbeat_sha256", "") for _ in range(in_canary(record)))
        watch(record)

    world.rayservice(live())
    process = world.process(watch=look)
    process.outcome(lambda: process.promote(request))
    assert any(hashes), "while it ran there was one"
    assert world.record().phase == {"left": "canary"}.get(end, end)
    assert not {"heartbeat_sha256", "lease_s", "lease_expires_unix_s"} & set(config(world))


def test_case_01_a_candidate_taken_out_beside_a_router_that_answers_is_noticed(world: World) -> None:
    def removed(_record: Release) -> None:
        world.rayservice(rayservice.without_application(world.text(), f"{MODEL}-v2"))

    world.rate_per_s = 0.5  # so few that it is seen before the judge sees it
    world.rayservice(live())
    process = world.process(watch=once_in_canary(removed))
    end = process.outcome(lambda: process.promote(REQUEST))
    assert isinstance(end.error, errors.ApplicationRemoved) and end.exit_code == 4, str(end)
    assert "bge-v2 is not in serveConfigV2 any more" in end.words and "written by owner" in end.words
    assert world.record().phase == "rolled_back" and world.users_get() == ("v1",)


# --- D23: one router replica ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [{"num_replicas": 2}, {"num_replicas": "auto"}, {"autoscaling_config": {"min_replicas": 1, "max_replicas": 3}}])
def test_d23_a_router_with_several_replicas_is_refused_at_the_door(world: World, several: dict[str, Any]) -> None:
    entry = rayservice.applications(routed())[f"{MODEL}-router"]
    entry["deployments"][0] |= several
    text = rayservice.with_application(routed(), entry)
    world.rayservice(text)
    process = world.process()
    end = process.outcome(lambda: process.promote(asked()))
    assert isinstance(end.error, errors.NameTaken) and end.exit_code == 2, str(end)
    (key,) = several
    assert f"RayService {NAMESPACE}/{RAYSERVICE}" in end.words and f"take {key} out" in end.words
    assert world.text() == text and world.stored() is None
    router = RayRouter(world.cluster, asked())
    with pytest.raises(errors.NameTaken, match=f"take {key} out"):
        router.prepare(text, rollout.weights.split(process.open(asked()), {}, stable="v1"))


def test_d23_a_second_replica_that_answers_in_mid_canary_breaks_the_meter(world: World) -> None:
    def another_answers(_record: Release) -> None:
        status, told, body = world.serve.answer("GET", f"/{MODEL}/-/ledger", {})
        page = json.loads(body)
        (found,) = page["replicas"].values()
        page["replicas"] = {"another": {**found, "started_unix_s": found["started_unix_s"] + 1.0}}
        world.serve.page = lambda asked_for: (status, told, json.dumps(page).encode()) if asked_for == "ledger" else None

    world.rayservice(live())
    process = world.process(watch=once_in_canary(another_answers))
    end = process.outcome(lambda: process.promote(REQUEST))
    assert isinstance(end.error, errors.MeterBroken) and end.exit_code == 6, str(end)
    assert "the router has several replicas, r1 and another" in end.words
    assert world.record().phase == "held" and world.users_get() == ("v1",)
