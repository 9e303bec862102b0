"""The pure values: error tree, names, alias, stub, plan, and what a smoke case compares."""

import inspect
import re
from typing import Any

import pytest

from kfp_components import errors, names, probes
from kfp_components.cluster import Ref
from kfp_components.cluster.changes import Apply, Delete, Edit, Plan
from kfp_components.request import SmokeCase
from kfp_components.serving import alias, inference_service, rayservice

# --- errors -----------------------------------------------------------------------------------------------------------------------

EXIT_CODES = {
    "KfpServingError": 1,
    "InputError": 2,
    "RequestInvalid": 2,
    "NotFound": 2,
    "ArtifactRejected": 2,
    "NameTaken": 2,
    "NotAdopted": 2,
    "PermissionDenied": 2,
    "StepOutOfOrder": 2,
    "RecordTooNew": 2,
    "ManagedElsewhere": 2,
    "TemporaryError": 3,
    "Unreachable": 3,
    "ProtocolDiffers": 3,
    "RouterFailed": 3,
    "Conflict": 3,
    "ReleaseHeld": 3,
    "ReleaseLeft": 3,
    "WaitTimeout": 3,
    "RolloutStopped": 1,
    "RolledBack": 4,
    "DeployFailed": 4,
    "ApplicationRemoved": 4,
    "SmokeFailed": 4,
    "CanaryFailed": 4,
    "Decayed": 7,
    "RunFailed": 8,
    "Aborted": 4,
    "Inconclusive": 5,
    "NotApproved": 5,
    "MeterBroken": 6,
}


def test_every_error_has_its_exit_code() -> None:
    found = {name: kind.exit_code for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    assert found == EXIT_CODES


def test_the_tree_that_is_drawn_is_the_tree() -> None:
    above: list[str] = ["KfpServingError"]
    drawn = {}
    for indent, name in re.findall(r"^    ([ │]*)[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE):
        depth = len(indent) // 4 + 1
        above[depth:] = [name]
        drawn[name] = above[depth - 1]
    real = {kind.__name__: kind.__base__.__name__ for kind in vars(errors).values() if inspect.isclass(kind) and kind is not errors.KfpServingError}
    assert drawn == real


# --- names ------------------------------------------------------------------------------------------------------------------------


def test_names_as_clients_know_them() -> None:
    assert names.alias("whisper") == "whisper-predictor"
    assert names.address("whisper").url("ai-ml") == "http://whisper-predictor.ai-ml.svc.cluster.local:8000/whisper"
    assert names.serve_service("ai-inference") == "ai-inference-serve-svc"
    assert names.application("whisper", "v8") == "whisper-v8"
    assert names.router_application("whisper") == "whisper-router"
    assert names.version_route("whisper", "v8") == "/.versions/whisper/v8"


def test_the_longest_names_fit() -> None:
    model = "m" * names.MAX_MODEL_CHARACTERS
    assert len(names.alias(model)) == 63
    for name in (names.alias(model), names.release(model), names.router_application(model)):
        assert names.DNS_1035.fullmatch(name) and len(name) <= 63
    assert not names.DNS_1035.fullmatch(names.version_route("m", "v")[1:]), "no model can claim the route of a version"


# --- alias ------------------------------------------------------------------------------------------------------------------------

TARGET = "ai-inference-serve-svc.ai-ml.svc.cluster.local"


def stub(mode: str | None = "ModelMesh") -> dict[str, Any]:
    annotations = {"serving.kserve.io/deploymentMode": mode} if mode else None
    return {"kind": "InferenceService", "metadata": {"name": "whisper", "namespace": "ai-ml", "annotations": annotations}, "spec": {"predictor": {}}}


def test_the_alias_is_what_the_cluster_has() -> None:
    assert alias.manifest("whisper", "ai-ml", TARGET) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "whisper-predictor",
            "namespace": "ai-ml",
            "labels": {"serving.kserve.io/inferenceservice": "whisper", "app.kubernetes.io/managed-by": "kfp-serving"},
        },
        "spec": {"type": "ExternalName", "externalName": TARGET, "ports": [{"name": "http", "port": 8000, "protocol": "TCP"}]},
    }


def test_a_free_name_and_our_own_may_be_taken() -> None:
    for service in (None, alias.manifest("whisper", "ai-ml", TARGET)):
        for found in (None, stub()):
            alias.assert_free("whisper", "ai-ml", service, found, TARGET)


@pytest.mark.parametrize(
    ("service", "found", "told"),
    [
        ({"spec": {"type": "ClusterIP"}}, None, "Service ai-ml/whisper-predictor: it is a ClusterIP Service, not an alias"),
        (
            {"metadata": {"labels": {"serving.kserve.io/inferenceservice": "bge"}}},
            None,
            "Service ai-ml/whisper-predictor: its label serving.kserve.io/inferenceservice says bge",
        ),
        (
            {"spec": {"type": "ExternalName", "externalName": "x.y.svc"}},
            None,
            "Service ai-ml/whisper-predictor: it points to x.y.svc, not to " + TARGET,
        ),
        ({}, "Standard", "InferenceService ai-ml/whisper: KServe serves it itself"),
        ({}, "", "InferenceService ai-ml/whisper: KServe serves it itself"),
    ],
)
def test_somebody_elses_name_is_refused(service: dict[str, Any], found: str | None, told: str) -> None:
    ours = alias.manifest("whisper", "ai-ml", TARGET)
    with pytest.raises(errors.NameTaken) as caught:
        alias.assert_free("whisper", "ai-ml", {**ours, **service}, None if found is None else stub(found or None), TARGET)
    assert str(caught.value).startswith(told)


# --- stub -------------------------------------------------------------------------------------------------------------------------


def make_stub(uri: str) -> dict[str, Any]:
    return inference_service.manifest("whisper", "ai-ml", version="v7", uri=uri, model_format="whisper", rayservice="ai-inference")


def test_the_stub_is_left_alone_by_kserve_and_shown_by_kubeflow() -> None:
    made = make_stub("s3://models/whisper/v7")
    assert inference_service.is_stub(made) and not inference_service.is_stub(stub("Standard")) and not inference_service.is_stub(stub(None))
    model = made["spec"]["predictor"]["model"]
    assert model == {"modelFormat": {"name": "whisper"}, "protocolVersion": "v2", "storageUri": "s3://models/whisper/v7"}
    assert made["metadata"]["annotations"]["kfp-serving/version"] == "v7"
    assert "status" not in made


@pytest.mark.parametrize("uri", ["models:/whisper/7", "file:///srv/model", "mlflow-artifacts:/1/x"])
def test_a_uri_that_kserve_refuses_stays_in_an_annotation(uri: str) -> None:
    made = make_stub(uri)
    assert "storageUri" not in made["spec"]["predictor"]["model"] and made["metadata"]["annotations"]["kfp-serving/uri"] == uri


def test_the_status_shows_address_and_split() -> None:
    status = inference_service.status(
        "whisper",
        "ai-ml",
        url=names.address("whisper").url("ai-ml"),
        traffic={"v7": 90, "v8": 10},
        ready=True,
        message="canary",
        now="2026-11-20T10:00:00Z",
        previous=None,
    )["status"]
    assert status["url"] == "http://whisper-predictor.ai-ml.svc.cluster.local:8000/whisper" == status["address"]["url"]
    assert status["deploymentMode"] == "ModelMesh"
    assert [(share["tag"], share["percent"]) for share in status["components"]["predictor"]["traffic"]] == [("v7", 90), ("v8", 10)]
    assert [(c["type"], c["status"], c["message"], "reason" in c) for c in status["conditions"]] == [
        ("PredictorReady", "True", "canary", False),
        ("Ready", "True", "canary", False),
    ]


def test_a_condition_that_stays_keeps_its_time() -> None:
    def status(ready: bool, now: str, previous: Any) -> Any:
        return inference_service.status("m", "n", url="http://m", traffic={"v7": 100}, ready=ready, message="x", now=now, previous=previous)

    def times(state: Any) -> set[str]:
        return {condition["lastTransitionTime"] for condition in state["status"]["conditions"]}

    first = status(True, "2026-11-20T10:00:00Z", {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})
    same = status(True, "2026-11-20T11:00:00Z", first)
    turned = status(False, "2026-11-20T12:00:00Z", same)
    assert [times(state) for state in (first, same, turned)] == [{"2026-11-20T10:00:00Z"}, {"2026-11-20T10:00:00Z"}, {"2026-11-20T12:00:00Z"}]
    assert {condition["reason"] for condition in turned["status"]["conditions"]} == {"NotReady"}


@pytest.mark.parametrize(
    ("traffic", "shown"),
    [
        ({}, []),
        ({"v7": 100.0}, [100]),
        ({"v7": 99.5, "v8": 0.5}, [100, 0]),
        ({"v7": 66.6, "v8": 33.4}, [67, 33]),
        ({"v7": 50, "v8": 50}, [50, 50]),
        ({"a": 33.4, "b": 33.3, "c": 33.3}, [34, 33, 33]),
    ],
)
def test_shares_are_whole_and_sum_to_100(traffic: dict[str, float], shown: list[int]) -> None:
    found = inference_service.shares(traffic)
    assert [share["percent"] for share in found] == shown and [share["tag"] for share in found] == list(traffic)


# --- plan -------------------------------------------------------------------------------------------------------------------------


CONFIG = "applications:\n  - {name: a, route_prefix: /a}\n  - {name: b, route_prefix: /b}\n"


def rayservice_of(text: str, **annotations: str) -> dict[str, Any]:
    metadata = {"name": "r", "namespace": "n", "uid": "u", "resourceVersion": "5", "annotations": annotations}
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": {"serveConfigV2": text}}


def without(*gone: str) -> Edit:
    def surgery(text: str) -> str:
        for name in gone:
            text = rayservice.without_application(text, name)
        return text

    return Edit(Ref("RayService", "r", "n"), surgery, frozenset(gone), f"{', '.join(gone)} goes", created_by="me")


def test_a_plan_prints_what_it_would_change() -> None:
    before = alias.manifest("whisper", "ai-ml", "old.ai-ml.svc.cluster.local")
    before["metadata"] |= {"resourceVersion": "5", "uid": "u"}
    change = Apply(alias.manifest("whisper", "ai-ml", TARGET), "the name that clients call")
    text = str(Plan((change, change), {change.ref: before}))
    first, second = text.split("\napply ")
    assert first.startswith("apply Service ai-ml/whisper-predictor: the name that clients call\n--- now\n+++ then\n")
    assert [line for line in first.splitlines()[3:] if line[0] in "+-"] == [
        "-  externalName: old.ai-ml.svc.cluster.local",
        f"+  externalName: {TARGET}",
    ]
    assert "resourceVersion" not in text and "uid" not in text
    assert second.endswith("(as it is already)")  # the second one finds what the first one wrote


def test_creating_and_deleting_show_one_side() -> None:
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n"}, "data": {"text": "two\nlines\n"}}
    made = Apply(manifest, "why").diff(None)
    gone = Delete(Ref.of(manifest), "why").diff(manifest)
    assert "+    two\n+    lines\n" in made and "\n-" not in made.replace("\n---", "")
    assert "-    two\n-    lines\n" in gone and "\n+" not in gone.replace("\n+++", "")


def test_an_edit_changes_its_own_applications_alone() -> None:
    found = rayservice_of(CONFIG)
    after = without("a").after(found)
    assert after is not None and list(rayservice.applications(rayservice.serve_config(after))) == ["b"] and rayservice.serve_config(found) == CONFIG
    assert without("c").after(found) is found
    both = without("a", "b").after(found)
    assert both is not None and not rayservice.applications(rayservice.serve_config(both))
    greedy = Edit(without("a").ref, without("a", "b").surgery, frozenset({"a"}), "takes too much")
    with pytest.raises(errors.Conflict, match="application 'b' would change although only"):
        greedy.after(found)
    with pytest.raises(errors.NotFound, match="RayService n/r: it does not exist"):
        greedy.after(None)


def test_an_edit_removes_what_the_release_created_and_nobody_else_uses() -> None:
    ours = rayservice_of(CONFIG, **{names.CREATED_BY_RELEASE: "me"})
    theirs = rayservice_of(CONFIG, **{names.CREATED_BY_RELEASE: "another"})
    assert without("a", "b").after(ours) is None and without("a", "b").after(None) is None
    assert without("a").after(ours) is not None and without("a", "b").after(theirs) is not None


def test_plans_are_values() -> None:
    change = Apply({"kind": "A", "metadata": {"name": "<b>"}}, "why")
    one, nothing = Plan((change,)), Plan()
    assert not nothing and str(nothing) == "nothing to do" and one and (nothing + one) == one
    assert [found.ref.kind for found in one + one] == ["A", "A"]
    assert "&lt;b&gt;" in one._repr_html_() and "<b></b>" not in one._repr_html_() and "nothing to do" in nothing._repr_html_()


# --- probes -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("", {"a": [{"b": 1}], "x/y": 2, "m~n": 3, "": 4, "0": 5}),
        ("/a/0/b", 1),
        ("/x~1y", 2),
        ("/m~0n", 3),
        ("/", 4),
        ("/0", 5),
        ("/a/1", probes.MISSING),
        ("/a/-1", probes.MISSING),
        ("/a/b", probes.MISSING),
        ("/a/0/b/c", probes.MISSING),
    ],
)
def test_json_pointers(pointer: str, found: Any) -> None:
    body = {"a": [{"b": 1}], "x/y": 2, "m~n": 3, "": 4, "0": 5}
    assert probes.resolve(body, pointer) == found


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        (1.0005, 1, True),
        (1.002, 1, False),
        (1, True, False),
        (True, 1, False),
        (True, True, True),
        ("a", "a", True),
        ("1", 1, False),
        (None, None, True),
        (probes.MISSING, None, False),
        (float("nan"), 1.0, False),
        ([1, 2.0001], [1, 2], True),
        ([1], [1, 2], False),
        ("ab", ["a", "b"], False),
        ({"a": 1, "more": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([1], {"0": 1}, False),
        ({"a": [{"b": 0.9999}]}, {"a": [{"b": 1}]}, True),
    ],
)
def test_what_matches(found: Any, wanted: Any, same: bool) -> None:
    assert probes.matches(found, wanted, 1e-3) is same


@pytest.mark.parametrize(("value", "lengths"), [(1, []), ([], [0]), ([1, 2], [2]), ([[1, 2, 3], [4, 5, 6]], [2, 3]), (probes.MISSING, [])])
def test_shapes(value: Any, lengths: list[int]) -> None:
    assert probes.shape(value) == lengths


def test_health_is_asked_as_the_protocol_says() -> None:
    assert [case.path for case in probes.health_cases("bge", "v2")] == ["/v2/health/live", "/v2/health/ready", "/v2/models/bge/ready"]
    assert {case.method for case in probes.health_cases("bge", "v2")} == {"GET"} and probes.health_cases("bge", "json") == []
    assert probes.PATHS["v2"](SmokeCase(path="/ignored"), "bge") == "/v2/models/bge/infer"
    assert probes.PATHS["json"](SmokeCase(path="/embed"), "bge") == "/embed"


def test_all_failed_cases_are_told() -> None:
    results = [probes.ProbeResult("a", 0.1, None), probes.ProbeResult("b", 0.1, "b: POST /x: no"), probes.ProbeResult("c", 0.1, "c: POST /y: no")]
    with pytest.raises(errors.SmokeFailed, match=r"^model bge version v2: 2 smoke case\(s\) failed: b: POST /x: no; c: POST /y: no$"):
        probes.assert_passed(results, "model bge version v2")
    probes.assert_passed(results[:1], "model bge")
