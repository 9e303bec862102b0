"""One embedded cluster (real Ray, embedded Kubernetes API) for all end-to-end tests of a session; a model of its own for each test."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from kfp_components import names, rollout
from kfp_components.cluster import KINDS, Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.demo import RAY_CLUSTER
from kfp_components.local.environment import DEFAULT_NAMESPACE, Embedded
from kfp_components.local.load import Users
from kfp_components.request import PromoteRequest, parse

NAMESPACE = DEFAULT_NAMESPACE
RAYSERVICE = "shared"
TINY = "tests.e2e.apps:build"


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
    def start(model: str, rate_per_s: float = 60.0, seconds: float = 240.0) -> Iterator[Users]:
        endpoint = cluster.endpoint(names.alias(model), NAMESPACE, names.SERVE_PORT)
        report = tmp_path / f"users-{model}.json"
        with Users(endpoint, names.public_route(model), report, rate_per_s=rate_per_s, seconds=seconds) as sending:
            time.sleep(1)
            yield sending

    return start


def tiny(model: str, version: str, *, args: dict[str, Any] | None = None, **options: Any) -> PromoteRequest:
    """A request for the tiny application: latency is not judged, so a canary takes a few seconds."""
    defaults = {
        "args": args or {},
        "judge": {"judge_latency": False, "error_margin_percent": 5.0, "tick_s": 0.3, "max_minutes": 2.0},
        "grace_s": 1.0,
        "lease_s": 8.0,
        "ready_timeout_s": 90.0,
    }
    return parse(
        {
            "model": model,
            "version": version,
            "uri": f"s3://models/{model}/{version}",
            "namespace": NAMESPACE,
            "rayservice": RAYSERVICE,
            "import_path": TINY,
            "steps": [20, 50],
            "options": {**defaults, **options},
        }
    )


def first(cluster: KubernetesCluster, request: PromoteRequest) -> None:
    rollout.deploy_model(rollout.open_run(request, cluster))


def write(request: PromoteRequest, path: Path) -> Path:
    path.write_text(yaml.safe_dump(json.loads(request.model_dump_json())))
    return path


def snapshot(cluster: KubernetesCluster) -> dict[str, Any]:
    """Everything in the namespace that a release could leave behind, without what changes by itself (times, versions, Events, the record)."""
    found = {}
    for kind in ("ConfigMap", "Service", "Lease", "EndpointSlice", "RayService", "InferenceService"):
        assert kind in KINDS
        for item in cluster.list(kind, NAMESPACE):
            metadata = item["metadata"]
            if kind == "ConfigMap" and metadata["name"].endswith("-release"):
                continue
            kept = {name: metadata.get(name) for name in ("labels", "annotations", "ownerReferences", "finalizers")}
            status = item.get("status") or {}
            traffic = ((status.get("components") or {}).get("predictor") or {}).get("traffic")
            found[f"{kind} {metadata['name']}"] = {"metadata": kept, "spec": item.get("spec"), "traffic": traffic, "url": status.get("url")}
    return found


def record_of(cluster: KubernetesCluster, model: str) -> dict[str, Any]:
    found = cluster.get(Ref("ConfigMap", names.release(model), NAMESPACE))
    assert found is not None
    record: dict[str, Any] = json.loads(found["data"]["release.json"])
    return record
