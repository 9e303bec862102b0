"""The public route: who has it, and how it changes hands, in one write each time.

Before and after a release the version's own application has it. The router takes it before a candidate's first request and gives it to the winner's
application at the end: no replica restarts, and nobody's request is lost (a request that the router has taken goes where the version stands by then).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from kfp_components import errors, names
from kfp_components.cluster import Manifest
from kfp_components.cluster.changes import Edit, write
from kfp_components.release import Release
from kfp_components.rollout import journal, weights
from kfp_components.rollout.preflight import Serving
from kfp_components.rollout.run import Run
from kfp_components.serving import rayservice
from kfp_components.traffic import Split

DRAIN_S = 60.0
"""How long is waited until nothing is in flight in the router; after that it stays beside the others until `tidy_release`, or the next release."""


def serving(run: Run, found: Manifest | None, record: Release | None) -> Serving | None:
    """Who serves the model, by the RayService as it was read and the record of its last release; None when nobody has its route.

    Raises `NotAdopted` when an application has it that no release knows.
    """
    request, route = run.request, run.address.route
    holder = has_it(run, found)
    if holder is None:
        return None
    if holder == names.router_application(request.model) and (split := run.router.written_in(found)) is not None:
        return Serving(split.stable, split.application(request.model, split.stable))
    if record is not None and record.stable_now is not None and record.application(record.stable_now) == holder:
        return Serving(record.stable_now, holder, not rayservice.says_route(rayservice.serve_config(found), holder))
    raise errors.NotAdopted(
        f"{run.rayservice}: route {route} belongs to application {holder}, which no release of model {request.model} knows: "
        f"`kfp-serving adopt {request.model} -n {request.namespace} --rayservice {request.rayservice}` records it as the stable version (so does "
        "options.adopt); nothing of it restarts, and users are served all the time"
    )


def aside(model: str, applications: Mapping[str, str]) -> dict[str, str]:
    """Application -> internal route, of the versions in ``applications`` (version -> application) and of the router."""
    internal = {application: names.version_route(model, version) for version, application in applications.items()}
    return {names.router_application(model): names.router_route(model), **internal}


def change(run: Run, to: str, why: str, applications: Mapping[str, str], *, implied: bool = False) -> Edit:
    """The public route to application ``to``; that of the others, or the router, that has it goes aside. ``implied``: see `rayservice.with_owner`."""
    route, others = run.address.route, {name: at for name, at in aside(run.request.model, applications).items() if name != to}

    def surgery(text: str) -> str:
        try:
            return rayservice.with_owner(text, route, to, others, implied=implied)
        except errors.NameTaken as error:
            raise errors.NameTaken(f"{run.rayservice}: {error}") from error

    return Edit(run.rayservice, surgery, frozenset({to, *others}), f"route {route} to {why}")


def of_release(record: Release) -> dict[str, str]:
    """Version -> application, of both."""
    return {version: record.application(version) for version in (record.stable_version, record.candidate_version) if version is not None}


def to_router(run: Run, applications: Mapping[str, str]) -> Edit:
    """The router takes the route."""
    return change(run, names.router_application(run.request.model), "the router", applications)


def to_version(run: Run, version: str, record: Release) -> Edit:
    """The application of a version takes the route; stable's as it stood there before."""
    implied = record.route_implied and version == record.stable_version
    return change(run, record.application(version), f"version {version}", of_release(record), implied=implied)


def take(run: Run, record: Release) -> bool:
    """The router takes the public route, and it is waited for; stable's application goes on at its internal one. False when it had it before.

    Raises `ApplicationRemoved`, `NameTaken`, `ReleaseHeld` and writes nothing; `WaitTimeout` when Serve does not do it.
    """
    router = names.router_application(record.model)
    if has_it(run, run.persist(lambda: run.cluster.get(run.rayservice))) == router:
        return False
    write(run.cluster, to_router(run, of_release(record)), fence=partial(journal.assert_ours, run), clock=run.clock)
    weights.wait_owner(run, router)
    return True


def give(run: Run, version: str, *, way_back: bool = False) -> None:
    """The application of ``version`` has the public route, and it is waited for. Idempotent. Raises as `take`.

    On the ``way_back`` that nobody can be asked stops nobody: users are with a version that works already.
    """
    record = journal.current(run)
    fence = partial(journal.assert_ours, run)
    write(run.cluster, to_version(run, version, record), fence=fence, clock=run.clock, way_back=way_back)
    try:
        weights.wait_owner(run, record.application(version))
    except errors.WaitTimeout:
        if not way_back:
            raise
        with contextlib.suppress(errors.Unreachable):
            run.router.observed_owner()
            raise
        journal.try_note(run, "roll back", f"Serve could not be asked whether {record.application(version)} has {run.address.route} again")


@dataclass(frozen=True)
class WayBack:
    """How users get stable again: through the router that stands on their route (``split``), or from its own application there (None)."""

    stable: str
    split: Split | None


def back_change(run: Run, record: Release, stable: str) -> Edit:
    """Users get stable, whatever they were given before: by the router where that has the route, else by the route itself. One write."""
    split = stable_alone(run, record, stable)
    through_router, by_route = run.router.change(split), to_version(run, stable, record)

    def surgery(text: str) -> str:
        return (through_router if _router_has_it(run, text) else by_route).surgery(text)

    return Edit(run.rayservice, surgery, through_router.changed | by_route.changed, f"users get {stable}")


def stable_alone(run: Run, record: Release, stable: str) -> Split:
    """Everything to stable."""
    return weights.split(run, of_release(record), stable=stable)


def wait_back(run: Run, back: WayBack) -> None:
    """Until it is so. Raises `WaitTimeout` saying what is instead."""
    if back.split is not None:
        weights.wait_applied(run, back.split)
    else:
        weights.wait_owner(run, journal.current(run).application(back.stable))


def drain(run: Run) -> bool:
    """Wait until the router, which has the route no more, has answered what it had taken; False when that takes longer than `DRAIN_S`.

    Then it must stay: a router that Serve removes while something is in flight in it stands in the way of the next one (measured with Ray 2.60: that
    one takes no weight). One that cannot be asked has nothing in flight.
    """
    deadline = run.clock.monotonic() + DRAIN_S
    while True:
        try:
            if run.router.in_flight() == 0:
                return True
        except errors.TemporaryError:
            return True
        if run.clock.monotonic() >= deadline:
            return False
        run.pause(0.5)


def still_busy(record: Release) -> str:
    """What is said then."""
    router = names.router_application(record.model)
    return f"application {router} still answers requests that it took; it stays until `kfp-serving tidy {record.in_a_command}`, or the next release"


def left_over(run: Run, found: Manifest | None, record: Release) -> bool:
    """Whether the router stands there without the route, and nothing is in flight in it."""
    router = names.router_application(record.model)
    if router not in rayservice.applications(rayservice.serve_config(found)) or has_it(run, found) == router:
        return False
    try:
        return run.router.in_flight() == 0
    except errors.TemporaryError:
        return True


def has_it(run: Run, found: Manifest | None) -> str | None:
    """The application that has the public route, by the RayService as it was read."""
    return rayservice.owner(rayservice.serve_config(found), run.address.route)


def _router_has_it(run: Run, text: str) -> bool:
    return rayservice.owner(text, run.address.route) == names.router_application(run.request.model)
