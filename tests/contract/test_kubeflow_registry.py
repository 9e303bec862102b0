"""Kubeflow's Model Registry on bad days: killed half-way, raced, behind a login, away, or something else at that address; and who else reads it."""

import json
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from registry_servers import Servers, free_port
from standins.model_registry import Answer, Query, Server, StandIn, door

from kfp_components import errors
from kfp_components.registry import ModelRegistry, ModelVersion, connect, kubeflow

DIGEST = "sha256:" + 64 * "a"
PROPERTIES = {"model_format": "embedding", "kfp_run_id": "run-7"}
SECRET = "s3cret-of-mine"
SERVERS = ["stand-in", pytest.param("real", marks=pytest.mark.full)]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, servers: Servers) -> Server:
    return servers.real_kubeflow() if request.param == "real" else StandIn()


@pytest.fixture
def model() -> str:
    return f"ai-ml.bge-{uuid.uuid4().hex[:8]}"


def register(registry: ModelRegistry, model: str) -> ModelVersion:
    return registry.register(model, "v1", "s3://models/v1", digest=DIGEST, properties=PROPERTIES)


@contextmanager
def opened(server: Server, version: str = "v1") -> Iterator[ModelRegistry]:
    with door(server, version) as found:
        yield connect(f"kubeflow+{found.url}")
    assert found.told == []


class Disturbed:
    """A server whose n-th POST gets no useful answer, before or after it took effect; or that another process overtakes at each POST."""

    def __init__(self, server: Server, *, fail: int = 0, after: bool = False, overtaken: bool = False) -> None:
        self.server, self.fail, self.after, self.overtaken, self.posts = server, fail, after, overtaken, 0

    def __call__(self, method: str, path: str, query: Query, body: bytes) -> Answer:
        if method == "POST":
            self.posts += 1
            if self.overtaken:
                self.server(method, path, query, body)
            if self.posts == self.fail:
                if self.after:
                    self.server(method, path, query, body)
                return 503, json.dumps({"code": "503", "message": "going down"}).encode()
        return self.server(method, path, query, body)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fail", [1, 2, 3])
def test_what_was_half_registered_is_completed_by_the_same_call(server: Server, model: str, fail: int, after: bool) -> None:
    with opened(Disturbed(server, fail=fail, after=after)) as registry:
        with pytest.raises(errors.Unreachable, match=r"registering ai-ml.*503 going down"):
            register(registry, model)
        assert (registry.find(model, "v1") is not None) == (fail == 3 and after), "half a version is none"
        made = register(registry, model)
        assert made == registry.find(model, "v1") == ModelVersion(model, "v1", "s3://models/v1", DIGEST, PROPERTIES)


def test_two_that_register_the_same_at_once_both_succeed(server: Server, model: str) -> None:
    with opened(Disturbed(server, overtaken=True)) as registry:
        assert register(registry, model) == registry.find(model, "v1")


def test_a_name_that_only_the_database_holds_equal_is_taken() -> None:
    """MySQL does not tell ``V1`` from ``v1``: it is there already, and not found under this name."""

    def taken(method: str, path: str, query: Query, body: bytes) -> Answer:
        if path == "/registered_models" and method == "GET":
            return 200, b'{"items": [], "nextPageToken": "", "pageSize": 1, "size": 0}'
        return (409 if method == "POST" else 404), b'{"code": "x", "message": "registered model with name x already exists: conflict"}'

    with opened(taken) as registry, pytest.raises(errors.NameTaken, match="taken by another spelling"):
        register(registry, "ai-ml.bge")


def test_what_others_keep_there_stays(server: Server, model: str) -> None:
    """Numbers and structures that people write in Kubeflow's UI, documents beside the model."""
    with door(server, "v1") as found:
        root, registry = f"{found.url}/api/model_registry/v1", connect(f"kubeflow+{found.url}")
        theirs = {
            "stars": {"metadataType": "MetadataIntValue", "int_value": "3"},
            "card": {"metadataType": "MetadataStructValue", "struct_value": "e30="},
        }
        parent = httpx.post(f"{root}/registered_models", json={"name": model, "description": "ours", "customProperties": theirs}).json()
        body = {"name": "v1", "registeredModelId": parent["id"], "customProperties": theirs}
        version = httpx.post(f"{root}/model_versions", json=body).json()
        papers = {"artifactType": "doc-artifact", "name": "paper", "uri": "https://example.com/paper"}
        assert httpx.post(f"{root}/model_versions/{version['id']}/artifacts", json=papers).status_code == 201
        register(registry, model)
        registry.annotate(model, "v1", {"verdict": "not worse"})
        registry.move(model, "champion", "v1")
        known = registry.find(model, "v1")
        assert known is not None and (known.uri, known.digest, dict(known.properties)) == (
            "s3://models/v1",
            DIGEST,
            {"stars": "3", "verdict": "not worse"},
        )
        theirs["card"]["struct_value"] = "{}"  # as the server gives it back
        kept = httpx.get(f"{root}/registered_model", params={"name": model}).json()
        assert kept["customProperties"] == theirs | {"alias.champion": {"metadataType": "MetadataStringValue", "string_value": "v1"}}
        assert kept["description"] == "ours"
        kept = httpx.get(f"{root}/model_version", params={"name": "v1", "parentResourceId": parent["id"]}).json()
        assert kept["customProperties"].items() >= theirs.items()
    assert found.told == []


CLIENT = """
import asyncio, json, sys
from model_registry import ModelRegistry
client = ModelRegistry(sys.argv[1], author="test", is_secure=False, async_runner=asyncio.run)
model, version, artifact = client.get_registered_model(sys.argv[2]), client.get_model_version(sys.argv[2], "v1"), client.get_model_artifact(sys.argv[2], "v1")
print(json.dumps([model.custom_properties, version.custom_properties, artifact.uri, artifact.model_format_name,
    artifact.model_source_kind, artifact.model_source_class, artifact.model_source_id, artifact.model_source_name]))
"""


@pytest.mark.parametrize("kind", [pytest.param("kubeflow-v1", marks=pytest.mark.core), pytest.param("real-kubeflow-v1", marks=pytest.mark.full)])
def test_kubeflows_own_client_reads_what_we_wrote(servers: Servers, model: str, kind: str) -> None:
    """In a process of its own: it takes seconds to import and patches the event loop."""
    registry, found = servers.registry(kind), servers.door(kind)
    register(registry, model)
    registry.move(model, "champion", "v1")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CLIENT, found.url, model], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    source = ["kfp", "pipelinerun", "run-7", model]
    assert json.loads(done.stdout) == [{"alias.champion": "v1"}, {**PROPERTIES, "digest": DIGEST}, "s3://models/v1", "embedding", *source]
    assert found.told == []


@contextmanager
def answering(status: int, body: str, **headers: str) -> Iterator[str]:
    """A server that gives everybody the same answer; its registry's address. Status 0 hangs up."""

    class Same(BaseHTTPRequestHandler):
        def answer(self) -> None:
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = do_PATCH = answer

        def log_message(self, *_about: Any) -> None:
            return

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Same)
    threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"kubeflow+http://127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        listening.server_close()


JSON = {"content_type": "application/json"}
STRANGE: dict[str, tuple[int, str, dict[str, str], type[errors.KfpServingError], str]] = {
    "a login page": (
        200,
        "<html>Log in",
        {"content_type": "text/html; charset=utf-8"},
        errors.PermissionDenied,
        "a web page answers, probably a login",
    ),
    "sent to a login": (
        302,
        "",
        {"location": f"https://dex.example/auth?state={SECRET}"},
        errors.PermissionDenied,
        "302, go to https://dex.example/auth; ",
    ),
    "401": (401, "Jwt is missing", {}, errors.PermissionDenied, f"401 Jwt is missing; name the file of a token in {kubeflow.TOKEN_PATH}"),
    "403": (403, "RBAC: access denied", {}, errors.PermissionDenied, "403 RBAC: access denied; name the file"),
    "500": (500, '{"code": "", "message": "database is gone"}', JSON, errors.Unreachable, "500 database is gone; is it running?"),
    "503": (503, "no healthy upstream", {}, errors.Unreachable, "503 no healthy upstream"),
    "429": (429, "slow down", {}, errors.Unreachable, "429 slow down"),
    "400": (400, '{"message": "pageSize"}', JSON, errors.RequestInvalid, "400 pageSize"),
    "hung up": (0, "", {}, errors.Unreachable, "is it running?"),
    "half an answer": (200, '{"items": [', JSON, errors.Unreachable, "the answer is not JSON"),
    "a list": (200, "[1]", JSON, errors.RequestInvalid, "is not a Kubeflow Model Registry; correct the address"),
    "another server": (200, '{"hello": "world"}', JSON, errors.RequestInvalid, "is not a Kubeflow Model Registry; correct the address"),
    "strange objects": (
        200,
        '{"id": "1", "name": "ai-ml.bge", "customProperties": [1]}',
        JSON,
        errors.RequestInvalid,
        "is not a Kubeflow Model Registry",
    ),
    "nothing there": (404, "404 page not found", {}, errors.RequestInvalid, "no Kubeflow Model Registry answers there (neither v1 nor v1alpha3)"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_answers_strangely_is_said_in_a_sentence(case: str) -> None:
    status, body, headers, error, words = STRANGE[case]
    with answering(status, body, **headers) as uri:
        registry = connect(uri)
        for call in (
            lambda: register(registry, "ai-ml.bge"),
            lambda: registry.find("ai-ml.bge", "v1"),
            lambda: registry.move("ai-ml.bge", "champion", "v1"),
        ):
            with pytest.raises(error) as caught:
                call()
            assert str(caught.value).startswith(f"registry {uri}: ") and words in str(caught.value) and SECRET not in str(caught.value)


def test_a_gateways_404_does_not_say_that_a_version_is_not_there() -> None:
    with answering(404, "404 page not found") as uri:
        registry = kubeflow.KubeflowRegistry(uri)
        registry._root = f"{uri.removeprefix('kubeflow+')}/api/model_registry/v1"  # it was there a moment before
        with pytest.raises(errors.Unreachable, match="404 404 page not found; is it running"):
            registry.find("ai-ml.bge", "v1")


def test_nobody_answers() -> None:
    with pytest.raises(errors.Unreachable, match=r"registry kubeflow\+http://127.0.0.1:\d+: connecting: ConnectError: .*; is it running\?"):
        connect(f"kubeflow+http://127.0.0.1:{free_port()}").find("ai-ml.bge", "v1")


def test_who_listens_and_says_nothing_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeflow, "ANSWER_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(errors.Unreachable, match="ReadTimeout"):
            connect(f"kubeflow+http://127.0.0.1:{silent.getsockname()[1]}").find("ai-ml.bge", "v1")


@pytest.mark.parametrize("uri", ["kubeflow+http://", "kubeflow+http://host:port", "kubeflow+https://host?x=1", "kubeflow+https://host#x"])
def test_an_address_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(errors.RequestInvalid, match="write kubeflow"):
        connect(uri)


def test_credentials_in_the_address_are_in_no_message() -> None:
    with answering(503, "away") as uri, pytest.raises(errors.Unreachable) as caught:
        connect(uri.replace("://", f"://me:{SECRET}@")).find("ai-ml.bge", "v1")
    assert SECRET not in str(caught.value) and "503 away" in str(caught.value)


def test_a_token_comes_from_a_file_that_is_read_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kubeflow.TOKEN_PATH, str(tmp_path / "token"))
    with door(StandIn(), "v1alpha3", token=SECRET) as found:
        registry = connect(f"kubeflow+{found.url}")
        with pytest.raises(errors.RequestInvalid, match="cannot be read: FileNotFoundError"):
            registry.find("ai-ml.bge", "v1")
        (tmp_path / "token").write_text("two words\n")
        with pytest.raises(errors.RequestInvalid, match="holds no token") as caught:
            registry.find("ai-ml.bge", "v1")
        assert "two words" not in str(caught.value)
        (tmp_path / "token").write_text("an-old-one\n")
        with pytest.raises(errors.PermissionDenied, match="403 RBAC: access denied") as refused:
            registry.find("ai-ml.bge", "v1")
        assert "an-old-one" not in str(refused.value)
        (tmp_path / "token").write_text(f"{SECRET}\n")
        assert register(registry, "ai-ml.bge") == registry.find("ai-ml.bge", "v1")


@pytest.mark.parametrize(
    ("host", "named", "own"),
    [
        ("kubeflow+https://registry.example", True, False),
        ("kubeflow+http://registry.example", None, False),
        ("kubeflow+http://localhost:8080", True, False),
        ("kubeflow+http://[::1]:8080", True, False),
        ("kubeflow+http://model-registry-service.kubeflow.svc:8080", True, True),
        ("kubeflow+https://model-registry-service.kubeflow.svc.cluster.local:8443", True, True),
        ("kubeflow+http://evil.example/x.svc", None, False),
    ],
)
def test_who_gets_which_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, named: bool | None, own: bool) -> None:
    """A request may name any registry: the pod's own token leaves for the cluster only, a named one not in plain text."""
    parts, token = urlsplit(host), tmp_path / "token"
    token.write_text(SECRET)
    monkeypatch.setattr(kubeflow, "SERVICE_ACCOUNT_TOKEN", str(token))
    monkeypatch.delenv(kubeflow.TOKEN_PATH, raising=False)
    assert kubeflow.token_for(parts, host) == (SECRET if own else None)
    monkeypatch.setenv(kubeflow.TOKEN_PATH, str(token))
    if named:
        assert kubeflow.token_for(parts, host) == SECRET
        return
    with pytest.raises(errors.RequestInvalid, match="does not go over plain HTTP to"):
        kubeflow.token_for(parts, host)


def test_the_page_of_a_version_is_known_when_the_ui_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kubeflow.UI, raising=False)
    with opened(StandIn()) as registry:
        assert register(registry, "ai-ml.bge").url == ""
        monkeypatch.setenv(kubeflow.UI, "https://kubeflow.example/model-registry/model-registry/")
        found = registry.find("ai-ml.bge", "v1")
        assert found is not None and found.url == "https://kubeflow.example/model-registry/model-registry/registered-models/1/versions/2"
        monkeypatch.setenv(kubeflow.UI, f"https://me:{SECRET}@kubeflow.example")
        assert register(registry, "ai-ml.bge").url == ""
