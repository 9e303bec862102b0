"""The Lease on one model, by the rules of client-go's leader election; no thread, and no clock but this machine's own.

A holder is ``{run}#{process}`` while a process of that run works, and ``{run}`` alone while the run is between two steps ("parked").
Another holder's Lease is taken only after this process itself saw it unchanged for as long as it lasts: what the other's clock says is never
compared with ours.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psutil

from kfp_components import errors, names
from kfp_components.clock import Clock, SystemClock
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.release import commands

POLL_S = 1.0
"""How often a Lease is looked at: another holder's, and one's own while a step works, for what is asked of it (`commands`)."""

RENEW_SHARE, DEADLINE_SHARE = 1 / 4, 2 / 3
"""Of the Lease's length: when it is renewed, and until when a renewal may fail (client-go's renew deadline)."""


class Lease:
    """One process's hold on one model. Not for use from several threads.

    ``run`` names the run (``kfp/<id>``, or `local_holder`), so that its next step goes on at once; ``lease_s`` is how many seconds the Lease
    outlives the last renewal.
    """

    def __init__(self, cluster: Cluster, model: str, namespace: str, run: str, lease_s: float, clock: Clock | None = None) -> None:
        self.cluster = cluster
        self.ref = Ref("Lease", names.release(model), namespace)
        self.run = run
        self.identity = f"{run}#{local_holder()}/{secrets.token_hex(4)}"
        self.lease_s = lease_s
        self._clock: Clock = clock or SystemClock()
        self._written: Manifest | None = None
        """The object as this process wrote or read it last; None while it does not hold it."""
        self._renewed_s = self._looked_s = -math.inf

    @property
    def command(self) -> commands.Command | None:
        """What is asked of the process that holds it, as it looked last; None also while this one does not hold it."""
        return commands.find(self._written)

    @property
    def held(self) -> bool:
        """Whether this process holds it, as far as it can know: nobody may take it before ``lease_s`` have passed since the last renewal."""
        return self._written is not None and self._clock.monotonic() - self._renewed_s < self.lease_s

    @property
    def taken(self) -> bool:
        """Whether this process has taken it and not given it up: what `keep` is for."""
        return self._written is not None

    def acquire(self, on_wait: Callable[[str], None] = lambda _message: None) -> None:
        """Take the Lease: at once when it is free, ours, parked by the same run, or its process on this host is dead.

        Another one is watched for as long as it lasts: `ReleaseHeld` names a holder that renews it meanwhile, one that does not is followed.
        ``on_wait`` is told once that it waits. Raises `Unreachable` when reading fails, or writing for two thirds of ``lease_s``; then the
        Lease is as before, or ours without anybody working, which the next acquisition waits out.
        """
        seen: tuple[Any, Any] | None = None
        seen_s, failing_s = 0.0, math.inf
        while True:
            now_s = self._clock.monotonic()
            found = self.cluster.get(self.ref)
            spec = (found or {}).get("spec") or {}
            holder, state = str(spec.get("holderIdentity") or ""), (spec.get("holderIdentity"), spec.get("renewTime"))
            lasts_s = float(spec.get("leaseDurationSeconds") or self.lease_s)
            if self._may_take_at_once(holder) or (seen == state and now_s - seen_s >= lasts_s):
                try:
                    return self._take(found, now_s)
                except errors.Conflict:
                    continue  # somebody was faster: look again
                except errors.NotFound:
                    if found is None:
                        raise  # the namespace is not there
                    continue  # it was deleted in between
                except errors.Unreachable:
                    failing_s = min(failing_s, now_s)
                    if now_s - failing_s >= self.lease_s * DEADLINE_SHARE:
                        raise
                    self._clock.sleep(min(POLL_S, self.lease_s / 10))
                    continue
            if seen is None:
                seen, seen_s = state, now_s
                on_wait(f"{self.ref} is held by {holder}; it lapses in {lasts_s:g} s unless that run is alive")
            elif seen != state:
                raise errors.ReleaseHeld(f"{self.ref}: held by {holder}, which is alive; wait for it to end, or roll it back")
            self._clock.sleep(min(POLL_S, max(0.05, seen_s + lasts_s - now_s)))

    def keep(self) -> None:
        """Look at it once a second, and renew when a quarter of ``lease_s`` has passed since the last renewal; to be called often while a step works.

        Raises `ReleaseHeld` when somebody else has it or it was deleted, and `Unreachable` when renewing has failed for two thirds of ``lease_s``:
        then the step stops while nobody can have taken the Lease yet. A later call may still renew it.
        """
        now_s = self._clock.monotonic()
        if self._written is None:
            raise errors.ReleaseHeld(f"{self.ref}: not held by this process; acquire it first")
        if now_s - self._looked_s < min(POLL_S, self.lease_s / 20):
            return
        self._looked_s = now_s
        try:
            self._look()
            if now_s - self._renewed_s >= self.lease_s * RENEW_SHARE:
                self._renew(now_s)
        except (errors.Unreachable, errors.Conflict) as error:
            if now_s - self._renewed_s >= self.lease_s * DEADLINE_SHARE:
                raise errors.Unreachable(
                    f"{self.ref}: could not be renewed for {now_s - self._renewed_s:.0f} s of the {self.lease_s:g} s that it lasts: {error}"
                ) from error

    def park(self) -> None:
        """Leave it to the next step of the same run, whichever process that is. Nothing when it is not ours any more.

        Raises `Unreachable`: then it is parked or still in this process's name, and lapses.
        """
        self._end(lambda found: self.cluster.replace(self._manifest(found, self.run)))

    def release(self) -> None:
        """Delete it if it is this process's, or parked by its run. Raises `Unreachable`: then it is gone, or lapses."""
        self._end(self._delete)

    def take_off(self, command: commands.Command) -> None:
        """The command was obeyed: off the Lease with it, in one write that renews too. Another one that came meanwhile stays.

        Raises `Unreachable`: then it may still be on it. Nothing when the Lease is not ours any more.
        """
        if self.command != command:
            return
        now_s = self._clock.monotonic()
        with contextlib.suppress(errors.Conflict, errors.NotFound):
            return self._write(commands.without, now_s)
        self._look()
        if self.command == command:
            with contextlib.suppress(errors.Conflict):  # seen again at the next look
                self._write(commands.without, now_s)

    def _delete(self, found: Manifest) -> None:
        metadata = found["metadata"]
        self.cluster.delete(self.ref, uid=metadata["uid"], resource_version=metadata["resourceVersion"])

    def _end(self, act: Callable[[Manifest], object]) -> None:
        known, self._written = self._written, None
        while True:
            found = known or self.cluster.get(self.ref)
            if found is None or holder_of(found) not in (self.identity, self.run):
                return
            with contextlib.suppress(errors.Conflict, errors.NotFound):  # it changed in between: look whose it is now
                act(found)
                return
            known = None

    def _may_take_at_once(self, holder: str) -> bool:
        return holder in ("", self.run, self.identity) or _is_dead_here(holder)

    def _take(self, found: Manifest | None, now_s: float) -> None:
        manifest = self._manifest(found, self.identity)
        if found is None:
            self._written = self.cluster.create(manifest)
        else:
            self._written = self.cluster.replace(manifest)
        self._renewed_s = self._looked_s = now_s

    def _look(self) -> None:
        """Read it. Raises `ReleaseHeld` when it is not ours any more."""
        found = self.cluster.get(self.ref)
        if found is None or holder_of(found) != self.identity:
            self._written = None
            lost_to = holder_of(found) if found else "nobody (it was deleted)"
            raise errors.ReleaseHeld(f"{self.ref}: lost to {lost_to}; this run stops here")
        self._written = found

    def _renew(self, now_s: float) -> None:
        """One write; after a conflict the object is read, and written again when it is still ours."""
        try:
            self._write(lambda found: found, now_s)
        except (errors.Conflict, errors.NotFound):
            self._look()
            self._write(lambda found: found, now_s)

    def _write(self, change: Callable[[Manifest], Manifest], now_s: float) -> None:
        assert self._written is not None
        self._written = self.cluster.replace(self._manifest(change(self._written), self.identity))
        self._renewed_s = now_s

    def _manifest(self, found: Manifest | None, holder: str) -> Manifest:
        """The object as it is to be. A renewal keeps acquireTime; another run's Lease, taken, counts as a transition."""
        now = datetime.fromtimestamp(self._clock.now_unix_s(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict((found or {}).get("spec") or {})
        before = str(spec.get("holderIdentity") or "")
        taken = holder == self.identity != before
        spec |= {"holderIdentity": holder, "leaseDurationSeconds": max(1, math.ceil(self.lease_s)), "renewTime": now}
        spec["acquireTime"] = now if taken else spec.get("acquireTime") or now
        spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (1 if taken and found is not None and before != self.run else 0)
        metadata = {"name": self.ref.name, "namespace": self.ref.namespace, "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY}}
        whole = found or {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
        return {**whole, "spec": spec}


def local_holder() -> str:
    """Identity of this process: ``host/pid/start``, so that one that was killed on this host is known to be dead at once."""
    return f"{socket.gethostname()}/{os.getpid()}/{int(psutil.Process().create_time())}"


def holder_of(found: Manifest) -> str:
    """Who holds a Lease; empty when nobody does."""
    return str((found.get("spec") or {}).get("holderIdentity") or "")


def at_work(found: Manifest | None) -> bool:
    """Whether a process holds a Lease, as far as its name tells: it is not parked, and not in the name of a process that died on this host."""
    holder = holder_of(found or {})
    return "#" in holder and not _is_dead_here(holder)


def _is_dead_here(holder: str) -> bool:
    """Whether the holder names a process (``[run#]host/pid/start[/suffix]``) of this host that is gone."""
    host, *rest = holder.rpartition("#")[2].split("/")
    if host != socket.gethostname() or len(rest) not in (2, 3) or not (rest[0].isdigit() and rest[1].isdigit()):
        return False
    try:
        return int(psutil.Process(int(rest[0])).create_time()) != int(rest[1])
    except psutil.NoSuchProcess:
        return True
