"""Who applies ``serveConfigV2``: by managedFields first, by labels and annotations where those say nothing."""

from typing import Any

import pytest

from kfp_components import errors, names
from kfp_components.cluster import Ref
from kfp_components.cluster.changes import refuse_gitops
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.serving import ownership

Pairs = dict[str, str]
CONFIG = {"f:spec": {"f:serveConfigV2": {}}}
OTHER_FIELDS = {"f:metadata": {"f:labels": {"f:team": {}}}, "f:spec": {"f:rayClusterConfig": {}}}


def by(manager: str, fields: dict[str, Any] = CONFIG, operation: str = "Apply", **more: str) -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "apiVersion": "ray.io/v1", "fieldsType": "FieldsV1", "fieldsV1": fields, **more}


def mark(labels: Pairs | None = None, annotations: Pairs | None = None, *managers: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "ai", "namespace": "ml", "labels": labels, "annotations": annotations}
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata | ({"managedFields": list(managers)} if managers else {})}


def refused(manifest: dict[str, Any]) -> str:
    """What is said, empty when it is written."""
    try:
        refuse_gitops(manifest)
    except errors.ManagedElsewhere as error:
        assert error.exit_code == 2
        return str(error)
    return ""


HELM = {"app.kubernetes.io/managed-by": "Helm"}
RELEASE = {"meta.helm.sh/release-name": "ray", "meta.helm.sh/release-namespace": "ml"}
FLUX = {"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}
HELM_RELEASE = {"helm.toolkit.fluxcd.io/name": "ray", "helm.toolkit.fluxcd.io/namespace": "ml"}
RECONCILE, SSA, DRIFT = "kustomize.toolkit.fluxcd.io/reconcile", "kustomize.toolkit.fluxcd.io/ssa", "helm.toolkit.fluxcd.io/driftDetection"
MANAGED = "configmanagement.gke.io/managed"

OTHERS = {
    "Flux": (mark(FLUX), "Flux", "kustomize.toolkit.fluxcd.io/name"),
    "a HelmRelease of Flux": (mark({**HELM, **HELM_RELEASE}, RELEASE), "Flux", "helm.toolkit.fluxcd.io/name"),
    "Flux told to keep off, by another value": (mark(FLUX, {RECONCILE: "enabled"}), "Flux", "kustomize.toolkit.fluxcd.io/name"),
    "Flux told to merge": (mark(FLUX, {SSA: "Merge"}), "Flux", "kustomize.toolkit.fluxcd.io/name"),
    "a HelmRelease, the mark is for Kustomizations": (mark(HELM_RELEASE, {RECONCILE: "disabled"}), "Flux", "helm.toolkit.fluxcd.io/name"),
    "Argo CD": (mark(None, {"argocd.argoproj.io/tracking-id": "apps:ray.io/RayService:ml/ai"}), "Argo CD", "argocd.argoproj.io/tracking-id"),
    "Argo CD's own label": (mark({"argocd.argoproj.io/instance": "apps"}), "Argo CD", "argocd.argoproj.io/instance"),
    "Argo CD's label of years": (mark({"app.kubernetes.io/instance": "apps"}), "Argo CD", "app.kubernetes.io/instance"),
    "Argo CD, extraneous": (mark(None, {"argocd.argoproj.io/compare-options": "IgnoreExtraneous"}), "Argo CD", "compare-options"),
    "Argo CD, no pruning": (mark(None, {"argocd.argoproj.io/sync-options": "Prune=false"}), "Argo CD", "sync-options"),
    "Helm": (mark(HELM, RELEASE), "Helm", "meta.helm.sh/release-name: ray"),
    "Helm, no label": (mark(None, RELEASE), "Helm", "meta.helm.sh/release-name"),
    "a chart": (mark({**HELM, "app.kubernetes.io/instance": "ray"}, RELEASE), "Helm", "release-name"),
    "a chart that somebody rendered": (mark(HELM), "Helm", "app.kubernetes.io/managed-by: Helm"),
    "Fleet": (mark({"objectset.rio.cattle.io/hash": "x"}, {"objectset.rio.cattle.io/id": "fleet"}), "Rancher Fleet", "objectset.rio.cattle.io/hash"),
    "Config Sync": (mark(None, {MANAGED: "enabled", "configsync.gke.io/resource-id": "x"}), "Config Sync", f"{MANAGED}: enabled"),
    "Config Sync's label": (mark({"app.kubernetes.io/managed-by": "configmanagement.gke.io"}), "Config Sync", "managed-by"),
    "kapp": (mark({"kapp.k14s.io/app": "1700000000"}), "kapp", "kapp.k14s.io/app"),
    "Pulumi": (mark(None, {"pulumi.com/autonamed": "true"}), "Pulumi", "pulumi.com/autonamed"),
    "Terraform": (mark(None, None, by("Terraform")), "Terraform", "Terraform applies spec.serveConfigV2"),
    "Flux, by its fields": (mark(None, None, by("kustomize-controller")), "Flux", "kustomize-controller applies spec.serveConfigV2"),
    "Flux beside us": (mark(FLUX, None, by(names.MANAGER), by("kustomize-controller")), "Flux", "kustomize-controller applies"),
    "Argo CD, server side": (mark(None, None, by("argocd-controller")), "Argo CD", "argocd-controller applies"),
    "Argo CD, client side": (mark(None, None, by("argocd-application-controller", operation="Update")), "Argo CD", "argocd-application-controller"),
    "Argo CD, the field edited since": (
        mark(None, {names.LAST_APPLIED: '{"spec":{"serveConfigV2":""}}'}, by("argocd-controller", OTHER_FIELDS, "Update"), by("kubectl-edit")),
        "Argo CD",
        "argocd-controller applied",
    ),
    "Helm, by its fields": (mark(None, None, by("helm", operation="Update")), "Helm", "helm applies"),
    "Fleet, by its fields": (mark(None, None, by("fleetagent", operation="Update")), "Rancher Fleet", "fleetagent applies"),
    "a client that nobody knows, labelled": (mark(FLUX, None, by("acme-deployer")), "Flux", "kustomize.toolkit.fluxcd.io/name"),
}
OURS = {
    "nobody": mark(),
    "other labels": mark({"team": "ml", "app.kubernetes.io/name": "ray", "app.kubernetes.io/managed-by": "kustomize-v5.4"}, {"note": "x"}),
    "Flux told to keep off": mark(FLUX, {RECONCILE: "disabled"}),
    "Flux told to keep off by a label": mark({**FLUX, RECONCILE: "Disabled"}),
    "Flux told to ignore it": mark(FLUX, {SSA: "Ignore"}),
    "Flux only makes it": mark(FLUX, {SSA: "IfNotPresent"}),
    "told beforehand, no Flux": mark(None, {RECONCILE: "disabled", "kustomize.toolkit.fluxcd.io/prune": "disabled"}),
    "a HelmRelease that does not correct": mark({**HELM, **HELM_RELEASE}, {**RELEASE, DRIFT: "disabled"}),
    "Config Sync told to keep off": mark(None, {MANAGED: "disabled", "configsync.gke.io/resource-id": "x"}),
    "Config Sync ignores mutations": mark(None, {MANAGED: "enabled", "client.lifecycle.config.k8s.io/mutation": "ignore"}),
    "kapp keeps off": mark({"kapp.k14s.io/app": "1"}, {"kapp.k14s.io/noop": ""}),
    "yielded, Flux": mark(FLUX, {names.GITOPS: "yielded"}),
    "yielded, Argo CD": mark({"app.kubernetes.io/instance": "apps"}, {names.GITOPS: "yielded"}),
    "yielded, by its fields": mark(None, {names.GITOPS: "yielded"}, by("kustomize-controller")),
    "kubectl": mark(None, {names.LAST_APPLIED: '{"spec":{"serveConfigV2":""}}'}, by("kubectl-client-side-apply", operation="Update")),
    "kubectl, with a chart's labels": mark({**HELM, "app.kubernetes.io/instance": "ray"}, None, by("kubectl-client-side-apply", operation="Update")),
    "nobody known, with a chart's label": mark({"app.kubernetes.io/instance": "ray"}, None, by("acme-deployer")),
    "Flux applies the rest": mark(FLUX, None, by("kustomize-controller", OTHER_FIELDS), by(names.MANAGER)),
    "Flux applies the rest, kubectl this": mark(FLUX, None, by("kustomize-controller", OTHER_FIELDS), by("kubectl-edit", operation="Update")),
    "Helm applies the rest": mark(HELM, RELEASE, by("helm", OTHER_FIELDS, "Update"), by(names.MANAGER)),
    "a status of Flux": mark(None, None, by("kustomize-controller", {"f:status": {}}, "Update", subresource="status"), by("owner")),
    "ours": mark({"app.kubernetes.io/managed-by": names.MANAGED_BY, "app.kubernetes.io/instance": "x"}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_case_17_what_others_apply_is_not_written_behind_their_back(case: str) -> None:
    manifest, manager, sign = OTHERS[case]
    found = ownership.of(manifest)
    assert (found.mode, found.manager) == ("commit", manager) and sign in found.sign
    told = refused(manifest)
    assert told.startswith(f"RayService ml/ai: it is managed by {manager} ({found.sign})"), told
    assert "commit the change to its repository" in told
    assert "`kfp-serving yield ai -n ml`" in told


@pytest.mark.parametrize("case", OURS)
def test_case_17_what_nobody_else_applies_or_is_left_to_us_is_written(case: str) -> None:
    manifest = OURS[case]
    assert refused(manifest) == ""
    told_off = any(word in case for word in ("yielded", "keep off", "keeps off", "ignore", "only makes", "does not correct"))
    assert ownership.of(manifest).mode == ("yielded" if told_off else "ours")


def test_case_17_the_owner_of_a_field_is_read_from_the_cluster() -> None:
    """Of an object as a cluster gives it: Flux applies all of it, then takes the field out of git, and we write it."""
    cluster = MemoryCluster()
    ray = {"headGroupSpec": {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "ray", "image": "ray"}]}}}}
    metadata = {"name": "ai", "namespace": "default", "labels": FLUX}
    spec = {"rayClusterConfig": ray, "serveConfigV2": "applications: []\n"}
    body: dict[str, Any] = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": spec}
    ref = Ref.of(cluster.apply(body, manager="kustomize-controller"))

    def mode() -> str:
        found = cluster.get(ref)
        assert found is not None
        return ownership.of(found).mode

    assert mode() == "commit"
    cluster.apply({**body, "spec": {"rayClusterConfig": ray}}, manager="kustomize-controller")
    assert mode() == "ours"
    ours = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "ai", "namespace": "default"}, "spec": {"serveConfigV2": "x: 1\n"}}
    cluster.apply(ours, manager=names.MANAGER)
    assert mode() == "ours"
    cluster.apply(body, manager="kustomize-controller", force=True)
    assert mode() == "commit"


def test_case_17_each_pattern_and_way_to_yield_is_of_a_known_tool() -> None:
    assert ownership.how_to_yield("Flux") and ownership.how_to_yield("Argo CD") and ownership.how_to_yield("nobody") == ""
    known = {tool.name for tool in ownership.TOOLS}
    assert {name for _, name in ownership.HINTS} <= known
