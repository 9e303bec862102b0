"""Giving a release up, and what an exit handler does."""

from __future__ import annotations

from kfp_components import errors, names
from kfp_components.release import Release
from kfp_components.rollout import journal, listen, routes, undo, weights
from kfp_components.rollout.promote import promote_model
from kfp_components.rollout.run import Run
from kfp_components.rollout.status import not_served
from kfp_components.rollout.step import put_down, take


def roll_back(run: Run, reason: str = "asked for") -> Release:
    """Give up a release: all traffic to stable in one write, verified by probes, then tidy up.

    One that is being promoted, or is promoted, goes back as long as its old version is there: then the names go back too (registry, stub), before the
    new version's application goes. Any other finished release is left as it is: then this only verifies that the version that should answer does.
    Raises `ReleaseLeft` when it could not be finished: the same again goes on.
    """
    record = journal.read(run)
    if not record.open:
        serving = _serving(record)
        run.record, run.address = record, record.address
        found = run.persist(lambda: run.cluster.get(run.rayservice))
        if found is None:
            raise errors.NotFound(f"{run.rayservice}: it does not exist any more")
        application, holder = record.application(serving), routes.has_it(run, found)
        if holder == names.router_application(record.model):
            undo.verify(run, serving, strict=True)
        elif holder == application:
            weights.wait_owner(run, application)
        else:
            raise errors.NotFound(f"{run.rayservice}: {not_served(found, record)}")
        return record
    return give_up(run, errors.RolledBack(f"model {record.model}: rolled back: {reason}"))


def give_up(run: Run, error: errors.RolledBack) -> Release:
    """Take the release over and the candidate back, for what ``error`` says. Raises as `roll_back`."""
    if not take(run, reopen=True).open:
        return journal.current(run)
    try:
        return undo.take_back(run, error)
    except errors.ReleaseHeld:
        raise
    except errors.KfpServingError as second:
        now = journal.current(run)
        moving = f"all traffic is being moved back from {now.candidate_version} to {now.stable_version}; users get the one or the other"
        raise undo.left(run, f"the way back is not finished: {second}", moving if now.phase == "promoted" else "") from second
    finally:
        put_down(run)


def finish_release(run: Run) -> Release | None:
    """What an exit handler does: a canary that nobody runs any more gives its traffic back, and a promotion or a way back that was begun is finished.

    Everything else stays for the same request to go on. A run that was refused at the door left nothing (None); another run's release, and one whose
    step is still at work, are not touched. Raises what `promote_model` does, or a
    `TemporaryError` when the surroundings do not let it finish: the same command goes on.
    """
    record = run.persist(run.store.load)
    if record is None or record.holder != run.holder:
        return None
    run.record = record
    if record.done:
        return record
    try:
        if record.phase == "promoting":
            return promote_model(run)
        record = take(run)
        command = run.lease.command
        if command is not None and command.kind == "abort":  # it came when no step looked any more
            return undo.take_back(run, listen.aborted(record, command))
        if record.phase == "rolling_back":
            return undo.take_back(run, undo.as_error(record))
        if record.phase == "canary":
            undo.leave(run, "end of the run", errors.ReleaseLeft("the run ended before the release did"))
    except errors.ReleaseHeld:
        return journal.read(run)  # a step of this run still works
    finally:
        put_down(run)
    return journal.current(run)


def _serving(record: Release) -> str:
    serving = record.stable_now
    if serving is None:
        raise errors.NotFound(f"model {record.model}: no version of it serves; nothing to roll back")
    return serving
