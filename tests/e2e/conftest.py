"""One embedded cluster (real Ray, embedded Kubernetes API) for all end-to-end tests of a session; a model of its own for each test."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from world import NAMESPACE, RAYSERVICE

from kfp_components import names
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.demo import RAY_CLUSTER
from kfp_components.local.environment import Embedded
from kfp_components.local.load import Users


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e" in str(item.path):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    cluster = Embedded(tmp_path_factory.mktemp("home"))
    cluster.up(print)
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": RAYSERVICE, "namespace": NAMESPACE, "annotations": {names.ALLOWED_IMPORTS: "tests.e2e.*"}},
        "spec": {"serveConfigV2": "# ours\napplications: []\n", "rayClusterConfig": RAY_CLUSTER},
    }
    with cluster.used():
        cluster.cluster().apply(manifest, manager="owner")
        yield cluster
    cluster.down(print)


@pytest.fixture
def cluster(embedded: Embedded) -> KubernetesCluster:
    return embedded.cluster()


@pytest.fixture
def users(embedded: Embedded, cluster: KubernetesCluster, tmp_path: Path) -> Callable[..., Any]:
    @contextmanager
    def start(model: str, rate_per_s: float = 40.0, seconds: float = 300.0) -> Iterator[Users]:
        endpoint = cluster.endpoint(names.alias(model), NAMESPACE, names.SERVE_PORT)
        report = tmp_path / f"users-{model}.json"
        with Users(endpoint, names.public_route(model), report, rate_per_s=rate_per_s, seconds=seconds) as sending:
            time.sleep(1)
            yield sending

    return start
