"""Abort, pause, resume and approve from outside: asked of the step that runs, or done here when none does."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable

from kfp_components import errors
from kfp_components.cluster import Manifest
from kfp_components.release import Approved, Command, Release, commands
from kfp_components.release.lease import POLL_S, at_work, holder_of
from kfp_components.rollout import journal, listen
from kfp_components.rollout.promote import promote_model
from kfp_components.rollout.rollback import give_up
from kfp_components.rollout.run import PATIENCE_S, Run, open_run
from kfp_components.rollout.step import put_down, take

ABORT_S, ANSWER_S = 300.0, 60.0
"""How long a running step may take to end the release, and to obey the other commands."""


def abort_release(run: Run, reason: str = "", *, timeout_s: float = ABORT_S) -> Release:
    """All traffic back to stable, and the candidate goes: by the step that runs, here when none does. Returns the record, which says who asked.

    Raises `NotFound` when nothing is unfinished, `StepOutOfOrder` when it is too late, `WaitTimeout` when the step that runs has not ended the
    release within ``timeout_s``: it stays asked for.
    """

    def alone(run: Run, command: Command) -> Release:
        return give_up(run, listen.aborted(journal.current(run), command))

    record = _Asked(run, "abort", reason, timeout_s).settled(alone, done=lambda found: found.done)
    if record.phase == "promoted":
        raise errors.StepOutOfOrder(f"model {record.model}: too late: {record.candidate_version} was promoted meanwhile; promote another version")
    return record


def pause_release(run: Run, reason: str = "", *, timeout_s: float = ANSWER_S) -> Release:
    """The candidate keeps the weight that it has, watched, and budgets do not run, until `resume_release`. Returns the record.

    Between two steps of a pipeline it is asked of the next one (the record does not say ``paused`` yet). Raises `NotFound` when nothing is
    unfinished, `StepOutOfOrder` when it cannot be done, `WaitTimeout` when the step that runs has not obeyed within ``timeout_s``: it
    stays asked for.
    """
    return _Asked(run, "pause", reason, timeout_s).settled(_noted)


def resume_release(run: Run, reason: str = "", *, timeout_s: float = ANSWER_S) -> Release:
    """A paused release goes on. Otherwise as `pause_release`."""
    return _Asked(run, "resume", reason, timeout_s).settled(_noted)


def approve_release(run: Run, reason: str = "", *, timeout_s: float = ANSWER_S) -> Release:
    """A release that waits for approve goes on; one that is held is promoted here, as it is, the steps that are left skipped.

    Otherwise as `pause_release`. While it promotes it raises as `promote_model`.
    """
    return _Asked(run, "approve", reason, timeout_s).settled(_approved)


def _noted(run: Run, command: Command) -> Release:
    """Nobody holds the release: the record itself is changed, in the epoch that it has."""
    refused = listen.why_not(run, journal.current(run), command)
    if refused:
        raise errors.StepOutOfOrder(f"{run.store.ref}: {command.kind}: {refused}")
    run.epoch = journal.current(run).epoch
    listen.follow(run, command)
    return journal.current(run)


def _approved(run: Run, command: Command) -> Release:
    record = journal.current(run)
    if record.phase != "held":
        return _noted(run, command)
    if record.paused is not None:
        raise errors.StepOutOfOrder(f"{run.store.ref}: it is paused by {record.paused.by}; resume it first")
    try:
        record = take(run)
        if record.done:
            return record
        if record.phase != "held":
            raise errors.ReleaseHeld(
                f"{run.store.ref}: another run has gone on with {record.candidate_version} since this one looked ({record.phase})"
            )
        approved = Approved(before="promote", by=command.by, at_unix_s=command.at_unix_s)
        told = f"{command.told}; {record.candidate_version} is promoted as it is"
        journal.write(run, command.kind, told, step_index=len(record.steps), approved=[*record.approved, approved], waits=None)
    finally:
        put_down(run)
    return promote_model(run)


class _Asked:
    """One command, from being asked until it is settled."""

    def __init__(self, run: Run, kind: str, reason: str, timeout_s: float) -> None:
        by = _who() if run.in_one_process else run.holder
        self.command = Command(kind, by, float(int(run.clock.now_unix_s())), reason)
        self.run, self.timeout_s = run, timeout_s
        self.asked = False
        self.seen: tuple[Manifest | None, float] = (None, 0.0)

    def settled(self, alone: Callable[[Run, Command], Release], done: Callable[[Release], bool] | None = None) -> Release:
        """The record once the command was obeyed, or is ``done``; ``alone`` does it where no process holds the release."""
        run, command = self.run, self.command
        end = run.clock.monotonic() + self.timeout_s
        while True:
            record = self._record()
            refused = listen.refusal(record, command)
            if refused:
                raise errors.StepOutOfOrder(f"{run.store.ref}: {refused}")
            if record.done or (listen.answer(record, command) is not None and done is None):
                return record
            lease = run.persist(lambda: run.cluster.get(run.lease.ref))
            if self._alone(record, lease):
                try:
                    return alone(_in_the_name_of(run, record), command)
                except errors.ReleaseHeld:
                    pass  # a process holds it now: it is asked
            elif self._ask(lease) and not at_work(lease):
                return record  # parked: the next step of its run obeys, before anything else
            if run.clock.monotonic() >= end:
                holder = holder_of(lease or {}) or "nobody"
                raise errors.WaitTimeout(
                    f"{run.lease.ref}: {command.kind} is asked for there, but {holder} has not obeyed within {self.timeout_s:g} s; "
                    f"it stays asked for, `kfp-serving status {record.in_a_command}` shows what came of it"
                )
            run.clock.sleep(POLL_S)

    def _record(self) -> Release:
        run = self.run
        record = journal.read(run)
        run.patience.seconds = PATIENCE_S
        if record.done and not self.asked:
            raise errors.NotFound(
                f"{run.store.ref}: the release of {record.candidate_version} is {record.phase.replace('_', ' ')}, none is unfinished; "
                f"there is nothing to {self.command.kind}"
            )
        return record

    def _alone(self, record: Release, lease: Manifest | None) -> bool:
        """Whether nobody will obey: no process holds the Lease, or the one that does has stopped to renew it."""
        now_s = self.run.clock.monotonic()
        spec = (lease or {}).get("spec") or {}
        if spec != self.seen[0]:
            self.seen = (spec, now_s)
        if lease is None:
            return True
        ends = self.command.kind == "abort" or (self.command.kind == "approve" and record.phase == "held")
        lasts_s = float(spec.get("leaseDurationSeconds") or 0.0)
        return ends and (not at_work(lease) or now_s - self.seen[1] > lasts_s / 2)

    def _ask(self, lease: Manifest | None) -> bool:
        """Put it on the Lease, once. Returns whether it is asked."""
        if not self.asked and lease is not None:
            try:
                self.run.persist(lambda: self.run.cluster.replace(commands.put(lease, self.command)))
                self.asked = True
            except (errors.Conflict, errors.NotFound):
                pass  # the Lease changed meanwhile: look again
        return self.asked


def _in_the_name_of(run: Run, record: Release) -> Run:
    """A run that acts as the one whose release it is, so that what that one has parked need not be waited out, and its exit handler knows it."""
    found = open_run(
        record.asked(), run.cluster, holder=record.holder, watch=run.watch, clock=run.clock, registry=run.registry, transport=run.transport
    )
    journal.read(found)
    return found


def _who() -> str:
    """Who types this, as ``user@host``."""
    try:
        user = getpass.getuser()
    except (KeyError, ImportError, OSError):  # a user id that has no name, as in many containers
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"
