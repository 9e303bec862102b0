"""The public route changes hands: to the router before a candidate's first request, and to the winner's application at the end."""

import json
from typing import Any

import pytest
from memory_world import MODEL, NAMESPACE, OTHERS, RAYSERVICE, Chosen, World, application, asked, live, routed
from test_engine import in_canary

from kfp_components import errors, names, rollout
from kfp_components.cluster import Ref
from kfp_components.cluster.faults import Script
from kfp_components.release import Release
from kfp_components.request import parse_target
from kfp_components.rollout import tidy
from kfp_components.router import policy
from kfp_components.serving import rayservice
from kfp_components.traffic import ray_router

TARGET = parse_target({"model": MODEL, "namespace": NAMESPACE, "rayservice": RAYSERVICE})
ROUTER, V1, V2 = f"{MODEL}-router", f"{MODEL}-v1", f"{MODEL}-v2"


@pytest.fixture
def world() -> World:
    world = World(rate_per_s=400.0)
    world.rayservice(live())
    return world


def holders(world: World, request: Any, holds: list[tuple[str, str | None]]) -> Release:
    """Promote, and keep who has the route whenever the record changes."""
    return world.promote(request, lambda record: holds.append((record.phase, rayservice.owner(world.text(), f"/{MODEL}"))))


def test_the_router_has_the_route_from_the_first_request_of_the_candidate_to_the_last_look(world: World) -> None:
    holds: list[tuple[str, str | None]] = []
    assert holders(world, asked(), holds).phase == "promoted"
    assert {holder for phase, holder in holds if phase in ("prepared", "registered", "deployed", "smoked")} == {V1}
    assert [holder for phase, holder in holds if phase == "promoted"] == [V2]
    during = [holder for phase, holder in holds if phase in ("canary", "promoting")]
    assert during[1:].count(V1) == 0 and ROUTER in during and during == sorted(during, key=[V1, ROUTER, V2].index), "once there and once back"
    assert world.text() == "applications:\n" + OTHERS + world.text().split(OTHERS)[1] and ROUTER not in world.text()


def test_before_the_canary_nothing_of_stable_is_written(world: World) -> None:
    process = world.process()
    run = process.open(asked())
    for step in (rollout.register_model, rollout.deploy_rayservice, rollout.create_alias, rollout.create_inference_service, rollout.smoke_inference):
        step(run)
    assert world.text().startswith(live()) and world.users_get() == ("v1",)


def test_a_first_version_needs_no_router() -> None:
    world = World(rate_per_s=0.0)
    world.rayservice("applications: []\n")
    texts: list[str] = []
    world.deploy(asked("v1"), lambda _record: texts.append(world.text()))
    assert not any(ROUTER in text for text in texts) and world.users_get() == ("v1",)


def test_what_an_older_version_left_is_taken_along() -> None:
    """Its router stood on the route for good, and there was no name of an application in the record."""
    world = World(rate_per_s=400.0)
    world.rayservice(routed())
    assert world.promote(asked()).phase == "promoted"
    applications = rayservice.applications(world.text())
    assert set(applications) == {"whisper", V2} and applications[V2]["route_prefix"] == f"/{MODEL}"
    assert not world.serve.lost and not world.serve.failed


def test_a_rollback_of_a_promotion_whose_router_is_gone_is_one_write(world: World) -> None:
    kept = asked(keep_previous_s=3600.0)
    assert world.promote(kept).previous is not None
    assert set(rayservice.applications(world.text())) == {"whisper", V1, V2}
    script = Script(clock=world.clock)
    process = world.process(script)
    seen: list[int] = []

    def writes() -> int:
        return sum(call.write and call.what.startswith("RayService") for call in script.calls)

    process.watch = lambda record: seen.append(writes()) if record.phase == "rolling_back" and world.users_get() == ("v1",) else None
    assert process.roll_back(kept).phase == "rolled_back"
    assert seen[0] == 1 and world.text() == live() and not world.serve.lost


def test_a_rollback_of_what_is_finished_waits_for_serve_without_a_lease_of_its_own(world: World) -> None:
    assert world.promote(asked()).phase == "promoted"
    away, answer = [b"the proxy restarts"], world.serve.answer

    def once(method: str, path: str, headers: Any) -> Any:
        return (503, {}, away.pop()) if path == "/-/routes" and away else answer(method, path, headers)

    world.serve.answer = once  # type: ignore[method-assign]
    world.clock.sleep(600)
    assert world.process().roll_back(asked()).phase == "promoted" and not away
    assert world.cluster.get(Ref("Lease", names.release(MODEL), NAMESPACE)) is None


def test_a_router_that_still_answers_something_stays_and_is_tidied_up_later(world: World) -> None:
    world.serve.in_flight = 1
    record = world.promote(asked())
    assert record.phase == "promoted" and record.previous is not None and world.users_get() == ("v2",)
    assert {ROUTER, V1} <= set(rayservice.applications(world.text()))
    assert any("still answers requests that it took" in event.message for event in record.events)
    process = world.process()
    assert rollout.tidy_release(process.open(asked())).previous is None
    assert set(rayservice.applications(world.text())) == {"whisper", ROUTER, V2}
    world.serve.in_flight = 0
    rollout.tidy_release(world.process().open(asked()))
    assert set(rayservice.applications(world.text())) == {"whisper", V2} and world.lease() is None


def test_a_router_that_still_answers_something_is_the_next_releases_own(world: World) -> None:
    world.serve.in_flight = 1
    world.promote(asked())
    world.serve.in_flight = 0
    assert world.promote(asked("v3")).phase == "promoted"
    assert set(rayservice.applications(world.text())) == {"whisper", f"{MODEL}-v3"} and not world.serve.lost and not world.serve.failed


def test_a_candidate_that_is_taken_back_goes_though_the_router_is_busy(world: World) -> None:
    world.serve.in_flight = 1
    world.serve.behaviour(V2).answer = lambda n: 500 if n % 3 == 0 else 200
    process = world.process()
    end = process.outcome(lambda: process.promote(asked()))
    assert isinstance(end.error, errors.CanaryFailed)
    assert set(rayservice.applications(world.text())) == {"whisper", V1, ROUTER} and world.users_get() == ("v1",)
    world.serve.in_flight = 0
    rollout.tidy_release(world.process().open_rollback(TARGET))
    assert world.text() == live()


@pytest.mark.parametrize("taken_by", ["stable again", "somebody else"])
def test_a_route_that_somebody_takes_in_mid_canary_ends_it(world: World, taken_by: str) -> None:
    def owner(record: Release) -> None:
        if in_canary(record) and record.timeline and rayservice.owner(world.text(), f"/{MODEL}") == ROUTER:
            text = rayservice.with_route(world.text(), ROUTER, names.router_route(MODEL))
            other = application("other", f"/{MODEL}") if taken_by == "somebody else" else ""
            world.rayservice(rayservice.with_route(text, V1, f"/{MODEL}") if not other else text + other)

    world.rate_per_s = 2.0  # so few that it is seen before the judge decides
    process = world.process(watch=owner)
    end = process.outcome(lambda: process.promote(asked(judge={"judge_latency": False, "error_margin_percent": 0.01, "max_minutes": 60.0})))
    assert isinstance(end.error, errors.ApplicationRemoved) and end.exit_code == 4, str(end)
    assert f"route /{MODEL} was taken from the router" in end.words and "written by owner" in end.words
    assert world.users_get() == (("v1",) if taken_by == "stable again" else ("other",))
    assert f"{MODEL}-v2" not in world.serve.applications() and not world.serve.lost


def test_a_route_that_somebody_else_took_before_the_router_is_said_with_its_rayservice(world: World) -> None:
    def owner(record: Release) -> None:
        if record.phase == "smoked" and "other" not in world.text():
            world.rayservice(rayservice.with_route(world.text(), V1, "/old") + application("other", f"/{MODEL}"))

    process = world.process(watch=owner)
    end = process.outcome(lambda: process.promote(asked()))
    assert end.exit_code == 3 and f"{world.serve.ref}: route /{MODEL} belongs to application bge-other" in end.words, str(end)
    assert world.users_get() == ("other",)


def test_a_router_of_another_protocol_is_said_and_gets_no_user(world: World) -> None:
    world.serve.page = lambda page: (200, {}, json.dumps({"protocol": 1, "stable": {"version": "v1"}}).encode()) if page == "router" else None
    process = world.process()
    end = process.outcome(lambda: process.promote(asked()))
    assert end.exit_code == 3 and "understands protocol 1, this library speaks 2" in end.words, str(end)
    assert world.users_get() == ("v1",) and not world.serve.lost
    assert ray_router.PROTOCOL == policy.PROTOCOL


def test_the_stub_is_shown_while_the_route_changes_hands(world: World) -> None:
    world.front()
    shown: list[dict[str, float] | None] = []
    world.promote(asked(), lambda record: shown.append(rollout.read_status(world.cluster, record, clock=world.clock).shown))
    stub = world.cluster.get(Ref("InferenceService", MODEL, NAMESPACE))
    assert stub is not None and shown[-1] == {"v2": 100} and {"v1": 80, "v2": 20} in shown


# --- Serve takes its time -------------------------------------------------------------------------------------------------------------


class SlowProxies:
    """They send the public route's requests to the application that had it, ``for_s`` longer than it is written."""

    def __init__(self, world: World, for_s: float) -> None:
        self.world, self.for_s, self.holder = world, for_s, V1
        self.since_s: float | None = None
        self.answer, world.serve.answer = world.serve.answer, self.slow  # type: ignore[method-assign]

    def slow(self, method: str, path: str, headers: dict[str, str]) -> Any:
        if path != "/-/routes":
            return self.answer(method, path, headers)
        written, now_s = rayservice.owner(self.world.text(), f"/{MODEL}"), self.world.clock.monotonic()
        if written == self.holder:
            self.since_s = None
        elif self.since_s is None:
            self.since_s = now_s
        elif now_s - self.since_s >= self.for_s:
            self.holder, self.since_s = str(written), None
        return 200, {}, json.dumps({f"/{MODEL}": self.holder}).encode()

    def check(self, record: Release) -> None:
        """What is right whenever the record changes: nothing that users are still sent to is gone, and no weight is set where they are not."""
        there = rayservice.applications(self.world.text())
        assert self.holder in there, f"users are sent to {self.holder}, which is gone ({record.events[-1].message})"
        assert self.holder == ROUTER or not record.weight_percent or record.phase not in ("canary", "promoting") or V1 not in there


@pytest.mark.parametrize("good", [True, False], ids=["promoted", "taken back"])
def test_nothing_goes_and_no_weight_is_set_before_serve_has_given_the_route(world: World, good: bool) -> None:
    proxies = SlowProxies(world, 5.0)
    if not good:
        world.serve.behaviour(V2).answer = lambda n: 500 if n % 3 == 0 else 200
    process = world.process(watch=proxies.check)
    end = process.outcome(lambda: process.promote(asked()))
    assert end.exit_code == (0 if good else 4), str(end)
    assert proxies.holder == (V2 if good else V1) and ROUTER not in rayservice.applications(world.text()) and not world.serve.lost


def test_the_router_stays_while_serve_says_that_users_are_still_sent_to_it(world: World) -> None:
    """On the way back, too: that nobody can be asked stops nobody, but this is an answer."""
    world.serve.behaviour(V2).answer = lambda n: 500 if n % 3 == 0 else 200
    proxies = SlowProxies(world, 0.0)

    def then_never(record: Release) -> None:
        if record.phase == "rolling_back":
            proxies.for_s = 1e9

    process = world.process(watch=then_never)
    end = process.outcome(lambda: process.promote(asked()))
    assert "The way back is not finished" in end.words and f"Serve still does not give route /{MODEL} to {V1}: {ROUTER} has it" in end.words
    assert world.record().phase == "rolling_back" and {V1, V2, ROUTER} <= set(rayservice.applications(world.text()))
    proxies.for_s = 0.0
    world.clock.sleep(60.0)
    process = world.process()
    end = process.outcome(lambda: process.promote(asked()))
    assert isinstance(end.error, errors.CanaryFailed) and world.record().phase == "rolled_back" and world.text() == live(), str(end)


# --- what a tidy, or a process that wakes, must not take away ----------------------------------------------------------------------------


def test_a_router_that_users_reach_is_never_tidied_up() -> None:
    """As an older version of this library left it: it stays on the public route."""
    world = World(rate_per_s=40.0)
    world.rayservice(routed())
    world.known("v1")
    rollout.tidy_release(world.process().open_rollback(TARGET))
    assert world.text() == routed() and world.users_get() == ("v1",) and world.lease() is None


def test_a_router_that_was_busy_goes_with_the_old_version(world: World) -> None:
    world.serve.in_flight = 1
    assert world.promote(asked()).previous is not None and {ROUTER, V1} <= set(rayservice.applications(world.text()))
    world.serve.in_flight = 0
    world.clock.sleep(60.0)
    run = world.process().open_rollback(TARGET)
    assert tidy.put_away(run).previous is None and set(rayservice.applications(world.text())) == {"whisper", V2}


def test_a_process_that_wakes_before_its_last_removal_leaves_what_another_one_has_gone_back_to(world: World) -> None:
    """Between the look whether the router is busy and the write, it stood still; v1 has the route again."""
    slept: list[str] = []

    def stands_still(call: Any) -> None:
        if call.what.endswith("/-/router") and not slept and world.record().names_before is not None:
            slept.append(call.what)
            world.clock.sleep(100.0)
            world.process().roll_back(asked())

    process = world.process(Chosen(world.clock, stands_still))
    end = process.outcome(lambda: process.promote(asked()))
    assert slept and isinstance(end.error, errors.ReleaseHeld), str(end)
    assert world.text() == live() and world.users_get() == ("v1",) and not world.serve.lost


def test_a_router_that_was_left_is_not_taken_from_a_run_that_begins(world: World) -> None:
    """It has the Lease, and may need the router at once."""
    world.serve.in_flight = 1
    world.promote(asked())
    rollout.tidy_release(world.process().open(asked()))
    world.serve.in_flight = 0
    assert ROUTER in rayservice.applications(world.text())
    other = world.process().open(asked("v3"))
    other.lease.acquire()

    def it_works(call: Any) -> None:
        if call.what.startswith("Lease"):
            world.clock.sleep(10.0)
            other.lease.keep()

    process = world.process(Chosen(world.clock, it_works))
    with pytest.raises(errors.ReleaseHeld, match="which is alive"):
        rollout.tidy_release(process.open(asked()))
    assert ROUTER in rayservice.applications(world.text())
