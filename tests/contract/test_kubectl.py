"""The real kubectl against the API of conftest.py: what a person at a terminal does."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from kube_space import KubeApi, Space
from patience import seconds
from test_kube_api import made, ray_service, service, stub

KUBECTL = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not on PATH: its tests are skipped")
Kubectl = Callable[..., str]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kubectl-cache")


@pytest.fixture
def command(kube_api: KubeApi, space: Space, cache: Path) -> list[str]:
    return [KUBECTL or "", f"--kubeconfig={kube_api.kubeconfig}", f"--cache-dir={cache}", f"-n={space.name}"]


@pytest.fixture
def kubectl(command: list[str]) -> Kubectl:
    def run(*words: str, feed: object = None, fails: bool = False) -> str:
        text = None if feed is None else yaml.safe_dump(feed)
        done = subprocess.run([*command, *words], input=text, capture_output=True, text=True, timeout=seconds(60))
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_apply_configured_unchanged(kubectl: Kubectl) -> None:
    assert "service/web created" in kubectl("apply", "-f", "-", feed=service())
    assert "service/web unchanged" in kubectl("apply", "-f", "-", feed=service())
    assert "service/web configured" in kubectl("apply", "-f", "-", feed=service("web", {"name": "http", "port": 81}))
    assert kubectl("get", "svc", "web", "-o", "jsonpath={.spec.ports[*].port}") == "81"


def test_apply_custom_resources(kubectl: Kubectl) -> None:
    assert "rayservice.ray.io/ray created" in kubectl("apply", "-f", "-", feed=ray_service())
    assert "configured" in kubectl("apply", "-f", "-", feed=ray_service(serveConfigV2="b"))
    assert "inferenceservice.serving.kserve.io/whisper created" in kubectl("apply", "-f", "-", feed=stub())


def test_apply_names_unknown_fields(kubectl: Kubectl) -> None:
    assert 'unknown field "spec.bogus"' in kubectl("apply", "-f", "-", feed=ray_service(bogus=1), fails=True)


def test_server_side_apply_and_conflict(kubectl: Kubectl) -> None:
    kubectl("apply", "--server-side", "-f", "-", feed=ray_service())
    kubectl("patch", "rayservice", "ray", "--type=merge", "-p", '{"spec":{"serveConfigV2":"theirs"}}')
    words = kubectl("apply", "--server-side", "-f", "-", feed=ray_service(), fails=True)
    assert 'conflict with "kubectl-patch" using ray.io/v1: .spec.serveConfigV2' in words
    assert "serverside-applied" in kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", feed=ray_service())


def test_get_prints_columns(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", feed=service("web", {"port": 80}, type="ExternalName", externalName="a.b.svc.cluster.local"))
    header, row = kubectl("get", "svc").splitlines()[:2]
    assert header.split() == ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]
    assert row.split()[:2] == ["web", "ExternalName"] and "a.b.svc.cluster.local" in row and "80/TCP" in row


def test_get_status_columns(kubectl: Kubectl, space: Space) -> None:
    kubectl("apply", "-f", "-", feed=stub())
    status = {"url": "http://x", "conditions": [{"type": "Ready", "status": "True"}]}
    space.patch("inferenceservices", "whisper", {"status": status}, sub="status")
    assert kubectl("get", "isvc", "whisper").splitlines()[1].split()[:3] == ["whisper", "http://x", "True"]


def test_describe_shows_events(kubectl: Kubectl, space: Space) -> None:
    kubectl("apply", "-f", "-", feed=stub())
    uid = kubectl("get", "isvc", "whisper", "-o", "jsonpath={.metadata.uid}")
    about = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "name": "whisper",
        "namespace": space.name,
        "uid": uid,
    }
    event = {
        "metadata": {"generateName": "w-"},
        "involvedObject": about,
        "reason": "TrafficShifted",
        "message": "10 %",
        "type": "Normal",
    }
    assert space.create("events", event)[0] == 201
    assert "TrafficShifted" in kubectl("describe", "isvc", "whisper")
    assert "TrafficShifted" in kubectl("get", "events")


def test_describe_service_and_namespace(kubectl: Kubectl, space: Space) -> None:
    kubectl("apply", "-f", "-", feed=service("web", {"port": 80}, type="ExternalName", externalName="a.b"))
    assert "a.b" in kubectl("describe", "svc", "web") and "Active" in kubectl("describe", "ns", space.name)


def test_patch_types(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", feed=service())
    kubectl("patch", "svc", "web", "-p", '{"spec":{"ports":[{"port":80,"targetPort":8080}]}}')
    kubectl("patch", "svc", "web", "--type=json", "-p", '[{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]')
    assert kubectl("get", "svc", "web", "-o", "jsonpath={.spec.ports[0].targetPort} {.metadata.labels.a}") == "8080 b"


def test_edit_like_verbs(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", feed=ray_service())
    kubectl("label", "rayservice", "ray", "team=speech")
    kubectl("annotate", "rayservice", "ray", "note=kept")
    assert "ray" in kubectl("get", "rayservice", "-l", "team=speech", "-o", "name")


def test_create_verbs(kubectl: Kubectl) -> None:
    kubectl("create", "configmap", "cm", "--from-literal=a=1")
    kubectl("create", "secret", "generic", "s", "--from-literal=password=x")
    kubectl("create", "service", "externalname", "alias", "--external-name=a.b.svc.cluster.local", "--tcp=8000:8000")
    assert kubectl("get", "cm", "cm", "-o", "jsonpath={.data.a}") == "1"
    assert kubectl("get", "secret", "s", "-o", "jsonpath={.data.password}") == "eA=="
    assert kubectl("get", "svc", "alias", "-o", "jsonpath={.spec.externalName} {.spec.ports[0].targetPort}") == "a.b.svc.cluster.local 8000"
    assert "already exists" in kubectl("create", "configmap", "cm", fails=True)


def test_create_and_delete_namespace(kubectl: Kubectl, space: Space) -> None:
    kubectl("create", "namespace", f"{space.name}-b")
    assert "deleted" in kubectl("delete", "namespace", f"{space.name}-b")
    assert "NotFound" in kubectl("get", "namespace", f"{space.name}-b", fails=True)


def test_can_i(kubectl: Kubectl) -> None:
    assert kubectl("auth", "can-i", "create", "rayservices.ray.io").strip() == "yes"


def test_explain(kubectl: Kubectl) -> None:
    assert "serveConfigV2" in kubectl("explain", "rayservice.spec")


def test_delete_waits(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", feed=ray_service())
    assert 'rayservice.ray.io "ray" deleted' in kubectl("delete", "rayservice", "ray")
    assert "NotFound" in kubectl("get", "rayservice", "ray", fails=True)


def test_wait_for_a_condition(kubectl: Kubectl, space: Space) -> None:
    kubectl("apply", "-f", "-", feed=stub())
    space.patch("inferenceservices", "whisper", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, sub="status")
    assert "condition met" in kubectl("wait", "isvc/whisper", "--for=condition=Ready", f"--timeout={seconds(30):.0f}s")


def test_watch(kubectl: Kubectl, command: list[str], space: Space) -> None:
    kubectl("apply", "-f", "-", feed=service())
    with subprocess.Popen([*command, "get", "svc", "-w", "-o", "name"], stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None and watching.stdout.readline().strip() == "service/web"
        space.create("services", service("second"))
        assert watching.stdout.readline().strip() == "service/second"
        watching.terminate()


def test_dry_run_and_diff(kubectl: Kubectl) -> None:
    assert "(server dry run)" in kubectl("apply", "--dry-run=server", "-f", "-", feed=ray_service())
    assert "NotFound" in kubectl("get", "rayservice", "ray", fails=True)


OLD = "ray.io/v1alpha1"


def test_case_23_the_old_version_of_kuberay_is_the_same_object(kubectl: Kubectl, kube_api: KubeApi, space: Space) -> None:
    """KubeRay serves it still, and manifests name it."""
    if not kube_api.embedded:
        pytest.skip("whether a real cluster's KubeRay serves v1alpha1 is its own business")
    manifest = {**ray_service(), "apiVersion": OLD}
    assert "rayservice.ray.io/ray created" in kubectl("apply", "-f", "-", feed=manifest)
    assert "rayservice.ray.io/ray unchanged" in kubectl("apply", "-f", "-", feed=manifest)
    assert kubectl("get", "rayservices.v1alpha1.ray.io", "ray", "-o", "jsonpath={.apiVersion}") == OLD
    assert kubectl("get", "rayservice", "ray", "-o", "jsonpath={.apiVersion}") == "ray.io/v1"
    changed = {**ray_service(serveConfigV2="b"), "apiVersion": OLD}
    assert "configured" in kubectl("apply", "-f", "-", feed=changed)
    assert "serverside-applied" in kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", feed=changed)
    assert 'unknown field "spec.bogus"' in kubectl("apply", "-f", "-", feed={**ray_service(bogus=1), "apiVersion": OLD}, fails=True)
    found = made(space.get("rayservices", "ray"), 200)
    assert (found["apiVersion"], found["spec"]["serveConfigV2"]) == ("ray.io/v1", "b")
    assert OLD in kubectl("get", "rayservices.v1alpha1.ray.io", "-o", "yaml")
    assert "deleted" in kubectl("delete", "-f", "-", feed=manifest)


@pytest.mark.parametrize(("version", "kind"), [("ray.io/v1beta1", "RayService"), ("acme.example/v1", "Thing"), ("ray.io/v1", "RayCluster")])
def test_case_23_a_kind_that_is_not_served_is_refused_by_name(kubectl: Kubectl, kube_api: KubeApi, version: str, kind: str) -> None:
    if not kube_api.embedded and kind == "RayCluster":
        pytest.skip("a real cluster with KubeRay has it")
    words = kubectl("apply", "-f", "-", feed={"apiVersion": version, "kind": kind, "metadata": {"name": "x"}, "spec": {}}, fails=True)
    assert f'no matches for kind "{kind}" in version "{version}"' in words
