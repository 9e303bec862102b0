"""Smoke inference: the candidate answers a few requests as expected before it gets any of a user's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from kfp_components import errors, names, probes
from kfp_components.cluster import Endpoint
from kfp_components.probes import golden
from kfp_components.release import Event, Release
from kfp_components.request import SmokeCase
from kfp_components.rollout import cases, journal
from kfp_components.rollout.run import Run
from kfp_components.rollout.step import step
from kfp_components.serving import rayservice

ROUTE_S = 20.0
"""How long a proxy may take to learn a new route after the application runs, and an endpoint to be reachable."""

TOLD_EVERY_S = 2.0
"""How often it is told how many cases are done; what is over before tells nothing."""

Told = Callable[[int, int], None]
"""Hears how many cases are done, of how many."""


def nobody(_done: int, _number: int) -> None:
    """Where nobody looks."""


def smoke_inference(run: Run) -> Release:
    """Send the smoke cases to the version, through the alias, at its internal route; none of a user's requests has reached it yet.

    Raises `SmokeFailed` with a line for each failed case (the version is taken out again), `ReleaseLeft` when nobody can be reached.
    """
    with step(run, "smoke", until="smoked") as record:
        if record is not None:
            results = smoke_cases(run, version=run.request.version, told=lambda done, number: _show(run, done, number))
            journal.advance(run, "smoked", f"{len(results)} case(s) answered as expected by {run.request.version}")
    return journal.current(run)


def smoke_cases(run: Run, *, version: str | None, told: Told = nobody) -> list[probes.ProbeResult]:
    """The protocol's health checks and the given cases, through the alias, to a version's internal route (None: the public one).

    Where the request gives none, those of its family. Raises `SmokeFailed` with a line for each failed case, `Unreachable` when nobody can be
    reached, an `InputError` for a case that cannot be sent from here; nothing is written.
    """
    request, options = run.request, run.request.options
    prefix = run.address.prefix if version is None else names.version_route(request.model, version)
    what = f"model {request.model} version {version or 'as routed'}"
    given = cases.with_media(cases.smoke(request))
    probes.assert_askable(given)
    with _prober(run, prefix, request.application) as prober:
        health = probes.health_cases(request.model, options.protocol)
        deadline = run.clock.monotonic() + ROUTE_S
        results = prober.run(health)
        while any(result.problem for result in results) and run.clock.monotonic() < deadline:
            run.pause(0.5)
            results = prober.run(health)
        probes.assert_passed(results, what)
        found = _send(run, prober, given, told)
        while any(result.unreachable for result in found) and run.clock.monotonic() < deadline:
            run.pause(0.5)
            found = _send(run, prober, given, told)
        probes.assert_passed(found, what)
        return results + found


def smoke_serving(run: Run, version: str | None = None, *, told: Told = nobody) -> list[probes.ProbeResult]:
    """What the request's cases and the protocol's health checks give at what users have, or at a ``version`` that runs, by its own route.

    Reads only, and never raises for a bad answer. Raises `NotFound` where the version, the RayService or the alias is not there, an `InputError` for
    a case that cannot be sent from here, `Unreachable` when the API does not answer.
    """
    request = run.request
    record = run.persist(run.store.load_record)
    if record is not None:
        run.address = record.address
    found = run.cluster.get(run.rayservice)
    if found is None:
        raise errors.NotFound(f"{run.rayservice}: it does not exist, so nothing serves the model")
    text = rayservice.serve_config(found)
    prefix, application = run.address.prefix, rayservice.owner(text, run.address.route)
    if version is not None:
        application = record.application(version) if record is not None else names.application(request.model, version)
        entry = rayservice.applications(text).get(application)
        if entry is None:
            raise errors.NotFound(f"{run.rayservice}: version {version} does not run, there is no application {application}")
        prefix = str(entry.get("route_prefix") or "/").rstrip("/")
    given = cases.with_media(cases.smoke(request))
    probes.assert_askable(given)
    with _prober(run, prefix, application) as prober:
        return prober.run(probes.health_cases(request.model, request.options.protocol)) + _send(run, prober, given, told)


def _prober(run: Run, prefix: str, application: str | None) -> probes.Prober:
    request = run.request

    def at(service: str, port: int) -> Callable[[], Endpoint]:
        return lambda: run.cluster.endpoint(service, request.namespace, port)

    head = names.head_service(request.rayservice)
    grpc, dashboard, client = at(run.address.alias, names.GRPC_PORT), at(head, names.DASHBOARD_PORT), at(head, names.RAY_CLIENT_PORT)
    reach = probes.Reach(application, grpc, dashboard, client) if application else None
    endpoint = run.cluster.endpoint(run.address.alias, request.namespace, names.SERVE_PORT)
    return probes.Prober(endpoint, request.model, prefix, run.transport, reach=reach)


def _send(run: Run, prober: probes.Prober, given: Sequence[SmokeCase], told: Told) -> list[probes.ProbeResult]:
    """Results in the order of the cases. The Lease is kept meanwhile, where this run has it."""
    pace, last = run.request.options.smoke_pace, time.monotonic()

    def beat(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= TOLD_EVERY_S:
            last = time.monotonic()
            if run.lease.taken:
                run.keep()
            told(done, len(given))

    found: dict[int, probes.ProbeResult] = {}
    for number, result in prober.send(given, pace, meanwhile=beat):
        found[number], _ = golden.judged(given[number], result or probes.not_sent(given[number], pace), run.request.family)
        beat(len(found))
    return [found[number] for number in range(len(given))]


def _show(run: Run, done: int, number: int) -> None:
    """To the watcher alone; the record is not written for it."""
    record = journal.current(run)
    event = Event(unix_s=run.clock.now_unix_s(), step="smoke", message=f"{done:,} of {number:,} case(s) answered")
    journal.tell(run, record.model_copy(update={"events": [*record.events, event]}))
