"""The hand-over of ``serveConfigV2`` on a cluster of each kind: it is the API server that decides whose field goes."""

import pytest
from kube_space import ray_service
from test_cluster import Place, place

from kfp_components import names, rollout
from kfp_components.cluster import Manifest
from kfp_components.serving import ownership

__all__ = ["place"]
FLUX = "kustomize-controller"


def git(where: Place, *, holds: bool) -> Manifest:
    whole = where.here(ray_service("ai", serveConfigV2="# ours\napplications: []\n"))
    if not holds:
        whole["spec"].pop("serveConfigV2")
    return whole


def field(where: Place) -> str | None:
    found = where.cluster.get(where.ref("ai", "RayService"))
    assert found is not None
    text: str | None = found["spec"].get("serveConfigV2")
    return text


@pytest.mark.parametrize("handed_over", [True, False])
def test_the_field_stays_when_git_drops_it_only_after_it_was_handed_over(place: Place, handed_over: bool) -> None:
    place.cluster.apply(git(place, holds=True), manager=FLUX, force=True)
    if handed_over:
        assert len(rollout.yield_field(place.cluster, place.namespace, "ai").done) == 2
    place.cluster.apply(git(place, holds=False), manager=FLUX, force=True)
    assert field(place) == ("# ours\napplications: []\n" if handed_over else None)


def test_it_is_given_back(place: Place) -> None:
    before = place.cluster.apply(git(place, holds=True), manager=FLUX, force=True)
    rollout.yield_field(place.cluster, place.namespace, "ai")
    rollout.undo_yield(place.cluster, place.namespace, "ai")
    after = place.cluster.get(place.ref("ai", "RayService"))
    assert after is not None and after["spec"] == before["spec"] and ownership.writers(after) == [(FLUX, "Apply")]
    assert names.GITOPS not in (after["metadata"].get("annotations") or {})
