"""Where the router comes from: what the owner allows, the choice, and what is seen of each source. Real pip, real HTTP on loopback."""

import functools
import hashlib
import io
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kfp_components import cli, errors, names
from kfp_components.clock import ManualClock
from kfp_components.local.apiserver.tls import ensure_certificate
from kfp_components.router import policy
from kfp_components.serving import rayservice, router_package
from kfp_components.traffic import ray_router, router_source
from kfp_components.traffic.router_source import Look

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy")
ROOT = Path(__file__).resolve().parents[2]
WHERE = "RayService ai-ml/ai-inference"
ZIP = "https://files.example/kfp-serving-router-0.1.0.zip"
MODEL = {"name": "bge-v1", "import_path": "acme.bge:build", "route_prefix": "/bge"}
OURS = {**MODEL, "import_path": "kfp_components.models.embedding:build"}


def service(
    *applications: dict[str, Any], router_from: str | None = None, ray: str | None = "2.60.0", status: str = "RUNNING", message: str = ""
) -> dict[str, Any]:
    annotations = {} if router_from is None else {names.ROUTER_FROM: router_from}
    statuses = {application["name"]: {"status": status, "message": message} for application in applications}
    return {
        "metadata": {"name": "ai-inference", "namespace": "ai-ml", "annotations": annotations},
        "spec": {"serveConfigV2": json.dumps({"applications": list(applications)}), "rayClusterConfig": {"rayVersion": ray} if ray else {}},
        "status": {"activeServiceStatus": {"applicationStatuses": statuses}},
    }


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this is on loopback."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


# --- what the owner allows ---


@pytest.mark.parametrize(
    ("annotations", "sources"),
    [
        ({}, ("image",)),
        ({names.ALLOW_RUNTIME_ENV: "true"}, ("pip", "image")),
        ({names.ALLOW_RUNTIME_ENV: "yes"}, ("image",)),
        ({names.ROUTER_FROM: "image"}, ("image",)),
        ({names.ROUTER_FROM: "image", names.ALLOW_RUNTIME_ENV: "true"}, ("image",)),
        ({names.ROUTER_FROM: f"image,{ZIP} pip"}, ("pip", ZIP, "image")),
        ({names.ROUTER_FROM: f" s3://b/r.zip, {ZIP}\nfile:///opt/r.zip,{ZIP} "}, ("s3://b/r.zip", ZIP, "file:///opt/r.zip")),
        ({names.ROUTER_FROM: "http://10.0.0.7:9000/r.zip"}, ("http://10.0.0.7:9000/r.zip",)),
        ({names.ROUTER_FROM: "http://[::1]:8080/r.zip"}, ("http://[::1]:8080/r.zip",)),
    ],
)
def test_what_is_allowed_in_the_order_in_which_it_is_tried(annotations: dict[str, str], sources: tuple[str, ...]) -> None:
    assert router_source.allowed(WHERE, annotations) == sources


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("wheel", "'wheel' is not a source"),
        ("PIP", "'PIP' is not a source"),
        ("gs://b/r.zip", "'gs://b/r.zip' is not a source"),
        ("/opt/r.zip", "is not a source"),
        ("file://r.zip", "three slashes"),
        ("file://opt/r.zip", "three slashes"),
        ("file:/opt/r.zip", "three slashes"),
        ("FILE:///opt/r.zip", "not in small letters: write file://"),
        ("HTTPS://files.example/r.zip", "not in small letters: write https://"),
        ("https:///r.zip", "has no host"),
        ("http://[::1/r.zip", "'http://[::1/r.zip' is not a URI (Invalid IPv6 URL)"),
        ("http://[zz]/r.zip", "is not a URI"),
        ("http://files.example:abc/r.zip", "is not a URI"),
        ("http://files.example:99999/r.zip", "is not a URI"),
        ("s3://b/.zip", "has no name before .zip"),
        (ZIP + "?", "does not end with .zip"),
        (ZIP + "#/r.zip", "does not end with .zip"),
        ("https://me:hush@[zz/r.zip", "carries a credential"),
        ("https://files.example/r.whl", "does not end with .zip"),
        (ZIP + "?v=1", "does not end with .zip"),
        ("pip, https://me:hush@files.example/r.zip", "'https://files.example/...' carries a credential"),
        (ZIP + "?X-Amz-Signature=hush", "carries a credential"),
    ],
)
def test_a_wrong_entry_is_refused_and_named(said: str, words: str) -> None:
    with pytest.raises(errors.RequestInvalid) as caught:
        router_source.allowed(WHERE, {names.ROUTER_FROM: said})
    told = str(caught.value)
    assert told.startswith(f"{WHERE}: annotation kfp-serving/router-from: ") and words in told and "write `pip`, `image`, or the URI of a zip" in told
    assert "hush" not in told


@pytest.mark.parametrize("said", ["", ",", " , ,\n"])
def test_an_annotation_that_says_nothing_is_refused(said: str) -> None:
    with pytest.raises(
        errors.RequestInvalid, match="router-from is there and says nothing: take it off, or write `pip`, `image`, or the URI of a zip"
    ):
        router_source.allowed(WHERE, {names.ROUTER_FROM: said})


# --- the choice ---


def looks(**there: bool | None) -> Callable[[str], Look]:
    return lambda source: Look(there[source[:4].strip(":")], f"about {source}")


def test_the_first_source_that_is_there_is_taken_and_those_before_are_told() -> None:
    sources = ("pip", ZIP, "image")
    found = router_source.choose(WHERE, sources, looks(pip=True))
    assert found.told == "the router comes about pip"
    pip = found.runtime_env["pip"]
    assert pip["packages"] == [names.requirement()] and "--no-deps" in pip["pip_install_options"] and pip["pip_check"] is False
    found = router_source.choose(WHERE, sources, looks(pip=False, http=True))
    assert found.runtime_env == {"py_modules": [ZIP]} and found.told == f"the router comes about {ZIP}; not about pip"
    found = router_source.choose(WHERE, sources, looks(pip=False, http=False, imag=True))
    assert found.runtime_env == {} and found.told == f"the router comes about image; not about pip; not about {ZIP}"


def test_where_nothing_is_there_each_source_is_named_and_what_to_do() -> None:
    with pytest.raises(errors.RequestInvalid) as caught:
        router_source.choose(WHERE, ("pip", ZIP), looks(pip=False, http=False))
    told = str(caught.value)
    assert f"annotation kfp-serving/router-from allows: about pip; about {ZIP}. " in told
    assert all(way in told for way in ("`pip`", "`kfp-serving router-package`", "`image`", names.requirement())) and told.startswith(WHERE)


def test_a_source_that_cannot_tell_is_not_passed_over() -> None:
    for sources in (("pip", ZIP), (ZIP, "image")):
        with pytest.raises(errors.Unreachable, match=rf"^{WHERE}: annotation {names.ROUTER_FROM}: .*from {ZIP} cannot be told now: about {ZIP}; run"):
            router_source.choose(WHERE, sources, looks(pip=False, http=None, imag=True))
    assert router_source.choose(WHERE, ("pip", ZIP), looks(pip=True, http=None)).told == "the router comes about pip"


def test_ray_takes_what_is_written() -> None:
    """By Ray's own validation: an unknown field would be DEPLOY_FAILED."""
    code = "import json, sys; from ray.runtime_env import RuntimeEnv; print(json.dumps(RuntimeEnv(**json.load(sys.stdin)).to_dict()))"
    for source in ("pip", ZIP):
        wanted = router_source.runtime_env(source)
        done = subprocess.run([sys.executable, "-c", code], input=json.dumps(wanted), capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        assert found["pip" if source == "pip" else "py_modules"] == next(iter(wanted.values()))


# --- pip ---


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip is configured to find packages in, and nowhere else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "none.conf"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()
    return tmp_path / "links"


def put_wheel(folder: Path, version: str) -> None:
    """As small as pip takes it; what it requires is nowhere."""
    info = f"kfp_serving_components-{version}.dist-info"
    with zipfile.ZipFile(folder / f"kfp_serving_components-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {names.DISTRIBUTION}\nVersion: {version}\nRequires-Dist: no-such-thing-at-all\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_pip_is_asked_whether_its_index_has_this_version(index: Path) -> None:
    put_wheel(index, "0.0.1")
    with pytest.raises(errors.RequestInvalid, match=rf"by pip: pip here has no {names.requirement()} \(No matching distribution found"):
        router_source.find(service(MODEL, router_from="pip"), 2)
    put_wheel(index, names.requirement().partition("==")[2])
    found = router_source.find(service(MODEL, router_from="pip"), 2)
    assert found.runtime_env["pip"]["packages"] == [names.requirement()] and "by pip: kfp-serving-components==" in found.told
    for ray, said in ((None, r"\(not set\)"), ("nightly", "'nightly'"), ("v2.60.0", r"'v2\.60\.0'")):
        with pytest.raises(errors.RequestInvalid, match=rf"by pip: spec\.rayClusterConfig\.rayVersion {said} does not say which Ray it is"):
            router_source.find(service(MODEL, router_from="pip", ray=ray), 2)


@pytest.mark.parametrize(("ray", "takes"), [("2.48.0", False), ("1.13.0", False), ("2.49.0", True), ("2.60.0", True), ("3.0.0.dev0", True)])
def test_a_ray_that_knows_no_pip_options_gets_the_next_source(index: Path, ray: str, takes: bool) -> None:
    put_wheel(index, names.requirement().partition("==")[2])
    found = router_source.find(service(MODEL, router_from="pip image", ray=ray), 2)
    assert ("pip" in found.runtime_env) is takes
    assert takes or f"not by pip: Ray {ray} knows no pip_install_options" in found.told


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'No module named pip' >&2; exit 1", "by pip: pip here failed (exit code 1: No module named pip)"),
        ("echo 'option timeout: invalid value'; exit 3", "by pip: pip here failed (exit code 3: option timeout: invalid value)"),
        ("exit 7", "by pip: pip here failed (exit code 7: it said nothing)"),
        (None, "by pip: pip cannot be asked here"),
    ],
)
def test_a_pip_that_cannot_work_is_the_next_ones_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, words: str) -> None:
    put_python(tmp_path, monkeypatch, script)
    assert f"; not {words}" in router_source.find(service(MODEL, router_from="pip,image"), 2).told


def test_a_pip_that_refuses_its_own_settings_says_which(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_wheel(index, names.requirement().partition("==")[2])
    monkeypatch.setenv("PIP_TIMEOUT", "soon")
    assert "pip here failed (exit code 3: " in (told := router_source.find(service(MODEL, router_from="pip,image"), 2).told) and "'soon'" in told
    monkeypatch.delenv("PIP_TIMEOUT")
    index.with_name("none.conf").write_text("[[[\nx")
    assert "Configuration file could not be loaded" in router_source.find(service(MODEL, router_from="pip,image"), 2).told


def test_a_pip_that_is_too_slow_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_python(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(router_source, "PIP_TIMEOUT_S", 0.2)
    with pytest.raises(errors.Unreachable, match=r"from pip cannot be told now: by pip: pip here did not say within 0\.2 s"):
        router_source.find(service(MODEL, router_from="pip,image"), 2)


def put_python(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    """In place of the interpreter that pip is asked by; None: it is not there."""
    if script is not None:
        (folder / "python").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))


@pytest.mark.parametrize(("status", "told"), [(0, "Connection refused"), (503, "503"), (502, "502 Server Error"), (429, "429 Client"), (404, None)])
def test_an_index_that_does_not_answer_cannot_tell(
    index: Path, serve: Callable[[dict[str, tuple[int, bytes]]], str], monkeypatch: pytest.MonkeyPatch, status: int, told: str | None
) -> None:
    url = serve({f"/simple/{names.DISTRIBUTION}/": (status, b"")}) if status else "http://127.0.0.1:9"
    for name, value in {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": f"{url}/simple", "PIP_FIND_LINKS": str(index), "PIP_QUIET": "3"}.items():
        monkeypatch.setenv(name, value)
    if told is None:
        assert "No matching distribution found" in router_source.find(service(MODEL, router_from="pip,image"), 2).told
        return
    with pytest.raises(errors.Unreachable, match=rf"from pip cannot be told now: by pip: pip here has no answer from its index \(.*{told}"):
        router_source.find(service(MODEL, router_from="pip,image"), 2)


# --- a zip ---


@pytest.fixture
def serve() -> Iterator[Callable[[dict[str, tuple[int, bytes]]], str]]:
    """``serve(pages)``: the URL of a server that has them."""
    servers = []

    class Pages(BaseHTTPRequestHandler):
        pages: dict[str, tuple[int, bytes]]

        def do_GET(self) -> None:
            status, body = self.pages.get(self.path, (404, b"nothing"))
            self.send_response(status)
            if status == 302:
                self.send_header("location", body.decode())
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: Any) -> None:
            pass

    def start(pages: dict[str, tuple[int, bytes]]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Some", (Pages,), {"pages": pages}))
        thread = threading.Thread(target=functools.partial(server.serve_forever, 0.05))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def saying(text: str) -> bytes:
    """A router package that says this of itself."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(router_package.build())) as good, zipfile.ZipFile(written, "w") as changed:
        for name in good.namelist():
            changed.writestr(name, text if name == router_package.ABOUT else good.read(name))
    return written.getvalue()


def other(**about: Any) -> bytes:
    """A router package that says something else of itself."""
    return saying(json.dumps(about))


def plain_zip() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as package:
        package.writestr("acme/__init__.py", "")
    return written.getvalue()


def test_a_zip_is_fetched_and_looked_into(serve: Callable[[dict[str, tuple[int, bytes]]], str]) -> None:
    url = serve({"/r.zip": (200, router_package.build("7.8.9")), "/moved.zip": (302, b"/r.zip")})
    for page in ("r.zip", "moved.zip"):
        found = router_source.find(service(MODEL, router_from=f"{url}/{page}"), policy.PROTOCOL)
        assert found.runtime_env == {"py_modules": [f"{url}/{page}"]}
        assert found.told == f"the router comes from {url}/{page} (py_modules): version 7.8.9, protocol {policy.PROTOCOL}"


def test_a_zip_may_lie_behind_a_proxy(serve: Callable[[dict[str, tuple[int, bytes]]], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", serve({"http://files.example/r.zip": (200, router_package.build())}))
    found = router_source.find(service(MODEL, router_from="http://files.example/r.zip"), 2)
    assert found.runtime_env == {"py_modules": ["http://files.example/r.zip"]}


def test_a_zips_server_may_be_certified_by_a_ca_of_the_companys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_certificate(tmp_path / "ca.crt", tmp_path / "ca.key")

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(router_package.build())

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.crt", tmp_path / "ca.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=functools.partial(server.serve_forever, 0.05), daemon=True).start()
    url = f"https://127.0.0.1:{server.server_port}/r.zip"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
    assert router_source.find(service(MODEL, router_from=url), 2).runtime_env == {"py_modules": [url]}
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.crt"))
    with pytest.raises(errors.RequestInvalid, match=r"cannot be fetched here \(FileNotFoundError"):
        router_source.find(service(MODEL, router_from=url), 2)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (404, b"", "answered 404"),
        (200, b"<html>", "not a zip"),
        (200, plain_zip(), "not what `kfp-serving router-package` writes"),
        (200, other(version="9"), "does not say version and protocol"),
        (200, other(version="9", protocol=1), "of version 9, speaks protocol 1, and this library speaks 2"),
        (200, b"x" * (router_source.MAX_ZIP_BYTES + 1), "longer than 5 MB"),
        (302, b"ftp://127.0.0.1/r.zip", "cannot be fetched (UnsupportedProtocol"),
    ],
)
def test_a_wrong_zip_is_the_next_ones_turn_or_refused(
    serve: Callable[[dict[str, tuple[int, bytes]]], str], status: int, content: bytes, words: str
) -> None:
    good = serve({"/good.zip": (200, router_package.build())}) + "/good.zip"
    url = serve({"/r.zip": (status, content)}) + "/r.zip"
    with pytest.raises(errors.RequestInvalid) as caught:
        router_source.find(service(MODEL, router_from=url), 2)
    assert f"from {url}: " in str(caught.value) and words in str(caught.value)
    found = router_source.find(service(MODEL, router_from=f"{url}, {good}"), 2)
    assert found.runtime_env == {"py_modules": [good]} and f"; not from {url}: " in found.told and words in found.told


@pytest.mark.parametrize(("status", "words"), [(503, "answered 503"), (429, "answered 429"), (0, "no answer (ConnectError")])
def test_a_server_that_is_not_there_for_a_moment_is_asked_again_and_not_passed_over(
    serve: Callable[[dict[str, tuple[int, bytes]]], str], status: int, words: str
) -> None:
    pages = {"/r.zip": (status, b"")}
    url, clock = (serve(pages) if status else "http://127.0.0.1:9") + "/r.zip", ManualClock()
    with pytest.raises(errors.Unreachable) as caught:
        router_source.find(service(MODEL, router_from=f"{url}, image"), 2, clock)
    assert str(caught.value).startswith(f"{WHERE}: annotation kfp-serving/router-from: ") and f"from {url}: {words}" in str(caught.value)
    assert caught.value.exit_code == 3 and clock.monotonic() == 2.0

    class Mended(ManualClock):
        def sleep(self, s: float) -> None:
            super().sleep(s)
            pages["/r.zip"] = (200, router_package.build())

    if status:
        assert router_source.find(service(MODEL, router_from=f"{url}, image"), 2, Mended()).runtime_env == {"py_modules": [url]}


def test_what_cannot_be_looked_into_is_taken_as_said() -> None:
    for uri in ("s3://bucket/r.zip", "file:///opt/r.zip"):
        found = router_source.find(service(MODEL, router_from=uri), 2)
        assert found.runtime_env == {"py_modules": [uri]} and "nobody can look into from here: the RayService's owner says" in found.told


# --- the image ---


@pytest.mark.parametrize(
    ("application", "status", "known"),
    [
        (OURS, "RUNNING", True),
        ({**OURS, "runtime_env": {"env_vars": {"A": "1"}}}, "RUNNING", True),
        ({**OURS, "runtime_env": {"pip": ["x"]}}, "RUNNING", False),
        ({**OURS, "runtime_env": {"py_modules": [ZIP]}}, "RUNNING", False),
        (OURS, "DEPLOY_FAILED", False),
        (MODEL, "RUNNING", False),
    ],
)
def test_the_image_is_known_by_what_runs_from_it(application: dict[str, Any], status: str, known: bool) -> None:
    found = router_source.find(service(application, status=status), 2)
    assert found.runtime_env == {}
    if known:
        assert found.told == "the router comes from the Ray image: application bge-v1 runs from it with this library"
    else:
        assert f"nobody can look into from here: it has to hold {names.requirement()}" in found.told and "`pip` or the URI of a zip" in found.told


# --- a router that does not come up ---

NO_MODULE = """Deploying app 'bge-router' failed with exception:
Traceback (most recent call last):
  File "/ray/python/ray/serve/_private/application_state.py", line 1, in build_serve_application
ModuleNotFoundError: No module named 'kfp_components'
"""
ROUTER = {"name": "bge-router", "import_path": names.ROUTER_IMPORT_PATH, "route_prefix": "/.versions/bge/router"}


@pytest.mark.parametrize(
    "message", [NO_MODULE, "Runtime env setup for app 'bge-router' failed: pip", NO_MODULE.replace("'kfp_components'", "'kfp_components.router'")]
)
def test_a_router_that_is_not_there_is_told_with_the_three_ways(message: str) -> None:
    told = rayservice.diagnosis(service(ROUTER, status="DEPLOY_FAILED", message=message), "bge-router")
    assert "the router could not be had so" in told and all(
        way in told for way in ("`pip`", "`kfp-serving router-package`", "`image`", names.ROUTER_FROM)
    )


def test_another_application_or_another_fault_is_told_as_before() -> None:
    for application, message in ((OURS, NO_MODULE), (ROUTER, "ValueError: router args: model is missing")):
        told = rayservice.diagnosis(service(application, status="DEPLOY_FAILED", message=message), application["name"])
        assert told.endswith("mend the application and run again") and names.ROUTER_FROM not in told


# --- the zip itself ---


def test_the_zip_holds_what_the_router_needs_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(router_package.build())) as package:
        inside = package.namelist()
        assert all(entry.date_time == router_package.WRITTEN_AT and entry.compress_type == zipfile.ZIP_STORED for entry in package.infolist())
        for name in inside:
            if name.startswith("kfp_components/"):
                assert package.read(name) == (ROOT / name).read_bytes()
    assert inside == sorted(inside)
    modules = {f"kfp_components/router/{path.name}" for path in (ROOT / "kfp_components/router").glob("*.py")}
    info = f"kfp_serving_components-{names.requirement().partition('==')[2]}.dist-info/METADATA"
    assert set(inside) == {*modules, "kfp_components/__init__.py", router_package.ABOUT, info}
    assert len({name.partition("/")[0] for name in inside}) > 1, "Ray would take a single top-level folder away"


def test_the_zip_is_the_same_bytes_wherever_it_is_made(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "kfp_components", tmp_path / "kfp_components", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import hashlib, kfp_components; from kfp_components.serving import router_package as p; print(p.__file__, hashlib.sha256(p.build()).hexdigest())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, check=True)
    where, digest = done.stdout.split()
    assert where.startswith(str(tmp_path)) and digest == hashlib.sha256(router_package.build()).hexdigest()


def test_unpacked_before_an_older_package_the_router_is_the_zips(tmp_path: Path) -> None:
    """As in a Ray worker, whose PYTHONPATH has py_modules in front of what the image has."""
    zipfile.ZipFile(io.BytesIO(router_package.build("7.8.9"))).extractall(tmp_path / "zip")
    old = tmp_path / "image" / "kfp_components"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("raise ImportError('the older one')")
    code = "from kfp_components.router import app; print(app.__file__, app.package_version())"
    path = {"PYTHONPATH": f"{tmp_path / 'zip'}:{tmp_path / 'image'}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=path, check=True)
    assert done.stdout.split() == [str(tmp_path / "zip/kfp_components/router/app.py"), "7.8.9"]


UNPACK = """
import asyncio, sys
from ray._private.runtime_env.packaging import download_and_unpack_package
print(asyncio.run(download_and_unpack_package(sys.argv[1], sys.argv[2])))
"""


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_ray_unpacks_it_so_that_the_router_can_be_imported(scheme: str, tmp_path: Path, serve: Callable[[dict[str, tuple[int, bytes]]], str]) -> None:
    """By what Ray's agent calls for an entry of ``py_modules``; it takes the top level away from a zip with a single folder there."""
    content, unpacked = router_package.build("7.8.9"), tmp_path / "unpacked"
    (tmp_path / "r.zip").write_bytes(content)
    unpacked.mkdir()
    uri = f"file://{tmp_path}/r.zip" if scheme == "file" else serve({"/r.zip": (200, content)}) + "/r.zip"
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run([sys.executable, "-c", UNPACK, uri, str(unpacked)], capture_output=True, text=True, env=environment, check=True)
    where = Path(done.stdout.split()[-1])
    with zipfile.ZipFile(io.BytesIO(content)) as package:
        assert {path.relative_to(where).as_posix() for path in where.rglob("*") if path.is_file()} == set(package.namelist())


def flagged(where: int, value: int) -> bytes:
    """A router package with two bytes of each entry's header, local and central, set to something else."""
    content = bytearray(router_package.build())
    for mark, offset in ((b"PK\x03\x04", where), (b"PK\x01\x02", where + 2)):
        at = content.find(mark)
        while at >= 0:
            content[at + offset : at + offset + 2] = value.to_bytes(2, "little")
            at = content.find(mark, at + 4)
    return bytes(content)


def with_name(name: str) -> bytes:
    written = io.BytesIO(router_package.build())
    with zipfile.ZipFile(written, "a") as package:
        package.writestr(name, "x")
    return written.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a zip that can be read"),
        (router_package.build()[:-100], "not a zip that can be read"),
        (flagged(6, 1), "is encrypted"),
        (flagged(8, 99), "compression method is not supported"),
        (flagged(8, 8), "not a zip that can be read (error: "),
        (flagged(8, 12), "not a zip that can be read (OSError"),
        (with_name("ray/__init__.py"), "it holds 'ray/__init__.py'"),
        (with_name("numpy.py"), "it holds 'numpy.py'"),
        (with_name("kfp_components/../../evil.py"), "it holds 'kfp_components/../../evil.py'"),
        (with_name("acme-1.dist-info/METADATA"), "it holds 'acme-1.dist-info/METADATA'"),
        (with_name("kfp_serving_components-9.dist-info/METADATA"), "it holds several dist-info folders"),
        (with_name("kfp_components/" + "x" * 200), None),
        *(
            (saying(text), f"{router_package.ABOUT} in it does not say version and protocol")
            for text in (
                '{"version": "1", "protocol": Infinity}',
                '{"version": "1", "protocol": 2.0}',
                '{"version": "1", "protocol": true}',
                '{"version": "1", "protocol": "2"}',
                '{"version": "1", "protocol": ' + "9" * 5000 + "}",
                '{"version": 1, "protocol": 2}',
                '{"version": "", "protocol": 2}',
                '{"version": "1\\nusers: all", "protocol": 2}',
                json.dumps({"version": "1" * 65, "protocol": 2}),
                "[" * 9999,
                "[]",
                "null",
            )
        ),
    ],
)
def test_whatever_is_wrong_with_a_zip_is_one_sentence(content: bytes, words: str | None) -> None:
    if words is None:
        assert router_package.read(content).protocol == policy.PROTOCOL
        return
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        router_package.read(content)
    assert type(caught.value) is ValueError and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_library_and_zip_speak_the_same_protocol() -> None:
    assert router_package.read(router_package.build()).protocol == policy.PROTOCOL == ray_router.PROTOCOL


def test_the_command_writes_it_and_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kfp-serving", "router-package", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    code, out, _ = run("--json")
    told, digest = json.loads(out), hashlib.sha256(router_package.build()).hexdigest()
    assert code == 0 and told["sha256"] == digest and told["file"] == f"kfp-serving-router-{told['version']}-{digest[:12]}.zip"
    assert (tmp_path / told["file"]).read_bytes() == router_package.build()
    code, out, _ = run("-o", "mine.zip")
    assert code == 0 and digest in out and "kubectl annotate rayservice RAYSERVICE -n NAMESPACE --overwrite kfp-serving/router-from='https://" in out
    for annotation in told["annotations"]:
        key, _, value = annotation.partition("=")
        assert key == names.ROUTER_FROM and router_source.allowed(WHERE, {key: value.strip("'")})
    for name in ("my router.zip", "router's.zip", 'a"b.zip', "a,b.zip", "a\nb.zip"):
        code, _, err = run("-o", name)
        assert code == 2 and "as in router-1.zip" in err and not (tmp_path / name).exists()
    (tmp_path / "a folder").mkdir()
    assert run("-o", "a folder/mine.zip")[0] == 0
    assert run("-o", "mine.whl")[0] == run("-o", "no/such/folder/mine.zip")[0] == 2
