"""What the end-to-end tests share: requests for the tiny application, and looks at what a release left."""

import json
from pathlib import Path
from typing import Any

import yaml

from kfp_components import names, rollout
from kfp_components.cluster import KINDS, Ref
from kfp_components.cluster.kubernetes import KubernetesCluster
from kfp_components.local.environment import DEFAULT_NAMESPACE
from kfp_components.request import PromoteRequest, parse

NAMESPACE = DEFAULT_NAMESPACE
RAYSERVICE = "shared"
TINY = "tests.e2e.apps:build"


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


def clean(cluster: KubernetesCluster) -> None:
    """Forget every model: idle replicas of finished tests would take the processors from the next ones."""
    cluster.patch(Ref("RayService", RAYSERVICE, NAMESPACE), {"spec": {"serveConfigV2": "# ours\napplications: []\n"}}, manager="owner")
    for kind in ("ConfigMap", "InferenceService", "Lease"):
        for item in cluster.list(kind, NAMESPACE, labels=f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"):
            cluster.delete(Ref(kind, item["metadata"]["name"], NAMESPACE))
    for item in cluster.list("Service", NAMESPACE, labels=names.ISVC_LABEL):
        cluster.delete(Ref("Service", item["metadata"]["name"], NAMESPACE))
