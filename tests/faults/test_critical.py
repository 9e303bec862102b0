"""What must not happen to users, one test for each defect (shared/DEFECTS.md) and case (shared/cases) that did."""

import pytest
from memory_world import MODEL, NAMESPACE, OTHERS, World, application, asked, live, routed

from kfp_components import errors, names
from kfp_components.cluster import Ref
from kfp_components.cluster.faults import Script
from kfp_components.registry.memory import MemoryRegistry
from kfp_components.release import Release
from kfp_components.request import PromoteRequest
from kfp_components.serving import rayservice

ALIAS = Ref("Service", names.alias(MODEL), NAMESPACE)
WRONG = {"name": "wrong", "path": "/", "expect": {"/count": 7}}
HTML = (200, {"content-type": "text/html"}, b"<html><body>Service Unavailable</body></html>")


def neighbours(world: World) -> dict[str, str]:
    return {name: digest for name, digest in rayservice.digests(world.text()).items() if not name.startswith(f"{MODEL}-")}


def test_a_good_version_is_promoted_and_a_bad_one_taken_back(world: World) -> None:
    """The stand-in tells the one from the other, so the tests below can fail."""
    world.rayservice(live())
    before = neighbours(world)
    assert world.promote(asked("v2")).phase == "promoted"
    assert world.split() == ("v2", None, 0.0) and not world.serve.failed
    world.serve.behaviour(f"{MODEL}-v3").answer = lambda n: 500 if n % 3 == 0 else 200
    with pytest.raises(errors.CanaryFailed, match="worse in errors"):
        world.promote(asked("v3"))
    assert world.split() == ("v2", None, 0.0) and set(world.serve.failed) == {"v3"}
    assert neighbours(world) == before and set(world.serve.applications()) == {"whisper", f"{MODEL}-v2"}


# --- D1: the RayService that a release made ------------------------------------------------------------------------------------------


def template(version: str = "v1", **options: object) -> PromoteRequest:
    world_of_its_own = {"headGroupSpec": {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "ray", "image": "ray"}]}}}}
    request = asked(version, smoke=[WRONG], rayservice_template=world_of_its_own, **options)
    return request.model_copy(update={"import_path": "kfp_components.models.embedding:build"})


def test_d1_a_rayservice_that_other_models_live_on_stays(world: World) -> None:
    def another_model_comes(record: Release) -> None:
        if record.phase == "deployed" and "whisper" not in world.text():
            mine = world.found()
            assert mine is not None
            body = {key: mine[key] for key in ("apiVersion", "kind")}
            body["metadata"] = {key: mine["metadata"][key] for key in ("name", "namespace")}
            body["spec"] = {"serveConfigV2": world.text() + OTHERS}
            world.cluster.apply(body, manager="another-team", force=True)

    with pytest.raises(errors.SmokeFailed):
        world.deploy(template(), watch=another_model_comes)
    assert world.found() is not None, "the RayService that whisper lives on was deleted"
    assert set(world.serve.applications()) == {"whisper"}
    assert world.record().phase == "rolled_back"


@pytest.mark.parametrize("killed", [False, True], ids=["in one go", "killed after the stub"])
def test_d1_an_alias_and_a_stub_that_somebody_made_since_the_release_began_stay(world: World, killed: bool) -> None:
    """As GitOps does that comes while the candidate starts."""
    world.rayservice(live())

    def somebody(record: Release) -> None:
        if record.phase == "deployed" and world.cluster.get(ALIAS) is None:
            world.alias()
            spec = {"predictor": {"model": {"modelFormat": {"name": "custom"}}}}
            metadata = {"name": MODEL, "namespace": NAMESPACE, "annotations": {names.DEPLOYMENT_MODE: "ModelMesh"}}
            kind = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService"}
            world.cluster.apply({**kind, "metadata": metadata, "spec": spec}, manager="somebody")

    request = asked(smoke=[WRONG])
    if killed:
        world.killed_when(lambda record: (somebody(record), record.events[-1].step == "stub")[1], request)
        world.clock.sleep(60.0)
    with pytest.raises(errors.SmokeFailed):
        world.promote(request, watch=somebody)
    left = world.cluster.get(ALIAS)
    assert left is not None and not left["metadata"].get("labels"), "what was put on it went, and it stays"
    assert world.cluster.get(Ref("InferenceService", MODEL, NAMESPACE)) is not None
    assert "Service" not in world.record().made and "InferenceService" not in world.record().made


def test_d1_a_rayservice_that_nobody_else_uses_goes(world: World) -> None:
    with pytest.raises(errors.SmokeFailed):
        world.deploy(template())
    assert world.found() is None and world.record().phase == "rolled_back"


def test_d1_a_rayservice_that_somebody_made_again_stays(world: World) -> None:
    def made_again(record: Release) -> None:
        found = world.found()
        if record.phase == "deployed" and found is not None and names.CREATED_BY_RELEASE in found["metadata"]["annotations"]:
            world.cluster.delete(Ref.of(found))
            world.rayservice(found["spec"]["serveConfigV2"])

    with pytest.raises(errors.SmokeFailed):
        world.deploy(template(), watch=made_again)
    assert world.found() is not None and not world.serve.applications()


# --- D4: the way back begins with the weight -----------------------------------------------------------------------------------------


def test_d4_a_statistics_page_that_cannot_be_read_does_not_keep_users_on_a_bad_version(world: World) -> None:
    def break_the_page(record: Release) -> None:
        if record.verdict is not None and record.verdict.kind == "fail":
            world.serve.page = lambda page: HTML if page == "ledger" else None

    world.rayservice(live())
    world.serve.behaviour(f"{MODEL}-v2").answer = lambda _n: 500
    with pytest.raises(errors.CanaryFailed):
        world.promote(asked(), watch=break_the_page)
    assert world.split() == ("v1", None, 0.0)
    record = world.record()
    assert record.phase == "rolled_back" and record.rollback is not None and record.rollback.leaked_requests is None


def test_d4_nothing_is_read_between_the_verdict_and_the_weight_but_the_rayservice_itself(world: World) -> None:
    script = Script(clock=world.clock)
    judged: list[int] = []

    def watch(record: Release) -> None:
        if record.verdict is not None and record.verdict.kind == "fail":
            judged.append(len(script.calls))

    world.rayservice(live())
    world.serve.behaviour(f"{MODEL}-v2").answer = lambda _n: 500
    with pytest.raises(errors.CanaryFailed):
        world.process(script, watch).promote(asked())
    first, second = [call for call in script.calls[judged[0] :] if "Lease" not in call.what][:2]
    assert (first.method, second.method) == ("get", "apply")
    assert first.what == second.what == "RayService ai-ml/ai-inference"


# --- D5b: the way back is everything to stable ---------------------------------------------------------------------------------------


def test_d5b_a_candidate_that_an_earlier_release_left_in_the_router_is_not_put_back(world: World) -> None:
    zombie = {"version": "v0", "route": names.version_route(MODEL, "v0")}
    world.rayservice(routed(candidate=zombie, weight_percent=25.0, lease_expires_unix_s=1.0))
    world.serve.behaviour(f"{MODEL}-v2").answer = lambda _n: 500
    process = world.process()
    end = process.outcome(lambda: process.promote(asked()))
    assert world.split() == ("v1", None, 0.0), str(end)
    assert world.record().phase == "rolled_back" and isinstance(end.error, errors.CanaryFailed)


# --- case 01: a version that is gone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("router", ["kept", "gone"])
def test_case_01_a_candidate_that_somebody_removed_gets_no_traffic_and_is_not_promoted(world: World, router: str) -> None:
    """He applies his file without the candidate, or the one from before the release."""

    def the_owner_applies_his_file(record: Release) -> None:
        if record.phase == "canary" and record.timeline and f"{MODEL}-v2" in world.text():
            world.rayservice(rayservice.without_application(world.text(), f"{MODEL}-v2") if router == "kept" else live())

    world.rayservice(live())
    world.rate_per_s = 2.0  # so few that the next renewal sees it before the judge does
    request = asked(judge={"judge_latency": False, "error_margin_percent": 0.01, "tick_s": 1.0, "max_minutes": 60.0})
    process = world.process(watch=the_owner_applies_his_file)
    end = process.outcome(lambda: process.promote(request))
    assert isinstance(end.error, errors.ApplicationRemoved) and end.exit_code == 4, str(end)
    assert "is not in serveConfigV2 any more, somebody else took it out" in end.words
    assert f"{MODEL}-v1" in world.serve.applications()
    record = world.record()
    assert record.phase == "rolled_back"
    assert world.text() == live() and world.split() == ("v1", None, 0.0)
    assert record.events[-1].message == "v2 is taken back; v1 serves"


@pytest.mark.parametrize(("gone", "seen_by"), [("v2", "the wait until it runs"), ("router", "the route")])
def test_case_01_who_removed_it_is_said_whoever_sees_it(world: World, gone: str, seen_by: str) -> None:
    def the_owner(record: Release) -> None:
        if record.phase == "smoked" and f"{MODEL}-{gone}" in world.text():
            world.rayservice(rayservice.without_application(world.text(), f"{MODEL}-{gone}"))

    world.rayservice(live())
    process = world.process(watch=the_owner)
    end = process.outcome(lambda: process.promote(asked()))
    assert isinstance(end.error, errors.ApplicationRemoved), f"{seen_by}: {end}"
    told = str(end.error)
    assert told.startswith(f"{world.serve.ref}: application {MODEL}-{gone} is not in serveConfigV2 any more"), told
    assert told.count(str(world.serve.ref)) == 1 and "serveConfigV2 was written by owner at" in told


def test_case_01_a_version_that_does_not_run_is_not_given_all_traffic(world: World) -> None:
    def dies_before_the_promotion(record: Release) -> None:
        if record.step_index == 2:
            world.serve.behaviour(f"{MODEL}-v2").status = "UNHEALTHY"
            world.serve.report()

    world.rayservice(live())
    process = world.process(watch=dies_before_the_promotion)
    end = process.outcome(lambda: process.promote(asked()))
    assert isinstance(end.error, errors.DeployFailed) and "bge-v2 UNHEALTHY" in end.words, str(end)
    assert world.split() == ("v1", None, 0.0)
    assert "promoting" not in [event.step for event in world.record().events]


@pytest.mark.parametrize("fault", ["removed", "dead"])
def test_case_01_stable_stays_until_its_successor_runs_and_takes_over_again(world: World, fault: str) -> None:
    def after_the_switch(record: Release) -> None:
        if record.events[-1].step == "promote":  # v2 has all traffic, v1 goes next
            if fault == "removed":
                world.rayservice(rayservice.without_application(world.text(), f"{MODEL}-v2"))
            else:
                world.serve.behaviour(f"{MODEL}-v2").status = "DEPLOY_FAILED"
                world.serve.report()

    world.rayservice(live())
    with pytest.raises(errors.RolledBack) as caught:
        world.promote(asked(), watch=after_the_switch)
    assert caught.value.exit_code == 4
    assert world.split() == ("v1", None, 0.0) and f"{MODEL}-v1" in world.serve.applications()
    assert world.record().phase == "rolled_back"


def test_case_01_when_stable_is_gone_too_the_candidate_stays_and_the_message_says_what_to_do(world: World) -> None:
    def stable_goes(record: Release) -> None:
        if record.phase == "canary" and f"{MODEL}-v1" in world.text():
            world.rayservice(rayservice.without_application(world.text(), f"{MODEL}-v1"))

    world.rayservice(live())
    world.serve.behaviour(f"{MODEL}-v2").answer = lambda _n: 500
    with pytest.raises(errors.KfpServingError) as caught:
        world.promote(asked(), watch=stable_goes)
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "put v1 back, then run `kfp-serving rollback" in told
    assert f"{MODEL}-v2" in world.serve.applications()
    world.rayservice(live().replace(application("v1"), application("v1") + application("v2")))
    world.process().roll_back(asked())
    assert world.record().phase == "rolled_back" and world.split() == ("v1", None, 0.0)


# --- case 02 and D2b: what users get counts, whatever its status ----------------------------------------------------------------------


def test_case_02_a_version_that_refuses_every_request_is_taken_back(world: World) -> None:
    world.rayservice(live())
    world.serve.behaviour(f"{MODEL}-v2").answer = lambda _n: 404
    with pytest.raises(errors.CanaryFailed):
        world.promote(asked())
    assert world.split() == ("v1", None, 0.0)
    assert world.serve.failed["v2"] <= 40, "found in the first looks"


def test_d2b_a_version_that_keeps_users_waiting_until_they_give_up_is_taken_back(world: World) -> None:
    world.rayservice(live())
    world.serve.behaviour(f"{MODEL}-v2").answer = lambda _n: None
    with pytest.raises(errors.CanaryFailed):
        world.promote(asked())
    assert world.split() == ("v1", None, 0.0)
    assert world.serve.failed["v2"] <= 40


# --- D13: a stable version that fails everything --------------------------------------------------------------------------------------


def test_d13_the_fix_of_a_stable_version_that_fails_everything_is_promoted(world: World) -> None:
    world.rayservice(live())
    world.serve.behaviour(f"{MODEL}-v1").answer = lambda _n: 500
    world.serve.send_users(MODEL, 1000)
    judge = {"judge_latency": False, "tick_s": 1.0, "max_minutes": 60.0}
    assert world.promote(asked(judge=judge)).phase == "promoted"


# --- case 06: a first version that fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["applications: []  # filled by the pipelines\n", "applications:  # filled by the pipelines\n", "# nothing yet\n", ""]
)
def test_case_06_a_first_version_that_fails_leaves_what_was_there(world: World, text: str) -> None:
    world.rayservice(text)
    with pytest.raises(errors.SmokeFailed) as caught:
        world.deploy(asked("v1", smoke=[WRONG]))
    assert caught.value.exit_code == 4 and caught.value.__notes__ == ["v1 is taken back."]
    assert world.record().phase == "rolled_back" and world.serve.applications() == {}
    comment = text.partition("#")[2].strip()
    assert comment in world.text()


# --- case 05: after the point of no return -------------------------------------------------------------------------------------------


def test_case_05_a_registry_that_does_not_know_stable_does_not_block_the_release(world: World) -> None:
    world.rayservice(live().replace("v1", "v17"))
    world.registry = MemoryRegistry()
    process = world.process()
    end = process.outcome(lambda: process.promote(asked()))
    record = world.record()
    assert end.exit_code == 0 and record.phase == "promoted", str(end)
    told = [event.message for event in record.events if event.step == "registry"]
    words = "not done: model ai-ml.bge version v17: not registered at memory:; register it first"
    assert told == [f"alias champion: {words}", f"alias previous: {words}"]
    assert f"{MODEL}-v17" not in world.serve.applications()
    assert world.registry.aliases(f"{NAMESPACE}.{MODEL}") == {"champion": "v2"}


def test_case_05_a_registry_made_anew_learns_of_stable_from_its_stub(world: World) -> None:
    world.rayservice(live())
    world.registry = MemoryRegistry()
    world.front(uri="s3://models/found/v1")
    world.promote(asked())
    found = world.registry.find(f"{NAMESPACE}.{MODEL}", "v1")
    assert found is not None and found.uri == "s3://models/found/v1"
    assert world.registry.aliases(f"{NAMESPACE}.{MODEL}") == {"champion": "v2", "previous": "v1"}


# --- D4b: a view can never fail a release ---------------------------------------------------------------------------------------------


def test_d4b_a_view_that_breaks_fails_neither_the_way_forward_nor_the_way_back(world: World) -> None:
    def closed_pipe(record: Release) -> None:
        if record.phase in ("canary", "rolling_back"):
            raise BrokenPipeError("head has seen enough")

    world.rayservice(live())
    process = world.process(watch=closed_pipe)
    forward = process.outcome(lambda: process.promote(asked("v2")))
    assert forward.exit_code == 0 and world.record().phase == "promoted", str(forward)
    world.serve.behaviour(f"{MODEL}-v3").answer = lambda _n: 500
    process = world.process(watch=closed_pipe)
    back = process.outcome(lambda: process.promote(asked("v3")))
    assert back.exit_code == 4 and world.record().phase == "rolled_back", str(back)
