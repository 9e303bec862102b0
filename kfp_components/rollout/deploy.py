"""The candidate beside the others on the RayService."""

from __future__ import annotations

from functools import partial
from typing import Any

from kfp_components import names
from kfp_components.cluster.changes import Edit, write
from kfp_components.release import Release
from kfp_components.rollout import journal, manifests, weights
from kfp_components.rollout.preflight import Serving
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
            stable = stable_of(record)
            change = version_change(run, stable)
            written = write(run.cluster, change, fence=fence, clock=run.clock)
            for name in sorted(change.changed):
                weights.wait_until_runs(run, name, options.ready_timeout_s)
            size = capacity.told(run.request, rayservice.serve_config(written), stable.application if stable else None)
            journal.advance(run, "deployed", f"application {application(run)} runs{size}")
    return journal.current(run)


def stable_of(record: Release) -> Serving | None:
    """The version that users have, by the record."""
    stable = record.stable_version
    return None if stable is None else Serving(stable, record.application(stable), record.route_implied)


def version_change(run: Run, stable: Serving | None) -> Edit:
    """The version at its internal route beside the others; where there is a stable one, with a router that knows both, which no user reaches yet."""
    name, router = application(run), names.router_application(run.request.model)
    ours = frozenset({name} if stable is None else {name, router})
    why = f"application {name} beside the others" + ("" if stable is None else f", and the router {router}, which no user reaches yet")
    return Edit(run.rayservice, lambda text: with_version(run, text, stable), ours, why)


def application(run: Run) -> str:
    """Name of the candidate's application."""
    return run.request.application


def with_version(run: Run, serve_config: str, stable: Serving | None) -> str:
    """``serveConfigV2`` with the version in it and, where there is a stable one, the router."""
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
    if deployments := capacity.deployments(request, serve_config, stable.application if stable else None):
        entry["deployments"] = deployments
    serve_config = rayservice.with_application(serve_config, entry)
    if stable is None:
        return serve_config
    applications = {stable.version: stable.application, request.version: application(run)}
    return run.router.prepare(serve_config, weights.split(run, applications, stable=stable.version, candidate=request.version))
