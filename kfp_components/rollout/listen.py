"""What a running step does about commands on its Lease, and where a release stands still: paused, or waiting for approve.

The record is written first, then the command is taken off the Lease: a process that is killed in between finds it again and writes nothing twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kfp_components import errors
from kfp_components.release import Approved, Command, Paused, Release, Waits
from kfp_components.release.commands import KINDS
from kfp_components.rollout import journal
from kfp_components.rollout.run import Run
from kfp_components.serving import rayservice


@contextlib.contextmanager
def listening(run: Run) -> Iterator[None]:
    """Whenever the Lease is looked at meanwhile, what is asked there is obeyed. Raises `Aborted`, at once when it was asked for before."""

    def obey(command: Command) -> None:
        follow(run, command)
        with contextlib.suppress(errors.Unreachable):  # it is found there again, and known
            run.lease.take_off(command)

    run.obey = obey
    try:
        run.heed()
        yield
    finally:
        run.obey = None


def follow(run: Run, command: Command) -> None:
    """Do what is asked, and write down who asked and when. Raises `Aborted`; that the candidate is taken back is its record."""
    record = journal.current(run)
    if answer(record, command) is not None:
        return
    refused = why_not(run, record, command)
    if refused:
        journal.write(run, command.kind, f"{command.told}: not done: {refused}", ok=False)
    elif command.kind == "abort":
        raise aborted(record, command)
    elif command.kind == "pause":
        paused = Paused(by=command.by, since_unix_s=run.clock.now_unix_s(), reason=command.reason)
        journal.write(run, command.kind, f"{command.told}; the weight stays as it is", paused=paused)
    elif command.kind == "resume":
        assert record.paused is not None
        waits = record.waits
        if waits is not None:  # its time did not run
            stood_s = run.clock.now_unix_s() - record.paused.since_unix_s
            waits = waits.model_copy(update={"until_unix_s": waits.until_unix_s + stood_s})
        journal.write(run, command.kind, command.told, paused=None, waits=waits)
    else:
        assert record.waits is not None
        approved = Approved(before=record.waits.before, by=command.by, at_unix_s=command.at_unix_s or run.clock.now_unix_s())
        journal.write(run, command.kind, f"{command.told}; goes on to {approved.before}", waits=None, approved=[*record.approved, approved])


def answer(record: Release, command: Command) -> str | None:
    """What the record says about a command that was obeyed or refused; None before that."""
    return next((event.message for event in record.events if event.step == command.kind and event.message.startswith(command.asked)), None)


def refusal(record: Release, command: Command) -> str | None:
    """Why the record says that a command was not done; None when it was, or nothing is known yet."""
    return next((e.message for e in record.events if e.step == command.kind and not e.ok and e.message.startswith(command.asked)), None)


def aborted(record: Release, command: Command) -> errors.Aborted:
    """The error that takes the candidate back."""
    return errors.Aborted(f"model {record.model}: the release of {record.candidate_version} is aborted, {command.told}")


def why_not(run: Run, record: Release, command: Command) -> str | None:
    """Why a command cannot be done as things are; None when it can."""
    if not command.known:
        return f"{command.kind!r} is not a command; commands are {', '.join(KINDS)}"
    if command.kind == "abort":
        if record.phase == "promoting" and record.stable_version is not None and not _there(run, record.stable_version):
            return f"{record.stable_version} is gone already, {record.candidate_version} serves all requests"
    elif record.phase == "promoting":
        return f"all traffic goes to {record.candidate_version} already; only abort can be obeyed now"
    elif command.kind == "pause" and record.paused is not None:
        return f"it is paused already, by {record.paused.by}"
    elif command.kind == "resume" and record.paused is None:
        return "it is not paused"
    elif command.kind == "approve" and record.waits is None:
        return "nothing waits for approve"
    return None


def open_gate(run: Run, before: str) -> None:
    """Say that it waits for approve, where the request wants one before ``before`` (see `name_of`) and nobody gave it yet."""
    approval, record = run.request.options.approval, journal.current(run)
    wanted = [name_of(place) for place in approval.before] if approval else []
    if approval is None or before not in wanted or before in [given.before for given in record.approved]:
        return
    if record.waits is None or record.waits.before != before:
        waits = Waits(before=before, until_unix_s=run.clock.now_unix_s() + approval.timeout_s)
        journal.write(run, "approval", f"waits for approve before {before}, for {approval.timeout_s:g} s at most", waits=waits)


def name_of(place: str | float) -> str:
    """How a gate is called in the record."""
    return place if isinstance(place, str) else f"{place:g} %"


def stands(run: Run) -> bool:
    """Whether it is paused or waits for approve.

    When the time for that is over: `NotApproved`, `RolledBack`, or it goes on, as ``options.approval.on_timeout`` says.
    """
    record = journal.current(run)
    if record.paused is not None:
        return True
    if record.waits is None:
        return False
    if run.clock.now_unix_s() < record.waits.until_unix_s:
        return True
    before, approval = record.waits.before, run.request.options.approval
    then = approval.on_timeout if approval else "hold"
    told = f"nobody approved {record.candidate_version} before {before} in time"
    approved = record.approved
    if then == "promote":
        approved = [*approved, Approved(before=before, by="options.approval.on_timeout", at_unix_s=run.clock.now_unix_s())]
    journal.write(run, "approval", f"{told}: {then.replace('_', ' ')}", ok=then == "promote", waits=None, approved=approved)
    if then == "promote":
        return False
    if then == "roll_back":
        raise errors.RolledBack(f"model {record.model}: {told}")
    raise errors.NotApproved(f"model {record.model}: {told}")


def stand(run: Run) -> None:
    """Wait while it is paused or waits for approve. Raises as `stands`, and `Aborted`."""
    while stands(run):
        run.pause(run.tick_s)


def _there(run: Run, version: str) -> bool:
    applications = rayservice.applications(rayservice.serve_config(run.cluster.get(run.rayservice)))
    return journal.current(run).application(version) in applications
