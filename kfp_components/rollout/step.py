"""The frame of every step: one read of the record, the Lease and the epoch, and what happens when it fails."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from kfp_components import errors
from kfp_components.phases import Phase
from kfp_components.release import Release
from kfp_components.rollout import journal, listen, policy, undo
from kfp_components.rollout.run import PATIENCE_S, Run


@contextlib.contextmanager
def step(run: Run, name: str, *, until: Phase, stands: bool = True, begun: Release | None = None) -> Iterator[Release | None]:
    """Yields the record, or None when the step is done already (a retried pod, a rerun). ``begun`` is the record as it was just read or written.

    It obeys what is asked of it (`listen`). While the release is paused it does not begin; without ``stands`` the step sees to that itself.

    A fault is settled by the fault table (`policy`) before it is raised: then users are on a version that works, or will be when the candidate's
    weight lapses, and the record says where to go on. `ReleaseHeld` when another request or another run is in charge; what stopped a release that
    was taken back is raised again.
    """
    record = begun or _read(run)
    if record.request_digest != run.request.digest:
        raise errors.ReleaseHeld(f"{run.store.ref}: it is the release of another request ({record.candidate_version}); this run stops here")
    if _ended(record):
        yield None
        return
    if run.epoch:
        _assert_not_taken_over(run, record)
    record = take(run)
    if _ended(record):  # by another run, meanwhile
        yield None
        return
    with _termination_raises():
        try:
            if record.phase == "rolling_back":  # the process that began this was killed: finish it
                raise undo.as_error(record)
            with listen.listening(run):
                open_still = not journal.current(run).reached(until)
                if open_still and stands:
                    listen.stand(run)
                yield journal.current(run) if open_still else None
                if not journal.current(run).done:
                    run.keep()
        except BaseException as error:
            settled = settle(run, name, error)
            if isinstance(settled, errors.ReleaseHeld):
                _stand_aside(run)
            if settled is error:
                raise
            raise settled from error
        finally:
            put_down(run)


def _assert_not_taken_over(run: Run, record: Release) -> None:
    if record.epoch > run.epoch:
        raise errors.ReleaseHeld(f"{run.store.ref}: another run, {record.holder}, has taken this release over; this run stops here")


def _ended(record: Release) -> bool:
    """Whether it was promoted; what stopped one that was taken back is raised again."""
    if record.phase == "rolled_back":
        raise undo.as_error(record)
    return record.done


def _read(run: Run) -> Release:
    """The record. `NotFound` when there is none; when it cannot be read, what users have is told from what this run knows."""
    try:
        record = journal.read_record(run)
        if run.epoch or record.done:
            record = run.persist(lambda: run.store.complete(record))
        run.record = record  # what is missing is read once the release is taken over
        return record
    except (errors.NotFound, errors.NameTaken, errors.RecordTooNew):
        raise
    except errors.KfpServingError as error:
        if run.record is not None:
            raise undo.left(run, str(error)) from error
        raise errors.ReleaseLeft(
            f"{error}. This step touched nothing; a candidate's weight lapses by itself. The same command goes on when the record can be read"
        ) from error


def take(run: Run, *, reopen: bool = False) -> Release:
    """Take the Lease and, the first time, the release: an older process that wakes is refused from here on. `ReleaseHeld` names who has it.

    Returns the record; one that another run has ended meanwhile is not taken, unless it is to ``reopen`` a promoted one whose old version is kept.
    """
    try:
        held = run.lease.held
        if not held:
            run.persist(run.lease.acquire)
        if run.epoch == 0:
            own(run, run.persist(lambda: run.store.take_over(run.holder, reopen=reopen)))
        elif not held:  # it was anybody's meanwhile
            try:
                _assert_not_taken_over(run, journal.read(run))
            except errors.ReleaseHeld:
                _stand_aside(run)
                raise
        record = journal.current(run)
        if record.done and not (reopen and record.open):
            run.persist(run.lease.release)
        return record
    except (errors.ReleaseHeld, errors.RecordTooNew):
        raise
    except errors.KfpServingError as error:
        raise undo.left(run, str(error)) from error


def own(run: Run, record: Release) -> None:
    """From now on this run writes with the epoch of the record, and is patient with the surroundings."""
    run.patience.seconds = PATIENCE_S
    run.address = record.address
    run.record, run.epoch, run.router.epoch, run.router.runtime_env = record, record.epoch, record.epoch, record.router_env or {}


def put_down(run: Run) -> None:
    """Leave the Lease to the next step's process; a run in one process keeps it until the release ends."""
    if not run.in_one_process:
        with contextlib.suppress(errors.KfpServingError):
            run.lease.park()


def _stand_aside(run: Run) -> None:
    """Another run is in charge: what is left of our Lease must not stand in its way."""
    with contextlib.suppress(errors.KfpServingError):
        run.lease.release()


def settle(run: Run, name: str, error: BaseException) -> BaseException:
    """Do what the table says, and return what is to be raised."""
    record = run.record
    assert record is not None
    action = policy.decide(error, record.phase, on_inconclusive=run.request.options.on_inconclusive)
    if action == "stand aside":
        return error
    try:
        if action == "leave":
            return undo.leave(run, name, error)
        if action == "hold":
            undo.hold(run, error)
        else:
            undo.take_back(run, error)
    except errors.ReleaseHeld as taken_over:
        return taken_over
    except errors.KfpServingError as second:
        try:
            journal.assert_ours(run)
        except errors.ReleaseHeld as taken_over:
            return taken_over
        except errors.KfpServingError:
            pass  # nobody can say
        record = journal.current(run)
        if record.phase == "rolling_back":
            serves = f"{record.stable_version} serves all requests; " if record.stable_version else ""
            error.add_note(
                f"The way back is not finished ({second}): {serves}the same command, or `kfp-serving rollback {record.in_a_command}`, finishes it."
            )
            return error
        return undo.left(run, f"{error}. It could not be {'held' if action == 'hold' else 'taken back'} ({second})")
    return error


@contextlib.contextmanager
def _termination_raises() -> Iterator[None]:
    """SIGTERM ends a step as Ctrl-C does: Kubeflow's Terminate sends it 30 s before SIGKILL and runs no exit handler: the step gives back itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
