"""The alias: an ExternalName Service ``{model}-predictor`` that clients call, onto the Service in front of Ray Serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp_components import errors, names
from kfp_components.serving import inference_service, ownership

LABEL = "Service label"
"""In a release's record: it put the label on a Service that was there."""


def manifest(model: str, namespace: str, target: str, found: Mapping[str, Any] | None = None, *, name: str | None = None) -> dict[str, Any]:
    """The alias as a manifest for server-side apply. ``target`` is the DNS name that it points to, ``name`` its own; default {model}-predictor.

    Of one that is ``found`` it has what this library made of it, and the label by which KServe's users know it where that is missing: target and port
    that somebody else wrote stay his, whatever he calls the port.
    """
    called = found["metadata"]["name"] if found is not None else name or names.alias(model)
    ports = [{"name": "http", "port": names.SERVE_PORT, "protocol": "TCP"}]
    whole: dict[str, Any] = {
        "metadata": {"labels": {names.ISVC_LABEL: model, names.MANAGED_BY_LABEL: names.MANAGED_BY}},
        "spec": {"type": "ExternalName", "externalName": target, "ports": ports},
    }
    if found is not None:
        whole = ownership.owned(whole, found)
        labels = (whole.get("metadata") or {}).get("labels") or {}
        if is_unlabelled(model, found):
            labels = {names.ISVC_LABEL: model, **labels}
        whole["metadata"] = {"labels": labels} if labels else {}
    return {"apiVersion": "v1", "kind": "Service", **whole, "metadata": {"name": called, "namespace": namespace, **whole["metadata"]}}


def is_unlabelled(model: str, service: Mapping[str, Any] | None) -> bool:
    """Whether there is one and the label by which KServe's users know it is missing."""
    return service is not None and (service["metadata"].get("labels") or {}).get(names.ISVC_LABEL) != model


def without_label(model: str, namespace: str, target: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """What takes the label off again that was put on somebody's Service."""
    wanted = manifest(model, namespace, target, found)
    labels = wanted["metadata"].pop("labels", {})
    labels.pop(names.ISVC_LABEL, None)
    if labels:  # an empty mapping would make us the owner of all that may come into it
        wanted["metadata"]["labels"] = labels
    return wanted


def assert_free(model: str, namespace: str, service: Mapping[str, Any] | None, stub: Mapping[str, Any] | None, target: str) -> None:
    """Refuse to take a name that somebody else holds. Raises `NameTaken`; nothing has been written then.

    A Service that somebody made by hand is taken as the alias when it is one onto ``target``.
    """
    if stub is not None and not inference_service.is_stub(stub):
        raise errors.NameTaken(
            f"InferenceService {namespace}/{model}: KServe serves it itself (no {names.DEPLOYMENT_MODE}: ModelMesh annotation) and would overwrite "
            f"Service {names.alias(model)}; delete it or choose another model name"
        )
    if service is None:
        return
    where = f"Service {namespace}/{service['metadata'].get('name', names.alias(model))}"
    if service.get("spec", {}).get("type") != "ExternalName":
        raise errors.NameTaken(
            f"{where}: it is a {service.get('spec', {}).get('type')} Service, not an alias (ExternalName); leave it if clients use it, and name "
            "another Service in options.alias (`adopt --alias`)"
        )
    found = str(service["spec"].get("externalName"))
    if _host(found) != _host(target):
        raise errors.NameTaken(f"{where}: it points to {found}, not to {target}; name that RayService, or another Service in options.alias")
    label = (service["metadata"].get("labels") or {}).get(names.ISVC_LABEL)
    if label not in (None, model):
        raise errors.NameTaken(
            f"{where}: its label {names.ISVC_LABEL} says {label}, so it is that model's; take the label off or choose another model name"
        )


def _host(name: str) -> str:
    """A DNS name as resolvers in a cluster take it: without the dot at the end, and whole where it ends with ``.svc``."""
    name = name.removesuffix(".").lower()
    return f"{name}.cluster.local" if name.endswith(".svc") else name
