"""What the library asks of a cluster (`kfp_components.cluster.Cluster`), said once for every implementation.

``kubernetes`` is the real client against the API of conftest.py: the embedded server, or with KUBE_API=kubeconfig the cluster of KUBECONFIG.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kube_space import READER, KubeApi, Space, config_map, ray_service, reader_token, service
from patience import seconds, until

from kfp_components import errors, names
from kfp_components.clock import ManualClock
from kfp_components.cluster import Cluster, Manifest, Permission, Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.local.apiserver.server import write_kubeconfig


@dataclass(frozen=True)
class Place:
    """A cluster, a namespace of its own there, and somebody who may only read it."""

    cluster: Cluster
    namespace: str
    reader: Callable[[], Cluster]

    def here(self, manifest: Manifest) -> Manifest:
        return manifest | {"metadata": manifest["metadata"] | {"namespace": self.namespace}}

    def ref(self, name: str = "a", kind: str = "ConfigMap") -> Ref:
        return Ref(kind, name, self.namespace)

    def config_map(self, name: str = "a", data: dict[str, Any] | None = None, **metadata: Any) -> Manifest:
        return self.here(config_map(name, data, **metadata))

    def create(self, name: str = "a", data: dict[str, Any] | None = None, **metadata: Any) -> Manifest:
        return self.cluster.create(self.config_map(name, data, **metadata))

    def alias(self, name: str, target: str) -> None:
        spec = {"type": "ExternalName", "externalName": target}
        self.cluster.create(self.here({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}))

    def service_with_endpoint(self, name: str, address: str, *, ready: bool) -> None:
        self.cluster.create(self.here(service(name, {"name": "serve", "port": 8000})))
        slice_of = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "serve", "port": 18000, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": ready}}],
        }
        self.cluster.create(self.here(slice_of))


@pytest.fixture(params=["kubernetes", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "memory":
        memory = MemoryCluster(clock=ManualClock())
        name = f"contract-{uuid.uuid4().hex[:8]}"
        memory.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        return Place(memory, name, lambda: memory.as_account(READER))
    kube_api: KubeApi = request.getfixturevalue("kube_api")
    space: Space = request.getfixturevalue("space")

    def reader() -> Cluster:
        if not kube_api.ca_file:
            pytest.skip("the kubeconfig names no certificate authority to trust")
        write_kubeconfig(tmp_path / "reader", kube_api.url, reader_token(kube_api, space), space.name, Path(kube_api.ca_file).read_text())
        found = KubernetesCluster(tmp_path / "reader")
        until(lambda: not found.missing([Permission("get", "Service")], space.name), "the reader to have its rights")
        return found

    return Place(KubernetesCluster(kube_api.kubeconfig), space.name, reader)


class TestRead:
    def test_none(self, place: Place) -> None:
        assert place.cluster.get(place.ref()) is None

    def test_what_was_created(self, place: Place) -> None:
        assert place.cluster.get(place.ref()) is None
        made = place.create()
        assert place.cluster.get(place.ref()) == made
        assert (made["apiVersion"], made["kind"], made["data"]) == ("v1", "ConfigMap", {"k": "1"})

    def test_nothing_is_shared_with_the_caller(self, place: Place) -> None:
        mine = place.config_map()
        made = place.cluster.create(mine)
        mine["data"]["k"] = made["data"]["k"] = "2"
        for _ in range(2):
            found = place.cluster.get(place.ref())
            assert found is not None and found["data"] == {"k": "1"}
            found["data"]["k"] = "3"

    def test_http_routes(self, place: Place) -> None:
        assert place.cluster.list("HTTPRoute", place.namespace) == []
        rules = [{"matches": [{"path": {"type": "PathPrefix", "value": "/m"}}], "backendRefs": [{"name": "web", "port": 8000}]}]
        body = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "a"}, "spec": {"rules": rules}}
        made = place.cluster.create(place.here(body))
        assert place.cluster.list("HTTPRoute", place.namespace) == [made] and made["spec"]["rules"][0]["matches"] == rules[0]["matches"]

    def test_list_by_label(self, place: Place) -> None:
        place.create("a", labels={"app": "x"})
        place.create("b", labels={"app": "y"})
        place.create("c")

        def found_by(labels: str) -> list[str]:
            return [found["metadata"]["name"] for found in place.cluster.list("ConfigMap", place.namespace, labels=labels)]

        wanted = {"app": ["a", "b"], "app=y": ["b"], "app!=x,app": ["b"], "app in (x, y)": ["a", "b"], "app=z": []}
        assert {labels: found_by(labels) for labels in wanted} == wanted
        everything = place.cluster.list("ConfigMap", place.namespace)
        assert {"a", "b", "c"} <= {found["metadata"]["name"] for found in everything}
        assert {(found["apiVersion"], found["kind"]) for found in everything} == {("v1", "ConfigMap")}

    def test_list_of_a_custom_resource(self, place: Place) -> None:
        assert place.cluster.list("RayService", place.namespace) == []
        place.cluster.create(place.here(ray_service()))
        (found,) = place.cluster.list("RayService", place.namespace)
        assert (found["apiVersion"], found["kind"], found["metadata"]["name"]) == ("ray.io/v1", "RayService", "ray")

    def test_selector_without_sense(self, place: Place) -> None:
        with pytest.raises(errors.RequestInvalid, match=r"ConfigMap list in .* unable to parse requirement"):
            place.cluster.list("ConfigMap", place.namespace, labels="a b c")


class TestCreate:
    def test_name_taken(self, place: Place) -> None:
        place.create()
        with pytest.raises(errors.Conflict, match=f'ConfigMap {place.namespace}/a: configmaps "a" already exists'):
            place.create()

    def test_generated_name(self, place: Place) -> None:
        made = {place.cluster.create(place.here({**config_map(), "metadata": {"generateName": "run-"}}))["metadata"]["name"] for _ in range(3)}
        assert len(made) == 3 and all(name.startswith("run-") and len(name) == 9 for name in made)

    def test_managed_by_the_library(self, place: Place) -> None:
        (entry,) = place.create()["metadata"]["managedFields"]
        assert (entry["manager"], entry["operation"]) == (names.MANAGER, "Update")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"metadata": {"name": "Not_A_Name"}}, "metadata.name: Invalid value"),
            ({"metadata": {"name": "a", "labels": {"app": "two words"}}}, "metadata.labels: Invalid value"),
            ({"data": {"k": 1}}, "cannot be handled as a ConfigMap"),
        ],
    )
    def test_refused(self, place: Place, change: Manifest, words: str) -> None:
        with pytest.raises(errors.RequestInvalid, match=f"ConfigMap {place.namespace}/.*: the Kubernetes API refused it: .*{words}"):
            place.cluster.create(place.here({**config_map(), **change}))

    def test_refused_custom_resource(self, place: Place) -> None:
        wrong = ray_service(serveConfigV2=5)
        with pytest.raises(
            errors.RequestInvalid,
            match=r'the Kubernetes API refused it: RayService\.ray\.io "ray" is invalid: \[?spec\.serveConfigV2: Invalid value: "integer"',
        ):
            place.cluster.create(place.here(wrong))

    def test_missing_namespace(self, place: Place) -> None:
        elsewhere = {**config_map(), "metadata": {"name": "a", "namespace": "contract-nowhere"}}
        with pytest.raises(errors.NotFound, match='ConfigMap contract-nowhere/a: namespaces "contract-nowhere" not found'):
            place.cluster.create(elsewhere)
        with pytest.raises(errors.NotFound, match='namespaces "contract-nowhere" not found'):
            place.cluster.apply(elsewhere, manager="me")
        assert place.cluster.get(Ref("ConfigMap", "a", "contract-nowhere")) is None
        assert place.cluster.list("ConfigMap", "contract-nowhere") == []
        assert place.cluster.delete(Ref("ConfigMap", "a", "contract-nowhere")) is False


class TestApply:
    def test_new(self, place: Place) -> None:
        made = place.cluster.apply(place.config_map(), manager="me")
        assert made["data"] == {"k": "1"} and place.cluster.get(place.ref()) == made
        assert [(m["manager"], m["operation"]) for m in made["metadata"]["managedFields"]] == [("me", "Apply")]

    def test_same_again_changes_nothing(self, place: Place) -> None:
        made = place.cluster.apply(place.config_map(), manager="me")
        assert place.cluster.apply(place.config_map(), manager="me") == made

    def test_own_fields_that_are_left_out_go(self, place: Place) -> None:
        place.cluster.apply(place.config_map(data={"mine": "1", "too": "2"}), manager="me")
        place.cluster.apply(place.config_map(data={"theirs": "3"}), manager="other")
        assert place.cluster.apply(place.config_map(data={"mine": "1"}), manager="me")["data"] == {"mine": "1", "theirs": "3"}

    def test_conflict_names_field_and_manager(self, place: Place) -> None:
        place.cluster.apply(place.config_map(), manager="other")
        with pytest.raises(errors.Conflict, match=r'Apply failed with 1 conflict: conflict with "other": \.data\.k'):
            place.cluster.apply(place.config_map(data={"k": "2"}), manager="me")
        found = place.cluster.get(place.ref())
        assert found is not None and found["data"] == {"k": "1"}

    def test_forced(self, place: Place) -> None:
        place.cluster.apply(place.config_map(), manager="other")
        taken = place.cluster.apply(place.config_map(data={"k": "2"}), manager="me", force=True)
        assert taken["data"] == {"k": "2"} and [m["manager"] for m in taken["metadata"]["managedFields"]] == ["me"]

    def test_resource_version(self, place: Place) -> None:
        before = place.create()["metadata"]["resourceVersion"]
        changed = place.cluster.apply(place.config_map(data={"n": "2"}, resourceVersion=before), manager="me")
        assert changed["data"] == {"k": "1", "n": "2"}
        with pytest.raises(errors.Conflict, match='Operation cannot be fulfilled on configmaps "a": the object has been modified'):
            place.cluster.apply(place.config_map(data={"n": "3"}, resourceVersion=before), manager="me")

    def test_status(self, place: Place) -> None:
        place.cluster.create(place.here(ray_service()))
        wanted = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "ray"}, "status": {"serviceStatus": "Running"}}
        applied = place.cluster.apply(place.here(wanted), manager="me", subresource="status")
        assert applied["status"]["serviceStatus"] == "Running" and applied["spec"]["serveConfigV2"] == "applications: []"

    def test_status_through_the_object_is_ignored(self, place: Place) -> None:
        made = place.cluster.create(place.here({**ray_service(), "status": {"serviceStatus": "Running"}}))
        assert made.get("status", {}).get("serviceStatus") is None

    def test_status_of_nothing(self, place: Place) -> None:
        wanted = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "ray"}, "status": {"serviceStatus": "Running"}}
        with pytest.raises(errors.NotFound, match=r'RayService .*/ray: rayservices.ray.io "ray" not found'):
            place.cluster.apply(place.here(wanted), manager="me", subresource="status")

    def test_refused(self, place: Place) -> None:
        wrong = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "ray"}, "spec": {"serveConfigV2": []}}
        with pytest.raises(errors.RequestInvalid, match=r"failed to create typed patch object .*\.spec\.serveConfigV2: expected string"):
            place.cluster.apply(place.here(wrong), manager="me")


class TestReplace:
    def test_swaps(self, place: Place) -> None:
        made = place.create()
        stored = place.cluster.replace({**made, "data": {"k": "2"}})
        assert stored["data"] == {"k": "2"} and place.cluster.get(place.ref()) == stored
        assert stored["metadata"]["uid"] == made["metadata"]["uid"]

    def test_stale(self, place: Place) -> None:
        made = place.create()
        place.cluster.replace({**made, "data": {"k": "2"}})
        with pytest.raises(errors.Conflict, match=f"ConfigMap {place.namespace}/a: .*the object has been modified"):
            place.cluster.replace({**made, "data": {"k": "3"}})

    def test_missing(self, place: Place) -> None:
        made = place.create()
        place.cluster.delete(place.ref())
        with pytest.raises((errors.NotFound, errors.Conflict)) as found:  # a real ConfigMap answers Conflict: there is a uid in it
            place.cluster.replace(made)
        assert f"ConfigMap {place.namespace}/a: " in str(found.value)

    def test_of_another_object_of_that_name(self, place: Place) -> None:
        made = place.create()
        place.cluster.delete(place.ref())
        place.create()
        with pytest.raises(errors.Conflict):
            place.cluster.replace(made)


class TestPatch:
    def test_merges_and_removes(self, place: Place) -> None:
        place.create(data={"k": "1", "gone": "1"})
        assert place.cluster.patch(place.ref(), {"data": {"n": "2", "gone": None}}, manager="me")["data"] == {"k": "1", "n": "2"}

    def test_resource_version(self, place: Place) -> None:
        before = place.create()["metadata"]["resourceVersion"]
        body = {"metadata": {"resourceVersion": before}, "data": {"k": "2"}}
        assert place.cluster.patch(place.ref(), body, manager="me")["data"] == {"k": "2"}
        with pytest.raises(errors.Conflict, match="the object has been modified"):
            place.cluster.patch(place.ref(), body, manager="me")

    def test_manager_owns_what_it_wrote(self, place: Place) -> None:
        place.create()
        patched = place.cluster.patch(place.ref(), {"data": {"n": "2"}}, manager="me")
        owned = {m["manager"]: m["fieldsV1"] for m in patched["metadata"]["managedFields"]}
        assert owned["me"] == {"f:data": {"f:n": {}}}

    def test_missing(self, place: Place) -> None:
        with pytest.raises(errors.NotFound, match=f'ConfigMap {place.namespace}/a: configmaps "a" not found'):
            place.cluster.patch(place.ref(), {"data": {"k": "2"}}, manager="me")

    def test_refused(self, place: Place) -> None:
        place.create(labels={"app": "x"})
        with pytest.raises(errors.RequestInvalid, match=r"metadata\.labels: Invalid value"):
            place.cluster.patch(place.ref(), {"metadata": {"labels": {"app": "two words"}}}, manager="me")


class TestDelete:
    def test_none(self, place: Place) -> None:
        assert place.cluster.delete(place.ref()) is False

    def test_there(self, place: Place) -> None:
        place.create()
        assert place.cluster.delete(place.ref()) is True
        assert place.cluster.get(place.ref()) is None

    def test_only_that_object(self, place: Place) -> None:
        uid = place.create()["metadata"]["uid"]
        with pytest.raises(errors.Conflict, match=f"ConfigMap {place.namespace}/a: .*the UID in the precondition"):
            place.cluster.delete(place.ref(), uid=str(uuid.uuid4()))
        assert place.cluster.delete(place.ref(), uid=uid) is True

    def test_only_that_state(self, place: Place) -> None:
        made = place.create()
        changed = place.cluster.patch(place.ref(), {"data": {"k": "2"}}, manager="me")
        with pytest.raises(errors.Conflict, match=f"ConfigMap {place.namespace}/a: .*the ResourceVersion in the precondition"):
            place.cluster.delete(place.ref(), uid=made["metadata"]["uid"], resource_version=made["metadata"]["resourceVersion"])
        assert place.cluster.get(place.ref()) == changed
        assert place.cluster.delete(place.ref(), resource_version=changed["metadata"]["resourceVersion"]) is True

    def test_preconditions_of_nothing(self, place: Place) -> None:
        assert place.cluster.delete(place.ref(), uid=str(uuid.uuid4()), resource_version="1") is False

    def test_finalizer_holds_it(self, place: Place) -> None:
        place.create(finalizers=["example.com/hold"])
        assert place.cluster.delete(place.ref()) is True
        held = place.cluster.get(place.ref())
        assert held is not None and held["metadata"]["deletionTimestamp"]
        place.cluster.patch(place.ref(), {"metadata": {"finalizers": None}}, manager="me")
        assert place.cluster.get(place.ref()) is None

    def test_what_it_owns_follows(self, place: Place) -> None:
        owner = place.create()["metadata"]
        place.create("b", ownerReferences=[{"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": owner["uid"]}])
        place.cluster.delete(place.ref())
        until(lambda: place.cluster.get(place.ref("b")) is None, "the dependent to be gone")


def running(state: Manifest) -> bool:
    return state["data"].get("state") == "running"


def broken(state: Manifest) -> str | None:
    return "No module named 'xgboost'" if state["data"].get("state") == "broken" else None


class TestWait:
    def test_not_there(self, place: Place) -> None:
        with pytest.raises(errors.WaitTimeout, match=f"ConfigMap {place.namespace}/a: not ready within 1 s; it does not exist"):
            place.cluster.wait(place.ref(), ready=running, failed=broken, timeout_s=1, meanwhile=lambda: None)

    def test_meanwhile(self, place: Place) -> None:
        place.create()
        done: list[int] = []

        def meanwhile() -> None:
            done.append(1)
            if len(done) == 2:
                place.cluster.patch(place.ref(), {"data": {"state": "running"}}, manager="controller")

        assert running(place.cluster.wait(place.ref(), ready=running, failed=broken, timeout_s=seconds(30), meanwhile=meanwhile))
        assert len(done) == 2

    def test_ready_now_has_no_meanwhile(self, place: Place) -> None:
        made = place.create(data={"state": "running"})
        done: list[int] = []
        assert place.cluster.wait(place.ref(), ready=running, failed=broken, timeout_s=30, meanwhile=lambda: done.append(1)) == made
        assert not done

    def test_what_is_raised_meanwhile_ends_it(self, place: Place) -> None:
        def lost() -> None:
            raise errors.ReleaseHeld("lost")

        for _ in ("not there", "not ready"):
            with pytest.raises(errors.ReleaseHeld, match="lost"):
                place.cluster.wait(place.ref(), ready=running, failed=broken, timeout_s=seconds(30), meanwhile=lost)
            place.create(name="a" if place.cluster.get(place.ref()) is None else "b")

    def test_too_long_or_broken(self, place: Place) -> None:
        place.create()
        with pytest.raises(errors.WaitTimeout, match=f"ConfigMap {place.namespace}/a: not ready within 1 s; its last status was {{}}"):
            place.cluster.wait(place.ref(), ready=running, failed=broken, timeout_s=1, meanwhile=lambda: None)
        place.cluster.patch(place.ref(), {"data": {"state": "broken"}}, manager="controller")
        with pytest.raises(errors.DeployFailed, match=r"^No module named 'xgboost'$"):
            place.cluster.wait(place.ref(), ready=running, failed=broken, timeout_s=seconds(30), meanwhile=lambda: None)


class TestEndpoint:
    def test_through_an_alias(self, place: Place) -> None:
        place.service_with_endpoint("ray-serve-svc", "10.1.2.3", ready=True)
        target = f"ray-serve-svc.{place.namespace}.svc.cluster.local"
        place.alias("whisper", target)
        found = place.cluster.endpoint("whisper", place.namespace, 8000)
        assert (found.base_url, found.host) == ("http://10.1.2.3:18000", f"whisper.{place.namespace}.svc.cluster.local")
        assert found.path == (f"Service {place.namespace}/whisper", target, f"Service {place.namespace}/ray-serve-svc", "10.1.2.3:18000")

    @pytest.mark.parametrize("port, ready", [(8000, False), (9000, True)])
    def test_no_ready_endpoint(self, place: Place, port: int, ready: bool) -> None:
        place.service_with_endpoint("ray-serve-svc", "10.1.2.3", ready=ready)
        with pytest.raises(errors.NotFound, match=f"Service .*/ray-serve-svc: it has no ready endpoint on port {port}"):
            place.cluster.endpoint("ray-serve-svc", place.namespace, port)

    def test_missing(self, place: Place) -> None:
        place.alias("whisper", f"nothing.{place.namespace}.svc.cluster.local")
        with pytest.raises(errors.NotFound, match=f"Service {place.namespace}/whisper -> .* -> Service {place.namespace}/nothing: it does not exist"):
            place.cluster.endpoint("whisper", place.namespace, 8000)

    def test_loop(self, place: Place) -> None:
        place.alias("one", f"two.{place.namespace}.svc.cluster.local")
        place.alias("two", f"one.{place.namespace}.svc.cluster.local")
        with pytest.raises(errors.NotFound, match="more than five hops; it looks like a loop"):
            place.cluster.endpoint("one", place.namespace, 8000)

    def test_outside(self, place: Place) -> None:
        place.alias("whisper", "example.com")
        with pytest.raises(errors.NotFound, match=r"-> example\.com: not a cluster-local Service"):
            place.cluster.endpoint("whisper", place.namespace, 8000)


class TestRights:
    def test_owner(self, place: Place) -> None:
        wanted = (Permission("create", "RayService"), Permission("patch", "RayService", "status"))
        assert place.cluster.missing(wanted, place.namespace) == ()

    def test_reader(self, place: Place) -> None:
        refused = (Permission("create", "Service"), Permission("patch", "RayService", "status"))
        assert place.reader().missing((Permission("get", "Service"), *refused), place.namespace) == refused

    def test_refused(self, place: Place) -> None:
        made = place.create()
        reader = place.reader()
        assert reader.get(place.ref()) == made
        words = f'cannot {{}} resource "configmaps" in API group "" in the namespace "{place.namespace}"; bind the Role of deploy/rbac.yaml'
        tries: dict[str, Callable[[], object]] = {
            "create": lambda: reader.create(place.config_map("b")),
            "patch": lambda: reader.apply(place.config_map(), manager="me"),
            "update": lambda: reader.replace(made),
            "delete": lambda: reader.delete(place.ref()),
        }
        for verb, attempt in tries.items():
            with pytest.raises(errors.PermissionDenied, match=words.format(verb)):
                attempt()
        with pytest.raises(errors.PermissionDenied, match=words.format("patch")):
            reader.patch(place.ref(), {"data": {"k": "2"}}, manager="me")
        assert place.cluster.get(place.ref()) == made
