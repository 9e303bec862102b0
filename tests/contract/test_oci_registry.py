"""``oci://``: one body of tests over a stand-in and a real registry (crane's, of go-containerregistry), and the token dance on the stand-in."""

import base64
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from patience import seconds
from standins import oci_registry

from kfp_components import artifact, errors, request, uris
from kfp_components.artifact import oci, web
from kfp_components.artifact.content import Unreadable

CRANE = "github.com/google/go-containerregistry/cmd/crane@v0.20.6"
OCI = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
OTHER = "sha256:" + "0" * 64


def asked(uri: str, **options: Any) -> request.PromoteRequest:
    values = {"model": "bge", "version": "v2", "namespace": "ai-ml", "rayservice": "shared", "import_path": "a:b"}
    return request.parse({**values, "uri": uri, "options": options})


def crane() -> Path:
    """Built once on this machine; skipped, loudly, where Go or its modules cannot be had."""
    if shutil.which("go") is None:
        pytest.skip("NO REAL REGISTRY: Go is not installed here, so oci:// is tested against the stand-in alone")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kfp-serving-tests" / CRANE.rpartition("@")[2]
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cache / "crane").exists():
            command = ["nice", "go", "install", CRANE]
            built = subprocess.run(command, env={**os.environ, "GOBIN": str(cache)}, capture_output=True, text=True, timeout=seconds(300))
            if built.returncode:
                pytest.skip(f"NO REAL REGISTRY: go install {CRANE} failed: {built.stderr[-300:]}")
    return cache / "crane"


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.full)])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    if request.param == "stand-in":
        with oci_registry.running() as registry:
            yield registry.host
        return
    command = [str(crane()), "registry", "serve", "--address", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            told = re.search(r"serving on port (\d+)", server.stderr.readline())
            assert told is not None
            yield f"127.0.0.1:{told[1]}"
        finally:
            server.terminate()


def push(host: str, repository: str, tag: str, content: bytes = b"weights", kind: str = OCI) -> str:
    """As clients push: blobs, then the manifest. Returns the digest of the manifest as it was sent."""
    described = []
    with httpx.Client(trust_env=False, verify=False) as client:
        for blob in (b"{}", content):
            digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
            began = client.post(f"http://{host}/v2/{repository}/blobs/uploads/")
            where = httpx.URL(f"http://{host}").join(began.headers["location"]).copy_add_param("digest", digest)
            assert client.put(where, content=blob).status_code == 201
            described.append({"mediaType": "application/octet-stream", "digest": digest, "size": len(blob)})
    config, layer = described
    return put(host, repository, tag, {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]})


def put(host: str, repository: str, tag: str, manifest: dict[str, Any]) -> str:
    body = json.dumps(manifest, indent=3).encode()  # its bytes count, not its meaning
    url = f"http://{host}/v2/{repository}/manifests/{tag}"
    answer = httpx.put(url, content=body, headers={"content-type": manifest["mediaType"]}, trust_env=False, verify=False)
    assert answer.status_code == 201, answer.text
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


@pytest.mark.parametrize("kind", [OCI, DOCKER])
def test_the_manifest_is_what_the_digest_is_of(host: str, kind: str) -> None:
    digest = push(host, "acme/bge", "v2", kind=kind)
    uri = f"oci://{host}/acme/bge"
    assert artifact.verify(asked(f"{uri}:v2")).sentence == f"digest {digest} found; nothing says which it must be"
    assert artifact.verify(asked(f"{uri}:v2", digest=digest)).by == "as options.digest says"
    assert artifact.verify(asked(f"{uri}@{digest}")).by == artifact.verify(asked(f"{uri}:old@{digest}")).by == "as the URI says"
    assert artifact.verify(asked(f"{uri}:v2"), digest, dry=True).by == "as the registry says", "a plan reads it too"
    with pytest.raises(errors.ArtifactRejected, match=f"its digest is {digest}, not {OTHER}, as options"):
        artifact.verify(asked(f"{uri}:v2", digest=OTHER))


def test_a_tag_that_was_moved_is_found(host: str) -> None:
    digest = push(host, "acme/bge", "v2")
    moved = push(host, "acme/bge", "v2", b"other weights")
    with pytest.raises(errors.ArtifactRejected, match=f"its digest is {moved}, not {digest}, as the registry says"):
        artifact.verify(asked(f"oci://{host}/acme/bge:v2"), digest)


def test_an_index_counts_as_what_the_reference_names(host: str) -> None:
    inner = push(host, "acme/bge", "amd64")
    entry = {"mediaType": OCI, "digest": inner, "size": 1, "platform": {"architecture": "amd64", "os": "linux"}}
    digest = put(host, "acme/bge", "latest", {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
    assert artifact.verify(asked(f"oci://{host}/acme/bge")).digest == digest != inner, "no tag is latest"


def test_what_is_not_there(host: str) -> None:
    push(host, "acme/bge", "v2")
    for uri in (f"oci://{host}/acme/bge:v3", f"oci://{host}/acme/other:v2", f"oci://{host}/acme/bge@{OTHER}"):
        with pytest.raises(errors.NotFound, match=f"artifact {uri}: .*answers 404"):
            artifact.verify(asked(uri, digest=None if "@" in uri else OTHER))
    assert "answers 404" in str(artifact.verify(asked(f"oci://{host}/acme/bge:v3")).why_not), "nothing was asked, so it is only recorded"


# --- what only the stand-in has ---------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[oci_registry.Registry]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with oci_registry.running() as found:
        yield found


def log_in(folder: Path, host: str, **entry: str) -> None:
    (folder / "config.json").write_text(json.dumps({"auths": {"https://other.example/v1/": {"auth": "eDp5"}, host: entry}}))


@pytest.mark.parametrize("key", ["{}", "http://{}", "https://{}/v2/"])
def test_a_token_for_credentials_of_docker(registry: oci_registry.Registry, tmp_path: Path, key: str) -> None:
    digest = push(registry.host, "acme/bge", "v2")
    registry.auth, registry.users = "token", {"robot:hush"}
    log_in(tmp_path, key.format(registry.host), auth=base64.b64encode(b"robot:hush").decode())
    registry.seen.clear()
    assert artifact.verify(asked(f"oci://{registry.host}/acme/bge:v2", digest=digest)).by
    assert registry.seen == [
        "GET /v2/acme/bge/manifests/v2 as nobody",
        "GET /token as Basic",
        "GET /v2/acme/bge/manifests/v2 as Bearer",
    ]


def test_a_token_for_anybody_and_credentials_without_a_token(registry: oci_registry.Registry, tmp_path: Path) -> None:
    digest = push(registry.host, "acme/bge", "v2")
    registry.auth, registry.public = "token", {"acme/bge"}
    assert artifact.verify(asked(f"oci://{registry.host}/acme/bge:v2", digest=digest)).by
    registry.auth, registry.users = "basic", {"robot:hush"}
    log_in(tmp_path, registry.host, username="robot", password="hush")
    assert artifact.verify(asked(f"oci://{registry.host}/acme/bge:v2", digest=digest)).by


@pytest.mark.parametrize("auth", ["token", "basic"])
@pytest.mark.parametrize("known", [True, False])
def test_no_right_to_read_it(registry: oci_registry.Registry, tmp_path: Path, auth: str, known: bool) -> None:
    digest = push(registry.host, "acme/bge", "v2")
    registry.auth = auth
    if known:
        log_in(tmp_path, registry.host, username="robot", password="hush")
    uri = f"oci://{registry.host}/acme/bge:v2"
    told = str(artifact.verify(asked(uri, digest=digest)).why_not)
    assert "docker's config.json" in told and "hush" not in told
    with pytest.raises(errors.ArtifactRejected, match="it has to be verified, but 127"):
        artifact.verify(asked(uri, digest=digest, artifact={"verify": "required"}))


@pytest.mark.parametrize("content", ["{", '{"auths": {"HOST": {"auth": "%%%"}}}'])
def test_a_config_of_docker_that_is_none(registry: oci_registry.Registry, tmp_path: Path, content: str) -> None:
    digest = push(registry.host, "acme/bge", "v2")
    registry.auth = "token"
    (tmp_path / "config.json").write_text(content.replace("HOST", registry.host))
    assert "docker's config.json" in str(artifact.verify(asked(f"oci://{registry.host}/acme/bge:v2", digest=digest)).why_not)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_outage_is_no_verdict(registry: oci_registry.Registry, status: int) -> None:
    digest = push(registry.host, "acme/bge", "v2")
    uri = f"oci://{registry.host}/acme/bge:v2"
    registry.answers = [status]
    with pytest.raises(errors.Unreachable, match=f"answers {status}; the same command tries again"):
        artifact.verify(asked(uri, digest=digest))
    registry.answers = [status]
    assert f"answers {status}" in str(artifact.verify(asked(uri)).why_not), "nothing was asked, so it stops nobody"
    with pytest.raises(errors.Unreachable, match=r"127\.0\.0\.1:9: no answer"):
        artifact.verify(asked("oci://127.0.0.1:9/acme/bge:v2", digest=digest))


@pytest.mark.parametrize(
    ("uri", "registry", "repository", "reference"),
    [
        ("oci://ghcr.io/acme/bge:v2", "ghcr.io", "acme/bge", "v2"),
        ("oci://localhost/bge", "localhost", "bge", "latest"),
        ("oci://registry:5000/a/b/c_d:V.1", "registry:5000", "a/b/c_d", "V.1"),
        (f"oci://ghcr.io/acme/bge:v2@{OTHER}", "ghcr.io", "acme/bge", OTHER),
        ("oci://acme/bge:v2", "docker.io", "acme/bge", "v2"),
        ("oci://bge", "docker.io", "library/bge", "latest"),
    ],
)
def test_references_are_read_as_docker_does(uri: str, registry: str, repository: str, reference: str) -> None:
    assert oci.parse(uri) == oci.Reference(registry, repository, reference)


@pytest.mark.parametrize("uri", ["oci://ghcr.io/", "oci://ghcr.io/Acme/bge", "oci://ghcr.io/a/../b", "oci://ghcr.io/a:", "oci://ghcr.io/a:b:c"])
def test_what_is_no_reference(uri: str) -> None:
    with pytest.raises(Unreadable, match="it names no artifact"):
        oci.parse(uri)


def test_plain_http_only_here_and_in_the_cluster_where_nobody_answers_https() -> None:
    schemes = {name: [url.partition(":")[0] for url in oci.parse(f"oci://{name}/a/b:v").urls] for name in ("ghcr.io", "127.0.0.1:5", "r.ns.svc:5000")}
    assert schemes == {"ghcr.io": ["https"], "127.0.0.1:5": ["http"], "r.ns.svc:5000": ["https", "http"]}
    assert oci.parse("oci://acme/bge").urls == ("https://registry-1.docker.io/v2/acme/bge/manifests/latest",)


def test_a_registry_of_the_cluster_that_speaks_no_tls(registry: oci_registry.Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = push(registry.host, "acme/bge", "v2")
    monkeypatch.setattr(uris, "is_loopback", lambda _host: False)
    monkeypatch.setattr(web, "in_cluster", lambda _host: True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert artifact.verify(asked(f"oci://{registry.host}/acme/bge:v2", digest=digest)).by


def test_a_uri_and_a_digest_that_contradict_each_other_are_refused_at_birth() -> None:
    digest = "sha256:" + "a" * 64
    assert asked(f"oci://ghcr.io/a@{digest}", digest=digest).options.digest == digest
    with pytest.raises(errors.RequestInvalid, match=f"uri and options.digest contradict each other: {digest} and {OTHER}"):
        asked(f"oci://ghcr.io/a@{digest}", digest=OTHER)
    with pytest.raises(errors.RequestInvalid, match="what follows its @ is not of the form sha256"):
        asked("oci://ghcr.io/a@sha512:abc")
    stored = asked(f"oci://ghcr.io/a@{digest}").plain
    request.parse_stored({**stored, "options": {"digest": OTHER}})  # an older version took it
