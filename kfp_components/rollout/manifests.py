"""The changes of a release beside those of the router: alias, stub and its live split, RayService, removals. All but `show` only compute."""

from __future__ import annotations

from collections.abc import Collection

from kfp_components import names
from kfp_components.cluster import Manifest, Ref
from kfp_components.cluster.changes import Apply, Edit, only, write
from kfp_components.rollout import journal
from kfp_components.rollout.run import Run
from kfp_components.serving import alias, inference_service, ownership, rayservice


def alias_change(run: Run, found: Manifest | None) -> Apply:
    """The alias as it should be; ``found`` is the one that is there."""
    request = run.request
    wanted = alias.manifest(request.model, request.namespace, request.target_host, found, name=run.address.alias)
    return Apply(wanted, "the name that clients call", force=_yielded(found))


def stub_change(run: Run, version: str, found: Manifest | None) -> Apply:
    """The stub as it should be when ``version`` serves; ``found`` is the one that is there."""
    return Apply(inference_service.wanted(run.request, version, found), "shows the model in Kubeflow's UI", force=_yielded(found))


def _yielded(found: Manifest | None) -> bool:
    return found is not None and ownership.of(found).mode == "yielded"


def stub_fields(run: Run) -> Manifest | None:
    """What the stub holds now of the fields that `stub_change` writes; None when there is no stub."""
    found = run.cluster.get(stub_ref(run))
    if found is None:
        return None
    manifest = stub_change(run, run.request.version, found).manifest
    if "spec" in manifest:  # of what is not written any more, too: it goes
        manifest["spec"]["predictor"]["model"] = {"storageUri": "", "protocolVersion": "", **manifest["spec"]["predictor"]["model"]}
    fields: Manifest = only(found, manifest)
    return fields


def traffic_change(run: Run, shares: dict[str, float], message: str, found: Manifest | None, *, ready: bool = True) -> Apply:
    """The stub's status: URL, conditions, live split. Forced, because KServe writes conditions Unknown once."""
    request, now = run.request, journal.timestamp(run)
    url = run.address.url(request.namespace)
    wanted = inference_service.status(
        request.model, request.namespace, url=url, traffic=shares, ready=ready, message=message, now=now, previous=found
    )
    return Apply(wanted, message, status=True, force=True)


def canary_message(weight_percent: float, candidate: str) -> str:
    """What the stub says while a candidate has a share of the requests."""
    return f"canary: {weight_percent:g} % of the requests go to {candidate}"


def all_message(version: str) -> str:
    """What the stub says otherwise."""
    return f"version {version} serves all requests"


def show(run: Run, shares: dict[str, float], message: str, *, ready: bool = True) -> None:
    """Write the split on the stub; nothing where there is none."""
    found = run.cluster.get(stub_ref(run))
    if found is not None:
        write(run.cluster, traffic_change(run, shares, message, found, ready=ready))


def new_rayservice(run: Run, release: str) -> Apply:
    """From the request's template, marked as the creation of a release (its identity).

    It is owned by a manager of its own, so that later writes of ``serveConfigV2`` alone do not remove the rest.
    """
    request = run.request
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": request.rayservice,
            "namespace": request.namespace,
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
            "annotations": {names.CREATED_BY_RELEASE: release},
        },
        "spec": {"serveConfigV2": "applications: []\n", "rayClusterConfig": request.options.rayservice_template or {}},
    }
    return Apply(manifest, "from options.rayservice_template", manager=names.TEMPLATE_MANAGER)


def removal_change(run: Run, gone: Collection[str], *, created_by: str | None = None) -> Edit:
    """Without the applications ``gone``; ``created_by``: see `Edit`."""

    def without(text: str) -> str:
        for application in sorted(gone):
            text = rayservice.without_application(text, application)
        return text

    return Edit(run.rayservice, without, frozenset(gone), f"application {', '.join(sorted(gone))} goes", created_by)


def alias_ref(run: Run) -> Ref:
    """The Service that clients call."""
    return Ref("Service", run.address.alias, run.request.namespace)


def stub_ref(run: Run) -> Ref:
    """The InferenceService of the model."""
    return Ref("InferenceService", run.request.model, run.request.namespace)
