"""Digests and signatures: real files, a real HTTP server, signatures made by model-signing itself, whose digest of a folder is ours."""

import base64
import hashlib
import io
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import seconds
from rich.console import Console

from kfp_components import artifact, errors, live, request
from kfp_components.artifact import web
from kfp_components.artifact.content import Reading, Unreadable
from kfp_components.local.apiserver import tls

BYTES = b"weights" * 1000
DIGEST = "sha256:" + hashlib.sha256(BYTES).hexdigest()
OTHER = "sha256:" + "0" * 64


def asked(uri: str, **options: Any) -> request.PromoteRequest:
    values = {"model": "bge", "version": "v2", "namespace": "ai-ml", "rayservice": "shared", "import_path": "a:b"}
    return request.parse({**values, "uri": uri, "options": options})


def why_not(uri: str, **options: Any) -> str:
    return str(artifact.verify(asked(uri, **options)).why_not)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(BYTES)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    (path / "a").mkdir(parents=True)
    (path / "a" / "weights.bin").write_bytes(BYTES)
    (path / "a.json").write_text("{}")  # "a.json" < "a/weights.bin" as text, not as paths
    (path / ".gitattributes").write_text("*.bin lfs")
    return path


# --- files and claims ---------------------------------------------------------------------------------------------------------------


def test_a_file_is_what_its_digest_says(file: Path) -> None:
    found = artifact.verify(asked(file.as_uri(), digest=DIGEST))
    assert found == artifact.Verified(DIGEST, by="as options.digest says")
    assert found.sentence == f"digest {DIGEST} verified, as options.digest says"
    with pytest.raises(errors.ArtifactRejected, match=rf"model bge version v2: artifact file://.*: its digest is {DIGEST}, not {OTHER}, as options"):
        artifact.verify(asked(file.as_uri(), digest=OTHER))
    file.write_bytes(BYTES + b"x")
    with pytest.raises(errors.ArtifactRejected, match="or it was changed: correct the digest, or give the new artifact a new version"):
        artifact.verify(asked(file.as_uri(), digest=DIGEST))


def test_what_the_registry_knows_counts_where_the_request_says_nothing(file: Path) -> None:
    assert artifact.verify(asked(file.as_uri()), DIGEST).by == "as the registry says"
    with pytest.raises(errors.ArtifactRejected, match="as the registry says"):
        artifact.verify(asked(file.as_uri()), OTHER)


def test_the_digest_of_what_lies_here_is_found_out_without_being_asked_for(file: Path) -> None:
    found = artifact.verify(asked(file.as_uri()))
    assert (found.digest, found.by, found.why_not) == (DIGEST, None, None)
    assert found.sentence == f"digest {DIGEST} found; nothing says which it must be"
    assert artifact.told_digest(found.sentence) == DIGEST
    assert artifact.told_digest(artifact.verify(asked("gs://b/m", digest=OTHER)).sentence) is None


@settings(max_examples=25)
@given(place=st.integers(0, len(BYTES) - 1), bit=st.integers(0, 7))
def test_one_bit_anywhere_is_found(place: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bin"
        changed = bytearray(BYTES)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        with pytest.raises(errors.ArtifactRejected):
            artifact.verify(asked(path.as_uri(), digest=DIGEST))


NAMES = st.text("ab.-_Z0", min_size=1, max_size=4).filter(lambda name: name.strip(".") != "")
TREES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map(tuple), st.binary(max_size=20), min_size=1, max_size=6)


def write(root: Path, tree: list[tuple[tuple[str, ...], bytes]]) -> bool:
    """False for a tree in which a file would have to be a folder."""
    for parts, content in tree:
        path = root.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError:
            return False
    return True


@settings(max_examples=25)
@given(tree=TREES, order=st.randoms(use_true_random=False))
def test_a_folders_digest_is_that_of_model_signing_in_whatever_order_it_was_made(tree: dict[tuple[str, ...], bytes], order: Any) -> None:
    from model_signing import hashing

    shuffled = list(tree.items())
    order.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as place:
        one, two = Path(place) / "one", Path(place) / "two"
        if not (write(one, list(tree.items())) and write(two, shuffled)):
            return
        known = hashing.Config().hash(one)
        whole = hashlib.sha256(b"".join(item.digest.digest_value for item in known.resource_descriptors())).hexdigest()
        found = artifact.verify(asked(one.as_uri())).digest
        assert found == artifact.verify(asked(two.as_uri())).digest == f"sha256:{whole}"


def test_a_mounted_claim(file: Path) -> None:
    mounts = {"mounts": {"models": str(file.parent), "gone": str(file.parent / "gone")}}
    assert artifact.verify(asked("pvc://models/model.bin", digest=DIGEST, artifact=mounts)).by
    assert "claim models is not mounted here" in why_not("pvc://models/model.bin", digest=DIGEST)
    assert "there is no folder" in why_not("pvc://gone/model.bin", digest=DIGEST, artifact=mounts)
    assert "leads out of claim models" in why_not("pvc://models/../../etc/hostname", digest=DIGEST, artifact=mounts)
    assert "leads out of claim models" in why_not("pvc://models/%2e%2e/%2e%2e/etc/hostname", digest=DIGEST, artifact=mounts)
    with pytest.raises(errors.NotFound, match=r"/model\.txt is not on claim models; put it there, or correct the URI"):
        artifact.verify(asked("pvc://models/model.txt", digest=DIGEST, artifact=mounts))


def test_a_file_that_is_not_here_may_be_where_the_replicas_are(tmp_path: Path) -> None:
    uri = (tmp_path / "gone").as_uri()
    assert "is not on this machine" in why_not(uri, digest=DIGEST)
    assert "another machine's" in why_not("file://other/model", digest=DIGEST)
    with pytest.raises(errors.ArtifactRejected, match=r"it has to be verified, but .*gone is not on this machine"):
        artifact.verify(asked(uri, digest=DIGEST, artifact={"verify": "required"}))


def test_links_and_empty_folders_cannot_be_verified(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert why_not((tmp_path / "empty").as_uri()) == "it holds no file"
    with pytest.raises(errors.NotFound, match="it holds no file"):
        artifact.verify(asked((tmp_path / "empty").as_uri(), digest=DIGEST))
    (folder / "link").symlink_to(folder / "a.json")
    assert "link in it is a link" in why_not(folder.as_uri(), digest=DIGEST)
    (folder / "link").unlink()
    os.mkfifo(folder / "pipe")
    assert "pipe in it is a link or a special file" in why_not(folder.as_uri(), digest=DIGEST)
    (tmp_path / "whole").symlink_to(folder)
    assert "name what it points to" in why_not((tmp_path / "whole").as_uri(), digest=DIGEST)


@pytest.mark.parametrize("name", ["a" * 300, "a%00b"])
def test_what_is_no_path_here_is_not_verified(tmp_path: Path, name: str) -> None:
    assert why_not(f"file://{tmp_path}/{name}")
    assert why_not(f"pvc://models/{name}", artifact={"mounts": {"models": str(tmp_path)}})


ANOTHER = """
import os, sys
from kfp_components.artifact import folders
from kfp_components.artifact.content import Unreadable
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    folders.find_file(sys.argv[1], None)
except Unreadable as error:
    print(error)
"""


def test_a_part_that_may_not_be_looked_into_is_not_left_out_of_the_digest() -> None:
    """Asked by an identity that has no right to it: a digest of the rest would be another artifact's."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place) / "model"
        (folder / "hidden").mkdir(parents=True)
        (folder / "seen").write_bytes(BYTES)
        (folder / "hidden" / "too").write_bytes(BYTES)
        (folder / "hidden").chmod(0)
        done = subprocess.run([sys.executable, "-c", ANOTHER, folder.as_uri()], capture_output=True, text=True, timeout=seconds(60))
        (folder / "hidden").chmod(0o755)
    assert done.stdout.strip() == f"{folder}/hidden cannot be read here (Permission denied)", done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_the_right_to_read_it(file: Path) -> None:
    file.chmod(0)
    assert "cannot be read here (Permission denied)" in why_not(file.as_uri(), digest=DIGEST)


# --- what the request demands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["gs", "hf", "models", "rayservice"])
def test_what_cannot_be_read_here_is_recorded_or_refused(scheme: str) -> None:
    found = artifact.verify(asked(f"{scheme}://bucket/model", digest=DIGEST))
    assert (found.digest, found.sentence) == (None, f"not verified: {scheme}:// cannot be read here")
    with pytest.raises(errors.ArtifactRejected, match=f"has to be verified, but {scheme}:// cannot be read here"):
        artifact.verify(asked(f"{scheme}://bucket/model", digest=DIGEST, artifact={"verify": "required"}))


def test_required_needs_something_to_verify_with(file: Path) -> None:
    with pytest.raises(errors.ArtifactRejected, match=r"neither a digest nor a signature; give options\.digest"):
        artifact.verify(asked(file.as_uri(), artifact={"verify": "required"}))
    assert why_not(file.as_uri(), artifact={"verify": "off"}, digest=OTHER) == "options.artifact.verify is off"
    assert why_not(file.as_uri(), artifact={"verify": False}, digest=OTHER) == "options.artifact.verify is off", "YAML's word"
    assert why_not("s3://bucket/model") == why_not("https://127.0.0.1:9/m") == "neither a digest nor a signature is given"


def test_a_plan_says_what_a_run_would_do_and_reads_nothing(folder: Path) -> None:
    told = artifact.verify(asked(folder.as_uri(), digest=OTHER), dry=True).sentence
    assert told == f"not verified: a plan does not read it; a run reads 2 files, 7.0 kB, and compares the digest with {OTHER}, as options.digest says"
    assert artifact.verify(asked(folder.as_uri()), dry=True).sentence.endswith("and registers the digest")
    with pytest.raises(errors.ArtifactRejected):
        artifact.verify(asked((folder / "gone").as_uri(), digest=OTHER, artifact={"verify": "required"}), dry=True)


def test_how_far_it_is_is_told(file: Path) -> None:
    file.write_bytes(b"x" * 3_000_000)
    told: list[artifact.Progress] = []
    artifact.verify(asked(file.as_uri()), tell=told.append)
    assert [str(one).partition(": ")[2] for one in (told[0], told[-1])] == ["reading to verify it", "reading to verify it, 3.0 MB of 3.0 MB"]
    assert len(told) == 4
    lines, now = [], iter([0.0, 9.9, 10.0, 10.1])
    say = artifact.Lines(lines.append, every_s=10.0, now=lambda: next(now))
    for one in told:
        say(one)
    assert lines == [str(told[0]), str(told[2])]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_a_bar_and_a_log_shows_lines(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    shown, _watcher = live.view(console)
    hear = live.reading(console, shown)
    with shown:
        hear(artifact.Progress("s3://models/bge", 0, 10_000_000))
        hear(artifact.Progress("s3://models/bge", 5_000_000, 10_000_000))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("5.0 MB of 10.0 MB" in written) is ("━" in written) is terminal
    assert "artifact s3://models/bge: reading to verify it" in written


# --- https --------------------------------------------------------------------------------------------------------------------------


@dataclass
class Web:
    """A server: path -> status, headers, body; ``cut`` paths end in the middle."""

    url: str = ""
    paths: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)


@contextmanager
def serving(certificate: tuple[Path, Path] | None = None) -> Iterator[Web]:
    known = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known.seen.append(f"{self.path} as {self.headers.get('authorization', 'nobody')}")
            status, headers, body = known.paths.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if self.path in known.cut else body)

        def log_message(self, *_about: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_about: Any) -> None:
            return  # a client that does not trust it

    found = Server(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        found.socket = context.wrap_socket(found.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    known.url = f"{'https' if certificate else 'http'}://127.0.0.1:{found.server_address[1]}"
    known.paths["/model"] = (200, {}, BYTES)
    try:
        yield known
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


@pytest.fixture
def server() -> Iterator[Web]:
    with serving() as found:
        yield found


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """The same by TLS, with a certificate that only SSL_CERT_FILE knows: a company's own."""
    certificate, key = tmp_path / "ca.crt", tmp_path / "ca.key"
    tls.ensure_certificate(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with serving((certificate, key)) as found:
        yield found


def test_over_http(server: Web) -> None:
    assert artifact.verify(asked(f"{server.url}/model", digest=DIGEST)).by
    with pytest.raises(errors.ArtifactRejected):
        artifact.verify(asked(f"{server.url}/model", digest=OTHER))
    with pytest.raises(errors.NotFound, match=r"127.0.0.1:\d+ answers 404: there is no such thing"):
        artifact.verify(asked(f"{server.url}/nothing", digest=DIGEST))
    server.paths["/mine"] = (403, {}, b"")
    assert "answers 403" in why_not(f"{server.url}/mine", digest=DIGEST)
    with pytest.raises(errors.ArtifactRejected, match=r"it has to be verified, but 127\.0\.0\.1:.* answers 403"):
        artifact.verify(asked(f"{server.url}/mine", digest=DIGEST, artifact={"verify": "required"}))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_outage_is_no_verdict(server: Web, status: int) -> None:
    server.paths["/model"] = (status, {}, b"")
    with pytest.raises(errors.Unreachable, match=rf"answers {status}; the same command tries again, options.artifact.verify: off goes on without"):
        artifact.verify(asked(f"{server.url}/model", digest=DIGEST))


def test_nobody_there_and_half_an_answer_are_outages(server: Web) -> None:
    with pytest.raises(errors.Unreachable, match=r"artifact http://127\.0\.0\.1:9/model: 127\.0\.0\.1:9: no answer"):
        artifact.verify(asked("http://127.0.0.1:9/model", digest=DIGEST))
    server.cut.add("/model")
    with pytest.raises(errors.Unreachable, match="no answer"):
        artifact.verify(asked(f"{server.url}/model", digest=DIGEST))


@pytest.mark.parametrize("length", ["", str((1 << 20) + 1)])
def test_a_download_stops_at_the_limit(server: Web, length: str) -> None:
    server.paths["/big"] = (200, {"content-length": length}, b"x" * ((1 << 20) + 1))
    limit = {"max_download_mib": 1}
    assert "bigger than options.artifact.max_download_mib allows, 1 MiB" in why_not(f"{server.url}/big", digest=DIGEST, artifact=limit)
    server.paths["/fits"] = (200, {}, b"x" * (1 << 20))
    digest = "sha256:" + hashlib.sha256(b"x" * (1 << 20)).hexdigest()
    assert artifact.verify(asked(f"{server.url}/fits", digest=digest, artifact=limit)).by


def test_a_redirect_is_followed_and_another_host_is_told(server: Web) -> None:
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    server.paths["/moved"] = (302, {"location": "/model"}, b"")
    server.paths["/away"] = (307, {"location": f"{elsewhere}/model?X-Amz-Signature=hush"}, b"")
    server.paths["/model?X-Amz-Signature=hush"] = server.paths["/model"]
    server.paths["/round"] = (302, {"location": "/round"}, b"")
    assert artifact.verify(asked(f"{server.url}/moved", digest=DIGEST)).sentence.endswith("as options.digest says")
    told = artifact.verify(asked(f"{server.url}/away", digest=DIGEST)).sentence
    assert told.endswith(f"; read by way of {elsewhere.removeprefix('http://')}") and "hush" not in told
    assert "redirects more than 5 times" in why_not(f"{server.url}/round", digest=DIGEST)
    server.paths["/broken"] = (302, {"location": "https://[bad"}, b"")
    assert "redirects to what is no address" in why_not(f"{server.url}/broken", digest=DIGEST)
    server.paths["/out"] = (302, {"location": "http://models.example/model"}, b"")
    assert "http:// is not read from models.example" in why_not(f"{server.url}/out", digest=DIGEST)


def test_over_https_and_never_from_there_to_http(secure: Web, server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    assert artifact.verify(asked(f"{secure.url}/model", digest=DIGEST)).by
    secure.paths["/plain"] = (302, {"location": f"{server.url}/model"}, b"")
    assert "redirects from https:// to http://, which is not followed" in why_not(f"{secure.url}/plain", digest=DIGEST)
    assert server.seen == []
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(errors.Unreachable, match=r"127\.0\.0\.1:.*: no answer .*certificate"):
        artifact.verify(asked(f"{secure.url}/model", digest=DIGEST))


def test_credentials_go_to_the_first_host_only(server: Web) -> None:
    with serving() as other:
        server.paths["/moved"] = (302, {"location": "/away"}, b"")
        server.paths["/away"] = (302, {"location": f"{other.url}/model"}, b"")
        with web.answered(f"{server.url}/moved", {"authorization": "Bearer hush"}, Reading("it", request.ArtifactRules())) as answer:
            assert answer.read() == BYTES
        assert (server.seen, other.seen) == (["/moved as Bearer hush", "/away as Bearer hush"], ["/model as nobody"])


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("http://models.example/m", False),
        ("http://10.0.0.1/m", False),
        ("http://svc/m", False),
        ("http://minio.svc.cluster.local.evil.example/m", False),
        ("http://127.0.0.1:9000/m", True),
        ("http://[::1]/m", True),
        ("http://localhost/m", True),
        ("http://minio.storage.svc/m", True),
        ("http://minio.storage.svc.cluster.local:9000/m", True),
        ("https://models.example/m", True),
    ],
)
def test_plain_http_is_read_from_here_and_from_the_cluster_only(url: str, plain: bool) -> None:
    if plain:
        web.refuse_plain(url)
    else:
        with pytest.raises(Unreadable, match="use https://"):
            web.refuse_plain(url)


# --- signatures ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A private key's file, its public key, and somebody else's."""
    place = tmp_path_factory.mktemp("keys")
    mine, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    private = mine.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (place / "key.pem").write_bytes(private)
    public = [
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode() for key in (mine, other)
    ]
    return place / "key.pem", *public


def sign(path: Path, signature: Path, key: Path) -> None:
    from model_signing import hashing, signing

    config = signing.Config().use_elliptic_key_signer(private_key=key)
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[signature])).sign(path, signature)


def signed_digest(signature: Path) -> str:
    payload = json.loads(base64.b64decode(json.loads(signature.read_text())["dsseEnvelope"]["payload"]))
    return "sha256:" + str(payload["subject"][0]["digest"]["sha256"])


@pytest.mark.parametrize("inside", [True, False])
def test_a_folders_digest_is_the_one_in_its_signature(folder: Path, tmp_path: Path, keys: tuple[Path, str, str], inside: bool) -> None:
    signature = (folder if inside else tmp_path) / "model.sig"
    sign(folder, signature, keys[0])
    given = {"signature": {"uri": signature.as_uri(), "public_key": keys[1]}}
    found = artifact.verify(asked(folder.as_uri(), artifact=given))
    assert found.digest == signed_digest(signature)
    assert found.sentence == f"digest {found.digest}, signature of {found.by_signature} verified"
    both = artifact.verify(asked(folder.as_uri(), digest=found.digest, artifact={**given, "verify": "required"}))
    assert both.sentence == f"digest {found.digest} verified, as options.digest says, signature of {found.by_signature} verified"


def test_a_signature_holds_for_these_bytes_and_this_key_only(folder: Path, keys: tuple[Path, str, str]) -> None:
    signature = folder / "model.sig"
    sign(folder, signature, keys[0])
    uri = folder.as_uri()

    def given(key: str) -> dict[str, Any]:
        return {"signature": {"uri": signature.as_uri(), "public_key": key}}

    assert artifact.verify(asked(uri, artifact=given(keys[1]))).by_signature
    with pytest.raises(errors.ArtifactRejected, match=r"its signature file://.* does not hold"):
        artifact.verify(asked(uri, artifact=given(keys[2])))
    (folder / "a" / "weights.bin").write_bytes(BYTES[:-1] + b"X")
    with pytest.raises(errors.ArtifactRejected, match=r"does not hold: Signature mismatch: .*weights.bin"):
        artifact.verify(asked(uri, artifact=given(keys[1])))
    (folder / "a" / "weights.bin").write_bytes(BYTES)
    (folder / "extra.py").write_text("import os")
    with pytest.raises(errors.ArtifactRejected, match="Extra files found"):
        artifact.verify(asked(uri, artifact=given(keys[1])))
    (folder / "extra.py").unlink()
    (folder / "a.json").rename(folder / "b.json")
    with pytest.raises(errors.ArtifactRejected, match="does not hold"):
        artifact.verify(asked(uri, artifact=given(keys[1])))
    signature.unlink()
    with pytest.raises(errors.ArtifactRejected, match=r"it has to be verified, but its signature file://.* is not on this machine"):
        artifact.verify(asked(uri, artifact=given(keys[1])))


def test_a_signature_of_a_download_and_one_that_is_none(file: Path, tmp_path: Path, server: Web, keys: tuple[Path, str, str]) -> None:
    sign(file, tmp_path / "model.sig", keys[0])
    server.paths["/model.sig"] = (200, {}, (tmp_path / "model.sig").read_bytes())
    given = {"signature": {"uri": f"{server.url}/model.sig", "public_key": keys[1]}}
    assert artifact.verify(asked(file.as_uri(), artifact=given)).by_signature
    assert artifact.verify(asked(f"{server.url}/model", artifact=given)).digest == DIGEST, "the same bytes elsewhere"
    with pytest.raises(errors.ArtifactRejected, match="has to be verified, but gs:// cannot be read here"):
        artifact.verify(asked("gs://bucket/model", artifact=given))
    with pytest.raises(errors.ArtifactRejected, match="a signature is of files"):
        artifact.verify(asked("oci://127.0.0.1:9/model:v1", artifact=given))
    server.paths["/model.sig"] = (200, {}, b"{}")
    with pytest.raises(errors.ArtifactRejected, match="does not hold"):
        artifact.verify(asked(file.as_uri(), artifact=given))
    server.paths["/model.sig"] = (503, {}, b"")
    with pytest.raises(errors.Unreachable, match=r"its signature http://.*answers 503"):
        artifact.verify(asked(file.as_uri(), artifact=given))


def test_nothing_is_left_behind(server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[Path, str, str]) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    given = {"signature": {"uri": f"{server.url}/model", "public_key": keys[1]}}
    with pytest.raises(errors.ArtifactRejected, match="does not hold"):
        artifact.verify(asked(f"{server.url}/model", artifact=given))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("missing", "extra", "scheme"), [("model_signing", "signing", "file"), ("boto3", "s3", "s3")])
def test_a_library_that_is_not_installed_is_named(
    file: Path, tmp_path: Path, keys: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch, missing: str, extra: str, scheme: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    shutil.copy(file, tmp_path / "model.sig")
    signed = {"signature": {"uri": (tmp_path / "model.sig").as_uri(), "public_key": keys[1]}}
    uri = file.as_uri() if scheme == "file" else "s3://bucket/model"
    with pytest.raises(errors.ArtifactRejected, match=rf"is not installed here; install kfp-serving-components\[{extra}\]"):
        artifact.verify(asked(uri, digest=DIGEST, artifact=signed))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"uri": "file:///s"}, "give either public_key or identity"),
        ({"uri": "file:///s", "public_key": "secret"}, "not the PEM text"),
        ({"uri": "file:///s", "identity": "me@example.com"}, "identity and oidc_issuer belong together"),
        ({"uri": "https://me:hush@host/s", "identity": "me", "oidc_issuer": "x"}, "it carries a credential"),
    ],
)
def test_a_signature_says_whose_it_must_be(given: dict[str, str], said: str) -> None:
    with pytest.raises(errors.RequestInvalid, match=said) as caught:
        asked("file:///m", artifact={"signature": given})
    assert "hush" not in str(caught.value)
