"""Splits: what the router is to be told, until it routes so, and whether the version that it names runs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from kfp_components import errors, names
from kfp_components.cluster import Manifest
from kfp_components.cluster.changes import removed
from kfp_components.rollout import journal
from kfp_components.rollout.run import Run
from kfp_components.serving import rayservice, startup
from kfp_components.traffic import Split

APPLY_TIMEOUT_S = 60.0
"""How long the router may take to route by a weight that was written; Serve needs 0.6 s, a busy operator several."""


def split(run: Run, applications: Mapping[str, str], *, stable: str, candidate: str | None = None, weight_percent: float = 0.0) -> Split:
    """With the request's routing options; a weight is a lease that begins now and that heartbeats renew. ``applications``: version -> application."""
    options = run.request.options
    return Split(
        stable=stable,
        candidate=candidate,
        weight_percent=weight_percent,
        lease_expires_unix_s=run.clock.now_unix_s() + options.lease_s if weight_percent else None,
        sticky_header=options.sticky_header,
        request_timeout_s=options.request_timeout_s,
        lease_s=options.lease_s if weight_percent else None,
        applications=applications,
    )


def wait_applied(run: Run, wanted: Split) -> float:
    """Wait until the router routes by a split that was written, seconds that it took; a weight gets its heartbeats meanwhile.

    Raises `WaitTimeout` saying what it does instead.
    """
    began = run.clock.monotonic()
    while True:
        left_s = APPLY_TIMEOUT_S - (run.clock.monotonic() - began)
        try:
            run.router.wait_until_applied(wanted, max(0.1, min(left_s, run.tick_s)))
            return run.clock.monotonic() - began
        except errors.WaitTimeout:
            if left_s <= run.tick_s:
                raise
        run.keep()
        if wanted.weight_percent:  # it may come to the router when the lease that was written is over
            with contextlib.suppress(errors.Unreachable):
                run.router.renew(wanted)


def wait_owner(run: Run, application: str) -> float:
    """Wait until Serve sends the public route's requests to an application, seconds that it took. Raises `WaitTimeout` saying who has it instead."""
    began = run.clock.monotonic()
    seen = "nobody could be asked"
    while True:
        try:
            found = run.router.observed_owner()
            if found == application:
                return run.clock.monotonic() - began
            seen = f"{found or 'no application'} has it"
        except errors.Unreachable as error:
            seen = str(error)
        if run.clock.monotonic() - began >= APPLY_TIMEOUT_S:
            raise errors.WaitTimeout(
                f"{run.rayservice}: after {APPLY_TIMEOUT_S:g} s Serve still does not give route {run.address.route} to {application}: {seen}; "
                "look at the applications in the Ray dashboard"
            )
        run.pause(0.2)


def wait_until_runs(run: Run, application: str, timeout_s: float, *, at_once: bool = True) -> None:
    """Wait until an application is RUNNING, and keep the Lease meanwhile.

    Raises `ApplicationRemoved` when somebody else took it out of the RayService, `DeployFailed` with the diagnosis when it failed (``at_once``, or
    else when it still has at the end: Serve starts a replica that died again by itself), `WaitTimeout` when it is not there in time.
    """
    end = run.clock.monotonic() + timeout_s

    def runs(found: Manifest) -> bool:
        if application not in rayservice.applications(rayservice.serve_config(found)):
            told = f"application {application} is not in serveConfigV2 any more, somebody else took it out; it gets no traffic"
            raise removed(run.rayservice, found, told)
        return rayservice.ready(application)(found)

    failed = rayservice.failed(application) if at_once else _never
    while True:
        left_s = end - run.clock.monotonic()
        try:  # in slices: patience with an API that does not answer is for one call, and that is the wait
            slice_s = max(0.1, min(left_s, run.request.options.lease_s / 4))
            run.cluster.wait(run.rayservice, ready=runs, failed=failed, timeout_s=slice_s, meanwhile=run.keep)
            return
        except errors.WaitTimeout:
            if run.clock.monotonic() >= end:
                last = run.cluster.get(run.rayservice)
                diagnosis = rayservice.failed(application)(last or {"metadata": {}})
                if diagnosis:
                    raise errors.DeployFailed(diagnosis) from None
                raise errors.WaitTimeout(startup.not_ready(last, str(run.rayservice), application, timeout_s)) from None


def assert_runs(run: Run, version: str) -> None:
    """Before a version is given traffic, and before the one that could replace it goes. Raises as `wait_until_runs`."""
    wait_until_runs(run, journal.current(run).application(version), APPLY_TIMEOUT_S, at_once=False)


def shake_hands(run: Run) -> None:
    """Before the router gets the public route: it speaks this library's protocol. Raises `Unreachable`.

    That somebody took it away is said by whoever gives it the route.
    """
    found = run.persist(lambda: run.cluster.get(run.rayservice))
    if names.router_application(run.request.model) in rayservice.applications(rayservice.serve_config(found)):
        run.persist(run.router.observed_weight)


def _never(_found: Manifest) -> str | None:
    return None
