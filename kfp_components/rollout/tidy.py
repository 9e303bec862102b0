"""What no run waits for: an old version whose time is over goes, and a candidate that was held for too long is taken back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

from kfp_components import errors, names
from kfp_components.cluster import Manifest
from kfp_components.cluster.changes import write
from kfp_components.release import Release
from kfp_components.rollout import journal, manifests, registered, routes, undo, weights
from kfp_components.rollout.run import Run
from kfp_components.rollout.status import read_status
from kfp_components.rollout.step import put_down, take


def tidy_release(run: Run) -> Release:
    """Remove a promoted release's old version when its time is over, or take a candidate back that was held for longer than ``hold_ttl_s``.

    Where nobody works on the release, the stub is made to show what is, and the registry's aliases are put where they belong. Anything else stays as
    it is. Raises `ReleaseHeld` when a run is at work on the release, `ReleaseLeft` when the surroundings did not let it finish: the same again goes
    on, and users are served meanwhile.
    """
    record = journal.read(run)
    try:
        run.address = record.address
        if due(run, record):
            record = put_away(run)
        elif record.done and not record.open and routes.left_over(run, run.persist(lambda: run.cluster.get(run.rayservice)), record):
            gone = manifests.removal_change(run, {names.router_application(record.model)})  # it answered what it had taken; nobody needs it
            _where_nobody_works(run, record, partial(write, run.cluster, gone, clock=run.clock))
        _show_what_is(run, record)
        if record.stable_now is not None and record.done and registered.wrong(run, record):
            _where_nobody_works(run, record, partial(registered.mend, run, record))
        return record
    except errors.ReleaseHeld:
        raise
    except errors.KfpServingError as error:
        raise undo.left(run, f"it could not be tidied up: {error}") from error
    finally:
        put_down(run)


def due(run: Run, record: Release) -> bool:
    """Whether there is something of it that nobody waits for any more."""
    now = run.clock.now_unix_s()
    if record.phase == "promoted" and record.previous is not None:
        return now >= record.previous.until_unix_s
    return record.phase == "held" and record.held is not None and now - record.held.since_unix_s >= record.asked().options.hold_ttl_s


def put_away(run: Run) -> Release:
    """The old version of a promoted release goes now; a held candidate is taken back. ``run`` is of the release's own request."""
    record = take(run, reopen=True)
    if not record.open:
        return record
    if record.phase != "promoted" and not due(run, record):  # another run has gone on with it since it was looked at
        run.persist(run.lease.release)
        return record
    if record.phase != "promoted":
        held_s = run.clock.now_unix_s() - (record.held.since_unix_s if record.held else record.started_unix_s)
        return undo.take_back(run, errors.RolledBack(f"held for {held_s / 3600:.1f} hours; its time is over"))
    assert record.previous is not None
    old = record.previous.version
    weights.assert_runs(run, record.candidate_version)
    found = run.persist(lambda: run.cluster.get(run.rayservice))
    if _reaches(run, found, record.application(old)):
        raise errors.Conflict(
            f"{run.rayservice}: {run.address.route} sends users to {old}, which was to be removed; somebody else wrote that. {old} stays: "
            f"`kfp-serving rollback {record.in_a_command}` goes back to it"
        )
    router = {names.router_application(record.model)} if routes.left_over(run, found, record) else set()
    gone = manifests.removal_change(run, {record.application(old)} | router)
    write(run.cluster, gone, fence=partial(journal.assert_ours, run), clock=run.clock)
    record = journal.write(run, "tidy up", f"{old} is removed", previous=None)
    run.persist(run.lease.release)
    return record


def _where_nobody_works(run: Run, record: Release, do: Callable[[], object]) -> None:
    """With the Lease, unless another run has gone on with the model since ``record`` was read: it does this itself."""
    run.persist(run.lease.acquire)
    try:
        if journal.read_record(run).epoch == record.epoch:
            do()
    finally:
        run.persist(run.lease.release)


def _reaches(run: Run, found: Manifest | None, application: str) -> bool:
    """Whether users may get that application: it has the route, or a router knows it (of a release by an older version of this library)."""
    split = run.router.written_in(found)
    versions = () if split is None else (split.stable, split.candidate)
    known = {split.application(run.request.model, version) for version in versions if version is not None} if split else set()
    return application in (known | {routes.has_it(run, found)})


def _show_what_is(run: Run, record: Release) -> None:
    """A weight that lapsed, or a router that somebody took away, is shown by the stub. A live canary shows itself; nothing is guessed."""
    if record.phase == "promoted":
        _name_what_serves(run, record.candidate_version)
    status = read_status(run.cluster, record, clock=run.clock, transport=run.transport)
    traffic = status.traffic or {}
    split = sum(share > 0 for share in traffic.values()) > 1
    if status.shown is None or status.ready is None or split:
        return
    serving = {version: share for version, share in traffic.items() if share > 0} if status.ready else {}
    if {version: share for version, share in status.shown.items() if share > 0} != serving:
        manifests.show(run, serving, "; ".join(status.notes) or manifests.all_message(", ".join(serving)), ready=status.ready)


def _name_what_serves(run: Run, version: str) -> None:
    """A run that was taken over from may have written the stub last. Its owner's fields are his."""
    stub = run.cluster.get(manifests.stub_ref(run))
    if stub is None or (stub["metadata"].get("annotations") or {}).get(names.STUB_VERSION) in (None, version):
        return
    with contextlib.suppress(errors.InputError):
        write(run.cluster, manifests.stub_change(run, version, stub))
