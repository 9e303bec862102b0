"""Where a release's router comes from: found out before anything is written, kept for every step, and not trusted before it has shaken hands."""

import json
from typing import Any

import pytest
from memory_world import MODEL, NAMESPACE, RAYSERVICE, World, asked, live

from kfp_components import errors, names, rollout
from kfp_components.cluster.changes import Plan
from kfp_components.release import Release
from kfp_components.release.record import parse
from kfp_components.request import parse_target
from kfp_components.router.policy import PROTOCOL
from kfp_components.serving import rayservice

ROUTER = names.router_application(MODEL)
AWAY = "http://127.0.0.1:9/router.zip"
IN_THE_IMAGE = "file:///opt/router.zip"
FROM_THE_FILE = {"py_modules": [IN_THE_IMAGE]}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this is on loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def allow(world: World, said: str | None, **more: str) -> None:
    """What the owner says."""
    world.cluster.patch(world.serve.ref, {"metadata": {"annotations": {names.ROUTER_FROM: said, **more}}}, manager="owner")


def served(said: str | None) -> World:
    world = World(rate_per_s=400.0)
    world.rayservice(live())
    world.front()
    allow(world, said)
    return world


def everything(world: World) -> dict[str, Any]:
    return {kind: world.cluster.list(kind, NAMESPACE) for kind in ("RayService", "Service", "InferenceService", "ConfigMap", "Lease", "Event")}


def runtime_env(world: World) -> dict[str, Any] | None:
    found: dict[str, Any] | None = world.serve.applications()[ROUTER].get("runtime_env")
    return found


def planned(world: World, **options: Any) -> Plan:
    return rollout.plan(world.process().open(asked(**options)))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("pip", errors.RequestInvalid),
        ("wheel", errors.RequestInvalid),
        ("https://me:hush@files.example/router.zip", errors.RequestInvalid),
        (AWAY, errors.Unreachable),
        (f"{AWAY}, {IN_THE_IMAGE}, image", errors.Unreachable),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_written(said: str, kind: type[errors.KfpServingError]) -> None:
    world = served(said)
    before = everything(world)
    for command in (lambda: world.promote(asked()), lambda: planned(world)):
        with pytest.raises(kind, match=f"RayService {NAMESPACE}/{RAYSERVICE}: .*{names.ROUTER_FROM}"):
            command()
    assert everything(world) == before and not world.serve.lost


def test_an_adoption_beside_a_promotion_is_refused_with_it() -> None:
    world = World(rate_per_s=0.0)
    world.rayservice(live(), adopted=False)
    world.alias()
    allow(world, AWAY)
    before = everything(world)
    with pytest.raises(errors.Unreachable, match=names.ROUTER_FROM):
        world.promote(asked(adopt=True))
    assert everything(world) == before


def test_a_first_version_and_an_adoption_need_no_router() -> None:
    world = World(rate_per_s=0.0)
    world.rayservice("applications: []\n")
    allow(world, AWAY)
    assert "the router comes" not in str(rollout.plan(world.process().open(asked("v1")), first_version=True))
    assert world.deploy(asked("v1")).phase == "promoted"
    world = World(rate_per_s=0.0)
    world.rayservice(live(), adopted=False)
    world.alias()
    allow(world, AWAY)
    target = parse_target({"model": MODEL, "namespace": NAMESPACE, "rayservice": RAYSERVICE})
    assert world.process().adopt(target, rollout.Asked()).phase == "promoted"


@pytest.mark.parametrize(("said", "expected"), [(None, None), ("image", None), (IN_THE_IMAGE, FROM_THE_FILE), (f"pip {IN_THE_IMAGE}", FROM_THE_FILE)])
def test_plan_and_log_say_where_it_comes_from_and_the_release_leaves_nothing(said: str | None, expected: dict[str, Any] | None) -> None:
    world = served(said)
    told = planned(world)
    written = [rayservice.applications(rayservice.serve_config(after)) for _, _, after in told.played() if after and after["kind"] == "RayService"]
    assert written[0][ROUTER].get("runtime_env") == expected
    line = next(part for part in str(told).splitlines() if "the router comes from" in part)
    seen = list[Any]()
    record = world.promote(asked(), watch=lambda found: seen.append(runtime_env(world)) if found.phase == "canary" else None)
    assert record.phase == "promoted" and seen and all(found == expected for found in seen)
    (event,) = [event for event in record.events if event.step == "router"]
    assert event.message in line and event.ok
    assert ROUTER not in world.serve.applications() and not world.serve.lost


def test_every_step_writes_the_choice_that_the_release_began_with() -> None:
    world = served(IN_THE_IMAGE)
    before = world.text()
    rollout.register_model(world.process().open(asked()))  # each step is another pod
    allow(world, AWAY)
    rollout.deploy_rayservice(world.process().open(asked()))
    assert runtime_env(world) == FROM_THE_FILE and world.record().router_env == FROM_THE_FILE
    rollout.roll_back(world.process().open_rollback(asked()))
    assert world.text() == before


def test_a_killed_release_goes_on_with_the_choice_that_it_began_with() -> None:
    world = served(IN_THE_IMAGE)
    world.killed_when(lambda found: found.phase == "registered", asked())
    allow(world, "image")
    world.clock.sleep(60)
    seen = list[Any]()
    record = world.promote(asked(), watch=lambda found: seen.append(runtime_env(world)) if found.phase == "canary" else None)
    assert record.phase == "promoted" and seen and all(found == FROM_THE_FILE for found in seen)


def fails_to_start(world: World, words: str) -> Any:
    """The outcome of a release whose router does not."""
    found = world.serve.behaviour(ROUTER)
    found.status, found.message = "DEPLOY_FAILED", words
    process = world.process()
    return process.outcome(lambda: process.promote(asked()))


def test_a_router_that_does_not_start_is_no_fault_of_the_version_and_is_looked_for_anew() -> None:
    world = served(IN_THE_IMAGE)
    end = fails_to_start(world, "No module named 'kfp_components'")
    assert end.exit_code == 3 and names.ROUTER_FROM in end.words and "The same command goes on" in end.words, str(end)
    applications = rayservice.applications(world.text())
    assert ROUTER not in applications and f"{MODEL}-v2" in applications and world.users_get() == ("v1",)
    assert world.record().router_env is None and world.record().phase == "registered"
    allow(world, "image")
    world.serve.behaviour(ROUTER).status = "RUNNING"
    world.clock.sleep(60)
    record = world.promote(asked())
    assert record.phase == "promoted" and record.router_env == {} and not world.serve.lost
    told = [event.message for event in record.events if event.step == "router"]
    assert [words[:30] for words in told] == [f"the router comes from {IN_THE_IMAGE}"[:30], told[1][:30], "the router comes from the Ray image"[:30]]


def test_a_router_that_did_not_start_goes_with_the_version_that_is_given_up() -> None:
    world = served("image")
    before = world.text()
    assert fails_to_start(world, "runtime_env").exit_code == 3
    assert rollout.roll_back(world.process().open_rollback(asked())).phase == "rolled_back"
    assert world.text() == before and world.users_get() == ("v1",)


def test_a_record_of_before_has_its_router_from_the_image() -> None:
    """An older library refuses a record that has the field: it would lose it."""
    world = served(IN_THE_IMAGE)
    rollout.register_model(world.process().open(asked()))
    raw = world.record().model_dump(mode="json")
    assert parse(raw).router_env == FROM_THE_FILE
    del raw["router_env"]
    assert parse({**raw, "schema_version": 3}).router_env == {} and parse({**raw, "schema_version": 3}).schema_version == raw["schema_version"] == 4


def another(protocol: int) -> Any:
    """The page of a router of another version."""

    def page(name: str) -> Any:
        return (200, {}, json.dumps({"protocol": protocol, "router_version": "0.0.9"}).encode()) if name == "router" else None

    return page


def left_behind(said: str) -> World:
    """A router is there when the next release begins: of the last one, still busy."""
    world = served(said)
    world.serve.in_flight = 1
    assert world.promote(asked("v2")).phase == "promoted" and ROUTER in world.serve.applications()
    return world


def test_a_router_that_is_there_is_asked_at_the_door() -> None:
    world = left_behind(IN_THE_IMAGE)
    allow(world, AWAY)  # nobody looks there: the router is
    assert f"the router is there already, application {ROUTER}: version unknown, protocol {PROTOCOL}" in str(planned(world, version="v3"))
    world.serve.page = another(PROTOCOL + 1)
    before = everything(world)
    for command in (lambda: world.promote(asked("v3")), lambda: planned(world, version="v3")):
        with pytest.raises(errors.RequestInvalid, match=rf"of version 0.0.9 and understands protocol {PROTOCOL + 1}.*kfp-serving tidy {MODEL}"):
            command()
    assert everything(world) == before
    world.serve.page = lambda page: (503, {}, b"not now") if page == "router" else None
    assert "which protocol it speaks could not be asked" in str(planned(world, version="v3"))
    world.serve.page = lambda _page: None
    record = world.promote(asked("v3"))
    assert record.phase == "promoted" and record.router_env == FROM_THE_FILE


@pytest.mark.parametrize("status", ["DEPLOY_FAILED", "UNHEALTHY"])
def test_a_broken_router_that_is_there_is_refused_at_the_door(status: str) -> None:
    world = left_behind(IN_THE_IMAGE)
    world.serve.behaviour(ROUTER).status = status
    world.serve.page = lambda page: (503, {}, b"not now") if page == "router" else None
    world.clock.sleep(10)
    before = everything(world)
    for command in (lambda: world.promote(asked("v3")), lambda: planned(world, version="v3")):
        with pytest.raises(
            errors.RequestInvalid, match=rf"answered 503.*status it is {status}\..*{ROUTER} of .*`kfp-serving tidy {MODEL} -n {NAMESPACE}`"
        ):
            command()
    assert everything(world) == before


def test_a_router_of_another_protocol_gets_no_user() -> None:
    world = served(IN_THE_IMAGE)
    world.serve.page = another(PROTOCOL + 1)
    owners = list[str]()

    def watch(_record: Release) -> None:
        owner = world.serve.owner(world.route)
        owners.append(owner["name"] if owner else "nobody")

    with pytest.raises(errors.ReleaseLeft, match=rf"of version 0.0.9 and understands protocol {PROTOCOL + 1}, this library speaks {PROTOCOL}"):
        world.promote(asked(), watch=watch)
    assert world.record().phase == "smoked" and set(owners) == {f"{MODEL}-v1"} and not world.serve.lost and not world.serve.failed


def test_where_the_field_is_committed_no_router_is_looked_for() -> None:
    world = served(AWAY)
    labels = {"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}
    found = world.found()
    assert found is not None
    world.cluster.patch(world.serve.ref, {"metadata": {"labels": labels}}, manager="kustomize-controller")
    body = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": RAYSERVICE, "namespace": NAMESPACE, "labels": labels}}
    world.cluster.apply({**body, "spec": {"serveConfigV2": world.text()}}, manager="kustomize-controller", force=True)
    assert planned(world).refused is not None
