"""The InferenceService stub: how a model appears in Kubeflow's UI although Ray Serve serves it.

KServe leaves an InferenceService with ``deploymentMode: ModelMesh`` alone (observed with 0.20 and 0.21): it creates nothing for it and keeps the
status that we write. The first status apply has to be forced, because KServe writes conditions ``Unknown`` once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp_components import names
from kfp_components.request import PromoteRequest
from kfp_components.serving import ownership

STORAGE_SCHEMES = ("gs", "s3", "pvc", "hdfs", "webhdfs", "http", "https", "oci", "hf")
"""URI schemes that KServe's webhook accepts as ``storageUri``; others stay in an annotation."""


def is_stub(inference_service: Mapping[str, Any]) -> bool:
    """Whether it is a stub (ours or an owner's) rather than a model that KServe serves."""
    annotations = inference_service["metadata"].get("annotations") or {}
    return annotations.get(names.DEPLOYMENT_MODE) == "ModelMesh"


def manifest(
    model: str,
    namespace: str,
    *,
    version: str,
    uri: str,
    model_format: str,
    rayservice: str,
    protocol: str = "v2",
    found: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The stub as a manifest for server-side apply; ``version`` is the stable one. KServe has a name for protocol v2, and none for json.

    Of one that is ``found`` it has what this library made of it, our annotations, and a URI that would be wrong: the rest stays its owner's.
    """
    predictor: dict[str, Any] = {"modelFormat": {"name": model_format}}
    if protocol == "v2":
        predictor["protocolVersion"] = protocol
    if uri.split("://", 1)[0] in STORAGE_SCHEMES:
        predictor["storageUri"] = uri
    annotations = {
        names.DEPLOYMENT_MODE: "ModelMesh",
        "kfp-serving/rayservice": rayservice,
        names.STUB_VERSION: version,
        names.STUB_URI: uri,
    }
    whole: dict[str, Any] = {
        "metadata": {"labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY}, "annotations": annotations},
        "spec": {"predictor": {"model": predictor}},
    }
    if found is not None:
        whole = _needed(whole, found)
    metadata = {"name": model, "namespace": namespace, **whole["metadata"]}
    return {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", **whole, "metadata": metadata}


def wanted(asked: PromoteRequest, version: str, found: Mapping[str, Any] | None) -> dict[str, Any]:
    """The stub as it should be when ``version`` serves; ``found`` is the one that is there.

    Where an older version is from is what that one says; else only that the RayService serves it is known.
    """
    annotations = (found["metadata"].get("annotations") or {}) if found else {}
    unknown = f"{names.SERVED}{asked.namespace}/{asked.rayservice}"
    return manifest(
        asked.model,
        asked.namespace,
        version=version,
        uri=asked.uri if version == asked.version else annotations.get(names.STUB_URI, unknown),
        model_format=asked.options.model_format,
        rayservice=asked.rayservice,
        protocol=asked.options.protocol,
        found=found,
    )


def _needed(whole: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``whole`` what was ours before, each annotation that is missing or wrong, and a storageUri that is there and wrong."""
    kept = ownership.owned(whole, found)
    metadata, predictor = kept.setdefault("metadata", {}), whole["spec"]["predictor"]["model"]
    there = found["metadata"].get("annotations") or {}
    missing = {key: value for key, value in whole["metadata"]["annotations"].items() if there.get(key) != value}
    if missing:
        metadata["annotations"] = {**metadata.get("annotations", {}), **missing}
    if not metadata.get("labels"):
        metadata.pop("labels", None)
    ours = ((kept.get("spec") or {}).get("predictor") or {}).get("model") or {}
    shown = ((found.get("spec") or {}).get("predictor") or {}).get("model") or {}
    wrong = "storageUri" in shown and predictor.get("storageUri", shown["storageUri"]) != shown["storageUri"]
    model = {
        key: value for key, value in predictor.items() if key in ours or (ours and key not in shown) or (key == "storageUri" and wrong)
    }  # one of ours may get a protocol or a URI that it had not
    kept.pop("spec", None)
    return kept | ({"spec": {"predictor": {"model": model}}} if model else {})


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
