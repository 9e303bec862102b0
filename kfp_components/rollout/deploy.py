"""The candidate beside the others on the RayService."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

from kfp_components import errors, names
from kfp_components.cluster import Manifest
from kfp_components.cluster.changes import Edit, write
from kfp_components.release import Release
from kfp_components.rollout import journal, manifests, routes, weights
from kfp_components.rollout.preflight import Serving
from kfp_components.rollout.run import Run
from kfp_components.rollout.step import step
from kfp_components.serving import capacity, rayservice


def deploy_rayservice(run: Run) -> Release:
    """Put the version beside the others on the RayService and wait until it runs. It gets no traffic yet.

    Raises `DeployFailed` with the diagnosis (the version is taken out again), `ReleaseLeft` when it is not ready within ``ready_timeout_s``, and when
    the router does not start, which is no fault of the version's: it stays, and the same command goes on.
    """
    with step(run, "deploy", until="deployed") as record:
        if record is not None:
            options, fence = run.request.options, partial(journal.assert_ours, run)
            if options.rayservice_template is not None and run.cluster.get(run.rayservice) is None:
                write(run.cluster, manifests.new_rayservice(run, record.identity), fence=fence)
            stable = stable_of(record)
            if record.router_env is None:
                _look_for_a_router(run)
            change = version_change(run, stable)
            written = write(run.cluster, change, fence=fence, clock=run.clock)
            for name in sorted(change.changed):
                try:
                    weights.wait_until_runs(run, name, options.ready_timeout_s)
                except errors.DeployFailed as error:
                    if name == application(run):
                        raise
                    _without_its_router(run, name, error)
            size = capacity.told(run.request, rayservice.serve_config(written), stable.application if stable else None)
            journal.advance(run, "deployed", f"application {application(run)} runs{size}")
    return journal.current(run)


def _without_its_router(run: Run, router: str, error: errors.DeployFailed) -> NoReturn:
    """A router that did not start is no fault of the version's, and Serve does not try it again: it goes, unless users' requests go to it."""
    if routes.has_it(run, run.persist(lambda: run.cluster.get(run.rayservice))) != router:
        journal.write(run, "router", str(error), ok=False, router_env=None)
        _take_out(run, router)
    raise errors.RouterFailed(str(error)) from error


def _take_out(run: Run, router: str) -> Manifest | None:
    return write(run.cluster, manifests.removal_change(run, {router}), fence=partial(journal.assert_ours, run), clock=run.clock)


def _look_for_a_router(run: Run) -> None:
    """Where it comes from, once more: its owner may allow something else by now. Raises as `preflight.check`."""
    found = _take_out(run, names.router_application(run.request.model))  # a process that was killed may have left it
    if found is not None:
        source = run.persist(lambda: run.router.source(found))
        run.router.runtime_env = source.runtime_env
        journal.write(run, "router", source.told, router_env=dict(source.runtime_env))


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
