"""Smoke cases on their way: which are sent, whereto, what `kfp-serving smoke` says; over a Kubernetes API in memory and HTTP on loopback."""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from standins import every_protocol
from standins.every_protocol import APPLICATION, MODEL, VERSION, Model

from kfp_components import cli, errors, names, request, rollout
from kfp_components.cluster import Manifest
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.probes import defaults
from kfp_components.registry.memory import MemoryRegistry
from kfp_components.rollout import cases, smoke
from kfp_components.serving import alias

NAMESPACE, RAYSERVICE = "ai-ml", "shared"
SERVICE = names.serve_service(RAYSERVICE)
RIGHT = {"name": "sum", "path": "/plain", "body": {"numbers": [1, 2]}, "expect": {"/sum": 3}}
WRONG = {**RIGHT, "name": "other sum", "expect": {"/sum": 4}}
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
GRPC = {"name": "by gRPC", "protocol": "v2_grpc", "body": {"inputs": [TENSOR]}, "expect_vectors": {"count": 1}}
APPLICATIONS = f"""\
applications:
  - {{name: m-v1, route_prefix: /m, import_path: 'acme.m:build'}}
  - {{name: {APPLICATION}, route_prefix: {names.version_route(MODEL, VERSION)}, import_path: 'acme.m:build'}}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Model]:
    with every_protocol.model() as running:
        yield running


def objects(server: Model, *, grpc: bool = True) -> Iterator[Manifest]:
    yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    meta = {"name": RAYSERVICE, "namespace": NAMESPACE}
    yield {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": meta, "spec": {"serveConfigV2": APPLICATIONS}}
    yield alias.manifest(MODEL, NAMESPACE, names.service_host(SERVICE, NAMESPACE))
    at = {"serve": server.endpoint, **({"grpc": server.grpc} if grpc else {})}
    numbers = {name: int(endpoint.base_url.rpartition(":")[2]) for name, endpoint in at.items()}
    ports = [{"name": name, "port": {"serve": names.SERVE_PORT, "grpc": names.GRPC_PORT}[name], "protocol": "TCP"} for name in at]
    yield {"apiVersion": "v1", "kind": "Service", "metadata": {"name": SERVICE, "namespace": NAMESPACE}, "spec": {"ports": ports}}
    yield {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": SERVICE, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": SERVICE}},
        "addressType": "FQDN",  # a real API refuses loopback addresses
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}],
        "ports": [{"name": name, "port": number, "protocol": "TCP"} for name, number in numbers.items()],
    }


def world(server: Model, **more: Any) -> MemoryCluster:
    cluster = MemoryCluster()
    for manifest in objects(server, **more):
        cluster.apply(manifest, manager="owner")
    server.state.fault = None
    server.state.seen.clear()
    return cluster


def values(*given: dict[str, Any], **options: Any) -> dict[str, Any]:
    who = {"model": MODEL, "version": VERSION, "uri": "s3://m/v2", "namespace": NAMESPACE, "rayservice": RAYSERVICE, "import_path": "acme.m:build"}
    return {**who, "options": {**({"smoke": list(given)} if given else {}), **options}}


def run_of(cluster: MemoryCluster, *given: dict[str, Any], **options: Any) -> rollout.Run:
    return rollout.open_run(request.parse(values(*given, **options)), cluster, registry=MemoryRegistry())


def paths(server: Model) -> list[str]:
    return [one["path"] for one in server.state.seen]


# --- which, and whereto ---------------------------------------------------------------------------------------------------------------


def test_a_versions_cases_go_to_its_internal_route(server: Model) -> None:
    found = rollout.smoke_cases(run_of(world(server), RIGHT, GRPC), version=VERSION)
    assert [result.case for result in found] == ["/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "sum", "by gRPC"]
    assert [result.problem for result in found] == [None] * 5
    assert {path.startswith("/.versions/m/v2/") for path in paths(server)} == {True} and len(paths(server)) == 4


def test_every_case_that_fails_is_told(server: Model) -> None:
    told = r"^model m version v2: 2 smoke case\(s\) failed: other sum: POST /.versions/m/v2/plain: expected /sum = 4 .*; other sum: POST"
    with pytest.raises(errors.SmokeFailed, match=told):
        rollout.smoke_cases(run_of(world(server), WRONG, RIGHT, WRONG), version=VERSION)


def test_a_family_is_asked_its_own_cases_where_none_are_given(server: Model) -> None:
    cluster = world(server)
    found = rollout.smoke_cases(run_of(cluster, provenance={"family": "llm"}, protocol="json"), version=VERSION)
    assert [(result.case, result.problem) for result in found] == [("llm: chat", None), ("llm: stream", None)]
    server.state.fault = "wrong"
    with pytest.raises(errors.SmokeFailed, match=r"llm: chat: POST .*/v1/chat/completions: expected a text of at least 1 character"):
        rollout.smoke_cases(run_of(cluster, provenance={"family": "llm"}, protocol="json"), version=VERSION)
    server.state.fault = None
    assert rollout.smoke_cases(run_of(cluster, smoke="none", provenance={"family": "llm"}, protocol="json"), version=VERSION) == []
    (mine,) = rollout.smoke_cases(run_of(cluster, RIGHT, provenance={"family": "llm"}, protocol="json"), version=VERSION)
    assert mine.case == "sum"


def test_a_case_with_a_reference_is_scored_and_a_useless_answer_is_a_failure(server: Model) -> None:
    scored = {"protocol": "openai_embeddings", "body": {"input": every_protocol.TEXTS}, "reference": {"relevant": [0]}}
    cluster = world(server)
    (found,) = rollout.smoke_cases(run_of(cluster, scored, protocol="json", provenance={"family": "embedding"}), version=VERSION)
    assert found.problem is None
    server.state.fault = "collapsed"
    with pytest.raises(errors.SmokeFailed, match="case: its answer is useless: "):
        rollout.smoke_cases(run_of(cluster, scored, protocol="json", provenance={"family": "embedding"}), version=VERSION)
    with pytest.raises(errors.RequestInvalid, match="nobody knows who scores its reference"):
        rollout.smoke_cases(run_of(cluster, scored, protocol="json"), version=VERSION)


def test_where_there_is_no_grpc_proxy_it_is_said_and_is_no_fault_of_the_version(server: Model) -> None:
    told = r"smoke case by gRPC: protocol v2_grpc: where Serve's gRPC proxy is, is not known: Service ai-ml/m-predictor -> .* no ready endpoint on port 9000"
    with pytest.raises(errors.NotFound, match=told):
        rollout.smoke_cases(run_of(world(server, grpc=False), GRPC), version=VERSION)


def test_a_budget_that_is_spent_is_a_failure_of_what_was_left(server: Model) -> None:
    run = run_of(world(server), *[RIGHT] * 20, smoke_pace={"budget_s": 0.05, "concurrency": 1}, protocol="json")
    server.state.pause_s = 0.02
    try:
        with pytest.raises(errors.SmokeFailed, match=r"sum: not sent, the budget of 0\.05 s for all cases was spent before"):
            rollout.smoke_cases(run, version=VERSION)
    finally:
        server.state.pause_s = 0.0


def test_what_takes_long_is_told_meanwhile(server: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "TOLD_EVERY_S", 0.0)
    told: list[tuple[int, int]] = []
    rollout.smoke_cases(run_of(world(server), *[RIGHT] * 3, protocol="json"), version=VERSION, told=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]


# --- media ----------------------------------------------------------------------------------------------------------------------------


def heard(uri: str, digest: str) -> request.SmokeCase:
    media = {"uri": uri, "digest": digest, "media_type": "audio/wav"}
    return request.parse_case({"protocol": "openai_transcription", "media": media}, "case")


def test_media_are_read_from_where_they_are(server: Model, tmp_path: Path) -> None:
    content = defaults.tone(0.1)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    (tmp_path / "clips").mkdir()
    file = tmp_path / "clips" / "a b.wav"
    file.write_bytes(content)
    whole, beside = heard(file.as_uri(), digest), heard("clips/a b.wav", digest)
    found = cases.with_media([whole, beside, whole], (tmp_path / "golden.jsonl").as_uri())
    assert len({case.media.uri for case in found if case.media}) == 1
    given = {"protocol": "openai_transcription", "media": {"uri": file.as_uri(), "digest": digest, "media_type": "audio/wav"}}
    (result,) = rollout.smoke_cases(run_of(world(server), given, protocol="json"), version=VERSION)
    assert result.problem is None and result.value == {"text": every_protocol.SPOKEN}

    with pytest.raises(errors.RequestInvalid, match=r"smoke case case: media file:///.*: its digest is sha256:.*, and sha256:0000.* was said"):
        cases.with_media([heard(file.as_uri(), "sha256:" + 64 * "0")])
    with pytest.raises(errors.NotFound, match="smoke case case: media"):
        cases.with_media([heard((tmp_path / "gone.wav").as_uri(), digest)])
    for uri in ("clips/a b.wav", "../a.wav", "/a.wav"):
        with pytest.raises(errors.RequestInvalid, match="nor the path of a file beside its golden set"):
            cases.with_media([heard(uri, digest)], None if uri.startswith("clips") else "file:///golden.jsonl")


# --- kfp-serving smoke ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(server: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    cluster = world(server)
    monkeypatch.setattr(cli, "_cluster", lambda _kubeconfig: cluster)

    def typed(*given: dict[str, Any], words: tuple[str, ...] = ()) -> tuple[int, str, str]:
        file = tmp_path / "request.yaml"
        file.write_text(yaml.safe_dump(values(*given)))
        monkeypatch.setattr(sys, "argv", ["kfp-serving", "smoke", str(file), *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return typed


def test_each_case_is_a_line(command: Any, server: Model) -> None:
    code, out, _ = command(RIGHT, WRONG)
    *_, first, second = out.splitlines()
    assert code == 1 and first.startswith("passed  sum (") and second.startswith("FAILED  other sum: POST /m/plain: expected /sum = 4")
    assert {path.startswith("/m/") for path in paths(server)} == {True}


def test_one_json_document(command: Any, server: Model) -> None:
    code, out, _ = command(RIGHT, GRPC, words=("--version", VERSION, "--json"))
    found = json.loads(out)
    assert (code, found["passed"], found["version"], [one["problem"] for one in found["cases"]]) == (0, True, VERSION, [None] * 5)
    assert {path.startswith("/.versions/m/v2/") for path in paths(server)} == {True}


def test_a_version_that_does_not_run(command: Any) -> None:
    code, out, told = command(RIGHT, words=("--version", "v9"))
    assert (code, out) == (2, "") and "RayService ai-ml/shared: version v9 does not run, there is no application m-v9" in told
