"""What the component bodies share: open a run from a pipeline's values, and write what a person looks at."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Protocol

from kfp_components import errors, report, request, rollout, uris
from kfp_components.artifact import Lines
from kfp_components.cluster import Cluster
from kfp_components.registry import ENVIRONMENT
from kfp_components.release import Release
from kfp_components.report import revalidation as report_revalidation
from kfp_components.rollout.registered import REQUEST, attach_report, facts

KFP_UI = "KFP_SERVING_KFP_UI"
"""Environment variable of the component image: ``https://kubeflow.example/_/pipeline``, for links to runs."""

UPLOADED = ("s3://", "gs://", "minio://")
"""Schemes of outputs that KFP's launcher uploads to the pipeline root's bucket."""


class Output(Protocol):
    """What is used of an output artifact of KFP."""

    path: str
    uri: str
    metadata: dict[str, Any]


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
) -> tuple[rollout.Run, Release]:
    """What serves the model is its stable version from now on; with ``undo`` what an earlier adoption made goes. Empty strings: not given."""
    if undo:
        run = open_unfinished(model, namespace, rayservice, run_id)
        return run, rollout.undo_adoption(run)
    target = _target(model, namespace, rayservice)
    asked = rollout.Asked(application or None, route or None, alias or None, version or None, uri or None, model_format)
    found = rollout.adoption_of(_cluster(), target, asked)
    run = open_run(found.plain | target.model_dump(), run_id)
    return run, rollout.adopt_model(run)


def finish(model: str, namespace: str, rayservice: str, run_id: str, page: Output, summary: Output, metrics: Output) -> None:
    """What the exit handler does. Its outputs are the last ones of a run, and of a step that failed the only ones: KFP keeps none of that step's."""
    why = "This run left no release of its own."
    try:
        run = open_unfinished(model, namespace, rayservice, run_id)
        release = rollout.finish_release(run)
    except errors.NotFound as nothing_was_begun:
        release, why = None, str(nothing_was_begun)
    if release is not None:
        show(run, release, page, summary, metrics)
        name_report(run, page)
    else:
        show_nothing(why, page, summary)


def revalidate(
    model: str,
    namespace: str,
    rayservice: str,
    rules: Mapping[str, Any],
    models: int,
    run_id: str,
    page: Output,
    summary: Output,
    metrics: Output,
    red: bool,
) -> None:
    """Look at one champion; the outputs are written whatever is found. Raises as `rollout.raise_if_decayed` where it is to be ``red``; else nothing
    that is this model's, which is noted for `collect_revalidations`."""
    parsed = request.parse_rules(rules)
    try:
        found = rollout.revalidate_model(open_unfinished(model, namespace, rayservice, run_id), parsed, models=models, run_id=run_id, tell=_said())
    except errors.KfpServingError as error:
        if red:
            raise
        found = rollout.not_looked_at(_cluster(), _target(model, namespace, rayservice), str(error), run_id)
    print(f"{found.outcome}: {found.sentence}", flush=True)
    show_revalidations([found], page, summary)
    metrics.metadata.update(_finite(found.look.model_dump(include={"requests", "failures", "p50_ms", "p95_ms", "evidence"})))
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


def show_champions(found: Sequence[request.ModelTarget], summary: Output, metrics: Output) -> None:
    """Whose champions a run will look at."""
    rows = [f"| {report.plain(target.model)} | {report.plain(target.rayservice)} |" for target in found]
    text = "\n".join([f"## Champions: {len(found)}", "", "| model | RayService |", "|---|---|", *rows])
    Path(summary.path).write_text(text + "\n", encoding="utf-8")
    metrics.metadata["models"] = float(len(found))


def collect_revalidations(
    namespace: str, rayservice: str, model: str, run_id: str, page: Output, summary: Output, metrics: Output, red: bool
) -> None:
    """What the steps of a run found, as one page, of all models or of one that is named. Raises as `rollout.raise_if_decayed` where it is ``red``."""
    cluster = _cluster()
    targets = [_target(model, namespace, rayservice)] if model else champions(namespace, rayservice)
    found = [rollout.last_look(cluster, target, run_id) for target in targets]
    show_revalidations(found, page, summary)
    metrics.metadata.update({outcome.replace(" ", "_"): float(sum(one.outcome == outcome for one in found)) for outcome in report_revalidation.ORDER})
    if red:
        rollout.raise_if_decayed(found)


def show_revalidations(found: Sequence[rollout.Revalidation], page: Output, summary: Output) -> None:
    """What was found, as a self-contained page and in a few lines."""
    told = [one.as_dict() for one in found]
    Path(page.path).write_text(report_revalidation.render(told), encoding="utf-8")
    Path(summary.path).write_text(report_revalidation.markdown(told), encoding="utf-8")


def _target(model: str, namespace: str, rayservice: str) -> request.ModelTarget:
    return request.parse_target({"model": model, "namespace": namespace, "rayservice": rayservice})


def _cluster() -> Cluster:
    from kfp_components.cluster.kubernetes import KubernetesCluster

    return KubernetesCluster()


def show(run: rollout.Run, release: Release, page: Output, summary: Output, metrics: Output) -> None:
    """The release as a self-contained page and in a few lines, with what this step did, and its numbers."""
    began_unix_s = run.watch.began_unix_s if isinstance(run.watch, _Narrator) else None
    record = release.model_dump(mode="json")
    Path(page.path).write_text(report.render(record), encoding="utf-8")
    Path(summary.path).write_text(report.markdown(record, began_unix_s), encoding="utf-8")
    took = {"seconds": round(time.time() - began_unix_s, 1)} if began_unix_s else {}
    metrics.metadata.update(took | numbers(release))


def show_nothing(why: str, page: Output, summary: Output) -> None:
    """A page that says why there is none: a box in the UI whose page is missing looks like a fault."""
    Path(page.path).write_text(f"<!doctype html><title>no release</title><p>{escape(why)}</p>\n", encoding="utf-8")
    next_step = "- **Next**: where a step of this run is red, the end of its log says what was refused and what to do"
    Path(summary.path).write_text(f"## No release\n\n{report.plain(why)}\n\n{next_step}\n", encoding="utf-8")


def name_report(run: rollout.Run, page: Output) -> None:
    """The page is named in the registry, on the release's version: it is the last one."""
    if why_not := attach_report(run, Path(page.path).read_bytes(), page.uri):
        print(why_not, flush=True)


def describe_model(run: rollout.Run, release: Release, model: Output) -> None:
    """The version as KFP's Model artifact: where it is, and as metadata what the registry knows of it.

    KFP uploads what an output names in an object store, from a file and to its own bucket, and fails the step where that is another one. There the
    artifact stays the run's own, a JSON file with the metadata, whose ``uri`` says where the model is.
    """
    asked, name = run.request, run.registered_name
    found, aliases = None, {}
    with contextlib.suppress(errors.KfpServingError):  # it is registered: that nobody answers just now stops nobody
        found, aliases = run.registry.find(name, asked.version), run.registry.aliases(name)
    where = asked.options.registry_uri or next((there for key in ENVIRONMENT if (there := os.environ.get(key))), "")
    told = {
        **(found.properties if found else facts(asked, run.source)),
        "name": name,
        "version": asked.version,
        "uri": asked.uri,
        "digest": (found.digest if found else None) or "",
        "artifact_check": release.artifact_check,
        "registry": uris.shown(where),
        "registry_page": found.url if found else "",
        "aliases": ", ".join(sorted(alias for alias, version in aliases.items() if version == asked.version)),
        **run.source,
    }
    model.metadata.update({key: value for key, value in told.items() if value and key != REQUEST})
    if asked.uri.startswith(UPLOADED):
        Path(model.path).write_text(json.dumps(model.metadata, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    else:
        model.uri = asked.uri


def numbers(release: Release) -> dict[str, float]:
    """Numbers for KFP's metrics card, from the last look at the counts."""
    if not release.timeline:
        return {"weight_percent": release.weight_percent}
    last = release.timeline[-1]
    found: dict[str, float | None] = {"weight_percent": last.weight_percent, "e_fail": last.e_fail, "e_pass": last.e_pass}
    for arm in ("stable", "candidate"):
        found[f"{arm}_requests"] = last.requests.get(arm)
        found[f"{arm}_failures"] = last.failures.get(arm)
    return _finite(found)


def _finite(found: Mapping[str, float | None]) -> dict[str, float]:
    """What JSON can hold: of a metric that it cannot, KFP's launcher would fail the step."""
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


class _Narrator:
    """Prints each new event of the release to the pod's log."""

    def __init__(self) -> None:
        self.told = 0.0
        self.began_unix_s = time.time()

    def __call__(self, release: Release) -> None:
        for event in release.events:
            if event.unix_s > self.told:
                print(f"{event.step}: {event.message}", flush=True)
                self.told = event.unix_s
