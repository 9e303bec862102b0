"""``Release``: the state of one promotion, kept in the cluster, so that any process can go on where another one stopped.

A ConfigMap ``{model}-release`` is changed by compare-and-swap; a Lease of the same name keeps a second run out.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from kfp_components import errors, names
from kfp_components.cluster import Cluster, Manifest, Ref

Phase = Literal["prepared", "registered", "deployed", "smoked", "canary", "promoting", "promoted", "rolling_back", "rolled_back", "inconclusive"]
FINAL: tuple[Phase, ...] = ("promoted", "rolled_back", "inconclusive")
ORDER: tuple[Phase, ...] = ("prepared", "registered", "deployed", "smoked", "canary", "promoting", "promoted")
TIMELINE_POINTS = 240
EVENTS = 120


class Release(BaseModel):
    """The record of one promotion. Times are seconds since the epoch; weights are percent; counts are cumulative."""

    model_config = ConfigDict(extra="ignore")

    model: str
    namespace: str
    rayservice: str
    candidate_version: str
    stable_version: str | None = Field(None, description="what users had before; None for the first version of a model")
    split_before: dict[str, Any] | None = Field(None, description="how the router was told to route before; a rollback restores it to the letter")
    request: dict[str, Any]
    request_digest: str
    phase: Phase = "prepared"
    holder: str = ""
    steps: list[float] = []
    step_index: int = 0
    weight_percent: float = 0.0
    started_unix_s: float = 0.0
    finished_unix_s: float | None = None
    verdict: dict[str, Any] | None = None
    judge: dict[str, Any] | None = Field(None, description="state of the judge and cursor in the router's counts; a restart goes on exactly there")
    failure: dict[str, Any] | None = Field(None, description="why it is rolled back: the error's name and message")
    rollback: dict[str, Any] | None = None
    made: list[str] = Field([], description="objects that this release created (alias, stub, rayservice), to be removed by its rollback")
    events: list[dict[str, Any]] = []
    timeline: list[dict[str, Any]] = []
    past: list[dict[str, Any]] = Field([], description="one line for each earlier release")

    @property
    def done(self) -> bool:
        """Whether it ended, one way or another."""
        return self.phase in FINAL

    def reached(self, phase: Phase) -> bool:
        """Whether the promotion has come at least as far as ``phase``."""
        return self.phase in ORDER and ORDER.index(self.phase) >= ORDER.index(phase)

    def summary(self) -> dict[str, Any]:
        """One line of history."""
        return {
            "candidate_version": self.candidate_version,
            "phase": self.phase,
            "finished_unix_s": self.finished_unix_s,
            "sentence": (self.verdict or {}).get("sentence") or (self.failure or {}).get("message", ""),
        }

    def _repr_html_(self) -> str:
        from kfp_components import report

        return report.render(self.model_dump(mode="json"))


class ReleaseStore:
    """Reads and writes one model's release record. All writes are compare-and-swap, so two writers never overwrite each other."""

    def __init__(self, cluster: Cluster, model: str, namespace: str) -> None:
        self.cluster = cluster
        self.ref = Ref("ConfigMap", names.release(model), namespace)
        self.model = model

    def load(self) -> Release | None:
        """The record, None when this model was never released."""
        found = self.cluster.get(self.ref)
        return None if found is None else _parse(found, self.ref)

    def start(self, release: Release) -> Release:
        """Write a new record over a finished one (which becomes a line of its history), or create it. `Conflict` on a race."""
        found = self.cluster.get(self.ref)
        if found is None:
            self.cluster.create(self._manifest(release))
            return release
        old = _parse(found, self.ref)
        if not old.done:
            raise errors.ReleaseHeld(
                f"{self.ref}: the release of {old.candidate_version} is unfinished ({old.phase}); "
                "run the same request again to go on, or `kfp-serving rollback` to give it up"
            )
        fresh = release.model_copy(update={"past": [*old.past, old.summary()][-20:]})
        self.cluster.replace(self._manifest(fresh, found["metadata"]["resourceVersion"]))
        return fresh

    def update(self, change: Callable[[Release], None]) -> Release:
        """Read, change, write back; lost races are retried. Raises `NotFound` when there is no record."""
        retrying = Retrying(
            retry=retry_if_exception_type((errors.Conflict, errors.Unreachable)),
            stop=stop_after_attempt(10),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            reraise=True,
        )
        for attempt in retrying:
            with attempt:
                found = self.cluster.get(self.ref)
                if found is None:
                    raise errors.NotFound(f"{self.ref}: there is no release record; promote a version first")
                release = _parse(found, self.ref)
                change(release)
                release.timeline = _thin(release.timeline, TIMELINE_POINTS)
                release.events = release.events[-EVENTS:]
                self.cluster.replace(self._manifest(release, found["metadata"]["resourceVersion"]))
                return release
        raise AssertionError("unreachable")  # Retrying re-raises

    def _manifest(self, release: Release, resource_version: str | None = None) -> Manifest:
        metadata: dict[str, Any] = {
            "name": self.ref.name,
            "namespace": self.ref.namespace,
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY, names.MODEL_LABEL: self.model},
        }
        if resource_version:
            metadata["resourceVersion"] = resource_version
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"release.json": release.model_dump_json()}}


class Hold:
    """The Lease on one model: acquire it, renew it in the background while a step runs, release it at the end of the release.

    Between the steps of a pipeline nobody renews it; it lasts ``lease_s``, and the next step of the same run (same ``holder``) takes it on.
    """

    def __init__(self, cluster: Cluster, model: str, namespace: str, holder: str, lease_s: float) -> None:
        self.cluster = cluster
        self.ref = Ref("Lease", names.release(model), namespace)
        self.holder = holder
        self.lease_s = lease_s
        self._lost = threading.Event()

    def acquire(self, on_wait: Callable[[str], None] = lambda _message: None) -> None:
        """Take the Lease. A holder that renews is alive: `ReleaseHeld` names it. One that does not is waited out (``lease_s`` at most)."""
        first_seen: str | None = None
        while True:
            found = self.cluster.get(self.ref)
            if found is None:
                with contextlib.suppress(errors.Conflict):
                    self.cluster.create(self._manifest(None))
                    return
                continue
            spec = found.get("spec") or {}
            holder, renewed = spec.get("holderIdentity") or "", spec.get("renewTime") or ""
            left_s = _unix(renewed) + float(spec.get("leaseDurationSeconds") or 0) - time.time() if renewed else 0.0
            if holder in ("", self.holder) or left_s <= 0 or _is_dead_here(holder):
                with contextlib.suppress(errors.Conflict):
                    self.cluster.replace(self._manifest(found["metadata"]["resourceVersion"]))
                    return
                continue
            if first_seen is not None and renewed != first_seen:
                raise errors.ReleaseHeld(f"{self.ref}: held by {holder}, which renewed it at {renewed}; wait for it to end, or roll it back")
            if first_seen is None:
                on_wait(f"{self.ref} is held by {holder}; it lapses in {left_s:.0f} s unless that run is alive")
            first_seen = renewed
            time.sleep(min(1.0, max(0.2, left_s)))

    def renew(self) -> None:
        """Renew; `ReleaseHeld` when somebody else has taken it over meanwhile."""
        found = self.cluster.get(self.ref)
        holder = ((found or {}).get("spec") or {}).get("holderIdentity")
        if found is None or holder != self.holder:
            raise errors.ReleaseHeld(f"{self.ref}: lost to {holder or 'nobody (it was deleted)'}; this run stops here")
        with contextlib.suppress(errors.Conflict):
            self.cluster.replace(self._manifest(found["metadata"]["resourceVersion"]))

    def release(self) -> None:
        """Delete the Lease if it is ours."""
        found = self.cluster.get(self.ref)
        if found is not None and (found.get("spec") or {}).get("holderIdentity") == self.holder:
            self.cluster.delete(self.ref, uid=found["metadata"]["uid"])

    def assert_ours(self) -> None:
        """Raise `ReleaseHeld` when the renewal in the background found that another run has taken over."""
        if self._lost.is_set():
            raise errors.ReleaseHeld(f"{self.ref}: another run has taken over; this one stops here")

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Renew in the background."""
        stop = threading.Event()

        def keep() -> None:
            while not stop.wait(min(5.0, self.lease_s / 4)):
                try:
                    self.renew()
                except errors.ReleaseHeld:
                    self._lost.set()
                    return
                except errors.KfpServingError:
                    continue  # the API is away for a moment: the Lease outlives it, and the next renewal tells

        thread = threading.Thread(target=keep, name=f"lease {self.ref.name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _manifest(self, resource_version: str | None) -> Manifest:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        metadata: dict[str, Any] = {
            "name": self.ref.name,
            "namespace": self.ref.namespace,
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
        }
        if resource_version:
            metadata["resourceVersion"] = resource_version
        spec = {"holderIdentity": self.holder, "leaseDurationSeconds": max(1, round(self.lease_s)), "acquireTime": now, "renewTime": now}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


def local_holder() -> str:
    """Identity of this process for runs outside KFP: ``host/pid/start``, so that a run killed on this host is known to be dead at once."""
    return f"{socket.gethostname()}/{os.getpid()}/{int(psutil.Process().create_time())}"


def _is_dead_here(holder: str) -> bool:
    parts = holder.split("/")
    if len(parts) != 3 or parts[0] != socket.gethostname() or not (parts[1].isdigit() and parts[2].isdigit()):
        return False
    try:
        return int(psutil.Process(int(parts[1])).create_time()) != int(parts[2])
    except psutil.NoSuchProcess:
        return True


def _parse(manifest: Manifest, ref: Ref) -> Release:
    try:
        return Release.model_validate(json.loads((manifest.get("data") or {})["release.json"]))
    except (KeyError, ValueError) as error:
        raise errors.NameTaken(f"{ref}: not a release record of this library ({error}); rename or delete it") from error


def _unix(rfc3339: str) -> float:
    return datetime.fromisoformat(rfc3339.replace("Z", "+00:00")).timestamp()


def _thin(points: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Every second point of the older half goes when there are too many; the newest stay."""
    while len(points) > most:
        half = len(points) // 2
        points = points[:half:2] + points[half:]
    return points
