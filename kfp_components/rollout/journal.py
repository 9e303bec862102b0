"""What is written down while a release goes on: the record, an Event on the stub for each line of it, and the watcher who is told."""

from __future__ import annotations

import contextlib
import logging
from typing import Any, TypedDict, Unpack

from kfp_components import errors, names, notify
from kfp_components.clock import rfc3339
from kfp_components.cluster import Manifest
from kfp_components.phases import Phase
from kfp_components.release import Approved, Event, Evidence, Failure, Held, NamesBefore, Paused, Previous, Release, Rollback, Waits
from kfp_components.request import Occasion
from kfp_components.rollout.run import Run, nobody


class Fields(TypedDict, total=False):
    """What of a record changes beside its events, by the names that it has there."""

    phase: Phase
    step_index: int
    weight_percent: float
    verdict: Evidence | None
    failure: Failure | None
    held: Held | None
    paused: Paused | None
    waits: Waits | None
    approved: list[Approved]
    rollback: Rollback | None
    switched_unix_s: float | None
    finished_unix_s: float | None
    previous: Previous | None
    names_before: NamesBefore | None
    made: list[str]
    router_env: dict[str, Any] | None
    stub_uid: str | None


def read(run: Run) -> Release:
    """The record, read anew. Raises `NotFound` when there is none."""
    found = read_record(run)
    run.record = run.persist(lambda: run.store.complete(found))
    return run.record


def read_record(run: Run) -> Release:
    """The record alone, read anew, without what its canary measured. Raises `NotFound` when there is none."""
    found = run.persist(run.store.load_record)
    if found is None:
        raise errors.NotFound(f"{run.store.ref}: there is no release record; run the step register_model first")
    return found


def current(run: Run) -> Release:
    """The record as this run knows it."""
    return run.record if run.record is not None else read(run)


def assert_ours(run: Run) -> None:
    """Before a write that carries no epoch. Raises `ReleaseHeld` when another run has taken the release over.

    While the Lease is ours nobody can have; else the record is read.
    """
    if run.lease.held and run.record is not None and run.record.open:
        return
    found = run.persist(run.store.load_record)
    if found is None or found.epoch > run.epoch or not found.open:
        raise errors.ReleaseHeld(
            f"{run.store.ref}: another run{f', {found.holder},' if found else ''} has taken this release over; this run stops here"
        )


def advance(run: Run, phase: Phase, message: str, /, **fields: Unpack[Fields]) -> Release:
    """Go to the next phase. Raises what `ReleaseStore.update` does."""
    fields["phase"] = phase
    return write(run, phase.replace("_", " "), message, **fields)


def note(run: Run, step: str, message: str, *, ok: bool = True, **fields: Unpack[Fields]) -> Release:
    """Add a line."""
    return write(run, step, message, ok=ok, **fields)


def try_note(run: Run, step: str, message: str) -> None:
    """Add a line about something that went wrong, if it can be written. Raises `ReleaseHeld` when another run has taken the release over."""
    try:
        write(run, step, message, ok=False)
    except errors.ReleaseHeld:
        raise
    except errors.KfpServingError:
        return


def write(run: Run, step: str, message: str, *, ok: bool = True, **fields: Unpack[Fields]) -> Release:
    """Change the record, put an Event on the stub, tell the webhooks and the watcher."""
    now = run.clock.now_unix_s()
    event = Event(unix_s=now, step=step, message=message, ok=ok)
    undelivered = [Event(unix_s=now, step="notify", message=sentence, ok=False) for sentence in run.notifier.undelivered()]
    occasion: Occasion | None = None

    def change(record: Release) -> None:
        nonlocal occasion
        before = record.model_copy()
        for key, value in fields.items():
            setattr(record, key, value)
        record.events.extend([*undelivered, event])
        occasion = notify.occasion_of(before, record)

    kept = run.record
    record = run.persist(lambda: run.store.update(change, epoch=run.epoch))
    if occasion is not None:
        announce(run, occasion, record, message)
    if kept is not None:  # what lies apart is newer here than there
        record.timeline, record.judge = kept.timeline, kept.judge
    run.record = record
    _put_event(run, record, event)
    tell(run, record)
    return record


def announce(run: Run, occasion: Occasion, record: Release, text: str) -> None:
    """Tell the webhooks; nobody waits for them."""
    run.notifier.tell(notify.of_release(occasion, record, text, run.clock.now_unix_s(), run.source))


def tell(run: Run, record: Release) -> None:
    """Show the record to the watcher. One that breaks (a closed pipe, a terminal that is gone) is told nothing more: a view never fails a release."""
    try:
        run.watch(record)
    except Exception as error:
        logging.getLogger(__name__).warning("the view of the release broke (%s: %s); the release goes on without", type(error).__name__, error)
        run.watch = nobody


def timestamp(run: Run) -> str:
    """Now, as Kubernetes writes it."""
    return rfc3339(run.clock.now_unix_s())


def _put_event(run: Run, record: Release, event: Event) -> None:
    """An Event informs; the record is what counts. ``kubectl describe`` shows those that name the object's uid."""
    with contextlib.suppress(errors.KfpServingError):
        run.cluster.create(_manifest(run, record, event))


def _manifest(run: Run, record: Release, event: Event) -> Manifest:
    now = timestamp(run)
    reason = "".join(part.capitalize() for part in event.step.replace("%", "percent").replace(".", "_").split())
    about = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "name": record.model,
        "namespace": record.namespace,
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{record.model}-", "namespace": record.namespace},
        "involvedObject": about | ({"uid": record.stub_uid} if record.stub_uid else {}),
        "type": "Normal" if event.ok else "Warning",
        "reason": reason,
        "message": event.message[:1000],
        "source": {"component": names.MANAGER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
