"""Alias and stub that somebody made by hand: only what is needed is written, and a field that is his is refused before anything is touched."""

from typing import Any

import pytest
from memory_world import MODEL, NAMESPACE, RAYSERVICE, World, asked, live
from test_plan import opened

from kfp_components import errors, names, rollout
from kfp_components.cluster import KINDS, Manifest, Ref
from kfp_components.serving import alias, inference_service

SERVICE, STUB = Ref("Service", names.alias(MODEL), NAMESPACE), Ref("InferenceService", MODEL, NAMESPACE)
TARGET = names.service_host(names.serve_service(RAYSERVICE), NAMESPACE)
LABEL = {names.ISVC_LABEL: MODEL}
KUBECTL = "kubectl-client-side-apply"
PORTS: dict[str, list[dict[str, Any]]] = {
    "as KubeRay calls it": [{"name": "serve", "port": 8000}],
    "without a name": [{"port": 8000}],
    "as we call it": [{"name": "http", "port": 8000}],
    "with another one": [{"name": "serve", "port": 8000}, {"name": "metrics", "port": 8080}],
    "no port at all": [],
}


def world_with(*, labels: dict[str, str] | None = None, ports: list[dict[str, Any]] | None = None, first: bool = False, **metadata: Any) -> World:
    world = World(rate_per_s=0.0 if first else 400.0)
    world.rayservice("applications: []\n" if first else live())
    spec = {"type": "ExternalName", "externalName": TARGET, **({"ports": ports} if ports else {})}
    name = {"name": SERVICE.name, "namespace": NAMESPACE, **({"labels": labels} if labels else {}), **metadata}
    world.cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": name, "spec": spec}, manager=KUBECTL)
    return world


def stub(world: World, **model: Any) -> None:
    metadata = {"name": MODEL, "namespace": NAMESPACE, "annotations": {names.DEPLOYMENT_MODE: "ModelMesh"}}
    spec = {"predictor": {"model": {"modelFormat": {"name": "whisper"}, **model}}}
    world.cluster.apply({"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": metadata, "spec": spec}, manager=KUBECTL)


def got(world: World, ref: Ref) -> Manifest:
    found = world.cluster.get(ref)
    assert found is not None
    return found


def owned_by_us(found: Manifest) -> Any:
    ours = [e["fieldsV1"] for e in found["metadata"]["managedFields"] if e["manager"] == names.MANAGER and "subresource" not in e]
    return ours[0] if ours else None


def everything(world: World) -> list[Manifest]:
    return [item for kind in KINDS for item in world.cluster.list(kind, "" if kind == "Namespace" else NAMESPACE)]


@pytest.mark.parametrize("first", [True, False], ids=["first", "canary"])
@pytest.mark.parametrize("labels", [None, LABEL], ids=["no label", "labelled"])
@pytest.mark.parametrize("ports", PORTS)
def test_case_09_an_alias_that_is_right_is_taken_as_it_is(ports: str, labels: dict[str, str] | None, first: bool) -> None:
    world = world_with(labels=labels, ports=PORTS[ports], first=first)
    spec = got(world, SERVICE)["spec"]
    plan = rollout.plan(opened(world, asked("v2")), first_version=first)
    assert [(after or {}).get("spec") for change, _, after in plan.played() if change.ref == SERVICE] == [spec]
    (world.deploy if first else world.promote)(asked("v2"))
    found = got(world, SERVICE)
    assert found["spec"] == spec
    assert found["metadata"]["labels"] == LABEL
    assert owned_by_us(found) == (None if labels else {"f:metadata": {"f:labels": {f"f:{names.ISVC_LABEL}": {}}}})
    world.promote(asked("v3")) if not first else None  # and it stays so with the next one
    assert got(world, SERVICE)["spec"] == spec and got(world, SERVICE)["metadata"]["labels"] == LABEL


def test_case_09_our_own_alias_keeps_all_its_fields() -> None:
    world = World(rate_per_s=400.0)
    world.rayservice(live())
    world.front()
    before = got(world, SERVICE)
    world.promote(asked("v2"))
    after = got(world, SERVICE)
    assert (after["spec"], after["metadata"]["labels"]) == (before["spec"], before["metadata"]["labels"])
    assert owned_by_us(after) == owned_by_us(before)


def test_case_09_a_port_of_ours_that_somebody_renamed_is_left_alone() -> None:
    world = World(rate_per_s=400.0)
    world.rayservice(live())
    world.front()
    ports = [{"name": "serve", "port": 8000, "protocol": "TCP", "targetPort": 8000}]
    world.cluster.patch(SERVICE, {"spec": {"ports": ports}}, manager="kubectl-edit")
    world.promote(asked("v2"))
    assert got(world, SERVICE)["spec"]["ports"] == ports


def test_case_09_the_label_goes_again_when_the_version_is_taken_back() -> None:
    world = world_with(ports=PORTS["as KubeRay calls it"], first=True)
    before = got(world, SERVICE)
    process = world.process()
    end = process.outcome(lambda: process.deploy(asked("v2", smoke=[{"name": "no", "path": "/", "body": {}, "expect": {"/ok": "never"}}])))
    assert isinstance(end.error, errors.SmokeFailed), str(end)
    after = got(world, SERVICE)
    assert after["spec"] == before["spec"] and not after["metadata"].get("labels")


def test_case_09_a_field_of_the_stub_that_is_wrong_and_somebody_elses_is_refused_before_anything_is_touched() -> None:
    world = world_with(labels=LABEL)
    stub(world, storageUri="s3://models/bge/v1")
    before = everything(world)
    with pytest.raises(errors.NameTaken) as caught:
        rollout.plan(opened(world, asked("v2")))
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        f"InferenceService {NAMESPACE}/{MODEL}: spec.predictor.model.storageUri belongs to {KUBECTL}, and would be changed; take it out of what the "
        f"owner applies, or hand the object over: kubectl annotate inferenceservice {MODEL} -n {NAMESPACE} kfp-serving/gitops=yielded"
    )
    process = world.process()
    end = process.outcome(lambda: process.promote(asked("v2")))
    assert isinstance(end.error, errors.NameTaken) and everything(world) == before
    world.cluster.patch(STUB, {"metadata": {"annotations": {names.GITOPS: "yielded"}}}, manager="kubectl-annotate")
    world.promote(asked("v2"))
    assert got(world, STUB)["spec"]["predictor"]["model"]["storageUri"] == "s3://models/bge/v2"


def test_case_09_of_a_stub_of_somebody_else_only_our_annotations_are_written() -> None:
    world = world_with(labels=LABEL)
    stub(world, protocolVersion="v1")
    spec = got(world, STUB)["spec"]
    world.promote(asked("v2"))
    found = got(world, STUB)
    assert found["spec"] == spec and found["metadata"]["annotations"]["kfp-serving/version"] == "v2"


def test_case_09_a_stub_of_ours_follows_scheme_and_protocol() -> None:
    """What was left out of it before is written when there is something to say."""
    world = World()
    made = inference_service.manifest(MODEL, NAMESPACE, version="v1", uri="models:/bge/1", model_format="bge", rayservice=RAYSERVICE, protocol="json")
    found = world.cluster.apply(made, manager=names.MANAGER)
    wanted = inference_service.wanted(asked("v2", protocol="v2", model_format="bge"), "v2", found)
    assert wanted["spec"]["predictor"]["model"] == {"modelFormat": {"name": "bge"}, "protocolVersion": "v2", "storageUri": "s3://models/bge/v2"}


@pytest.mark.parametrize("target", [names.service_host("other-serve-svc", NAMESPACE), "elsewhere.example"])
def test_case_09_an_alias_onto_something_else_is_refused(target: str) -> None:
    found = alias.manifest(MODEL, NAMESPACE, target)
    with pytest.raises(errors.NameTaken, match=f"it points to {target}, not to {TARGET}"):
        alias.assert_free(MODEL, NAMESPACE, found, None, TARGET)
    alias.assert_free(MODEL, NAMESPACE, alias.manifest(MODEL, NAMESPACE, TARGET + "."), None, TARGET)
