"""Why a version does not run yet: its own entry and deployments, what it asks for, and the cluster that it is to run on; no other model's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kfp_components.serving import rayservice

MESSAGE_CHARACTERS = 300


def not_ready(found: Mapping[str, Any] | None, where: str, application: str, waited_s: float) -> str:
    """One paragraph on an application that does not run after ``waited_s``; ``found`` is the RayService as it was read last."""
    began = f"{where}: application {application} is not ready after {waited_s:g} s: "
    if found is None:
        return began + "the RayService does not exist any more"
    return began + "; ".join((*_state(found, application, waited_s), *_asks(found, application)))


def _state(found: Mapping[str, Any], application: str, waited_s: float) -> Iterator[str]:
    status = found.get("status") or {}
    if not status:
        yield "KubeRay has reported nothing of this RayService (does its operator run?)"
        return
    if not rayservice.observed(found):
        seen, wanted = status.get("observedGeneration", "none"), found["metadata"].get("generation")
        yield f"KubeRay has not taken up this configuration yet (generation {wanted}, it saw {seen})"
    side = next((name for name in ("pending", "active") if _entry(status, name, application)), "")
    entry = _entry(status, side, application)
    if entry:
        beside = " on the pending cluster" if side == "pending" else ""
        late = [
            f"deployment {name} {piece.get('status') or 'has no status'} for {waited_s:g} s{_quoted(piece, other_than=entry)}"
            for name, piece in (entry.get("serveDeploymentStatuses") or {}).items()
            if piece.get("status") != "HEALTHY"
        ]
        told = f"application {application} {entry.get('status') or 'has no status'}{beside}{_quoted(entry)}"
        yield f"{told}: {', '.join(late)}" if late else told
    else:
        yield f"Serve does not report application {application}"
    yield from _cluster(status, bool(entry))


def _cluster(status: Mapping[str, Any], reported: bool) -> Iterator[str]:
    """What is wrong with the Ray cluster itself."""
    for side in ("pending", "active"):
        service = status.get(f"{side}ServiceStatus") or {}
        cluster = service.get("rayClusterStatus") or {}
        name = service.get("rayClusterName") or "the cluster"
        state, told = cluster.get("state"), [str(cluster["reason"])] if cluster.get("reason") else []
        told += [
            f"{condition['type']} {condition.get('status')}{_quoted(condition)}"
            for condition in cluster.get("conditions") or []
            if condition.get("type") in ("HeadPodReady", "RayClusterProvisioned", "ReplicaFailure")
            and condition.get("status") == ("True" if condition.get("type") == "ReplicaFailure" else "False")
        ]
        ready, wanted = cluster.get("readyWorkerReplicas") or cluster.get("availableWorkerReplicas") or 0, cluster.get("desiredWorkerReplicas")
        if wanted and ready < wanted:
            told.append(f"{ready} of {wanted} workers are ready")
        if told or (state and state != "ready"):
            yield f"RayCluster {name} ({side}) {state or 'is not ready'}" + (f": {', '.join(told)}" if told else "")
    if not reported:
        for condition in status.get("conditions") or []:
            if condition.get("status") == "False" and (condition.get("message") or condition.get("reason")):
                yield f"condition {condition.get('type')} False{_quoted({'message': condition.get('message') or condition.get('reason')})}"


def _asks(found: Mapping[str, Any], application: str) -> Iterator[str]:
    """What its entry in ``serveConfigV2`` asks of the cluster."""
    entry = rayservice.applications(rayservice.serve_config(found)).get(application)
    if entry is None:
        yield f"application {application} is not in serveConfigV2"
        return
    asked = {str(piece.get("name")): list(_resources(piece)) for piece in entry.get("deployments") or []}
    told = [f"{', '.join(words)}{f' ({name})' if len(asked) > 1 else ''}" for name, words in asked.items() if words]
    yield f"it asks for {'; '.join(told)}; is it free?" if told else "what it asks for stands in its code; is it free?"


def _resources(piece: Mapping[str, Any]) -> Iterator[str]:
    options = piece.get("ray_actor_options") or {}
    for key in ("num_gpus", "num_cpus", "memory", "object_store_memory", "accelerator_type"):
        if options.get(key):
            yield f"{key} {options[key]}"
    for name, amount in (options.get("resources") or {}).items():
        yield f"{name} {amount}"
    bundles, strategy = piece.get("placement_group_bundles") or [], piece.get("placement_group_strategy")
    if bundles:
        told = dict.fromkeys(" and ".join(f"{name} {amount}" for name, amount in bundle.items()) for bundle in bundles)
        yield f"a placement group of {len(bundles)} ({', '.join(told)}{f', {strategy}' if strategy else ''})"
    scaling = piece.get("autoscaling_config")
    first = (scaling.get("initial_replicas") or scaling.get("min_replicas")) if isinstance(scaling, Mapping) else None
    replicas = first or piece.get("num_replicas")
    if replicas not in (None, 1, "auto"):
        yield f"{replicas} replicas of that"


def _entry(status: Mapping[str, Any], side: str, application: str) -> Mapping[str, Any]:
    found = ((status.get(f"{side}ServiceStatus") or {}).get("applicationStatuses") or {}).get(application)
    return found if isinstance(found, Mapping) else {}


def _quoted(piece: Mapping[str, Any], *, other_than: Mapping[str, Any] | None = None) -> str:
    """Its message after a space, the end of it, and the root cause of a traceback; nothing when there is none, or ``other_than`` says it already."""
    text = " ".join(str(piece.get("message") or "").split())
    if not text or (other_than is not None and piece.get("message") == other_than.get("message")):
        return ""
    if len(text) <= MESSAGE_CHARACTERS:
        return f' "{text}"'
    end, cause = f"... {text[-MESSAGE_CHARACTERS:]}", rayservice.root_cause(str(piece["message"]))
    return f' "{cause} {end}"' if cause and cause not in end else f' "{end}"'
