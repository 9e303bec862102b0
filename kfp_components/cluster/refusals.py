"""What a Kubernetes API's refusal means to the caller: its `Status` becomes one of this library's errors, in the server's own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp_components import errors


def unknown_kind(code: int, status: Mapping[str, Any]) -> bool:
    """A 404 for the resource type (its CRD is not installed) rather than for the object: no Status, or client-go's sentence in it."""
    return code == 404 and (status.get("kind") != "Status" or "could not find the requested resource" in str(status.get("message", "")))


def error_of(code: int, status: Mapping[str, Any], what: str, server: str, reason: str = "") -> errors.KfpServingError:
    """The error for an answer that is not a success; ``reason`` is said when the answer has no message."""
    message = str(status.get("message") or reason)
    if code == 401:
        return errors.PermissionDenied(
            f"{what}: the Kubernetes API at {server} does not know this identity (401 {message}); log in or renew the token"
        )
    if code == 403:
        return errors.PermissionDenied(f"{what}: {message}; bind the Role of deploy/rbac.yaml to this identity")
    if unknown_kind(code, status):
        return errors.NotFound(f"{what}: this cluster does not know the kind; install its CRDs (KubeRay, KServe, Gateway API) first")
    if code == 404:
        return errors.NotFound(f"{what}: {message}")
    if code == 409:
        return errors.Conflict(f"{what}: {message}")
    if code in (400, 415, 422) or "failed to create typed patch object" in message:
        return errors.RequestInvalid(f"{what}: the Kubernetes API refused it: {message}")
    return errors.Unreachable(f"{what}: the Kubernetes API answered {code}: {message}; try again")
