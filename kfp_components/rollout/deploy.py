"""The candidate beside the others on the RayService."""

from __future__ import annotations

from functools import partial
from typing import Any

from kfp_components import names
from kfp_components.cluster.changes import Edit, write
from kfp_components.release import Release
from kfp_components.rollout import journal, manifests, weights
from kfp_components.rollout.run import Run
from kfp_components.rollout.step import step
from kfp_components.serving import capacity, rayservice


def deploy_rayservice(run: Run) -> Release:
    """Put the version beside the others on the RayService and wait until it runs. It gets no traffic yet.

    Raises `DeployFailed` with the diagnosis (the version is taken out again), `ReleaseLeft` when it is not ready within ``ready_timeout_s``: it
    stays, and the same command goes on waiting.
    """
    with step(run, "deploy", until="deployed") as record:
        if record is not None:
            options, fence = run.request.options, partial(journal.assert_ours, run)
            if options.rayservice_template is not None and run.cluster.get(run.rayservice) is None:
                write(run.cluster, manifests.new_rayservice(run, record.identity), fence=fence)
            change = version_change(run, record.stable_version)
            written = write(run.cluster, change, fence=fence, clock=run.clock)
            for name in sorted(change.changed if record.stable_version is None else {application(run)}):
                weights.wait_until_runs(run, name, options.ready_timeout_s)
            size = capacity.told(run.request, rayservice.serve_config(written), stable_application(run, record.stable_version))
            journal.advance(run, "deployed", f"application {application(run)} runs{size}")
    return journal.current(run)


def version_change(run: Run, stable: str | None) -> Edit:
    """The version beside the others, known to the router at 0 %; with the router itself for a model's first version."""
    ours = frozenset({application(run), names.router_application(run.request.model)})
    return Edit(run.rayservice, lambda text: with_version(run, text, stable), ours, f"application {application(run)} beside the others, at 0 %")


def application(run: Run) -> str:
    """Name of the candidate's application."""
    return names.application(run.request.model, run.request.version)


def stable_application(run: Run, stable: str | None) -> str | None:
    """Name of the application of the version that users have; None where there is none."""
    return None if stable is None else names.application(run.request.model, stable)


def with_version(run: Run, serve_config: str, stable: str | None) -> str:
    """``serveConfigV2`` with the version in it and, for a model's first version, the router."""
    request, options = run.request, run.request.options
    entry: dict[str, Any] = {
        "name": application(run),
        "route_prefix": names.version_route(request.model, request.version),
        "import_path": request.import_path,
    }
    if request.builder_args:
        entry["args"] = request.builder_args
    if options.runtime_env:
        entry["runtime_env"] = options.runtime_env
    if deployments := capacity.deployments(request, serve_config, stable_application(run, stable)):
        entry["deployments"] = deployments
    serve_config = rayservice.with_application(serve_config, entry)
    if stable is None:
        return run.router.prepare(serve_config, weights.split(run, stable=request.version))
    return run.router.prepare(serve_config, weights.split(run, stable=stable, candidate=request.version))  # known to the router, at 0 %
