"""The beginning: everything is checked, then the release record is opened, or the one that this request continues is found."""

from __future__ import annotations

import contextlib
from functools import partial

from kfp_components import artifact, errors, names
from kfp_components.artifact import Verified
from kfp_components.cluster import Manifest
from kfp_components.release import Event, Release
from kfp_components.request import parse_target
from kfp_components.rollout import adopt, journal, preflight, registered, routes, tidy
from kfp_components.rollout.preflight import Serving
from kfp_components.rollout.run import Run
from kfp_components.rollout.status import not_served
from kfp_components.rollout.step import own, step, take
from kfp_components.serving import alias


def register_model(run: Run, *, first_version: bool = False, boxes: int | None = None) -> Release:
    """Make the version known to the registry, as ``candidate``. Opens the release, or continues it.

    ``boxes``: how many canary steps the pipeline has that calls this; `RequestInvalid` when the request has more. Raises an `InputError` before
    anything is written; `ReleaseHeld` when another run is at it, or another request's release is unfinished.
    """
    if boxes is not None and len(run.request.steps) > boxes:
        raise errors.RequestInvalid(
            f"steps: {len(run.request.steps)} are asked for, but this pipeline was compiled with {boxes} canary step(s); give at most {boxes}, or "
            f"compile it with --steps {','.join(f'{weight:g}' for weight in run.request.steps)} and upload that"
        )
    with step(run, "register", until="registered", begun=_begin(run, first_version)) as record:
        if record is not None:
            request = run.request
            journal.assert_ours(run)
            registered.enter(run, record)
            journal.advance(run, "registered", f"{run.registered_name} {request.version} registered from {request.uri}")
    return journal.current(run)


LOOK_AGAIN_S = 5.0
"""After so long a reading of the artifact what was seen before it is looked at again."""


def _begin(run: Run, first_version: bool, verified: Verified | None = None) -> Release:
    """Check everything, take the model's Lease and open the release record, or find the one that this request continues.

    The artifact is read last, and once: ``verified`` is what was found. Nothing is held meanwhile.
    """
    request = run.request
    found = run.persist(run.store.load_record)
    if found is not None and not found.done:
        if found.request_digest == request.digest:
            run.record = found
            take(run)
            return journal.current(run)
        found = _make_way(run, found)
    run.address = address(run, found)
    rayservice = run.persist(lambda: run.cluster.get(run.rayservice))
    serving: Serving | None = None
    try:
        serving = routes.serving(run, rayservice, found)
        stable = serving.version if serving else None
        if stable == request.version and found is not None and found.phase == "promoted" and found.request_digest == request.digest:
            run.record = found
            return tidy.tidy_release(run) if tidy.due(run, found) else found
        assert_new(run, stable, first_version)
        situation = preflight.check(run, found=rayservice, serving=serving, first_version=first_version)
        if verified is None:
            began = run.clock.monotonic()
            verified = _verify(run, situation)
            if run.clock.monotonic() - began > LOOK_AGAIN_S:
                return _begin(run, first_version, verified)
    except errors.InputError as error:
        if isinstance(error, errors.NotAdopted) and request.options.adopt:
            return _begin(run, first_version, _adopt(run, rayservice, first_version, verified))
        if serving is None and found is not None and found.stable_now is not None and rayservice is not None:
            error.add_note(f"The last release left users on {found.stable_now}, but {not_served(rayservice, found)}.")
        if _state(run.persist(run.store.load_record)) != _state(found):  # it was looked at while another run changed it
            return _begin(run, first_version, verified)
        raise
    if found is not None and found.open:  # it is promoted: its old version goes, this release may go back to the newer one
        found = _put_away(run, found)
    run.persist(run.lease.acquire)
    if (stale := run.lease.command) is not None:  # of an earlier release, whose Lease was left
        run.persist(partial(run.lease.take_off, stale))
    try:
        record = run.persist(lambda: run.store.start(_opened(run, found, serving, situation, verified, first_version)))
    except errors.KfpServingError as error:
        with contextlib.suppress(errors.KfpServingError):
            run.lease.release()
        if isinstance(error, errors.ReleaseHeld) and _state(run.persist(run.store.load_record)) != _state(found):
            return _begin(run, first_version, verified)  # another run began or ended a release while this one looked
        raise
    own(run, record)
    journal.announce(run, "start", record, f"{request.version} is to {f'replace {stable}' if stable else 'get the first users'}")
    return record


def adoption(run: Run) -> tuple[Run, Serving]:
    """The run that adopts the application at this request's route, which no release knows, and what serves then. Nothing is written."""
    request, options = run.request, run.request.options
    asked = adopt.Asked(route=run.address.route, alias=run.address.alias, model_format=options.model_format)
    target = parse_target({key: getattr(request, key) for key in ("model", "namespace", "rayservice")})
    found = adopt.adoption_of(run.cluster, target, asked, clock=run.clock)
    return run.for_request(found), Serving(found.version, str(found.options.application))


def _verify(run: Run, situation: preflight.Situation) -> Verified:
    """Compare the artifact with what is known of it. Raises as `artifact.verify`."""
    return run.persist(lambda: artifact.verify(run.request, situation.registered_digest, run.reading))


def _adopt(run: Run, rayservice: Manifest | None, first_version: bool, verified: Verified | None) -> Verified:
    """With ``options.adopt``: once nothing is in this request's way, its artifact included."""
    adopting, serving = adoption(run)
    assert_new(run, serving.version, first_version)
    situation = preflight.check(run, found=rayservice, serving=serving, first_version=first_version)
    verified = verified or _verify(run, situation)
    adopt.adopt_model(adopting)
    return verified


def _opened(
    run: Run, found: Release | None, serving: Serving | None, situation: preflight.Situation, verified: Verified, first_version: bool
) -> Release:
    """The record to begin with, over the finished one that was ``found``."""
    request = run.request
    front, router = (("Service", situation.service), ("InferenceService", situation.stub)), situation.router
    now = run.clock.now_unix_s()
    return Release(
        epoch=(found.epoch if found else 0) + 1,
        model=request.model,
        namespace=request.namespace,
        rayservice=request.rayservice,
        candidate_version=request.version,
        stable_version=serving.version if serving else None,
        stable_application=serving.application if serving else None,
        route_implied=serving.route_implied if serving else False,
        candidate_application=request.options.application,
        alias=run.address.alias,
        route=run.address.route,
        adoption=found.adoption if found else None,
        router_env=dict(router.runtime_env) if router else {},
        request=request.model_dump(mode="json"),
        request_digest=request.digest,
        holder=run.holder,
        steps=[] if first_version else list(request.steps),
        started_unix_s=now,
        events=[
            *([Event(unix_s=now, step="router", message=router.told)] if router else []),
            Event(unix_s=now, step="artifact", message=verified.sentence),
        ],
        made=[kind for kind, there in front if there is None] + ([alias.LABEL] if alias.is_unlabelled(request.model, situation.service) else []),
        stub_uid=None if situation.stub is None else str(situation.stub["metadata"]["uid"]),
    )


def address(run: Run, found: Release | None) -> names.Address:
    """What clients call: as the model's last release has it, else as the request asks for it. `RequestInvalid` when it asks for another one."""
    asked, options = run.request.address, run.request.options
    if found is None or found.stable_now is None:
        return asked
    known = found.address
    for what, wanted, has in (("route", options.route, known.route), ("alias", options.alias, known.alias)):
        if wanted is not None and wanted != has:
            raise errors.RequestInvalid(
                f"options.{what}: users of model {found.model} call {has}, not {wanted}; leave it out. Another {what} is another name for users: "
                f"take this one back with `kfp-serving adopt --undo {found.in_a_command}`, then adopt the model anew"
            )
    return known


def assert_new(run: Run, stable: str | None, first_version: bool) -> None:
    """Raise `RequestInvalid` when the version is what users get, or a first version is to be deployed beside a stable one."""
    request = run.request
    if stable == request.version:
        raise errors.RequestInvalid(f"model {request.model}: version {request.version} is what users get already; give a new version")
    if stable is not None and first_version:
        raise errors.RequestInvalid(
            f"model {request.model}: version {stable} is live; a new version goes through the canary (promote_with_canary), not deploy_model"
        )


def _state(record: Release | None) -> tuple[int, str, float] | None:
    return None if record is None else (record.epoch, record.phase, record.started_unix_s)


def _put_away(run: Run, found: Release) -> Release:
    """What was left of the last release goes; its record as this run's store knows it then."""
    tidy.put_away(run.for_request(found.asked()))
    return journal.read_record(run)


def _make_way(run: Run, found: Release) -> Release:
    """Another request's release: one that was held for longer than it may is taken back first, any other one refuses this request."""
    if tidy.due(run, found):
        return _put_away(run, found)
    if found.adopts and run.request.options.adopt:  # it was killed in the middle
        adopt.adopt_model(run.for_request(found.asked()))
        return journal.read_record(run)  # as this run's store knows it then
    raise errors.ReleaseHeld(
        f"{run.store.ref}: the release of {found.candidate_version} is unfinished ({found.phase}, last run by {found.holder}); "
        f"run that request again to go on, or `kfp-serving rollback {found.in_a_command}` to give it up"
    )
