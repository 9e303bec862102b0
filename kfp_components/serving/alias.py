"""The alias: an ExternalName Service ``{model}-predictor`` that clients call, onto the Service in front of Ray Serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp_components import errors, names
from kfp_components.serving import inference_service


def manifest(model: str, namespace: str, target: str, name: str | None = None) -> dict[str, Any]:
    """The alias as a manifest for server-side apply. ``target`` is the DNS name that it points to, ``name`` its own; default {model}-predictor."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name or names.alias(model),
            "namespace": namespace,
            "labels": {names.ISVC_LABEL: model, names.MANAGED_BY_LABEL: names.MANAGED_BY},
        },
        "spec": {
            "type": "ExternalName",
            "externalName": target,
            "ports": [{"name": "http", "port": names.SERVE_PORT, "protocol": "TCP"}],
        },
    }


def assert_free(model: str, namespace: str, service: Mapping[str, Any] | None, stub: Mapping[str, Any] | None, target: str) -> None:
    """Refuse to take a name that somebody else holds. Raises `NameTaken`; nothing has been written then."""
    if stub is not None and not inference_service.is_stub(stub):
        raise errors.NameTaken(
            f"InferenceService {namespace}/{model}: KServe serves it itself (no {names.DEPLOYMENT_MODE}: ModelMesh annotation) and would overwrite "
            f"Service {names.alias(model)}; delete it or choose another model name"
        )
    if service is None:
        return
    where = f"Service {namespace}/{names.alias(model)}"
    if service.get("spec", {}).get("type") != "ExternalName":
        raise errors.NameTaken(
            f"{where}: it is a {service.get('spec', {}).get('type')} Service of somebody else; delete it or choose another model name"
        )
    labels = service["metadata"].get("labels") or {}
    if labels.get(names.ISVC_LABEL) != model:
        raise errors.NameTaken(f"{where}: it has no label {names.ISVC_LABEL}: {model}, so it is somebody else's; label it to hand it over")
    found = service["spec"].get("externalName")
    if found != target:
        raise errors.NameTaken(f"{where}: it points to {found}, not to {target}; delete it or name that RayService")
