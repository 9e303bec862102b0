"""What a release writes, as values: a `Plan` of changes. A dry run prints them, `write` writes them, and nothing else does.

======  =========================================================================================================================
Apply   server-side apply of the fields that are ours; the rest of the object stays
Edit    pure surgery on the ``serveConfigV2`` of a live RayService, by compare-and-swap, the other applications proven unchanged
Delete  of an object that this release made
======  =========================================================================================================================

The bookkeeping of a release (record, Lease, Events) is not in a plan: it is the same whatever is asked for.
"""

from __future__ import annotations

import copy
import difflib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from kfp_components import errors, markup, names
from kfp_components.clock import Clock, SystemClock
from kfp_components.cluster import Cluster, Manifest, Ref
from kfp_components.serving import ownership, rayservice

Surgery = Callable[[str], str]
"""From one ``serveConfigV2`` to another. Called again after a lost race, so it only computes."""

CAS_ATTEMPTS = 12
SYSTEM_CLOCK = SystemClock()


@dataclass(frozen=True)
class Apply:
    """The fields of ``manifest`` by server-side apply; with ``status`` those of its status. ``force`` takes fields of another manager."""

    manifest: Manifest
    why: str
    manager: str = names.MANAGER
    status: bool = False
    force: bool = False

    @property
    def ref(self) -> Ref:
        """Which object."""
        return Ref.of(self.manifest)

    def after(self, found: Manifest | None) -> Manifest | None:
        """The object as it will be."""
        return copy.deepcopy(self.manifest) if found is None else _merged(found, self.manifest)

    def diff(self, found: Manifest | None) -> str:
        """Of the fields that the change carries."""
        return _diff("" if found is None else as_yaml(only(found, self.manifest)), as_yaml(only(self.manifest, self.manifest)))

    def __str__(self) -> str:
        return f"apply {'status of ' if self.status else ''}{self.ref}: {self.why}"


@dataclass(frozen=True)
class Edit:
    """``surgery`` on the ``serveConfigV2`` of a RayService, of which it may change the applications ``changed``.

    With ``created_by`` (a release, see `names.CREATED_BY_RELEASE`) the whole RayService goes when that release created it and no application but
    those of ``changed`` is left; one that is gone is no fault then.
    """

    ref: Ref
    surgery: Surgery = field(repr=False)
    changed: frozenset[str]
    why: str
    created_by: str | None = None

    def removes(self, found: Manifest) -> bool:
        """Whether the RayService as it was read goes as a whole."""
        annotations = found["metadata"].get("annotations") or {}
        if self.created_by is None or annotations.get(names.CREATED_BY_RELEASE) != self.created_by:
            return False
        return not set(rayservice.applications(rayservice.serve_config(found))) - self.changed

    def after(self, found: Manifest | None) -> Manifest | None:
        """The object as it will be. Raises `NotFound` without one, what the surgery raises, `Conflict` when it changes other applications.

        An `ApplicationRemoved` of the surgery names the object, and who wrote it.
        """
        if found is None:
            if self.created_by is not None:
                return None
            raise errors.NotFound(f"{self.ref}: it does not exist; deploy the model first")
        if self.removes(found):
            return None
        before = rayservice.serve_config(found)
        try:
            text = self.surgery(before)
        except errors.ApplicationRemoved as error:
            raise removed(self.ref, found, error) from error
        rayservice.assert_others_unchanged(before, text, self.changed)
        return found if text == before else {**found, "spec": {**found["spec"], "serveConfigV2": text}}

    def diff(self, found: Manifest | None) -> str:
        """Of ``serveConfigV2``."""
        after = self.after(found)
        return _diff(rayservice.serve_config(found), rayservice.serve_config(after))

    def __str__(self) -> str:
        return f"edit {self.ref}: {self.why}"


@dataclass(frozen=True)
class Delete:
    """The object, if it is there."""

    ref: Ref
    why: str

    def after(self, _found: Manifest | None) -> None:
        """Nothing."""
        return None

    def diff(self, found: Manifest | None) -> str:
        """The object, line by line."""
        return _diff("" if found is None else as_yaml(only(found, found)), "")

    def __str__(self) -> str:
        return f"delete {self.ref}: {self.why}"


Change = Apply | Edit | Delete


@dataclass(frozen=True)
class Owner:
    """Who applies what is written of an object, and what follows from it."""

    ref: Ref
    mode: Literal["ours", "yielded", "commit"]
    """See `ownership.Ownership`."""
    manager: str
    follows: str

    def __str__(self) -> str:
        return f"{self.ref}: {self.mode}: {self.follows}"


@dataclass(frozen=True)
class Plan:
    """Changes in the order in which they are written, and the objects as they were ``found`` before. Falsy when there is nothing to do."""

    changes: tuple[Change, ...] = ()
    found: Mapping[Ref, Manifest | None] = field(default_factory=dict, repr=False)
    owners: tuple[Owner, ...] = ()
    refused: errors.ManagedElsewhere | None = None
    """What a run is refused with, before it writes anything: somebody else would write it back."""

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.changes + other.changes, {**other.found, **self.found}, self.owners + other.owners, self.refused or other.refused)

    def played(self) -> Iterator[tuple[Change, Manifest | None, Manifest | None]]:
        """Each change that is written, with its object before and after it, as if all were written one after another."""
        state = dict(self.found)
        for change in self.changes:
            before = state.get(change.ref)
            after = change.after(before)
            state[change.ref] = after
            if isinstance(change, Apply) or after != before:
                yield change, before, after

    def __str__(self) -> str:
        told = [f"{change}\n{change.diff(before) or '(as it is already)'}".rstrip() for change, before, _ in self.played()]
        return "\n".join([*map(str, self.owners), *(told or ["nothing to do"])])

    def _repr_html_(self) -> str:
        parts = [f'<p class="told bad"><span>{escape(str(self.refused))}</span></p>'] if self.refused else []
        if self.owners:
            rows = [f"<tr><td>{escape(str(one.ref))}</td><td>{one.mode}</td><td>{escape(one.follows)}</td></tr>" for one in self.owners]
            parts.append(f"<table><tr><th>who applies it</th><th>mode</th><th>what follows</th></tr>{''.join(rows)}</table>")
        seen = set[Ref]()
        for change, before, _ in self.played():
            told = change.diff(before)
            what = f'<b>{escape(str(change).removesuffix(f": {change.why}"))}</b> <span class="quiet">{escape(change.why)}</span>'
            shown = markup.diff(told) if told else "<p>as it is already</p>"
            parts.append(f"<details{'' if change.ref in seen else ' open'}><summary>{what}</summary>{shown}</details>")
            seen.add(change.ref)
        return markup.framed("\n".join(parts) if seen else "\n".join([*parts, "<p>nothing to do</p>"]))


def write(
    cluster: Cluster,
    change: Change,
    *,
    fence: Callable[[], object] = lambda: None,
    clock: Clock = SYSTEM_CLOCK,
    way_back: bool = False,
) -> Manifest | None:
    """Write one change and return the object as the API answered it, or as it was read when an edit has nothing to change; None when it is gone.

    ``fence`` is called right before the write, and raises when it must not be. An edit that loses a race, or gets no answer, is made again (12
    times, up to 2 s apart); on the ``way_back`` it is written whoever manages the object: users come first.
    Raises what the cluster does, and for an edit `NotFound`, `ManagedElsewhere`, what its surgery raises, `Conflict` when every attempt lost; nothing
    is half-written in any case.
    """
    if isinstance(change, Edit):
        for attempt in until_written(clock):
            with attempt:
                return _swap(cluster, change, fence, way_back)
    fence()
    if isinstance(change, Apply):
        return cluster.apply(change.manifest, manager=change.manager, force=change.force, subresource="status" if change.status else None)
    cluster.delete(change.ref)
    return None


def removed(ref: Ref, found: Manifest | None, told: object) -> errors.ApplicationRemoved:
    """The error for what somebody took out of a RayService as it was read: it names the object, and who wrote ``serveConfigV2`` last."""
    return errors.ApplicationRemoved(f"{ref}: {told}. {rayservice.last_writer(found or {}, names.MANAGER)}")


def refuse_gitops(manifest: Manifest) -> None:
    """Raise `ManagedElsewhere` for a RayService whose ``serveConfigV2`` another tool applies: it would be written back behind our back."""
    ref, found = Ref.of(manifest), ownership.of(manifest)
    leave = ownership.how_to_yield(found.manager)
    if found.mode != "commit":
        return
    raise errors.ManagedElsewhere(
        f"{ref}: it is managed by {found.manager} ({found.sign}), which would write serveConfigV2 back; commit the change to its repository, "
        f"or hand the field over to us: `kfp-serving yield {ref.name} -n {ref.namespace}`, and then have {found.manager} leave it alone"
        f"{f' ({leave})' if leave else ''}"
    )


def refuse_written_back(manifest: Manifest) -> None:
    """Raise `ManagedElsewhere` for a RayService whose owner yields ``serveConfigV2``, but which its tool writes back: it stands in git yet."""
    manager = ownership.written_back(manifest)
    if not manager:
        return
    ref, tool = Ref.of(manifest), ownership.tool_of(manager)
    raise errors.ManagedElsewhere(
        f"{ref}: {names.GITOPS} says yielded, but {tool} ({manager}) applies serveConfigV2 still and writes it back with its next sync; run "
        f"`kfp-serving yield {ref.name} -n {ref.namespace}`, which keeps the field from being deleted, then {ownership.how_to_yield(tool)}"
    )


def _swap(cluster: Cluster, edit: Edit, fence: Callable[[], object], way_back: bool) -> Manifest | None:
    """One attempt: read, compute, write with the resourceVersion read; `Conflict` when somebody wrote it meanwhile."""
    found = cluster.get(edit.ref)
    after = edit.after(found)
    if found is None or after is found:
        return found
    metadata = found["metadata"]
    if after is None:
        fence()
        cluster.delete(edit.ref, uid=metadata["uid"], resource_version=metadata["resourceVersion"])
        return None
    if not way_back:
        refuse_gitops(found)
    fence()
    ours = {key: metadata[key] for key in ("name", "namespace", "resourceVersion")}
    spec = {"serveConfigV2": rayservice.serve_config(after)}
    return cluster.apply(
        {"apiVersion": found["apiVersion"], "kind": edit.ref.kind, "metadata": ours, "spec": spec}, manager=names.MANAGER, force=True
    )


def until_written(clock: Clock) -> Retrying:
    """Attempts, until one neither loses a race nor goes without an answer."""
    return Retrying(
        sleep=clock.sleep,
        retry=retry_if_exception_type((errors.Conflict, errors.Unreachable)),
        stop=stop_after_attempt(CAS_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.05, max=2.0),
        reraise=True,
    )


def _merged(found: Any, wanted: Any) -> Any:
    """``found`` with what ``wanted`` says; lists as a whole."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found | {key: _merged(found.get(key), value) for key, value in wanted.items()}
    return wanted


def only(found: Any, like: Any) -> Any:
    """``found`` reduced to the keys that ``like`` has, without what the server writes into every object."""
    if isinstance(found, dict) and isinstance(like, dict):
        return {key: only(found[key], like[key]) for key in like if key in found and key not in ("resourceVersion", "managedFields", "uid")}
    if isinstance(found, list) and isinstance(like, list) and len(found) == len(like):
        return [only(one, other) for one, other in zip(found, like, strict=True)]  # without what the server added to an entry
    return found


def _diff(old: str, new: str) -> str:
    return "".join(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "now", "then", n=2))


def as_yaml(tree: Any) -> str:
    """Texts of several lines as blocks."""
    out = io.StringIO()
    yaml = YAML()
    yaml.width = 4096

    def literal(value: Any) -> Any:
        if type(value) is str and "\n" in value:
            return LiteralScalarString(value)
        if isinstance(value, dict):
            return {key: literal(item) for key, item in value.items()}
        if isinstance(value, list):
            return [literal(item) for item in value]
        return value

    yaml.dump(literal(tree), out)
    return out.getvalue()
