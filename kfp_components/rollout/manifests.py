"""The manifests of a release: alias, stub and its live split, a RayService from a template."""

from __future__ import annotations

from kfp_components import names
from kfp_components.apply import apply
from kfp_components.cluster import Manifest, Ref
from kfp_components.plan import Change, Plan, only
from kfp_components.rollout import journal
from kfp_components.rollout.run import Run
from kfp_components.serving import alias, inference_service


def alias_plan(run: Run) -> Plan:
    """The alias as it should be. Raises `NameTaken` when the name is somebody else's."""
    request = run.request
    wanted = alias.manifest(request.model, request.namespace, request.target_host)
    found = run.cluster.get(Ref.of(wanted))
    stub = run.cluster.get(stub_ref(run))
    alias.assert_free(request.model, request.namespace, found, stub, request.target_host)
    return Plan((Change("apply", wanted, "the name that clients call", names.MANAGER, before=found),))


def stub_plan(run: Run, version: str) -> Plan:
    """The stub as it should be when ``version`` serves."""
    request = run.request
    found = run.cluster.get(stub_ref(run))
    annotations = (found["metadata"].get("annotations") or {}) if found else {}
    uri = request.uri if version == request.version else annotations.get("kfp-serving/uri", request.uri)
    wanted = inference_service.manifest(
        request.model, request.namespace, version=version, uri=uri, model_format=request.options.model_format, rayservice=request.rayservice
    )
    return Plan((Change("apply", wanted, "shows the model in Kubeflow's UI", names.MANAGER, before=found),))


def stub_fields(run: Run) -> Manifest | None:
    """What the stub holds now of the fields that `stub_plan` writes; None when there is no stub."""
    found = run.cluster.get(stub_ref(run))
    if found is None:
        return None
    (change,) = stub_plan(run, run.request.version)
    model = {"storageUri": "", **change.manifest["spec"]["predictor"]["model"]}  # one that is not written any more goes
    fields: Manifest = only(found, {**change.manifest, "spec": {"predictor": {"model": model}}})
    return fields


def show_traffic(run: Run, shares: dict[str, float], message: str, *, ready: bool = True) -> None:
    """The stub's status: URL, conditions, live split. Forced, because KServe writes conditions Unknown once."""
    request = run.request
    found = run.cluster.get(stub_ref(run))
    now = journal.timestamp(run)
    wanted = inference_service.status(request.model, request.namespace, traffic=shares, ready=ready, message=message, now=now, previous=found)
    apply(run.cluster, Plan((Change("status", wanted, message, names.MANAGER, force=True, before=found),)))


def show_if_there(run: Run, shares: dict[str, float], message: str) -> None:
    """As `show_traffic`; nothing where there is no stub."""
    if run.cluster.get(stub_ref(run)) is not None:
        show_traffic(run, shares, message)


def new_rayservice(run: Run, serve_config: str) -> Manifest:
    """From the request's template."""
    request = run.request
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": request.rayservice, "namespace": request.namespace, "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY}},
        "spec": {"serveConfigV2": serve_config, "rayClusterConfig": request.options.rayservice_template or {}},
    }


def stub_ref(run: Run) -> Ref:
    """The InferenceService of the model."""
    return Ref("InferenceService", run.request.model, run.request.namespace)
