"""The only writer: applies a `Plan`, and changes ``serveConfigV2`` (or removes the RayService) by compare-and-swap."""

from __future__ import annotations

from collections.abc import Callable, Collection

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from kfp_components import errors, names
from kfp_components.clock import Clock, SystemClock
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.plan import Change, Plan
from kfp_components.serving import rayservice

CAS_ATTEMPTS = 12
SYSTEM_CLOCK = SystemClock()


def apply(cluster: Cluster, plan: Plan) -> list[Manifest | None]:
    """Write every change in order and return what the API answered (None after a delete).

    Stops at the first error; what was written before it stays, and the plan computed again holds only the rest.
    """
    return [_write(cluster, change) for change in plan]


def change_serve_config(
    cluster: Cluster,
    namespace: str,
    name: str,
    surgery: Callable[[str], str],
    *,
    changed: Collection[str],
    clock: Clock = SYSTEM_CLOCK,
    way_back: bool = False,
) -> Manifest:
    """Read ``serveConfigV2``, change it by ``surgery``, prove the other applications unchanged, write with the resourceVersion read.

    Lost races and an API that is away are retried (12 times, up to 2 s apart). On the ``way_back`` it is written whoever manages the object: users
    come first.
    Returns the RayService as written, or as read when there was nothing to change.
    Raises `NotFound`, `ManagedElsewhere`, or `Conflict` when every attempt lost; nothing is half-written in any case.
    """
    ref = Ref("RayService", name, namespace)
    for attempt in _until_written(clock):
        with attempt:
            found = cluster.get(ref)
            if found is None:
                raise errors.NotFound(f"{ref}: it does not exist; deploy the model first")
            return _swap(cluster, found, surgery, changed, way_back)
    raise AssertionError("unreachable")  # Retrying re-raises


def remove_applications(
    cluster: Cluster,
    namespace: str,
    name: str,
    gone: Collection[str],
    *,
    created_by: str,
    also: Callable[[str], str] = lambda text: text,
    changed: Collection[str] = (),
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Take applications out of ``serveConfigV2``; remove the whole RayService when this release created it and nothing else is left on it.

    ``created_by`` names the release (annotation `names.CREATED_BY_RELEASE`), ``also`` is more surgery for the same write, on the applications
    ``changed``. A RayService that is gone already is no fault. Retries and raises as `change_serve_config` on the way back; `Conflict` too when other
    applications kept coming.
    """
    ref = Ref("RayService", name, namespace)

    def without(text: str) -> str:
        for application in sorted(gone):
            text = rayservice.without_application(text, application)
        return also(text)

    for attempt in _until_written(clock):
        with attempt:
            found = cluster.get(ref)
            if found is None:
                return
            metadata = found["metadata"]
            others = set(rayservice.applications(rayservice.serve_config(found))) - set(gone)
            if others or (metadata.get("annotations") or {}).get(names.CREATED_BY_RELEASE) != created_by:
                _swap(cluster, found, without, {*gone, *changed}, way_back=True)
            else:
                cluster.delete(ref, uid=metadata["uid"], resource_version=metadata["resourceVersion"])


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


def _swap(cluster: Cluster, found: Manifest, surgery: Callable[[str], str], changed: Collection[str], way_back: bool) -> Manifest:
    """Write the RayService that was read with ``serveConfigV2`` changed; `Conflict` when somebody wrote it meanwhile."""
    before = rayservice.serve_config(found)
    after = surgery(before)
    if after == before:
        return found
    if not way_back:
        refuse_gitops(found)
    rayservice.assert_others_unchanged(before, after, changed)
    metadata = {key: found["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
    manifest = {"apiVersion": found["apiVersion"], "kind": "RayService", "metadata": metadata, "spec": {"serveConfigV2": after}}
    return cluster.apply(manifest, manager=names.MANAGER, force=True)


def _until_written(clock: Clock) -> Retrying:
    return Retrying(
        sleep=clock.sleep,
        retry=retry_if_exception_type((errors.Conflict, errors.Unreachable)),
        stop=stop_after_attempt(CAS_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.05, max=2.0),
        reraise=True,
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
