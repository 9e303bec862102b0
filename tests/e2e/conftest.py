"""One embedded cluster (real Ray, embedded Kubernetes API) for all end-to-end tests of a session; models of its own for each test."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import failure_logs
import pytest
import real_cluster
from patience import until
from world import NAMESPACE, RAYSERVICE, Clients, clean, rayservice

from kfp_components import errors, names
from kfp_components.cluster import Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.environment import Embedded

CLIENTS = 8
"""Users that wait at once: too few to overload a slow machine, or to make a slow version look as if it hung."""


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    embedded = Embedded(tmp_path_factory.mktemp("home"), kubeconfig=real_cluster.kubeconfig())

    def logs() -> Iterator[Path]:
        yield from (embedded.home / "logs").glob("*.log")
        if (state := embedded.home / "state.json").exists():
            folder = json.loads(state.read_text()).get("facts", {}).get("ray_folder")
            for pattern in ("serve/*.log", "worker-*.err", "raylet.out"):
                yield from Path(folder or "/nonexistent").glob(f"session_latest/logs/{pattern}")

    failure_logs.SOURCES.append(logs)
    try:
        with pytest.MonkeyPatch.context() as environment, embedded.used():
            environment.setenv("PIP_NO_INDEX", "1")  # of Ray's pip and of ours; a test puts wheels there
            environment.setenv("PIP_FIND_LINKS", str(tmp_path_factory.mktemp("wheels")))
            yield embedded
    finally:
        failure_logs.SOURCES.remove(logs)
        embedded.down(print)


@pytest.fixture
def cluster(embedded: Embedded) -> KubernetesCluster:
    """A client of the embedded cluster, which is started anew when a test before this one brought it down."""
    return running(embedded)


@pytest.fixture(scope="module")
def cluster_of_module(embedded: Embedded) -> KubernetesCluster:
    return running(embedded)


def running(embedded: Embedded) -> KubernetesCluster:
    if not embedded.running():
        try:
            embedded.up(print)
        except errors.NameTaken as taken:  # a KubeRay operator runs on that cluster
            pytest.skip(str(taken))
        cluster = embedded.cluster()
        cluster.apply(rayservice(), manager="owner")
        ref = Ref("RayService", RAYSERVICE, NAMESPACE)  # its Services are there when it runs: no test sees them come
        until(lambda: ((cluster.get(ref) or {}).get("status") or {}).get("serviceStatus") == "Running", f"{ref} to run")
    return embedded.cluster()


@pytest.fixture
def forget(embedded: Embedded, cluster: KubernetesCluster) -> Iterator[None]:
    """A test that uses this owns every model that there is, and leaves nothing running."""
    yield
    clean(embedded)


@pytest.fixture
def users(cluster: KubernetesCluster, tmp_path: Path) -> Callable[..., object]:
    """``with users(model) as sending``: requests to the model until the block ends, at most `CLIENTS` of them waiting; the first are answered already."""

    @contextmanager
    def start(model: str, rate_per_s: float = 40.0) -> Iterator[Clients]:
        endpoint = cluster.endpoint(names.alias(model), NAMESPACE, names.SERVE_PORT)
        report = tmp_path / f"users-{model}.json"
        with Clients(endpoint, names.public_route(model), report, rate_per_s=rate_per_s, clients=CLIENTS) as sending:
            logs = lambda: [sending.log]  # noqa: E731
            failure_logs.SOURCES.append(logs)
            try:
                sending.wait_for_answers(5)
                yield sending
            finally:
                failure_logs.SOURCES.remove(logs)

    return start
