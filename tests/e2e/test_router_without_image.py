"""Releases whose router comes by pip, as a zip over HTTP or from a file, and from the image: it says itself of which version it is.

The Ray of the releases runs in a virtual environment that has the library, as an image of another version would: what comes by ``runtime_env`` is of a
version of its own. Which modules those are is not seen there: the working directory of that Ray, the checkout, comes before all of them. One more Ray
runs elsewhere, without the library.
"""

import functools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from patience import seconds, until
from world import NAMESPACE, RAYSERVICE, first, tiny

from kfp_components import names, rollout
from kfp_components.cluster import Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.ray_process import RayProcess
from kfp_components.release import Release
from kfp_components.serving import rayservice, router_package
from kfp_components.traffic import Split, ray_router, router_source

ROOT = Path(__file__).resolve().parents[2]
HERE = names.requirement().partition("==")[2]
FROM_THE_WHEEL, FROM_THE_ZIP = "9.9.9", "8.8.8"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a router package of one version."""
    folder = tmp_path_factory.mktemp("router")
    (folder / "router.zip").write_bytes(router_package.build(FROM_THE_ZIP))
    return folder


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """Of that folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.05))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def wheel(folder: Path, to: Path) -> None:
    """Of the library as it is here, under another version."""
    source = folder / "source"
    shutil.copytree(ROOT / "kfp_components", source / "kfp_components", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    (source / "VERSION").write_text(f"{FROM_THE_WHEEL}\n")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(to)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True, timeout=seconds(120))


@pytest.fixture
def allow(cluster: KubernetesCluster, forget: None) -> Iterator[Callable[[str], None]]:
    """``allow(said)``: what the RayService's owner says, until the test ends."""

    def annotate(said: str | None) -> None:
        cluster.patch(Ref("RayService", RAYSERVICE, NAMESPACE), {"metadata": {"annotations": {names.ROUTER_FROM: said}}}, manager="owner")

    yield annotate
    annotate(None)


def with_users(cluster: KubernetesCluster, model: str, users: Any) -> tuple[Release, set[str]]:
    """A release to its end, and the versions that its router said that it is of while users' requests went through it."""
    first(cluster, tiny(model, "v1"))
    versions = set[str]()

    def watch(record: Release) -> None:
        if record.phase == "canary" and record.weight_percent:
            versions.add(run.router.ledger()["router_version"])

    run = rollout.open_run(tiny(model, "v2", ready_timeout_s=seconds(300)), cluster, watch=watch)
    with users(model) as sending:
        record = rollout.promote_with_canary(run)
        sending.wait_for_answers(5)
    assert sending.tally.failed == {}, sending.tally.as_dict()
    return record, versions


def assert_told(record: Release, words: str) -> None:
    assert record.phase == "promoted"
    (event,) = [event for event in record.events if event.step == "router"]
    assert words in event.message


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_zip(scheme: str, allow: Callable[[str], None], cluster: KubernetesCluster, folder: Path, url: str, users: Any) -> None:
    uri = f"{url}/router.zip" if scheme == "http" else f"file://{folder}/router.zip"
    allow(uri)
    record, versions = with_users(cluster, f"zip-{scheme}", users)
    assert versions == {FROM_THE_ZIP} and record.router_env == {"py_modules": [uri]}
    assert_told(record, f"the router comes from {uri} (py_modules)")


def test_the_image(allow: Callable[[str], None], cluster: KubernetesCluster, users: Any) -> None:
    allow("image")
    record, versions = with_users(cluster, "image", users)
    assert versions == {HERE} and record.router_env == {}
    assert_told(record, "the router comes from the Ray image")


def test_pip(allow: Callable[[str], None], cluster: KubernetesCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: Any) -> None:
    """Ray makes a virtual environment with it, by the pip that is configured for Ray; the one here is configured the same."""
    wheel(tmp_path, Path(os.environ["PIP_FIND_LINKS"]))
    monkeypatch.setattr(names, "requirement", lambda: f"{names.DISTRIBUTION}=={FROM_THE_WHEEL}")
    allow("image, pip")
    record, versions = with_users(cluster, "by-pip", users)
    assert versions == {FROM_THE_WHEEL} and record.router_env["pip"]["packages"] == [f"{names.DISTRIBUTION}=={FROM_THE_WHEEL}"]
    assert_told(record, "the router comes by pip")


def test_a_ray_without_the_library_has_the_router_from_the_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """A package that says that it is not there stands before the library of this environment; the zip's comes before both."""
    (tmp_path / "without" / "kfp_components").mkdir(parents=True)
    (tmp_path / "without" / "kfp_components" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'kfp_components'\")\n")
    monkeypatch.chdir(tmp_path)
    split = Split(stable="v1", candidate=None, weight_percent=0.0)
    router = {
        "name": "m-router",
        "route_prefix": "/m",
        "import_path": names.ROUTER_IMPORT_PATH,
        "args": {"model": "m"},
        "deployments": [{"name": names.ROUTER_DEPLOYMENT, "user_config": ray_router.to_user_config("m", split)}],
    }
    ray = RayProcess(python_path=str(tmp_path / "without"), log=tmp_path / "ray.log")
    ray.start()
    try:
        with ray.serve() as serve:

            def put(runtime_env: dict[str, Any], wanted: str) -> str:
                serve.put_applications({"applications": [{**router, "runtime_env": runtime_env}]})
                until(lambda: serve.get_status()["applications"]["m-router"]["status"] == wanted, f"the router to be {wanted}", idle_s=120)
                return str(serve.get_status()["applications"]["m-router"]["message"])

            assert rayservice.ROUTER_MISSING.search(put({}, "DEPLOY_FAILED"))
            put(router_source.runtime_env(f"{url}/router.zip"), "RUNNING")
            answer = httpx.get(f"http://127.0.0.1:{ray.serve_port}/m/-/router", trust_env=False)
            assert answer.json()["router_version"] == FROM_THE_ZIP
    finally:
        ray.stop()
