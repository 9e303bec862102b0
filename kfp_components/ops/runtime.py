"""What the component bodies share: open a run from a pipeline's values, and write what a person looks at."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from kfp_components import errors, report, request, rollout, uris
from kfp_components.artifact import Lines
from kfp_components.cluster import Cluster
from kfp_components.release import Release
from kfp_components.report import revalidation as report_revalidation
from kfp_components.rollout.registered import attach_report

KFP_UI = "KFP_SERVING_KFP_UI"
"""Environment variable of the component image: ``https://kubeflow.example/_/pipeline``, for links to runs."""


def open_run(values: Mapping[str, Any], run_id: str) -> rollout.Run:
    """A run in the Lease's eyes is the KFP run: a retried pod is the same holder."""
    return rollout.open_run(
        request.parse(values),
        holder=f"kfp/{run_id}" if run_id else None,
        source=source(run_id, os.environ),
        watch=_Narrator(),
        reading=Lines(partial(print, flush=True)),
    )


def source(run_id: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What a version's registration says of the run: its id, and its page where `KFP_UI` says where people open Kubeflow Pipelines."""
    address = environment.get(KFP_UI, "").rstrip("/")
    usable = address and uris.credential_in(address) is None and not {"?", "#"} & set(address)  # it is shown to everybody
    page = {"kfp_run_url": f"{address}/#/runs/details/{run_id}"} if usable else {}
    return {"kfp_run_id": run_id, **page} if run_id else {}


def open_unfinished(model: str, namespace: str, rayservice: str, run_id: str) -> rollout.Run:
    """The run that a rollback or an exit handler continues. Raises `NotFound` when this model was never released."""
    return rollout.open_rollback(_target(model, namespace, rayservice), holder=f"kfp/{run_id}" if run_id else None, watch=_Narrator())


def adopt(
    model: str,
    namespace: str,
    rayservice: str,
    application: str,
    route: str,
    alias: str,
    version: str,
    uri: str,
    model_format: str,
    undo: bool,
    run_id: str,
) -> Release:
    """What serves the model is its stable version from now on; with ``undo`` what an earlier adoption made goes. Empty strings: not given."""
    if undo:
        return rollout.undo_adoption(open_unfinished(model, namespace, rayservice, run_id))
    target = _target(model, namespace, rayservice)
    asked = rollout.Asked(application or None, route or None, alias or None, version or None, uri or None, model_format)
    found = rollout.adoption_of(_cluster(), target, asked)
    return rollout.adopt_model(open_run(found.plain | target.model_dump(), run_id))


def revalidate(model: str, namespace: str, rayservice: str, rules: Mapping[str, Any], models: int, run_id: str, path: str, red: bool) -> None:
    """Look at one champion; the page is written whatever is found. Raises as `rollout.raise_if_decayed` where it is to be ``red``; else nothing that
    is this model's, which is noted for `collect_revalidations`."""
    parsed = request.parse_rules(rules)
    try:
        found = rollout.revalidate_model(open_unfinished(model, namespace, rayservice, run_id), parsed, models=models, run_id=run_id, tell=_said())
    except errors.KfpServingError as error:
        if red:
            raise
        found = rollout.not_looked_at(_cluster(), _target(model, namespace, rayservice), str(error), run_id)
    print(f"{found.outcome}: {found.sentence}", flush=True)
    write_revalidations([found], path)
    if red:
        rollout.raise_if_decayed([found])


def _said() -> Callable[[int, int], None]:
    """A line in the log for each tenth of the answers."""

    def told(done: int, number: int) -> None:
        if done * 10 // number > (done - 1) * 10 // number:
            print(f"{done:,} of {number:,} answers", flush=True)

    return told


def champions(namespace: str, rayservice: str) -> list[request.ModelTarget]:
    """The models that have a version in front of users; ``rayservice`` may be empty."""
    return rollout.champions(_cluster(), namespace, rayservice or None)


def collect_revalidations(namespace: str, rayservice: str, run_id: str, path: str) -> None:
    """One page of what the steps of a run found. Raises as `rollout.raise_if_decayed`."""
    cluster = _cluster()
    found = [rollout.last_look(cluster, target, run_id) for target in champions(namespace, rayservice)]
    write_revalidations(found, path)
    rollout.raise_if_decayed(found)


def write_revalidations(found: Sequence[rollout.Revalidation], path: str) -> None:
    """What was found, as a self-contained page."""
    Path(path).write_text(report_revalidation.render([one.as_dict() for one in found]), encoding="utf-8")


def _target(model: str, namespace: str, rayservice: str) -> request.ModelTarget:
    return request.parse_target({"model": model, "namespace": namespace, "rayservice": rayservice})


def _cluster() -> Cluster:
    from kfp_components.cluster.kubernetes import KubernetesCluster

    return KubernetesCluster()


def write_report(release: Release, path: str) -> None:
    """The release as a self-contained page."""
    Path(path).write_text(report.render(release.model_dump(mode="json")), encoding="utf-8")


def keep_report(run: rollout.Run, release: Release, path: str, uri: str) -> None:
    """The page, which is also named in the registry, on the release's version: it is the last one."""
    write_report(release, path)
    if why_not := attach_report(run, Path(path).read_bytes(), uri):
        print(why_not, flush=True)


def metrics(release: Release) -> dict[str, float]:
    """Numbers for KFP's metrics card, from the last look at the counts."""
    if not release.timeline:
        return {}
    last = release.timeline[-1]
    found: dict[str, float | None] = {"weight_percent": last.weight_percent, "e_fail": last.e_fail, "e_pass": last.e_pass}
    for arm in ("stable", "candidate"):
        found[f"{arm}_requests"] = last.requests.get(arm)
        found[f"{arm}_failures"] = last.failures.get(arm)
    return {name: float(value) for name, value in found.items() if value is not None}


class _Narrator:
    """Prints each new event of the release to the pod's log."""

    def __init__(self) -> None:
        self.told = 0.0

    def __call__(self, release: Release) -> None:
        for event in release.events:
            if event.unix_s > self.told:
                print(f"{event.step}: {event.message}", flush=True)
                self.told = event.unix_s


def write_no_report(why: str, path: str) -> None:
    """A page that says why there is none: a box in the UI whose page is missing looks like a fault."""
    Path(path).write_text(f"<!doctype html><title>no release</title><p>{escape(why)}</p>\n", encoding="utf-8")
