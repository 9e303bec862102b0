"""Where a release is kept: the record in one ConfigMap, what its canary measured in another one, which may be missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from kfp_components import errors, names, phases
from kfp_components.clock import Clock, SystemClock
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.phases import Phase
from kfp_components.release import points, record
from kfp_components.release.record import JudgeState, Point, Release
from kfp_components.release.sparse import dense, sparse

BEFORE_A_CANARY: tuple[Phase, ...] = phases.FORWARD[: phases.FORWARD.index("canary")]
"""In these phases nothing lies apart that counts."""

ATTEMPTS = 10
"""Of a write, when somebody else writes first or the API gives no answer; with the waits between them several seconds."""

NONE = ""
RECORD, ABOUT, TIMELINE, JUDGE = "release.json", "about.json", "timeline.json", "judge.json"


@dataclass(frozen=True)
class _Canary:
    """What lies apart: of which release, and written in which epoch."""

    identity: str = ""
    epoch: int = -1
    timeline: tuple[Point, ...] = ()
    judge: JudgeState | None = None


def records(cluster: Cluster, namespace: str, model: str | None = None) -> list[Release]:
    """The releases of a namespace, or of one model, by model; what the canaries measured is not with them. Needs the right to list ConfigMaps."""
    labels = f"{names.MODEL_LABEL}={model}" if model else names.MODEL_LABEL
    models = {item["metadata"]["labels"][names.MODEL_LABEL] for item in cluster.list("ConfigMap", namespace, labels=labels)}
    found = [ReleaseStore(cluster, name, namespace).load_record() for name in sorted(models)]
    return [record for record in found if record is not None]


class ReleaseStore:
    """Reads and writes one model's release. All writes are compare-and-swap, so two writers never overwrite each other.

    One process, one store: it remembers what it read or wrote last, so that a write is one call where nobody else wrote meanwhile.
    """

    def __init__(self, cluster: Cluster, model: str, namespace: str, clock: Clock | None = None) -> None:
        self.cluster = cluster
        self.ref = Ref("ConfigMap", names.release(model), namespace)
        self.canary_ref = Ref("ConfigMap", names.canary(model), namespace)
        self.model = model
        self._clock: Clock = clock or SystemClock()
        self._known: Manifest | None = None
        """The record's object as it was read or written last."""
        self._absent = False
        """Whether there was none when it was read last."""
        self._canary: _Canary | None = None
        self._canary_version: str | None = None
        """Of what lies apart, as it was read or written last; `NONE` when nothing was there, None when it is not known."""
        self._inherited = False
        """Whether timeline and judge are those that a record of an older version held itself."""

    def load(self) -> Release | None:
        """The record with what its canary measured; None when this model was never released.

        A canary part that is missing, unreadable or of an earlier release is left out. Raises `NameTaken` when the ConfigMap is no record.
        """
        self._canary = None
        release = self.load_record()
        return None if release is None else self.complete(release)

    def load_record(self) -> Release | None:
        """The record alone, in one call; None when this model was never released. Raises as `load`."""
        self._known = None
        found = self.cluster.get(self.ref)
        release = None if found is None else _parse(found, self.ref)
        self._known, self._absent = found, found is None
        return release

    def complete(self, release: Release) -> Release:
        """The record with timeline and judge: what this store remembers of them, else what lies apart, else what an older record held itself."""
        if self._canary is None or self._canary.identity != release.identity:
            inline = _Canary(release.identity, release.epoch, tuple(release.timeline), release.judge)
            held_itself = bool(inline.timeline or inline.judge)
            if release.phase in BEFORE_A_CANARY and not held_itself:
                self._canary = inline
                return release
            found = self.cluster.get(self.canary_ref)
            read = _canary_of(found)
            self._inherited = read.identity != release.identity and held_itself
            self._canary = inline if read.identity != release.identity else read
            self._canary_version = (NONE if found is None else _version(found)) if read.epoch <= release.epoch else None
        release.timeline, release.judge = list(self._canary.timeline), self._canary.judge
        return release

    def start(self, release: Release) -> Release:
        """Write a new record over a finished one (which becomes a line of its history), or create it; returns it as written.

        Its epoch is above all earlier ones of the model; one that is given says which record was seen. Raises `ReleaseHeld` when there is a newer
        one, and when the one that is there is unfinished (somebody may just have started it), `RecordTooNew` when a newer library wrote it.
        """
        sent: str | None = None
        seen = release.epoch
        for attempt in self._retrying(errors.Unreachable, errors.Conflict):
            with attempt:
                found = self._known or (None if self._absent else self.cluster.get(self.ref))
                self._known, self._absent = None, False
                if found is not None and sent is not None and _text(found) == sent:
                    self._known = found
                    break  # the answer to our own write was lost
                release, sent, manifest = self._prepared(release, found, seen)
                self._known = self.cluster.create(manifest) if found is None else self.cluster.replace(manifest)
        self._canary = _Canary(release.identity, release.epoch, tuple(release.timeline), release.judge)
        return release

    def update(self, change: Callable[[Release], None], *, epoch: int, expect: Collection[Phase] | None = None) -> Release:
        """Read, change, write back; returns the record as written. Lost races and answers are tried again, and ``change`` with them.

        ``change`` may therefore see its own effect: it sets values, and appends events whose time was taken outside of it. Of ``timeline`` and
        ``judge`` it changes what this store remembers; `save_canary` writes them. Without effect it raises `ReleaseHeld` when another run has
        taken the release over, `StepOutOfOrder` when its phase is not in ``expect`` or may not change so, `NotFound` when there is no record,
        `RecordTooNew` when a newer version of the library wrote it. After `Unreachable` or `Conflict` it may have taken effect or not.
        """
        sent: Release | None = None
        sent_text: str | None = None
        for attempt in self._retrying(errors.Unreachable, errors.Conflict):
            with attempt:
                found, self._known = self._known or self._found(), None
                if sent is not None and _text(found) == sent_text:
                    self._known = found
                    break  # the answer to our own write was lost
                release = self._writable(found)
                if release.epoch > epoch:
                    raise errors.ReleaseHeld(
                        f"{self.ref}: another run, {release.holder or 'unknown'}, has taken this release over "
                        f"(epoch {release.epoch}, this one has {epoch}); this run stops here"
                    )
                before, previous_kept = release.phase, release.previous is not None
                if not (sent is not None and before == sent.phase):
                    self._assert_expected(release, expect)
                change(release)
                self._assert_may_follow(release, before, previous_kept)
                sent, sent_text = release, self._written(release)
                self._known = self.cluster.replace(self._with_text(found, sent_text))
        assert sent is not None
        self._canary = _Canary(sent.identity, epoch, tuple(sent.timeline), sent.judge)
        return sent

    def take_over(self, holder: str, *, reopen: bool = False) -> Release:
        """Raise the epoch, so that every earlier process is refused, and write the holder; returns the record with what its canary measured.

        One that has ended is returned as it is; to ``reopen`` it, it must be `Release.open`.

        Raises `NotFound` when there is no record, `RecordTooNew` as `update`. When an answer is lost, the epoch may rise by more than one.
        """
        for attempt in self._retrying(errors.Unreachable, errors.Conflict):
            with attempt:
                found, self._known = self._known or self._found(), None
                self._canary = None  # the process before may have written it since
                release = self._assert_not_newer(_parse(found, self.ref), found)
                if release.done and not (reopen and release.open):
                    self._known = found
                    break  # nothing to take over
                release.epoch += 1
                release.holder = holder
                inline = bool(release.timeline or release.judge)
                text = self._written(self.complete(release) if inline else release)
                self._known = self.cluster.replace(self._with_text(found, text))
        self.complete(release)
        self._canary = _Canary(release.identity, release.epoch, tuple(release.timeline), release.judge)
        return release

    def save_canary(self, release: Release) -> None:
        """Write the timeline, thinned in place, and the judge's state, whatever is there of the same or an earlier epoch.

        One call to the API where nobody else wrote since the last one. Raises `ReleaseHeld` when a later epoch has written; after `Unreachable` or
        `Conflict` it may have taken effect or not, and the next one writes all of it.
        """
        release.timeline = record.thin(release.timeline)
        about = json.dumps({"release": release.identity, "epoch": release.epoch}, separators=(",", ":"))
        timeline = json.dumps(points.pack(release.timeline), separators=(",", ":"))
        judge = json.dumps(sparse(release.judge.model_dump()) if release.judge else None, separators=(",", ":"))
        data = {ABOUT: about, TIMELINE: timeline, JUDGE: judge}
        for attempt in self._retrying(errors.Unreachable, errors.Conflict):
            with attempt:
                known, self._canary_version = self._canary_version, None
                version = (known or None) if known is not None else self._canary_written_before(release.epoch)
                manifest = _config_map(self.canary_ref, self.model, data, version)
                written = self.cluster.replace(manifest) if version else self.cluster.create(manifest)
                self._canary_version = _version(written)
        self._canary = _Canary(release.identity, release.epoch, tuple(release.timeline), release.judge)

    def _canary_written_before(self, epoch: int) -> str | None:
        """The resourceVersion to replace, None when there is nothing. Raises `ReleaseHeld` when it is of a later epoch."""
        found = self.cluster.get(self.canary_ref)
        written = _canary_of(found)
        if written.epoch > epoch:
            raise errors.ReleaseHeld(f"{self.canary_ref}: another run has taken this release over (epoch {written.epoch}, this one has {epoch})")
        return None if found is None else _version(found)

    def _prepared(self, release: Release, found: Manifest | None, seen: int) -> tuple[Release, str, Manifest]:
        """The new record after what is there, its text and its manifest."""
        if found is None:
            left = _canary_of(self.cluster.get(self.canary_ref))  # of a record that was deleted
            fresh = release.model_copy(update={"epoch": max(release.epoch, left.epoch + 1)})
        else:
            old = self._assert_not_newer(_parse(found, self.ref), found)
            if not old.done:
                raise errors.ReleaseHeld(
                    f"{self.ref}: the release of {old.candidate_version} is unfinished ({old.phase}); "
                    "run the same request again to go on, or `kfp-serving rollback` to give it up"
                )
            if seen and old.epoch >= seen:
                raise errors.ReleaseHeld(
                    f"{self.ref}: another run has released {old.candidate_version} since this one looked ({old.phase}); run the same again"
                )
            past = [*old.past, old.as_past()][-record.PAST_RELEASES :]
            fresh = release.model_copy(update={"past": past, "epoch": max(release.epoch, old.epoch + 1)})
        text = record.to_json(fresh)
        return fresh, text, _config_map(self.ref, self.model, {RECORD: text}) if found is None else self._with_text(found, text)

    def _with_text(self, found: Manifest, text: str) -> Manifest:
        """The record's ConfigMap with this text; what others put beside it stays."""
        return {**found, "data": {**(found.get("data") or {}), RECORD: text}}

    def _found(self) -> Manifest:
        found = self.cluster.get(self.ref)
        if found is None:
            raise errors.NotFound(f"{self.ref}: there is no release record; promote a version first")
        return found

    def _writable(self, found: Manifest) -> Release:
        """The record that was read, with what lies apart. Raises `RecordTooNew` when this library must not write it."""
        return self.complete(self._assert_not_newer(_parse(found, self.ref), found))

    def _assert_not_newer(self, release: Release, found: Manifest) -> Release:
        if release.schema_version > record.SCHEMA_VERSION:
            raise record.too_new({"namespace": self.ref.namespace, "model": self.model}, release.schema_version)
        return release

    def _written(self, release: Release) -> str:
        """The record's text; what an older version kept in it is put apart first."""
        if self._inherited:
            self.save_canary(release)
            self._inherited = False
        release.events = record.unique(release.events)
        return record.to_json(release)

    def _assert_expected(self, release: Release, expect: Collection[Phase] | None) -> None:
        if expect is not None and release.phase not in expect:
            raise errors.StepOutOfOrder(
                f"{self.ref}: the release of {release.candidate_version} is {_words(release.phase)}, "
                f"not {' or '.join(map(_words, expect))}; nothing was written"
            )

    def _assert_may_follow(self, release: Release, before: Phase, previous_kept: bool) -> None:
        if not phases.may_follow(before, release.phase, previous_kept=previous_kept):
            raise errors.StepOutOfOrder(
                f"{self.ref}: the release of {release.candidate_version} is {_words(before)} and cannot become {_words(release.phase)}; "
                "nothing was written"
            )

    def _retrying(self, *kinds: type[errors.KfpServingError]) -> Retrying:
        return Retrying(
            sleep=self._clock.sleep,
            retry=retry_if_exception_type(kinds),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            reraise=True,
        )


def _config_map(ref: Ref, model: str, data: dict[str, str], resource_version: str | None = None) -> Manifest:
    metadata: dict[str, Any] = {
        "name": ref.name,
        "namespace": ref.namespace,
        "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY, names.MODEL_LABEL: model},
    }
    if resource_version:
        metadata["resourceVersion"] = resource_version
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _parse(manifest: Manifest, ref: Ref) -> Release:
    try:
        return record.parse(json.loads(_text(manifest) or ""))
    except (AttributeError, TypeError, ValueError) as error:
        raise errors.NameTaken(f"{ref}: not a release record of this library ({error}); rename or delete it") from error


def _canary_of(manifest: Manifest | None) -> _Canary:
    """What lies apart; nothing where it cannot be read: it helps to go on, and is not needed to give the traffic back."""
    data = (manifest or {}).get("data") or {}
    try:
        about = json.loads(data[ABOUT])
        judge = dense(json.loads(data[JUDGE]))
        timeline = tuple(points.unpack(json.loads(data[TIMELINE])))
        return _Canary(str(about["release"]), int(about["epoch"]), timeline, JudgeState.model_validate(judge) if judge else None)
    except (KeyError, TypeError, ValueError):
        return _Canary()


def _text(manifest: Manifest) -> str | None:
    return (manifest.get("data") or {}).get(RECORD)


def _version(manifest: Manifest) -> str:
    return str(manifest["metadata"]["resourceVersion"])


def _words(phase: Phase) -> str:
    return phase.replace("_", " ")
