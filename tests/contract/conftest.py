"""The Kubernetes API that the contract tests talk to, and who we are there.

By default the embedded server, started once on a free port. KUBE_API=kubeconfig takes the cluster of KUBECONFIG's current context (``real_cluster.py``):
it needs the CRDs of KubeRay, KServe and Gateway API, and rights to make namespaces; everything is done in namespaces named ``contract-*``.
"""

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
import real_cluster
from kube_space import READER, KubeApi, Space, api_of, reader_token
from patience import until

from kfp_components.kube_api.access import ADMIN
from kfp_components.local.apiserver.server import ApiServer, certificate_path, write_kubeconfig

if TYPE_CHECKING:
    from registry_servers import Servers

GROUPS = {"ray.io", "serving.kserve.io", "gateway.networking.k8s.io"}
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if reason := real_cluster.why_not():
        for item in items:
            if "contract" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if reason := real_cluster.why_not():
        terminalreporter.section("SKIPPED", "!", red=True)
        terminalreporter.write_line(f"{len(terminalreporter.stats.get('skipped', []))} tests, all of them: {reason}", red=True)


@pytest.fixture(scope="session")
def kube_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeApi]:
    if kubeconfig := real_cluster.kubeconfig():
        yield api_of(kubeconfig)
        return
    place = tmp_path_factory.mktemp("kube-api")
    server = ApiServer(place / "state.db", {"admin-token": ADMIN, "reader-token": READER})
    server.start()
    write_kubeconfig(place / "kubeconfig", server.url, "admin-token", "default", server.ca)
    yield KubeApi(server.url, str(certificate_path(place / "state.db")), place / "kubeconfig", True, "admin-token")
    server.stop()


@pytest.fixture(scope="session")
def http(kube_api: KubeApi) -> Iterator[httpx.Client]:
    with kube_api.client() as client:
        missing = GROUPS - {group["name"] for group in client.get("/apis").json()["groups"]}
        if missing:
            pytest.exit(
                f"{kube_api.url}: the API groups {', '.join(sorted(missing))} are not there; install their CRDs first",
                returncode=pytest.ExitCode.USAGE_ERROR,
            )
        yield client


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Servers"]:
    """Model registries, each started when a test first asks for it."""
    from registry_servers import Servers  # seconds, and few tests need it

    found = Servers(tmp_path_factory.mktemp("registries"))
    with found.stack:
        yield found


@pytest.fixture
def space(http: httpx.Client) -> Iterator[Space]:
    name = f"contract-{uuid.uuid4().hex[:8]}"
    made = http.post("/api/v1/namespaces", json={"metadata": {"name": name}})
    assert made.status_code == 201, made.text
    yield Space(http, name)
    http.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def reader(kube_api: KubeApi, space: Space) -> Iterator[httpx.Client]:
    """Somebody who may read the namespace and nothing else: on a real cluster a service account bound to ClusterRole ``view``."""
    with kube_api.client(reader_token(kube_api, space)) as client:
        until(lambda: client.get(space.path("services")).status_code == 200, "the reader to have its rights")
        yield client


@pytest.fixture
def kserve_rules(kube_api: KubeApi, http: httpx.Client) -> None:
    """KServe's admission webhooks: their rules are built into the embedded API; a real cluster has them when KServe runs there."""
    if not kube_api.embedded and "inferenceservice" not in http.get(WEBHOOKS).text:
        pytest.skip("KServe's admission webhooks are not installed on this cluster")


@pytest.fixture
def embedded_only(kube_api: KubeApi) -> None:
    if not kube_api.embedded:
        pytest.skip("about the embedded API server itself, not about a cluster: `make test` runs it")
