"""Smoke inference: the candidate answers a few requests as expected before it gets any of a user's."""

from __future__ import annotations

from kfp_components import names, probes
from kfp_components.release import Release
from kfp_components.rollout import journal
from kfp_components.rollout.run import Run
from kfp_components.rollout.step import step

ROUTE_S = 20.0
"""How long a proxy may take to learn a new route after the application runs, and an endpoint to be reachable."""


def smoke_inference(run: Run) -> Release:
    """Send the smoke cases to the version, through the alias, at its internal route; none of a user's requests has reached it yet.

    Raises `SmokeFailed` with a line for each failed case (the version is taken out again), `ReleaseLeft` when nobody can be reached.
    """
    with step(run, "smoke", until="smoked") as record:
        if record is not None:
            results = smoke_cases(run, version=run.request.version)
            journal.advance(run, "smoked", f"{len(results)} case(s) answered as expected by {run.request.version}")
    return journal.current(run)


def smoke_cases(run: Run, *, version: str | None) -> list[probes.ProbeResult]:
    """The protocol's health checks and the given cases, through the alias, to a version's internal route (None: the public one).

    Raises `SmokeFailed` with a line for each failed case, `Unreachable` when nobody can be reached; nothing is written.
    """
    request, options = run.request, run.request.options
    endpoint = run.cluster.endpoint(run.address.alias, request.namespace, names.SERVE_PORT)
    prefix = run.address.prefix if version is None else names.version_route(request.model, version)
    what = f"model {request.model} version {version or 'as routed'}"
    with probes.Prober(endpoint, request.model, prefix, run.transport) as prober:
        health = probes.health_cases(request.model, options.protocol)
        deadline = run.clock.monotonic() + ROUTE_S
        results = prober.run(health)
        while any(result.problem for result in results) and run.clock.monotonic() < deadline:
            run.pause(0.5)
            results = prober.run(health)
        probes.assert_passed(results, what)
        given = prober.run(options.smoke)
        while any(result.unreachable for result in given) and run.clock.monotonic() < deadline:
            run.pause(0.5)
            given = prober.run(options.smoke)
        probes.assert_passed(given, what)
        return results + given
