"""What this project needs of a Kubernetes API, said once: runs against the embedded server and against a real kube-apiserver (conftest.py)."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from kube_space import RAY, KubeApi, Space, config_map, ray_service, service
from kubernetes import client, config, dynamic, watch
from kubernetes.dynamic.exceptions import ConflictError, NotFoundError
from patience import seconds, until

from kfp_components.local.apiserver.server import NOT_SUPPORTED, ApiServer


def serve_config(text: str, name: str = "ray") -> dict[str, Any]:
    return {"apiVersion": RAY, "kind": "RayService", "metadata": {"name": name}, "spec": {"serveConfigV2": text}}


def stub(name: str = "whisper", mode: str = "ModelMesh", **predictor: Any) -> dict[str, Any]:
    metadata = {"name": name, "annotations": {"serving.kserve.io/deploymentMode": mode}}
    spec = {"predictor": predictor or {"containers": [{"name": "kserve-container", "image": "x"}]}}
    return {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": metadata, "spec": spec}


def route(name: str = "route", weight: int | None = None) -> dict[str, Any]:
    backend: dict[str, Any] = {"name": "web", "port": 8000} | ({} if weight is None else {"weight": weight})
    spec = {
        "parentRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gateway"}],
        "rules": [{"backendRefs": [backend]}],
    }
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name}, "spec": spec}


def owned_by(owner: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [{"apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], **more}]


def made(answer: tuple[int, Any], code: int = 201) -> Any:
    assert answer[0] == code, answer[1]
    return answer[1]


def refused(answer: tuple[int, Any], code: int, reason: str, words: str = "") -> Any:
    status = answer[1]
    assert (answer[0], status["kind"], status["status"], status.get("reason", ""), status["code"]) == (
        code,
        "Status",
        "Failure",
        reason,
        code,
    ), status
    assert words in status["message"]
    return status


def managers(obj: dict[str, Any]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(m["manager"], m["operation"], m.get("subresource", "")): m["fieldsV1"] for m in obj["metadata"]["managedFields"]}


def until_gone(space: Space, plural: str, name: str) -> None:
    until(lambda: space.get(plural, name)[0] == 404, f"{plural}/{name} to be gone")


@contextmanager
def watching(space: Space, plural: str, version: str, timeout_s: float | None = None, **query: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a watch that is open when the block begins; they end with the watch, after ``timeout_s``."""
    limit = str(int(timeout_s or seconds(30)))
    query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": limit, **query}
    with space.client.stream("GET", space.path(plural), params=query, timeout=seconds(60)) as response:
        yield (json.loads(line) for line in response.iter_lines())


def events(space: Space, plural: str, version: str, count: int, **query: str) -> list[dict[str, Any]]:
    with watching(space, plural, version, **query) as found:
        return list(itertools.islice(found, count))


class TestDiscovery:
    def test_version(self, http: httpx.Client) -> None:
        assert http.get("/version").json()["major"] == "1"

    def test_groups(self, http: httpx.Client) -> None:
        names = {g["name"] for g in http.get("/apis").json()["groups"]}
        assert {"ray.io", "serving.kserve.io", "gateway.networking.k8s.io", "coordination.k8s.io", "discovery.k8s.io"} <= names

    def test_core_resources(self, http: httpx.Client) -> None:
        found = {r["name"]: r for r in http.get("/api/v1").json()["resources"]}
        assert found["services"]["namespaced"] and not found["namespaces"]["namespaced"] and "svc" in found["services"]["shortNames"]
        assert {"get", "list", "watch", "create", "update", "patch", "delete"} <= set(found["configmaps"]["verbs"])

    def test_status_subresource_is_listed(self, http: httpx.Client) -> None:
        assert "rayservices/status" in {r["name"] for r in http.get("/apis/ray.io/v1").json()["resources"]}

    def test_openapi_v3_names_field_validation(self, http: httpx.Client) -> None:
        place = http.get("/openapi/v3").json()["paths"]["apis/ray.io/v1"]["serverRelativeURL"]
        paths = http.get(place).json()["paths"]
        patch = paths["/apis/ray.io/v1/namespaces/{namespace}/rayservices/{name}"]["patch"]
        assert "fieldValidation" in {p["name"] for p in patch["parameters"]}

    def test_unknown_resource(self, http: httpx.Client) -> None:
        assert http.get("/api/v1/namespaces/default/unicorns").status_code == 404
        assert http.get("/apis/unicorns.io/v1/namespaces/default/unicorns").status_code == 404

    def test_default_namespace_is_there(self, http: httpx.Client) -> None:
        assert http.get("/api/v1/namespaces/default").json()["status"]["phase"] == "Active"

    def test_health_needs_no_token(self, kube_api: KubeApi) -> None:
        with kube_api.client("") as anonymous:
            assert all(anonymous.get(f"/{path}").status_code == 200 for path in ("healthz", "readyz", "livez"))


class TestIdentity:
    def test_wrong_token_is_401(self, kube_api: KubeApi) -> None:
        with kube_api.client("wrong") as stranger:
            answer = stranger.get("/api/v1/namespaces/default")
        assert refused((answer.status_code, answer.json()), 401, "Unauthorized")["message"] == "Unauthorized"

    def test_reader_may_read(self, reader: httpx.Client, space: Space) -> None:
        assert reader.get(space.path("services")).status_code == 200

    def test_reader_may_not_create(self, reader: httpx.Client, space: Space) -> None:
        answer = Space(reader, space.name).create("services", service())
        words = f'cannot create resource "services" in API group "" in the namespace "{space.name}"'
        status = refused(answer, 403, "Forbidden", words)
        assert status["message"].startswith('services is forbidden: User "')
        assert status["details"] == {"kind": "services"}

    def test_reader_may_not_apply_status(self, reader: httpx.Client, space: Space) -> None:
        answer = Space(reader, space.name).apply("rayservices", serve_config("x"), "me", sub="status")
        refused(answer, 403, "Forbidden", 'cannot patch resource "rayservices/status" in API group "ray.io"')

    def test_access_review(self, reader: httpx.Client, space: Space) -> None:
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        asked = {"namespace": space.name, "verb": "create", "group": "ray.io", "resource": "rayservices"}
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": asked}}
        assert made(space._answer(space.client.post(path, json=body)))["status"]["allowed"] is True
        assert made(space._answer(reader.post(path, json=body)))["status"]["allowed"] is False

    def test_rules_review(self, reader: httpx.Client, space: Space) -> None:
        path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": space.name}}

        def may(client: httpx.Client, verb: str) -> bool:
            rules = made(space._answer(client.post(path, json=body)))["status"]["resourceRules"]
            wanted = (("verbs", verb), ("apiGroups", ""), ("resources", "services"))
            return any(all({"*", value} & set(rule[key]) for key, value in wanted) for rule in rules)

        assert may(space.client, "get") and may(space.client, "create")
        assert may(reader, "get") and not may(reader, "create")
        refused(space._answer(reader.post(path, json={**body, "spec": {}})), 400, "BadRequest", "no namespace on request")


class TestCreateAndRead:
    def test_system_fields(self, space: Space) -> None:
        metadata = made(space.create("configmaps", config_map()))["metadata"]
        assert metadata["namespace"] == space.name and len(metadata["uid"]) == 36
        assert metadata["resourceVersion"].isdigit() and metadata["creationTimestamp"].endswith("Z")

    def test_read_back(self, space: Space) -> None:
        sent = made(space.create("configmaps", config_map()))
        assert made(space.get("configmaps", "a"), 200) == sent

    def test_missing_object(self, space: Space) -> None:
        status = refused(space.get("rayservices", "none"), 404, "NotFound", 'rayservices.ray.io "none" not found')
        assert status["details"] == {"name": "none", "group": "ray.io", "kind": "rayservices"}

    def test_name_taken(self, space: Space) -> None:
        made(space.create("configmaps", config_map()))
        refused(space.create("configmaps", config_map()), 409, "AlreadyExists", 'configmaps "a" already exists')

    def test_missing_namespace(self, space: Space) -> None:
        elsewhere = Space(space.client, "contract-nowhere")
        refused(elsewhere.create("configmaps", config_map()), 404, "NotFound", 'namespaces "contract-nowhere" not found')

    def test_generate_name(self, space: Space) -> None:
        body = config_map() | {"metadata": {"generateName": "run-"}}
        names = {made(space.create("configmaps", body))["metadata"]["name"] for _ in range(3)}
        assert len(names) == 3 and all(n.startswith("run-") and len(n) == 9 for n in names)

    def test_wrong_namespace_in_body(self, space: Space) -> None:
        refused(space.create("configmaps", config_map(namespace="other")), 400, "BadRequest", "does not match the namespace")

    def test_wrong_name_in_body(self, space: Space) -> None:
        made(space.create("configmaps", config_map()))
        refused(space.put("configmaps", "a", config_map("b")), 400, "BadRequest", "does not match the name on the URL")

    def test_wrong_kind_in_body(self, space: Space) -> None:
        refused(space.create("configmaps", service()), 400, "BadRequest")

    def test_broken_json(self, space: Space) -> None:
        answer = space.client.post(space.path("configmaps"), content=b"{", headers={"Content-Type": "application/json"})
        refused((answer.status_code, answer.json()), 400, "BadRequest")

    def test_dry_run_leaves_nothing(self, space: Space) -> None:
        made(space.create("configmaps", config_map(), dryRun="All"))
        assert space.get("configmaps", "a")[0] == 404

    def test_method_not_allowed(self, space: Space) -> None:
        answer = space.client.post(space.path("configmaps", "a"), json=config_map())
        refused((answer.status_code, answer.json()), 405, "MethodNotAllowed")

    def test_secret_string_data(self, space: Space) -> None:
        body = {"metadata": {"name": "s"}, "stringData": {"k": "v"}}
        sent = made(space.create("secrets", body))
        assert sent["data"] == {"k": "dg=="} and "stringData" not in sent and sent["type"] == "Opaque"


class TestLists:
    @pytest.fixture(autouse=True)
    def three(self, space: Space) -> None:
        for name, labels in (("a", {"tier": "one"}), ("b", {"tier": "two"}), ("c", {})):
            made(space.create("configmaps", config_map(name, labels=labels)))

    @pytest.mark.parametrize(
        ("selector", "expected"),
        [
            ("tier=one", "a"),
            ("tier!=one", "bc"),
            ("tier", "ab"),
            ("!tier", "c"),
            ("tier in (one,two)", "ab"),
            ("tier notin (one),tier", "b"),
        ],
    )
    def test_label_selectors(self, space: Space, selector: str, expected: str) -> None:
        items = made(space.get("configmaps", labelSelector=selector), 200)["items"]
        assert [o["metadata"]["name"] for o in items if o["metadata"]["name"] in "abc"] == list(expected)

    def test_field_selector_by_name(self, space: Space) -> None:
        items = made(space.get("configmaps", fieldSelector="metadata.name=b"), 200)["items"]
        assert [o["metadata"]["name"] for o in items] == ["b"]

    def test_unknown_field_selector(self, space: Space) -> None:
        words = '"data.k" is not a known field selector: only "metadata.name", "metadata.namespace"'
        refused(space.get("configmaps", fieldSelector="data.k=1"), 400, "BadRequest", words)
        refused(space.get("services", fieldSelector="data.k=1"), 400, "BadRequest", "field label not supported: data.k")
        refused(space.get("rayservices", fieldSelector="data.k=1"), 400, "BadRequest", "field label not supported: data.k")

    def test_list_names_its_kind_and_version(self, space: Space) -> None:
        found = made(space.get("configmaps"), 200)
        assert (found["kind"], found["apiVersion"]) == ("ConfigMapList", "v1") and found["metadata"]["resourceVersion"].isdigit()

    def test_across_namespaces(self, space: Space) -> None:
        found = space.client.get("/api/v1/configmaps", params={"fieldSelector": f"metadata.namespace={space.name},metadata.name=a"}).json()
        assert [o["metadata"]["namespace"] for o in found["items"]] == [space.name]

    def test_table(self, space: Space) -> None:
        accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
        table = space.client.get(space.path("configmaps"), headers=accept, params={"fieldSelector": "metadata.name=a"}).json()
        assert table["kind"] == "Table" and [c["name"] for c in table["columnDefinitions"]] == ["Name", "Data", "Age"]
        assert str(table["rows"][0]["cells"][0]) == "a" and table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"

    def test_events_by_involved_object(self, space: Space) -> None:
        for name in ("one", "two"):
            about = {"kind": "InferenceService", "name": name, "namespace": space.name}
            made(space.create("events", {"metadata": {"generateName": "e-"}, "involvedObject": about, "reason": "Shifted", "message": name}))
        found = made(space.get("events", fieldSelector="involvedObject.name=two,involvedObject.kind=InferenceService"), 200)["items"]
        assert [e["message"] for e in found] == ["two"]

    def test_delete_collection(self, space: Space) -> None:
        made(space.delete("configmaps", labelSelector="tier=one"), 200)
        assert [space.get("configmaps", n)[0] for n in "abc"] == [404, 200, 200]


class TestUpdate:
    def test_stale_version_is_a_conflict(self, space: Space) -> None:
        first = made(space.create("rayservices", ray_service()))
        made(space.patch("rayservices", "ray", {"spec": {"serveConfigV2": "b"}}), 200)
        words = 'Operation cannot be fulfilled on rayservices.ray.io "ray": the object has been modified; please apply your changes to the latest version and try again'
        status = refused(space.put("rayservices", "ray", first), 409, "Conflict")
        assert status["message"] == words and status["details"] == {"name": "ray", "group": "ray.io", "kind": "rayservices"}

    def test_custom_resource_needs_a_version(self, space: Space) -> None:
        made(space.create("rayservices", ray_service()))
        refused(space.put("rayservices", "ray", ray_service()), 422, "Invalid", "must be specified for an update")

    def test_config_map_does_not(self, space: Space) -> None:
        made(space.create("configmaps", config_map()))
        assert made(space.put("configmaps", "a", config_map(data={"z": "2"})), 200)["data"] == {"z": "2"}

    def test_put_on_missing_object(self, space: Space) -> None:
        refused(space.put("configmaps", "a", config_map()), 404, "NotFound")

    def test_no_change_keeps_the_version(self, space: Space) -> None:
        sent = made(space.create("configmaps", config_map()))
        again = made(space.put("configmaps", "a", sent), 200)
        assert again["metadata"]["resourceVersion"] == sent["metadata"]["resourceVersion"]

    def test_wrong_uid_is_a_conflict(self, space: Space) -> None:
        sent = made(space.create("configmaps", config_map()))
        sent["metadata"]["uid"] = "11111111-1111-1111-1111-111111111111"
        refused(space.put("configmaps", "a", sent), 409, "Conflict", "Precondition failed: UID")

    def test_generation_counts_spec_changes_only(self, space: Space) -> None:
        assert made(space.create("rayservices", ray_service()))["metadata"]["generation"] == 1
        labelled = made(space.patch("rayservices", "ray", {"metadata": {"labels": {"a": "b"}}}), 200)
        assert labelled["metadata"]["generation"] == 1
        assert made(space.patch("rayservices", "ray", {"spec": {"serveConfigV2": "b"}}), 200)["metadata"]["generation"] == 2
        status = made(space.patch("rayservices", "ray", {"status": {"serviceStatus": "Running"}}, sub="status"), 200)
        assert status["metadata"]["generation"] == 2

    def test_immutable_config_map(self, space: Space) -> None:
        made(space.create("configmaps", config_map() | {"immutable": True}))
        refused(space.patch("configmaps", "a", {"data": {"k": "2"}}), 422, "Invalid", "immutable")


class TestPatch:
    def test_merge_patch_sets_and_removes(self, space: Space) -> None:
        made(space.create("configmaps", config_map(data={"a": "1", "b": "2"})))
        assert made(space.patch("configmaps", "a", {"data": {"a": None, "c": "3"}}), 200)["data"] == {"b": "2", "c": "3"}

    def test_merge_patch_compare_and_swap(self, space: Space) -> None:
        old = made(space.create("configmaps", config_map()))["metadata"]["resourceVersion"]
        new = made(space.patch("configmaps", "a", {"metadata": {"resourceVersion": old}, "data": {"k": "2"}}), 200)
        assert new["metadata"]["resourceVersion"] != old
        refused(space.patch("configmaps", "a", {"metadata": {"resourceVersion": old}, "data": {"k": "3"}}), 409, "Conflict")

    def test_json_patch(self, space: Space) -> None:
        made(space.create("configmaps", config_map(data={"a": "1"})))
        steps = [
            {"op": "test", "path": "/data/a", "value": "1"},
            {"op": "add", "path": "/metadata/annotations", "value": {}},
            {"op": "add", "path": "/metadata/annotations/x~1y", "value": "2"},
            {"op": "remove", "path": "/data/a"},
        ]
        found = made(space.patch("configmaps", "a", steps, "json"), 200)
        assert found["metadata"]["annotations"] == {"x/y": "2"} and not found.get("data")

    def test_json_patch_test_fails(self, space: Space) -> None:
        made(space.create("configmaps", config_map()))
        refused(space.patch("configmaps", "a", [{"op": "test", "path": "/data/k", "value": "9"}], "json"), 422, "Invalid")

    def test_strategic_merge_of_ports(self, space: Space) -> None:
        made(space.create("services", service("web", {"name": "http", "port": 80}, {"name": "grpc", "port": 81})))
        patch = {"spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 81, "$patch": "delete"}]}}
        ports = made(space.patch("services", "web", patch, "strategic-merge"), 200)["spec"]["ports"]
        assert ports == [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]

    def test_strategic_merge_is_refused_for_custom_resources(self, space: Space) -> None:
        made(space.create("rayservices", ray_service()))
        refused(space.patch("rayservices", "ray", {}, "strategic-merge"), 415, "UnsupportedMediaType", "application/merge-patch+json")

    def test_patch_on_missing_object(self, space: Space) -> None:
        refused(space.patch("configmaps", "none", {"data": {}}), 404, "NotFound")

    def test_update_manager_is_recorded(self, space: Space) -> None:
        made(space.create("configmaps", config_map(), fieldManager="maker"))
        found = managers(made(space.patch("configmaps", "a", {"data": {"k": "2"}}), 200))
        assert found["contract", "Update", ""] == {"f:data": {"f:k": {}}}
        assert found["maker", "Update", ""] == {"f:data": {}}


class TestApply:
    def test_creates_and_records_fields(self, space: Space) -> None:
        body = config_map(labels={"x": "1"})
        assert managers(made(space.apply("configmaps", body, "me"))) == {
            ("me", "Apply", ""): {"f:data": {"f:k": {}}, "f:metadata": {"f:labels": {"f:x": {}}}}
        }

    def test_again_changes_nothing(self, space: Space) -> None:
        first = made(space.apply("rayservices", ray_service(), "me"))
        assert made(space.apply("rayservices", ray_service(), "me"), 200) == first

    def test_yaml_body(self, space: Space) -> None:
        text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: text\ndata:\n  k: |\n    two\n    lines\n"
        headers = {"Content-Type": "application/apply-patch+yaml"}
        answer = space.client.patch(space.path("configmaps", "text"), content=text, params={"fieldManager": "me"}, headers=headers)
        assert made(space._answer(answer))["data"] == {"k": "two\nlines\n"}
        text = text.replace("name: text", "name: y")
        answer = space.client.patch(space.path("configmaps", "y"), content=text, params={"fieldManager": "me"}, headers=headers)
        assert answer.status_code >= 400  # YAML 1.1: a bare y is true

    def test_needs_a_manager(self, space: Space) -> None:
        headers = {"Content-Type": "application/apply-patch+yaml"}
        answer = space._answer(space.client.patch(space.path("configmaps", "a"), json=config_map(), headers=headers))
        refused(answer, 422, "Invalid", "fieldManager")

    def test_conflict_names_the_owner(self, space: Space) -> None:
        made(space.apply("rayservices", ray_service(), "me"))
        made(space.patch("rayservices", "ray", {"spec": {"serveConfigV2": "theirs"}}, fieldManager="kubectl-edit"), 200)
        status = refused(space.apply("rayservices", serve_config("mine"), "me"), 409, "Conflict")
        who = 'conflict with "kubectl-edit" using ray.io/v1'
        assert status["message"] == f"Apply failed with 1 conflict: {who}: .spec.serveConfigV2"
        assert status["details"]["causes"] == [{"reason": "FieldManagerConflict", "message": who, "field": ".spec.serveConfigV2"}]
        assert made(space.get("rayservices", "ray"), 200)["spec"]["serveConfigV2"] == "theirs"

    def test_force_takes_over(self, space: Space) -> None:
        made(space.apply("configmaps", config_map(), "one"))
        found = made(space.apply("configmaps", config_map(data={"k": "2"}), "two", force="true"), 200)
        assert found["data"] == {"k": "2"} and set(managers(found)) == {("two", "Apply", "")}

    def test_conflict_with_an_applier(self, space: Space) -> None:
        made(space.apply("configmaps", config_map(data={"a": "1", "b": "1"}), "one"))
        status = refused(space.apply("configmaps", config_map(data={"a": "2", "b": "2"}), "two"), 409, "Conflict")
        assert status["message"] == 'Apply failed with 2 conflicts: conflicts with "one":\n- .data.a\n- .data.b'

    def test_same_value_is_shared(self, space: Space) -> None:
        made(space.apply("configmaps", config_map(), "one"))
        assert set(managers(made(space.apply("configmaps", config_map(), "two"), 200))) == {
            ("one", "Apply", ""),
            ("two", "Apply", ""),
        }

    def test_dropped_field_goes(self, space: Space) -> None:
        made(space.apply("configmaps", config_map(data={"a": "1", "b": "2"}), "me"))
        assert made(space.apply("configmaps", config_map(data={"a": "1"}), "me"), 200)["data"] == {"a": "1"}

    def test_dropped_field_stays_while_shared(self, space: Space) -> None:
        made(space.apply("configmaps", config_map(data={"a": "1", "b": "2"}), "one"))
        made(space.apply("configmaps", config_map(data={"b": "2"}), "two"), 200)
        assert made(space.apply("configmaps", config_map(data={"a": "1"}), "one"), 200)["data"] == {"a": "1", "b": "2"}
        assert made(space.apply("configmaps", config_map(data={}), "two"), 200)["data"] == {"a": "1"}

    def test_emptied_map_goes(self, space: Space) -> None:
        body = config_map(labels={"x": "1"})
        made(space.apply("configmaps", body, "me"))
        del body["metadata"]["labels"]
        assert "labels" not in made(space.apply("configmaps", body, "me"), 200)["metadata"]

    def test_field_of_another_survives_next_to_mine(self, space: Space) -> None:
        made(space.apply("rayservices", ray_service(), "owner"))
        made(space.patch("rayservices", "ray", {"metadata": {"labels": {"theirs": "1"}}}, fieldManager="other"), 200)
        found = made(space.apply("rayservices", ray_service(), "owner"), 200)
        assert found["metadata"]["labels"] == {"theirs": "1"}

    def test_emptied_keyed_list_goes(self, space: Space) -> None:
        name = "whisper-predictor"
        base = {"type": "ExternalName", "externalName": "a.b.svc.cluster.local"}
        made(space.apply("services", service(name, {"port": 80}, **base), "me"))
        bare = service(name, **base)
        del bare["spec"]["ports"]
        assert "ports" not in made(space.apply("services", bare, "me"), 200)["spec"]

    def test_ports_merge_by_port_and_protocol(self, space: Space) -> None:
        made(space.apply("services", service("web", {"name": "http", "port": 80}), "one"))
        found = made(space.apply("services", service("web", {"name": "grpc", "port": 81}), "two"), 200)
        assert [p["port"] for p in found["spec"]["ports"]] == [80, 81]
        key = 'k:{"port":81,"protocol":"TCP"}'
        assert managers(found)["two", "Apply", ""]["f:spec"]["f:ports"] == {key: {".": {}, "f:name": {}, "f:port": {}}}
        gone = made(space.apply("services", service("web", {"name": "http", "port": 80}), "one"), 200)
        assert [p["port"] for p in gone["spec"]["ports"]] == [80, 81]

    def test_conflict_inside_a_keyed_list(self, space: Space) -> None:
        made(space.apply("services", service("web", {"name": "http", "port": 80, "targetPort": 1}), "one"))
        answer = space.apply("services", service("web", {"name": "http", "port": 80, "targetPort": 2}), "two")
        assert refused(answer, 409, "Conflict")["details"]["causes"][0]["field"] == '.spec.ports[port=80,protocol="TCP"].targetPort'

    def test_finalizers_are_a_set(self, space: Space) -> None:
        made(space.apply("configmaps", config_map(finalizers=["x.io/one"]), "one"))
        found = made(space.apply("configmaps", config_map(finalizers=["x.io/two"]), "two"), 200)
        assert sorted(found["metadata"]["finalizers"]) == ["x.io/one", "x.io/two"]
        assert made(space.apply("configmaps", config_map(), "one"), 200)["metadata"]["finalizers"] == ["x.io/two"]
        made(space.apply("configmaps", config_map(), "two"), 200)

    def test_atomic_list_belongs_to_one(self, space: Space) -> None:
        made(space.apply("httproutes", route(weight=90), "one"))
        status = refused(space.apply("httproutes", route(weight=50), "two"), 409, "Conflict")
        assert [c["field"] for c in status["details"]["causes"]] == [".spec.rules"]

    def test_carries_a_resource_version(self, space: Space) -> None:
        old = made(space.apply("configmaps", config_map(), "me"))["metadata"]["resourceVersion"]
        made(space.apply("configmaps", config_map(data={"k": "2"}, resourceVersion=old), "me"), 200)
        refused(
            space.apply("configmaps", config_map(data={"k": "3"}, resourceVersion=old), "me"),
            409,
            "Conflict",
            "has been modified",
        )

    def test_unknown_field_is_a_typed_failure(self, space: Space) -> None:
        answer = space.apply("rayservices", ray_service(serveConfigV3="x"), "me")
        words = "failed to create typed patch object (/ray; ray.io/v1, Kind=RayService): .spec.serveConfigV3: field not declared in schema"
        assert refused(answer, 500, "")["message"] == words

    def test_managed_fields_may_not_be_applied(self, space: Space) -> None:
        refused(
            space.apply("configmaps", config_map(managedFields=[{"manager": "x"}]), "me"),
            400,
            "BadRequest",
            "managedFields must be nil",
        )

    def test_update_takes_ownership_from_applier(self, space: Space) -> None:
        made(space.apply("configmaps", config_map(data={"a": "1", "b": "1"}), "me"))
        found = managers(made(space.patch("configmaps", "a", {"data": {"a": "2"}}, fieldManager="edit"), 200))
        assert found == {("me", "Apply", ""): {"f:data": {"f:b": {}}}, ("edit", "Update", ""): {"f:data": {"f:a": {}}}}

    def test_dry_run(self, space: Space) -> None:
        made(space.apply("configmaps", config_map(), "me"))
        assert made(space.apply("configmaps", config_map(data={"k": "2"}), "me", dryRun="All"), 200)["data"] == {"k": "2"}
        assert made(space.get("configmaps", "a"), 200)["data"] == {"k": "1"}

    def test_stored_bytes_of_text_are_kept(self, space: Space) -> None:
        text = "# a comment\napplications:\n  - name: w  # äöü\n"
        made(space.apply("rayservices", ray_service(serveConfigV2=text), "me"))
        assert made(space.get("rayservices", "ray"), 200)["spec"]["serveConfigV2"] == text


class TestStatus:
    def test_main_endpoint_ignores_status(self, space: Space) -> None:
        assert "status" not in made(space.create("rayservices", ray_service() | {"status": {"serviceStatus": "Running"}}))
        assert "status" not in made(space.patch("rayservices", "ray", {"status": {"serviceStatus": "Running"}}), 200)

    def test_status_endpoint_ignores_spec(self, space: Space) -> None:
        made(space.create("rayservices", ray_service()))
        body = {"status": {"serviceStatus": "Running"}, "spec": {"serveConfigV2": "x"}, "metadata": {"labels": {"a": "b"}}}
        found = made(space.patch("rayservices", "ray", body, sub="status"), 200)
        assert found["status"] == {"serviceStatus": "Running"} and found["spec"]["serveConfigV2"] == "applications: []"
        assert "labels" not in found["metadata"]

    def test_status_managers_are_apart(self, space: Space) -> None:
        made(space.apply("inferenceservices", stub(), "me"))
        status = {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "whisper"},
            "status": {"url": "http://x"},
        }
        found = made(space.apply("inferenceservices", status, "me", sub="status"), 200)
        assert managers(found)["me", "Apply", "status"] == {"f:status": {"f:url": {}}}
        assert "f:spec" in managers(found)["me", "Apply", ""]
        assert made(space.apply("inferenceservices", stub(), "me"), 200)["status"]["url"] == "http://x"

    def test_status_conflict_names_the_subresource(self, space: Space) -> None:
        made(space.apply("inferenceservices", stub(), "me"))
        condition = {"type": "Ready", "status": "Unknown"}
        body = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "whisper"}}
        made(
            space.apply("inferenceservices", body | {"status": {"conditions": [condition]}}, "kserve-manager", sub="status", force="true"),
            200,
        )
        answer = space.apply("inferenceservices", body | {"status": {"conditions": [condition | {"status": "True"}]}}, "me", sub="status")
        words = 'conflict with "kserve-manager" with subresource "status": .status.conditions'
        refused(answer, 409, "Conflict", words)

    def test_status_of_missing_object(self, space: Space) -> None:
        refused(space.apply("rayservices", {**serve_config("x"), "status": {}}, "me", sub="status"), 404, "NotFound")

    def test_get_status(self, space: Space) -> None:
        made(space.create("rayservices", ray_service()))
        assert made(space.get("rayservices", "ray", "status"), 200)["kind"] == "RayService"


class TestValidation:
    @pytest.mark.parametrize(
        ("plural", "body", "field"),
        [
            ("configmaps", config_map("Bad_Name"), "metadata.name"),
            ("configmaps", config_map(labels={"a": "no spaces"}), "metadata.labels"),
            ("configmaps", config_map(data={"a b": "1"}), "data[a b]"),
            ("services", service("1web"), "metadata.name"),
            ("services", service("web", type="ExternalName"), "spec.externalName"),
            ("services", service("web", {"port": 80}, {"port": 81}), "spec.ports[0].name"),
            ("services", service("web", {"port": 0}), "spec.ports[0].port"),
            (
                "leases",
                {"metadata": {"name": "l"}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": 0}},
                "spec.leaseDurationSeconds",
            ),
            ("rayservices", ray_service(serveConfigV2=5), "spec.serveConfigV2"),
            ("rayservices", ray_service(rayClusterConfig={}), "spec.rayClusterConfig.headGroupSpec"),
            ("httproutes", route(weight=-1), "spec.rules[0].backendRefs[0].weight"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_invalid_objects_name_the_field(self, space: Space, plural: str, body: Any, field: str) -> None:
        status = refused(space.create(plural, body), 422, "Invalid", " is invalid: ")
        assert field in [c["field"] for c in status["details"]["causes"]], status["details"]

    def test_message_form(self, space: Space) -> None:
        status = refused(space.create("services", service(type="ExternalName")), 422, "Invalid")
        assert status["message"] == 'Service "web" is invalid: spec.externalName: Required value'
        assert status["details"]["causes"] == [{"reason": "FieldValueRequired", "message": "Required value", "field": "spec.externalName"}]

    def test_custom_resource_message_form(self, space: Space) -> None:
        status = refused(space.create("rayservices", ray_service(serveConfigV2=5)), 422, "Invalid")
        words = 'spec.serveConfigV2: Invalid value: "integer": spec.serveConfigV2 in body must be of type string: "integer"'
        unchecked = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"
        assert status["message"] == f'RayService.ray.io "ray" is invalid: [{words}, <nil>: Invalid value: null: {unchecked}]'
        assert unchecked not in refused(space.create("httproutes", route(weight=-1)), 422, "Invalid")["message"]
        status = refused(space.create("inferenceservices", stub() | {"spec": {"predictor": 5}}), 422, "Invalid")
        words = 'spec.predictor: Invalid value: "integer": spec.predictor in body must be of type object: "integer"'
        assert status["message"] == f'InferenceService.serving.kserve.io "whisper" is invalid: {words}'

    def test_endpoints_on_loopback(self, space: Space) -> None:
        def slice_of(kind: str, address: str) -> dict[str, Any]:
            return {"metadata": {"name": "e"}, "addressType": kind, "endpoints": [{"addresses": [address]}]}

        words = 'endpoints[0].addresses[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)'
        refused(space.create("endpointslices", slice_of("IPv4", "127.0.0.1")), 422, "Invalid", words)
        refused(space.create("endpointslices", slice_of("FQDN", "localhost")), 422, "Invalid", "should be a domain with at least two segments")
        made(space.create("endpointslices", slice_of("FQDN", "127.0.0.1")))  # as a name it passes: what the stand-in operator writes

    def test_unknown_field_is_dropped(self, space: Space) -> None:
        answer = space.client.post(space.path("rayservices"), json=ray_service(bogus=1))
        assert answer.status_code == 201 and "bogus" not in answer.json()["spec"]
        assert 'unknown field \\"spec.bogus\\"' in answer.headers["Warning"]

    def test_unknown_field_is_refused_when_strict(self, space: Space) -> None:
        words = 'strict decoding error: unknown field "spec.bogus"'
        refused(space.create("rayservices", ray_service(bogus=1), fieldValidation="Strict"), 400, "BadRequest", words)
        refused(space.create("services", service(bogus=1), fieldValidation="Strict"), 400, "BadRequest", words)

    def test_service_defaults(self, space: Space) -> None:
        spec = made(space.create("services", service()))["spec"]
        assert spec["ports"] == [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 80}]
        assert (spec["type"], spec["sessionAffinity"], spec["internalTrafficPolicy"]) == ("ClusterIP", "None", "Cluster")

    def test_route_defaults(self, space: Space) -> None:
        spec = made(space.create("httproutes", route()))["spec"]
        assert spec["rules"][0]["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]
        assert spec["rules"][0]["backendRefs"][0]["weight"] == 1 and spec["parentRefs"][0]["kind"] == "Gateway"

    def test_alias_as_the_seed_has_it(self, space: Space) -> None:
        body = service(
            "whisper-predictor",
            {"name": "http", "port": 8000},
            type="ExternalName",
            externalName="ray-serve-svc.x.svc.cluster.local",
        )
        body["metadata"]["labels"] = {"serving.kserve.io/inferenceservice": "whisper"}
        spec = made(space.apply("services", body, "kfp-components"))["spec"]
        assert (spec["type"], spec["ports"][0]["port"]) == ("ExternalName", 8000) and "clusterIP" not in spec

    def test_empty_predictor_is_denied(self, kserve_rules: None, space: Space) -> None:
        body = stub() | {"spec": {"predictor": {}}}
        code, status = space.create("inferenceservices", body)
        assert code >= 400 and "denied the request" in status["message"]

    @pytest.mark.parametrize(("before", "after"), [("ModelMesh", "Standard"), ("Standard", "ModelMesh")])
    def test_deployment_mode_in_the_status_cannot_change(self, kserve_rules: None, space: Space, before: str, after: str) -> None:
        made(space.create("inferenceservices", stub(mode=before)))
        made(space.patch("inferenceservices", "whisper", {"status": {"deploymentMode": before}}, sub="status"), 200)
        patch = {"metadata": {"annotations": {"serving.kserve.io/deploymentMode": after}}}
        code, status = space.patch("inferenceservices", "whisper", patch)
        assert code >= 400 and "denied the request" in status["message"]
        assert f"deploymentMode cannot be changed from '{before}' to '{after}'" in status["message"]

    def test_pod_templates_keep_everything(self, space: Space) -> None:
        body = ray_service()
        container = body["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        container["livenessProbe"] = {"httpGet": {"path": "/", "port": 1}}
        found = made(space.create("rayservices", body))["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        assert found["livenessProbe"]["httpGet"]["path"] == "/"

    @pytest.mark.parametrize("how", ["create", "put", "merge", "apply"])
    @pytest.mark.parametrize(
        "broken",
        [
            {"metadata": None},
            {"metadata": []},
            {"metadata": {"name": 5}},
            {"metadata": {"name": "web", "labels": 5}},
            {"metadata": {"name": "web", "labels": {"a": 5}}},
            {"metadata": {"name": "web", "finalizers": [None]}},
            {"metadata": {"name": "web", "ownerReferences": ["x"]}},
            {"metadata": {"name": "web", "managedFields": "x"}},
            {"spec": None},
            {"spec": []},
            {"spec": {"ports": 5}},
            {"spec": {"ports": [None]}},
            {"spec": {"ports": ["x"]}},
            {"spec": {"ports": [{}]}},
            {"spec": {"ports": [{"port": "x"}]}},
            {"spec": {"ports": [{"port": 1}, {"port": 1}]}},
            {"spec": {"selector": []}},
        ],
        ids=str,
    )
    def test_garbage_never_breaks_the_server(self, space: Space, how: str, broken: dict[str, Any]) -> None:
        body = {**service(), **broken}
        if how == "create":
            answer = space.create("services", body)
        else:
            made(space.create("services", service()))
            headers = {"Content-Type": "application/apply-patch+yaml" if how == "apply" else "application/merge-patch+json"}
            query = {"fieldManager": "x", "force": "true"} if how == "apply" else {}
            sent = space.client.request(
                "PUT" if how == "put" else "PATCH",
                space.path("services", "web"),
                json=body,
                params=query,
                headers=headers if how != "put" else {},
            )
            answer = sent.status_code, sent.json()
        known = "failed to allocate a serviceIP" in answer[1].get("message", "")  # what a real server says to a Service without a name
        assert answer[0] < 500 or answer[1].get("reason", "") == "" or known, answer[1]

    def test_unsupported_body(self, space: Space) -> None:
        answer = space.client.patch(space.path("configmaps", "a"), content=b"{}", headers={"Content-Type": "text/plain"})
        refused((answer.status_code, answer.json()), 415, "UnsupportedMediaType")


class TestWatch:
    def test_from_a_version(self, space: Space) -> None:
        start = made(space.get("configmaps"), 200)["metadata"]["resourceVersion"]
        made(space.create("configmaps", config_map()))
        made(space.patch("configmaps", "a", {"data": {"k": "2"}}), 200)
        made(space.delete("configmaps", "a"), 200)
        found = [e for e in events(space, "configmaps", start, 3, fieldSelector="metadata.name=a")]
        assert [e["type"] for e in found] == ["ADDED", "MODIFIED", "DELETED"]
        versions = [int(e["object"]["metadata"]["resourceVersion"]) for e in found]
        assert versions == sorted(set(versions)) and found[0]["object"]["kind"] == "ConfigMap"

    def test_resumes_after_the_last_seen(self, space: Space) -> None:
        seen = made(space.create("configmaps", config_map()))["metadata"]["resourceVersion"]
        made(space.patch("configmaps", "a", {"data": {"k": "2"}}), 200)
        found = events(space, "configmaps", seen, 1, fieldSelector="metadata.name=a")
        assert [(e["type"], e["object"]["data"]["k"]) for e in found] == [("MODIFIED", "2")]

    def test_without_a_version_starts_with_what_is_there(self, space: Space) -> None:
        made(space.create("configmaps", config_map()))
        assert [e["type"] for e in events(space, "configmaps", "0", 1, fieldSelector="metadata.name=a")] == ["ADDED"]

    def test_sees_live_changes(self, space: Space) -> None:
        start = made(space.get("rayservices"), 200)["metadata"]["resourceVersion"]
        with watching(space, "rayservices", start) as found:
            made(space.create("rayservices", ray_service()))
            event = next(found)
            assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "ray")
            made(space.delete("rayservices", "ray"), 200)
            assert next(found)["type"] == "DELETED"

    def test_ends_after_its_timeout(self, space: Space) -> None:
        start = made(space.get("rayservices"), 200)["metadata"]["resourceVersion"]
        with watching(space, "rayservices", start, timeout_s=1) as found:
            assert list(found) == []

    def test_too_old_is_gone(self, space: Space) -> None:
        found = events(space, "rayservices", "1", 1)
        assert found[0]["type"] == "ERROR" and found[0]["object"]["code"] == 410
        assert found[0]["object"]["reason"] == "Expired" and "too old resource version" in found[0]["object"]["message"]

    def test_object_that_leaves_the_selection_is_deleted(self, space: Space) -> None:
        start = made(space.create("configmaps", config_map(labels={"in": "yes"})))["metadata"]["resourceVersion"]
        made(space.patch("configmaps", "a", {"metadata": {"labels": {"in": "no"}}}), 200)
        made(space.patch("configmaps", "a", {"metadata": {"labels": {"in": "yes"}}}), 200)
        assert [e["type"] for e in events(space, "configmaps", start, 2, labelSelector="in=yes")] == ["DELETED", "ADDED"]

    def test_bookmark_at_the_end(self, kube_api: KubeApi, space: Space) -> None:
        start = made(space.get("rayservices"), 200)["metadata"]["resourceVersion"]
        with watching(space, "rayservices", start, timeout_s=3, allowWatchBookmarks="true") as found:
            bookmarks = list(found)
        assert [e for e in bookmarks if e["type"] != "BOOKMARK" or e["object"]["kind"] != "RayService"] == []
        assert bookmarks or not kube_api.embedded  # Kubernetes promises none at any time


class TestDelete:
    def test_answer(self, space: Space) -> None:
        uid = made(space.create("configmaps", config_map()))["metadata"]["uid"]
        status = made(space.delete("configmaps", "a"), 200)
        assert status["status"] == "Success" and status["details"] == {"name": "a", "kind": "configmaps", "uid": uid}
        refused(space.delete("configmaps", "a"), 404, "NotFound")

    def test_preconditions(self, space: Space) -> None:
        sent = made(space.create("configmaps", config_map()))["metadata"]
        other = "11111111-1111-1111-1111-111111111111"
        words = f'on ConfigMap "a": the UID in the precondition ({other}) does not match the UID in record ({sent["uid"]})'
        refused(space.delete("configmaps", "a", {"preconditions": {"uid": other}}), 409, "Conflict", words)
        refused(space.delete("configmaps", "a", {"preconditions": {"resourceVersion": "1"}}), 409, "Conflict")
        made(
            space.delete("configmaps", "a", {"preconditions": {"uid": sent["uid"], "resourceVersion": sent["resourceVersion"]}}),
            200,
        )

    def test_finalizers_hold(self, space: Space) -> None:
        made(space.create("configmaps", config_map(finalizers=["x.io/hold"])))
        assert "deletionTimestamp" in made(space.delete("configmaps", "a"), 200)["metadata"]
        assert "deletionTimestamp" in made(space.get("configmaps", "a"), 200)["metadata"]
        refused(space.patch("configmaps", "a", {"metadata": {"finalizers": ["x.io/hold", "x.io/new"]}}), 422, "Invalid")
        made(space.patch("configmaps", "a", {"metadata": {"finalizers": None}}), 200)
        assert space.get("configmaps", "a")[0] == 404

    def test_dependents_follow(self, space: Space) -> None:
        owner = made(space.create("configmaps", config_map("owner")))
        child = made(space.create("configmaps", config_map("child", ownerReferences=owned_by(owner))))
        made(space.create("configmaps", config_map("grandchild", ownerReferences=owned_by(child))))
        made(space.delete("configmaps", "owner", propagationPolicy="Background"), 200)
        until_gone(space, "configmaps", "child")
        until_gone(space, "configmaps", "grandchild")

    def test_dependent_with_a_second_owner_stays(self, space: Space) -> None:
        one, two = (made(space.create("configmaps", config_map(n))) for n in ("one", "two"))
        made(space.create("configmaps", config_map("child", ownerReferences=owned_by(one) + owned_by(two))))
        made(space.delete("configmaps", "one"), 200)

        def owners() -> list[str]:
            return [owner["name"] for owner in made(space.get("configmaps", "child"), 200)["metadata"]["ownerReferences"]]

        until(lambda: owners() == ["two"], "the first owner to be forgotten")

    def test_orphans_stay(self, space: Space) -> None:
        owner = made(space.create("configmaps", config_map("owner")))
        made(space.create("configmaps", config_map("child", ownerReferences=owned_by(owner))))
        made(space.delete("configmaps", "owner", {"propagationPolicy": "Orphan"}), 200)
        until_gone(space, "configmaps", "owner")
        assert "ownerReferences" not in made(space.get("configmaps", "child"), 200)["metadata"]

    def test_foreground_waits_for_dependents(self, space: Space) -> None:
        owner = made(space.create("configmaps", config_map("owner")))
        held = config_map("child", ownerReferences=owned_by(owner, blockOwnerDeletion=True), finalizers=["x.io/hold"])
        made(space.create("configmaps", held))
        made(space.delete("configmaps", "owner", {"propagationPolicy": "Foreground"}), 200)
        assert made(space.get("configmaps", "owner"), 200)["metadata"]["finalizers"] == ["foregroundDeletion"]
        until(lambda: "deletionTimestamp" in made(space.get("configmaps", "child"), 200)["metadata"], "the dependent to be deleted")
        made(space.patch("configmaps", "child", {"metadata": {"finalizers": None}}), 200)
        until_gone(space, "configmaps", "child")
        until_gone(space, "configmaps", "owner")

    def test_namespace_takes_its_content(self, space: Space) -> None:
        made(space.create("configmaps", config_map()))
        made(space.create("rayservices", ray_service()))
        assert space.client.delete(f"/api/v1/namespaces/{space.name}").status_code in (200, 202)
        until(lambda: space.client.get(f"/api/v1/namespaces/{space.name}").status_code == 404, "the namespace to be gone", 180)
        assert space.get("rayservices", "ray")[0] == 404

    def test_terminating_namespace_takes_nothing_new(self, space: Space) -> None:
        made(space.create("configmaps", config_map(finalizers=["x.io/hold"])))
        space.client.delete(f"/api/v1/namespaces/{space.name}")
        refused(space.create("configmaps", config_map("b")), 403, "Forbidden", "because it is being terminated")
        made(space.patch("configmaps", "a", {"metadata": {"finalizers": None}}), 200)


class TestPythonClient:
    """The official client, as `cluster/kubernetes.py` and notebooks use it."""

    @pytest.fixture
    def api(self, kube_api: KubeApi) -> Iterator[client.ApiClient]:
        with config.new_client_from_config(str(kube_api.kubeconfig)) as api:
            yield api

    def test_dynamic_client(self, api: client.ApiClient, space: Space) -> None:
        rays = dynamic.DynamicClient(api).resources.get(api_version=RAY, kind="RayService")
        first = rays.create(body=ray_service(), namespace=space.name)
        applied = rays.server_side_apply(body=serve_config("mine"), namespace=space.name, field_manager="kfp-components", force_conflicts=True)
        assert applied.spec.serveConfigV2 == "mine"
        with pytest.raises(ConflictError):
            rays.replace(body=first.to_dict(), namespace=space.name)
        rays.delete(name="ray", namespace=space.name)
        with pytest.raises(NotFoundError):
            rays.get(name="ray", namespace=space.name)

    def test_typed_client(self, api: client.ApiClient, space: Space) -> None:
        core = client.CoreV1Api(api)
        core.create_namespaced_config_map(space.name, config_map())
        core.patch_namespaced_config_map("a", space.name, {"data": {"k": "2"}})
        assert core.read_namespaced_config_map("a", space.name).data == {"k": "2"}
        core.create_namespaced_service(space.name, service("alias", type="ExternalName", externalName="a.b"))
        assert core.read_namespaced_service("alias", space.name).spec.external_name == "a.b"

    def test_leases_compare_and_swap(self, api: client.ApiClient, space: Space) -> None:
        leases = client.CoordinationV1Api(api)
        lease = leases.create_namespaced_lease(space.name, {"metadata": {"name": "l"}, "spec": {"holderIdentity": "one", "leaseDurationSeconds": 60}})
        lease.spec.holder_identity = "two"
        leases.replace_namespaced_lease("l", space.name, lease)
        with pytest.raises(client.ApiException) as caught:
            leases.replace_namespaced_lease("l", space.name, lease)
        assert caught.value.status == 409

    def test_watch_stream(self, api: client.ApiClient, space: Space) -> None:
        core = client.CoreV1Api(api)
        core.create_namespaced_config_map(space.name, config_map())
        stream = watch.Watch().stream(core.list_namespaced_config_map, space.name, timeout_seconds=int(seconds(30)), field_selector="metadata.name=a")
        event = next(iter(stream))
        assert (event["type"], event["object"].metadata.name) == ("ADDED", "a")


@pytest.mark.usefixtures("embedded_only")
class TestEmbeddedProcess:
    """How the embedded server lives and dies; not part of the contract with a real one."""

    def start(self, place: Path) -> tuple[subprocess.Popen[bytes], httpx.Client]:
        (place / "token").write_text('{"t": {"name": "me"}}')
        (place / "port").unlink(missing_ok=True)
        files = ["--database", str(place / "db"), "--token-file", str(place / "token"), "--port-file", str(place / "port")]
        process = subprocess.Popen([sys.executable, "-m", "kfp_components.local.apiserver", *files])
        until(lambda: (place / "port").exists() or process.poll() is not None, "the server to tell its port or to end")
        assert process.poll() is None
        api = KubeApi(f"https://127.0.0.1:{(place / 'port').read_text().strip()}", str(place / "db.crt"), place, True, "t")
        return process, api.client()

    def test_state_survives_kill_and_term_exits_cleanly(self, tmp_path: Path) -> None:
        process, api = self.start(tmp_path)
        with api:
            sent = api.post("/api/v1/namespaces/default/configmaps", json=config_map()).json()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        certificate = (tmp_path / "db.crt").read_text()
        process, api = self.start(tmp_path)
        with api:
            assert api.get("/api/v1/namespaces/default/configmaps/a").json() == sent
            start = int(sent["metadata"]["resourceVersion"])
            query = {"watch": "true", "resourceVersion": str(start - 1), "timeoutSeconds": "1"}
            assert json.loads(api.get("/api/v1/configmaps", params=query).text.splitlines()[0])["object"]["metadata"]["name"] == "a"
            with api.stream("GET", "/api/v1/configmaps", params={"watch": "true"}) as watching:
                next(watching.iter_lines())
                process.terminate()
                assert process.wait(timeout=seconds(30)) == 0
        assert (tmp_path / "db.crt").read_text() == certificate and (tmp_path / "db.key").stat().st_mode & 0o777 == 0o600

    def test_second_server_on_one_database_is_refused(self, tmp_path: Path) -> None:
        first = ApiServer(tmp_path / "db", {})
        first.start()
        try:
            with pytest.raises(RuntimeError, match="is another API server running on it"):
                ApiServer(tmp_path / "db", {}).start()
        finally:
            first.stop()

    def test_what_is_missing_is_named(self, http: httpx.Client) -> None:
        answer = http.get("/api/v1/namespaces/default/pods")
        words = "the server could not find the requested resource (pods are not served by the embedded API server)"
        refused((answer.status_code, answer.json()), 404, "NotFound", words)
        assert any("pods" in line for line in NOT_SUPPORTED)
