"""The size of the running version is the next one's default; and what is said of a version that does not become ready."""

from typing import Any

import pytest
import yaml
from memory_world import MODEL, NAMESPACE, RAYSERVICE, World, asked, live
from stand_in import Behaviour
from test_plan import opened

from kfp_components import errors, names, rollout
from kfp_components.cluster.changes import Edit
from kfp_components.serving import capacity, startup

THREE = {"name": "Whisper", "num_replicas": 3}
GPU = {"name": "Whisper", "ray_actor_options": {"num_gpus": 0.5, "num_cpus": 2}}
SCALED = {"name": "Whisper", "autoscaling_config": {"min_replicas": 2, "max_replicas": 8}}
Pieces = list[dict[str, Any]]


def config(*pieces: dict[str, Any], import_path: str = "acme.bge:build", **more: Any) -> str:
    entry = {"name": f"{MODEL}-v1", "import_path": import_path, "deployments": list(pieces), **more}
    return yaml.safe_dump({"applications": [entry]}, sort_keys=False)


CASES: dict[str, tuple[Pieces, dict[str, Any], Pieces]] = {
    "nothing given": ([THREE], {}, [THREE]),
    "another deployment given": ([THREE], {"deployments": [{"name": "Pre", "num_replicas": 2}]}, [THREE, {"name": "Pre", "num_replicas": 2}]),
    "the same field given": ([THREE], {"deployments": [{"name": "Whisper", "num_replicas": 1}]}, [{"name": "Whisper", "num_replicas": 1}]),
    "another field given": ([THREE], {"deployments": [GPU]}, [THREE | GPU]),
    "scaling in place of replicas": ([THREE | GPU], {"deployments": [SCALED]}, [GPU | SCALED]),
    "replicas in place of scaling": ([SCALED | GPU], {"deployments": [THREE]}, [GPU | THREE]),
    "several": ([THREE, {"name": "Pre", **{k: v for k, v in GPU.items() if k != "name"}}], {}, [THREE, GPU | {"name": "Pre"}]),
    "limits": ([{"name": "W", "max_ongoing_requests": 7, "max_queued_requests": 9}], {}, [{"name": "W", "max_ongoing_requests": 7, "max_queued_requests": 9}]),
    "a placement group": ([{"name": "W", "placement_group_bundles": [{"GPU": 1}]}], {}, [{"name": "W", "placement_group_bundles": [{"GPU": 1}]}]),
    "not what belongs to a version": ([{"name": "W", "user_config": {"weights": "v1"}, "num_replicas": 2}], {}, [{"name": "W", "num_replicas": 2}]),
    "only what belongs to a version": ([{"name": "W", "user_config": {"weights": "v1"}}], {}, []),
    "not its environment": (
        [{"name": "W", "ray_actor_options": {"num_gpus": 1, "runtime_env": {"env_vars": {"WEIGHTS": "v1"}}}}],
        {},
        [{"name": "W", "ray_actor_options": {"num_gpus": 1}}],
    ),
    "only its environment": ([{"name": "W", "ray_actor_options": {"runtime_env": {"pip": ["x"]}}}], {}, []),
    "told not to": ([THREE], {"deployments_from": "request"}, []),
    "told not to, and given": ([THREE], {"deployments_from": "request", "deployments": [GPU]}, [GPU]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_case_21_what_the_owner_set_on_the_running_version_is_the_default(case: str) -> None:
    running, options, wanted = CASES[case]
    assert capacity.deployments(asked("v2", **options), config(*running), f"{MODEL}-v1") == wanted


def test_case_21_another_code_has_its_own_size_and_it_is_said() -> None:
    other = config(THREE | GPU, import_path="acme.whisper:app")
    assert capacity.deployments(asked("v2"), other, f"{MODEL}-v1") == []
    told = (
        ". bge-v1 runs with Whisper num_replicas 3, ray_actor_options num_gpus 0.5, num_cpus 2, v2 with the code's defaults (import_path is another)"
    )
    assert capacity.told(asked("v2"), other, f"{MODEL}-v1") == told
    assert capacity.told(asked("v2", deployments=[THREE]), other, f"{MODEL}-v1") == ""
    assert "(options.deployments_from says so)" in capacity.told(asked("v2", deployments_from="request"), config(THREE), f"{MODEL}-v1")


def test_case_21_a_colon_and_a_dot_are_the_same_code() -> None:
    assert capacity.deployments(asked("v2"), config(THREE, import_path="acme.bge.build"), f"{MODEL}-v1") == [THREE]


def test_case_21_a_first_version_and_one_that_is_gone_have_nothing_to_carry() -> None:
    for stable in (None, f"{MODEL}-v0"):
        assert capacity.deployments(asked("v2"), config(THREE), stable) == [] and capacity.told(asked("v2"), config(THREE), stable) == ""
    assert capacity.deployments(asked("v2", deployments=[GPU]), "applications: []\n", None) == [GPU]


def sized(import_path: str = "acme.bge:build", *pieces: dict[str, Any]) -> World:
    text = yaml.safe_load(live())
    entry = next(entry for entry in text["applications"] if entry["name"] == f"{MODEL}-v1")
    entry |= {"deployments": list(pieces) or [THREE], "import_path": import_path}
    world = World(rate_per_s=400.0)
    world.rayservice(yaml.safe_dump(text))
    world.front()
    return world


def test_case_21_three_replicas_are_replaced_by_three_and_the_plan_says_so() -> None:
    world = sized()
    (deploy, *_) = [change for change in rollout.plan(opened(world, asked("v2"))) if isinstance(change, Edit)]
    assert f". As in {MODEL}-v1: Whisper num_replicas 3" in deploy.why
    record = world.promote(asked("v2"))
    assert world.serve.applications()[f"{MODEL}-v2"]["deployments"] == [THREE]
    assert any(f"As in {MODEL}-v1: Whisper num_replicas 3" in event.message for event in record.events)
    world.promote(asked("v3"))
    assert world.serve.applications()[f"{MODEL}-v3"]["deployments"] == [THREE]


def test_case_21_a_plan_says_what_is_not_carried_over() -> None:
    world = sized("acme.old:build")
    (deploy, *_) = [change for change in rollout.plan(opened(world, asked("v2"))) if isinstance(change, Edit)]
    assert f"{MODEL}-v1 runs with Whisper num_replicas 3, v2 with the code's defaults" in deploy.why


# --- case 18: a version that does not become ready ------------------------------------------------------------------------------------


def found(status: dict[str, Any] | None, *pieces: dict[str, Any], generation: int = 3, **entry: Any) -> dict[str, Any]:
    others = [{"name": name, "import_path": "a:b"} for name in ("bge", "xtts", "whisper-v2")]
    text = yaml.safe_dump(
        {"applications": [*others, {"name": "whisper-v4", "import_path": "a:b", "deployments": list(pieces), **entry}]}, sort_keys=False
    )
    spec = {"serveConfigV2": text}
    return {"metadata": {"name": "ai", "namespace": "ml", "generation": generation}, "spec": spec} | ({} if status is None else {"status": status})


def statuses(side: str = "active", generation: int = 3, cluster: dict[str, Any] | None = None, **own: Any) -> dict[str, Any]:
    running = {name: {"status": "RUNNING", "message": f"{name} is fine"} for name in ("bge", "xtts", "whisper-v2")}
    service = {"rayClusterName": "ai-x7k", "applicationStatuses": running | ({"whisper-v4": own} if own else {})}
    return {"observedGeneration": generation, f"{side}ServiceStatus": service | ({"rayClusterStatus": cluster} if cluster else {})}


UPDATING = {"status": "DEPLOYING", "message": "", "serveDeploymentStatuses": {"Whisper": {"status": "UPDATING", "message": ""}}}
WAITING: dict[str, tuple[Any, str]] = {
    "no GPU": (
        found(statuses(**UPDATING), {"name": "Whisper", "ray_actor_options": {"num_gpus": 0.5}}),
        "application whisper-v4 DEPLOYING: deployment Whisper UPDATING for 40 s; it asks for num_gpus 0.5; is it free?",
    ),
    "what Serve says of it": (
        found(
            statuses(status="DEPLOYING", message="", serveDeploymentStatuses={
                "Pre": {"status": "HEALTHY", "message": ""}, "Whisper": {"status": "UPDATING", "message": "Deployment has 1 replica that waits for resources"},
            }),
            {"name": "Whisper", "num_replicas": 2, "ray_actor_options": {"num_gpus": 1, "resources": {"TPU": 4}}}, {"name": "Pre"},
        ),
        'application whisper-v4 DEPLOYING: deployment Whisper UPDATING for 40 s "Deployment has 1 replica that waits for resources"; '
        "it asks for num_gpus 1, TPU 4, 2 replicas of that (Whisper); is it free?",
    ),
    "a placement group": (
        found(statuses(**UPDATING), {
            "name": "Whisper", "autoscaling_config": {"min_replicas": 2}, "placement_group_bundles": [{"GPU": 1, "CPU": 1}] * 4,
            "placement_group_strategy": "STRICT_PACK",
        }),
        "application whisper-v4 DEPLOYING: deployment Whisper UPDATING for 40 s; "
        "it asks for a placement group of 4 (GPU 1 and CPU 1, STRICT_PACK), 2 replicas of that; is it free?",
    ),
    "its code says what it asks for": (
        found(statuses(**UPDATING)),
        "application whisper-v4 DEPLOYING: deployment Whisper UPDATING for 40 s; what it asks for stands in its code; is it free?",
    ),
    "the pending cluster": (
        found(statuses("pending", cluster={"state": "", "reason": "0/3 nodes are available: insufficient nvidia.com/gpu"}, **UPDATING)),
        "application whisper-v4 DEPLOYING on the pending cluster: deployment Whisper UPDATING for 40 s; "
        "RayCluster ai-x7k (pending) is not ready: 0/3 nodes are available: insufficient nvidia.com/gpu; what it asks for stands in its code; is it free?",
    ),
    "no status at all": (
        found(None), "KubeRay has reported nothing of this RayService (does its operator run?); what it asks for stands in its code; is it free?",
    ),
    "an operator that lags": (
        found(statuses(generation=2)),
        "KubeRay has not taken up this configuration yet (generation 3, it saw 2); Serve does not report application whisper-v4; "
        "what it asks for stands in its code; is it free?",
    ),
    "the head is pending": (
        found({
            "observedGeneration": 3, "conditions": [{"type": "Ready", "status": "False", "reason": "Initializing", "message": "RayService is initializing"}],
            "activeServiceStatus": {}, "pendingServiceStatus": {"rayClusterName": "ai-x7k", "rayClusterStatus": {
                "desiredWorkerReplicas": 2, "readyWorkerReplicas": 0,
                "conditions": [{"type": "HeadPodReady", "status": "False", "message": "containers with unready status: [ray-head]"}],
            }},
        }),
        "Serve does not report application whisper-v4; RayCluster ai-x7k (pending) is not ready: "
        'HeadPodReady False "containers with unready status: [ray-head]", 0 of 2 workers are ready; condition Ready False "RayService is initializing"; '
        "what it asks for stands in its code; is it free?",
    ),
    "not in the status": (
        found(statuses()), "Serve does not report application whisper-v4; what it asks for stands in its code; is it free?",
    ),
    "no RayService": (None, "the RayService does not exist any more"),
}  # fmt: skip


@pytest.mark.parametrize("case", WAITING)
def test_case_18_the_versions_own_entry_is_shown_and_no_other_models(case: str) -> None:
    rayservice, wanted = WAITING[case]
    told = startup.not_ready(rayservice, "RayService ml/ai", "whisper-v4", 40.0)
    assert told == f"RayService ml/ai: application whisper-v4 is not ready after 40 s: {wanted}"
    assert not any(other in told for other in ("bge", "xtts", "whisper-v2", "is fine"))


def test_case_18_a_version_that_does_not_start_in_time_is_left_and_that_is_what_is_said() -> None:
    world = sized("acme.bge:build", {"name": "Whisper", "ray_actor_options": {"num_gpus": 0.5}})
    world.serve.behaviours[f"{MODEL}-v4"] = Behaviour(starts_after_s=10_000.0)
    process = world.process()
    end = process.outcome(lambda: process.promote(asked("v4", ready_timeout_s=40.0)))
    told = str(end.error)
    assert isinstance(end.error, errors.ReleaseLeft) and end.error.exit_code == 3
    assert told.startswith(f"RayService {NAMESPACE}/{RAYSERVICE}: application {MODEL}-v4 is not ready after 40 s: ")
    assert "it asks for num_gpus 0.5; is it free?" in told and "v1 serves all requests" in told and "same command" in told
    assert f"{MODEL}-v1 " not in told and names.router_application(MODEL) not in told and "whisper" not in told
    assert "raise ready_timeout_s" not in told, "with another option it is another request, which would be refused"
    assert world.record().phase == "registered" and f"{MODEL}-v4" in world.serve.applications()
