"""`Cluster` in memory: the verbs of ``kube_api`` called in this process, so that a whole release can be played in milliseconds.

Objects are validated, defaulted, owned field by field and collected as the embedded API does it. Nobody else acts on them: what
controllers do is played by the ``tick`` that the owner of the cluster gives, while somebody waits.

    clock = ManualClock()
    cluster = MemoryCluster(clock=clock, tick=lambda cluster: make_the_rayservice_run(cluster))
    cluster.create(manifest)
    cluster.wait(Ref.of(manifest), ready=..., failed=..., timeout_s=600, meanwhile=lambda: None)
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

from kfp_components import names
from kfp_components.clock import Clock, SystemClock
from kfp_components.cluster import KINDS, Endpoint, Manifest, Permission, Ref, delete_options
from kfp_components.cluster.endpoints import walk
from kfp_components.cluster.refusals import error_of
from kfp_components.cluster.waiting import first_ready, looks
from kfp_components.kube_api import failure, kinds
from kfp_components.kube_api.access import ADMIN, Account
from kfp_components.kube_api.selectors import matcher
from kfp_components.kube_api.store import Store
from kfp_components.kube_api.verbs import Call, Verbs

T = TypeVar("T")
MERGE = "application/merge-patch+json"


class MemoryCluster:
    """A cluster of its own with an empty namespace ``default``. It may be used from several threads; it is gone with the last reference."""

    def __init__(
        self,
        *,
        account: Account = ADMIN,
        clock: Clock | None = None,
        tick: Callable[[MemoryCluster], None] | None = None,
    ) -> None:
        """``tick`` is called every second of the clock while somebody waits, with this cluster as its administrator."""
        self._account = account
        self._clock: Clock = clock or SystemClock()
        self._tick = tick
        self._verbs, self._lock = Verbs(Store(":memory:")), threading.RLock()

    def as_account(self, account: Account) -> MemoryCluster:
        """The same cluster, seen by somebody else."""
        other = copy.copy(self)
        other._account = account
        return other

    def get(self, ref: Ref) -> Manifest | None:
        """The object, or None when there is none."""
        target = _Target(ref)
        return self._do("get", target, lambda: self._verbs.store.get(target.kind, target.namespace, target.name))

    def list(self, kind: str, namespace: str, *, labels: str | None = None) -> list[Manifest]:
        """All objects of a kind in a namespace, optionally by label selector."""
        target = _Target(Ref(kind, "", namespace), f"{kind} list in {namespace}")

        def found() -> list[Manifest]:
            match = matcher(target.kind, labels or "", "")
            return [item for item in self._verbs.store.find(target.kind, target.namespace) if match(item)]

        return self._do("list", target, found)

    def create(self, manifest: Manifest) -> Manifest:
        """Make a new object; `Conflict` when the name exists already."""
        metadata = manifest["metadata"]
        namespace = metadata.get("namespace", "")
        what = f"{manifest['kind']} {namespace}/{metadata.get('name') or metadata.get('generateName')}"
        target = _Target(Ref(manifest["kind"], "", namespace), what)
        return self._do("create", target, lambda: self._verbs.create(target.kind, target.namespace, manifest, Call(names.MANAGER)))

    def apply(self, manifest: Manifest, *, manager: str, force: bool = False, subresource: Literal["status"] | None = None) -> Manifest:
        """Server-side apply. `Conflict` names the fields and their managers unless ``force``."""
        target = _Target(Ref.of(manifest), sub=subresource or "")

        def applied() -> Manifest:
            if not target.sub and self._verbs.store.get(target.kind, target.namespace, target.name) is None:
                self._require("create", target)
            call = Call(manager, force=force)
            return self._verbs.apply(target.kind, target.namespace, target.name, manifest, call, target.sub)[0]

        return self._do("patch", target, applied)

    def replace(self, manifest: Manifest) -> Manifest:
        """Compare-and-swap the whole object by the resourceVersion it carries; `Conflict` when it is stale."""
        target = _Target(Ref.of(manifest))
        call = Call(names.MANAGER)
        return self._do("update", target, lambda: self._verbs.update(target.kind, target.namespace, target.name, manifest, call))

    def patch(self, ref: Ref, body: Manifest, *, manager: str) -> Manifest:
        """JSON merge patch; compare-and-swap when ``body.metadata.resourceVersion`` is given."""
        target = _Target(ref)
        call = Call(manager)
        return self._do("patch", target, lambda: self._verbs.patch(target.kind, target.namespace, target.name, MERGE, body, call))

    def delete(self, ref: Ref, *, uid: str | None = None, resource_version: str | None = None) -> bool:
        """Delete, optionally only that very object, or only as it was read; `Conflict` when it is another. False when there was none."""
        target = _Target(ref)

        def deleted() -> bool:
            if self._verbs.store.get(target.kind, target.namespace, target.name) is None:
                return False
            self._verbs.delete(target.kind, target.namespace, target.name, delete_options(uid, resource_version), dry_run=False)
            return True

        return self._do("delete", target, deleted)

    def wait(
        self,
        ref: Ref,
        *,
        ready: Callable[[Manifest], bool],
        failed: Callable[[Manifest], str | None],
        timeout_s: float,
        meanwhile: Callable[[], None],
    ) -> Manifest:
        """The first state that is ready; `DeployFailed` with the diagnosis, or `WaitTimeout` with the last one."""

        def between() -> None:
            if self._tick:
                self._tick(self.as_account(ADMIN))
            meanwhile()

        states = looks(lambda: self.get(ref), timeout_s=timeout_s, meanwhile=between, clock=self._clock)
        return first_ready(states, ref, ready=ready, failed=failed, timeout_s=timeout_s)

    def endpoint(self, service: str, namespace: str, port: int) -> Endpoint:
        """Walk a Service to a ready address; `NotFound` says at which hop it broke."""
        return walk(self, service, namespace, port)

    def missing(self, wanted: Iterable[Permission], namespace: str) -> tuple[Permission, ...]:
        """Those that this account does not have."""
        return tuple(asked for asked in wanted if not self._account.may(asked.verb, asked.group, asked.resource, namespace))

    def _do(self, verb: str, target: _Target, act: Callable[[], T]) -> T:
        """One call, as one account, by one thread at a time; a refusal becomes one of this library's errors."""
        try:
            with self._lock:
                self._require(verb, target)
                return act()
        except failure.Failure as refused:
            raise error_of(refused.code, refused.status(), target.what, "in memory") from refused

    def _require(self, verb: str, target: _Target) -> None:
        place = target.namespace or (target.name if target.kind.kind == "Namespace" else "")
        self._account.require(verb, target.kind.group, target.resource, place, target.name)
        if target.kind.namespaced and not target.namespace and verb != "list":
            raise failure.no_resource()


class _Target:
    """What a call is about, in the words of ``kube_api``."""

    def __init__(self, ref: Ref, what: str = "", sub: str = "") -> None:
        of = KINDS[ref.kind]
        group, _, version = of.api_version.rpartition("/")
        self.kind = kinds.BY_PATH[group, version, of.plural]
        self.namespace = ref.namespace if self.kind.namespaced else ""
        self.name, self.sub, self.what = ref.name, sub, what or str(ref)
        self.resource = f"{self.kind.plural}/{sub}" if sub else self.kind.plural
