"""The dry run is the run: what `rollout.plan` says is what the cluster gets, change for change, in that order."""

from typing import Any

import pytest
from memory_world import MODEL, NAMESPACE, Process, World, asked, live

from kfp_components import errors, rollout
from kfp_components.cluster import Manifest, Ref
from kfp_components.cluster.changes import Delete, Plan
from kfp_components.request import PromoteRequest
from kfp_components.serving import rayservice

BOOKKEEPING = ("ConfigMap", "Lease", "Event")
NOT_PLANNED = ("epoch", "lease_expires_unix_s", "heartbeat_sha256")
"""In the router's configuration: of the very run that writes it."""

Write = tuple[str, str, Any]


class Recorder:
    """The world's cluster; what it is asked to write beside the bookkeeping is kept."""

    def __init__(self, world: World) -> None:
        self.world, self.writes = world, list[Write]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world.cluster, name)

    def apply(self, manifest: Manifest, *, manager: str, force: bool = False, subresource: Any = None) -> Manifest:
        written = self.world.cluster.apply(manifest, manager=manager, force=force, subresource=subresource)
        self._keep("status" if subresource else "apply", Ref.of(manifest), written if manifest["kind"] == "RayService" else manifest)
        return written

    def create(self, manifest: Manifest) -> Manifest:
        self._keep("create", Ref(manifest["kind"], "", NAMESPACE), manifest)
        return self.world.cluster.create(manifest)

    def replace(self, manifest: Manifest) -> Manifest:
        self._keep("replace", Ref.of(manifest), manifest)
        return self.world.cluster.replace(manifest)

    def patch(self, ref: Ref, body: Manifest, *, manager: str) -> Manifest:
        self._keep("patch", ref, body)
        return self.world.cluster.patch(ref, body, manager=manager)

    def delete(self, ref: Ref, **options: Any) -> bool:
        self._keep("delete", ref, None)
        return self.world.cluster.delete(ref, **options)

    def _keep(self, verb: str, ref: Ref, body: Manifest | None) -> None:
        if ref.kind not in BOOKKEEPING:
            self.writes.append((verb, str(ref), _compared(ref, body)))


def _compared(ref: Ref, body: Manifest | None) -> Any:
    """Of an object what the plan has to say of it: the applications of a RayService, the fields that are ours of another."""
    if body is None:
        return None
    if ref.kind != "RayService":
        return _without_times({key: body.get(key) for key in ("metadata", "spec", "status")})
    found = rayservice.applications(rayservice.serve_config(body))
    for entry in found.values():
        for deployment in entry.get("deployments", []):
            config = deployment.get("user_config")
            if isinstance(config, dict):
                deployment["user_config"] = {key: value for key, value in config.items() if key not in NOT_PLANNED}
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key != "lastTransitionTime"}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def planned(plan: Plan) -> list[Write]:
    found: list[Write] = []
    for change, _, after in plan.played():
        manifest = getattr(change, "manifest", None)
        verb = "delete" if isinstance(change, Delete) or after is None else "status" if getattr(change, "status", False) else "apply"
        whole = after if change.ref.kind == "RayService" else manifest
        found.append((verb, str(change.ref), _compared(change.ref, whole)))
    return found


def opened(world: World, request: PromoteRequest, cluster: Any = None) -> rollout.Run:
    process: Process = world.process()
    return rollout.open_run(
        request, cluster or process.cluster, holder=process.holder, clock=world.clock, registry=world.registry, transport=process.transport
    )


def served(*, front: bool) -> World:
    world = World(rate_per_s=400.0)
    world.rayservice(live())
    if front:
        world.front()
    return world


def empty() -> World:
    world = World(rate_per_s=0.0)
    world.rayservice("applications: []\n")
    return world


TEMPLATE = {"headGroupSpec": {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "ray", "image": "ray"}]}}}}
NEW = asked("v1", rayservice_template=TEMPLATE).model_copy(update={"import_path": "kfp_components.models.embedding:build"})


@pytest.mark.parametrize(
    ("world", "request_", "first"),
    [
        (lambda: served(front=True), asked("v2"), False),
        (lambda: served(front=False), asked("v2"), False),
        (lambda: served(front=True), asked("v2", keep_previous_s=3600.0), False),
        (empty, asked("v1"), True),
        (lambda: World(rate_per_s=0.0), NEW, True),
    ],
    ids=["canary", "canary, no stub yet", "canary, the old version is kept", "first version", "first version, no RayService yet"],
)
def test_a_plan_is_what_the_run_writes(world: Any, request_: PromoteRequest, first: bool) -> None:
    place = world()
    before = {kind: place.cluster.list(kind, NAMESPACE) for kind in ("RayService", "Service", "InferenceService", "ConfigMap", "Lease")}
    plan = rollout.plan(opened(place, request_), first_version=first)
    assert before == {kind: place.cluster.list(kind, NAMESPACE) for kind in before}  # a plan touches nothing
    recorder = Recorder(place)
    run = opened(place, request_, recorder)
    rollout.deploy_model(run) if first else rollout.promote_with_canary(run)
    assert recorder.writes == planned(plan)
    told = str(plan)
    assert all(word in told for word in (f"application {MODEL}-{request_.version}", "the name that clients call", "shows the model in Kubeflow's UI"))
    assert first or all(f"{step:g} % to v2" in told for step in request_.steps)


@pytest.mark.parametrize("keep_previous_s", [60.0, 60.5])
def test_a_plan_says_what_goes_at_once_and_what_later_and_by_what(keep_previous_s: float) -> None:
    """A run waits for 60 s; the same function decides in it."""
    told = str(rollout.plan(opened(served(front=True), asked("v2", keep_previous_s=keep_previous_s))))
    if keep_previous_s == 60.0:
        assert f"application {MODEL}-router, {MODEL}-v1 goes\n" in told and "is kept" not in told
    else:
        assert f"application {MODEL}-router goes; {MODEL}-v1 is kept for options.keep_previous_s, 60.5 s after the switch: then" in told
        assert f"then `kfp-serving tidy {MODEL} -n {NAMESPACE}`, or the next release of {MODEL}, removes it" in told


def test_a_plan_of_a_version_that_is_live_is_refused() -> None:
    with pytest.raises(errors.RequestInvalid, match="version v1 is what users get already"):
        rollout.plan(opened(served(front=True), asked("v1")))


@pytest.mark.parametrize(("builder", "beside"), [("exact", {}), (True, {"model": MODEL, "version": "v2"})])
def test_case_07_a_strict_builder_gets_its_own_arguments_and_nothing_else(builder: Any, beside: dict[str, str]) -> None:
    args = {"llm_configs": [{"model_loading_config": {"model_id": "chat"}}]}
    world = served(front=True)
    plan = rollout.plan(opened(world, asked("v2", args=args, builder=builder)))
    then = [rayservice.applications(rayservice.serve_config(after)) for change, _, after in plan.played() if change.ref.kind == "RayService"]
    assert then[0][f"{MODEL}-v2"]["args"] == {**args, **beside}
    world.promote(asked("v2", args=args, builder=builder))
    assert world.serve.applications()[f"{MODEL}-v2"]["args"] == {**args, **beside}


def test_case_07_a_bound_application_gets_none() -> None:
    plan = rollout.plan(opened(served(front=True), asked("v2", builder=False)))
    then = [rayservice.applications(rayservice.serve_config(after)) for change, _, after in plan.played() if change.ref.kind == "RayService"]
    assert "args" not in then[0][f"{MODEL}-v2"]
