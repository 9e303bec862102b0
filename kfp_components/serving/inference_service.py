"""The InferenceService stub: how a model appears in Kubeflow's UI although Ray Serve serves it.

KServe leaves an InferenceService with ``deploymentMode: ModelMesh`` alone (observed with 0.20 and 0.21): it creates nothing for it and keeps the
status that we write. The first status apply has to be forced, because KServe writes conditions ``Unknown`` once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp_components import names

STORAGE_SCHEMES = ("gs", "s3", "pvc", "hdfs", "webhdfs", "http", "https", "oci", "hf")
"""URI schemes that KServe's webhook accepts as ``storageUri``; others stay in an annotation."""


def is_stub(inference_service: Mapping[str, Any]) -> bool:
    """Whether it is a stub (ours or an owner's) rather than a model that KServe serves."""
    annotations = inference_service["metadata"].get("annotations") or {}
    return annotations.get(names.DEPLOYMENT_MODE) == "ModelMesh"


def manifest(model: str, namespace: str, *, version: str, uri: str, model_format: str, rayservice: str, protocol: str = "v2") -> dict[str, Any]:
    """The stub as a manifest for server-side apply; ``version`` is the stable one. KServe has a name for protocol v2, and none for json."""
    predictor: dict[str, Any] = {"modelFormat": {"name": model_format}}
    if protocol == "v2":
        predictor["protocolVersion"] = protocol
    if uri.split("://", 1)[0] in STORAGE_SCHEMES:
        predictor["storageUri"] = uri
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": model,
            "namespace": namespace,
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
            "annotations": {
                names.DEPLOYMENT_MODE: "ModelMesh",
                "kfp-serving/rayservice": rayservice,
                "kfp-serving/version": version,
                "kfp-serving/uri": uri,
            },
        },
        "spec": {"predictor": {"model": predictor}},
    }


def status(
    model: str,
    namespace: str,
    *,
    url: str,
    traffic: Mapping[str, float],
    ready: bool,
    message: str,
    now: str,
    previous: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The status to apply: URL, conditions and the live split.

    ``url`` is what clients call. ``traffic`` maps version to percent (0-100, shown as whole percent that sum to 100). ``now`` is RFC 3339;
    a condition whose status did not change keeps its ``lastTransitionTime`` from ``previous`` (the object as it stands).
    """
    old = {c["type"]: c for c in ((previous or {}).get("status") or {}).get("conditions", [])}
    state = "True" if ready else "False"

    def condition(kind: str) -> dict[str, Any]:
        before = old.get(kind, {})
        since = before.get("lastTransitionTime") if before.get("status") == state else None
        entry = {"type": kind, "status": state, "lastTransitionTime": since or now, "message": message}
        return entry if ready else {**entry, "reason": "NotReady"}

    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": model, "namespace": namespace},
        "status": {
            "url": url,
            "address": {"url": url},
            "deploymentMode": "ModelMesh",
            "components": {"predictor": {"url": url, "traffic": shares(traffic)}},
            "conditions": [condition("PredictorReady"), condition("Ready")],
        },
    }


def shares(traffic: Mapping[str, float]) -> list[dict[str, Any]]:
    """Knative-style traffic targets with whole percent that sum to 100: the largest share takes the rounding."""
    if not traffic:
        return []
    whole = {version: int(percent) for version, percent in traffic.items()}
    largest = max(whole, key=lambda version: traffic[version])
    whole[largest] += 100 - sum(whole.values())
    return [{"tag": version, "revisionName": version, "percent": percent} for version, percent in whole.items()]
