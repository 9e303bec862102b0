"""The only writer: applies a `Plan`, and changes ``serveConfigV2`` by compare-and-swap."""

from __future__ import annotations

from collections.abc import Callable, Collection

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from kfp_components import errors, names
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.plan import Change, Plan
from kfp_components.serving import rayservice

CAS_ATTEMPTS = 12


def apply(cluster: Cluster, plan: Plan) -> list[Manifest | None]:
    """Write every change in order and return what the API answered (None after a delete).

    Stops at the first error; what was written before it stays, and the plan computed again holds only the rest.
    """
    return [_write(cluster, change) for change in plan]


def change_serve_config(cluster: Cluster, namespace: str, name: str, surgery: Callable[[str], str], *, changed: Collection[str]) -> Manifest:
    """Read ``serveConfigV2``, change it by ``surgery``, prove the other applications unchanged, write with the resourceVersion read.

    Lost races and an API that is away are retried (12 times, up to 2 s apart).
    Returns the RayService as written, or as read when there was nothing to change.
    Raises `NotFound`, `ManagedElsewhere`, or `Conflict` when every attempt lost; nothing is half-written in any case.
    """
    ref = Ref("RayService", name, namespace)
    retrying = Retrying(
        retry=retry_if_exception_type((errors.Conflict, errors.Unreachable)),
        stop=stop_after_attempt(CAS_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.05, max=2.0),
        reraise=True,
    )
    for attempt in retrying:
        with attempt:
            found = cluster.get(ref)
            if found is None:
                raise errors.NotFound(f"{ref}: it does not exist; deploy the model first")
            before = str(found["spec"].get("serveConfigV2") or "")
            after = surgery(before)
            if after == before:
                return found
            refuse_gitops(found)
            rayservice.assert_others_unchanged(before, after, changed)
            body = {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}, "spec": {"serveConfigV2": after}}
            manifest = {"apiVersion": found["apiVersion"], "kind": "RayService", **body}
            manifest["metadata"] = {"name": name, "namespace": namespace, **body["metadata"]}
            return cluster.apply(manifest, manager=names.MANAGER, force=True)
    raise AssertionError("unreachable")  # Retrying re-raises


def refuse_gitops(manifest: Manifest) -> None:
    """Raise `ManagedElsewhere` for an object that Flux, Argo CD or Helm writes; it would be written back behind our back."""
    metadata = manifest["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    marks = {
        "Flux": [key for key in labels if key.startswith(("kustomize.toolkit.fluxcd.io/", "helm.toolkit.fluxcd.io/"))],
        "Argo CD": [key for key in (*labels, *annotations) if key.startswith("argocd.argoproj.io/")],
    }
    for tool, found in marks.items():
        if found:
            raise errors.ManagedElsewhere(
                f"{Ref.of(manifest)}: it is managed by {tool} ({found[0]}), which would write it back; commit the change to its repository instead"
            )


def _write(cluster: Cluster, change: Change) -> Manifest | None:
    ref = Ref.of(change.manifest)
    if change.verb == "create":
        return cluster.create(change.manifest)
    if change.verb == "delete":
        cluster.delete(ref)
        return None
    if change.verb == "patch":
        return cluster.patch(ref, change.manifest, manager=change.manager)
    return cluster.apply(change.manifest, manager=change.manager, force=change.force, subresource="status" if change.verb == "status" else None)
