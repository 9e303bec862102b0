"""The Kubernetes API that the contract tests talk to: an address and a token.

By default the embedded server, started once on a free port. Set KUBE_API_URL, KUBE_API_TOKEN and KUBE_API_CA (a file) to run the same
tests against a real kube-apiserver with the CRDs of KubeRay, KServe and Gateway API; KUBE_API_READER_TOKEN, if given, belongs to
an account that may only get, list and watch in namespaces named ``contract-*``; the tests that need it are skipped without.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from kube_space import KubeApi, Space

from kfp_components.local.apiserver.access import ADMIN, Account, Rule
from kfp_components.local.apiserver.server import ApiServer, certificate_path, write_kubeconfig

READER = Account("reader", (Rule(("get", "list", "watch"), ("*",)), Rule(("*",), ("configmaps",), namespaces=("contract-reader",))))


@pytest.fixture(scope="session")
def kube_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeApi]:
    place = tmp_path_factory.mktemp("kube-api")
    if url := os.environ.get("KUBE_API_URL"):
        token, ca_file = os.environ["KUBE_API_TOKEN"], os.environ["KUBE_API_CA"]
        write_kubeconfig(place / "kubeconfig", url, token, "default", Path(ca_file).read_text())
        yield KubeApi(url, token, ca_file, os.environ.get("KUBE_API_READER_TOKEN"), place / "kubeconfig", False)
        return
    server = ApiServer(place / "state.db", {"admin-token": ADMIN, "reader-token": READER})
    server.start()
    write_kubeconfig(place / "kubeconfig", server.url, "admin-token", "default", server.ca)
    yield KubeApi(server.url, "admin-token", str(certificate_path(place / "state.db")), "reader-token", place / "kubeconfig", True)
    server.stop()


@pytest.fixture(scope="session")
def http(kube_api: KubeApi) -> Iterator[httpx.Client]:
    with kube_api.client() as client:
        yield client


@pytest.fixture
def space(http: httpx.Client) -> Iterator[Space]:
    name = f"contract-{uuid.uuid4().hex[:8]}"
    made = http.post("/api/v1/namespaces", json={"metadata": {"name": name}})
    assert made.status_code == 201, made.text
    yield Space(http, name)
    http.delete(f"/api/v1/namespaces/{name}")
