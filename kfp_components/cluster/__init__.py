"""What the library asks of a Kubernetes API, as a protocol.

``cluster.kubernetes`` speaks to a real one, and is the only module that imports the client; ``cluster.memory`` is one in this process;
``cluster.faults`` makes either of them fail when a test wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One resource type: where it lives in the API and what it is called."""

    api_version: str
    name: str
    plural: str

    @property
    def path(self) -> str:
        """Root of its URL, without the namespace."""
        return f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"


KINDS = {
    kind.name: kind
    for kind in (
        Kind("v1", "Namespace", "namespaces"),
        Kind("v1", "ConfigMap", "configmaps"),
        Kind("v1", "Secret", "secrets"),
        Kind("v1", "Service", "services"),
        Kind("v1", "Event", "events"),
        Kind("coordination.k8s.io/v1", "Lease", "leases"),
        Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices"),
        Kind("ray.io/v1", "RayService", "rayservices"),
        Kind("serving.kserve.io/v1beta1", "InferenceService", "inferenceservices"),
        Kind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes"),
    )
}


@dataclass(frozen=True)
class Ref:
    """Which object. Prints as ``RayService ai-ml/ai-inference``."""

    kind: str
    name: str
    namespace: str

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Ref:
        """The reference of a manifest that has a kind, a name and a namespace."""
        return cls(manifest["kind"], manifest["metadata"]["name"], manifest["metadata"].get("namespace", ""))

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class Permission(NamedTuple):
    """To do something with objects of a kind. Prints as ``patch InferenceService/status``."""

    verb: str
    kind: str
    subresource: str = ""

    @property
    def group(self) -> str:
        """API group of the kind, empty for the core one."""
        return KINDS[self.kind].api_version.rpartition("/")[0]

    @property
    def resource(self) -> str:
        """As RBAC names it: ``inferenceservices/status``."""
        return KINDS[self.kind].plural + (f"/{self.subresource}" if self.subresource else "")

    def __str__(self) -> str:
        return f"{self.verb} {self.kind}{'/' + self.subresource if self.subresource else ''}"


@dataclass(frozen=True)
class Endpoint:
    """Where to send a request so that it goes through an alias.

    ``base_url`` is connected to, ``host`` is sent as the Host header, ``path`` are the hops that were walked, for messages.
    """

    base_url: str
    host: str
    path: tuple[str, ...]


def delete_options(uid: str | None, resource_version: str | None) -> Manifest:
    """The ``DeleteOptions`` of a deletion with these preconditions; what the object owns follows in the background."""
    wanted = {key: value for key, value in (("uid", uid), ("resourceVersion", resource_version)) if value}
    options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
    return options | ({"preconditions": wanted} if wanted else {})


class Cluster(Protocol):
    """One Kubernetes API. Every method raises `Unreachable` or `PermissionDenied` in this library's words."""

    def get(self, ref: Ref) -> Manifest | None:
        """The object, or None when there is none."""

    def list(self, kind: str, namespace: str, *, labels: str | None = None) -> list[Manifest]:
        """All objects of a kind in a namespace, optionally by label selector."""

    def create(self, manifest: Manifest) -> Manifest:
        """Make a new object; `Conflict` when the name exists already."""

    def apply(self, manifest: Manifest, *, manager: str, force: bool = False, subresource: Literal["status"] | None = None) -> Manifest:
        """Server-side apply. `Conflict` names the fields and their managers unless ``force``."""

    def replace(self, manifest: Manifest) -> Manifest:
        """Compare-and-swap the whole object by the resourceVersion it carries; `Conflict` when it is stale."""

    def patch(self, ref: Ref, body: Manifest, *, manager: str) -> Manifest:
        """JSON merge patch; compare-and-swap when ``body.metadata.resourceVersion`` is given."""

    def delete(self, ref: Ref, *, uid: str | None = None, resource_version: str | None = None) -> bool:
        """Delete, optionally only that very object or that very state of it; `Conflict` when it is another; False when there was none."""

    def wait(
        self,
        ref: Ref,
        *,
        ready: Callable[[Manifest], bool],
        failed: Callable[[Manifest], str | None],
        timeout_s: float,
        meanwhile: Callable[[], None],
    ) -> Manifest:
        """The first state that is ready. Raises `DeployFailed` with the diagnosis as soon as ``failed`` gives one, else `WaitTimeout`.

        It looks once a second, by one read: a release has no right to watch. ``meanwhile`` is called between two looks; what it raises ends the wait.
        """

    def endpoint(self, service: str, namespace: str, port: int) -> Endpoint:
        """Walk a Service (an ExternalName alias too) to an address; `NotFound` says at which hop it broke."""

    def missing(self, wanted: Iterable[Permission], namespace: str) -> tuple[Permission, ...]:
        """Those that this identity does not have in the namespace; asked in one review of its rules, where that tells all."""
