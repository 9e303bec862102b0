"""``Run``: what is asked, where, by whom, and who watches. Connecting writes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from kfp_components import errors, names, notify, traffic
from kfp_components.artifact import Tell
from kfp_components.artifact import nobody as nobody_hears
from kfp_components.clock import Clock, SystemClock
from kfp_components.cluster import Cluster, Ref
from kfp_components.cluster.patience import Patience, patient, persist
from kfp_components.registry import Absent, ModelRegistry
from kfp_components.registry import connect as connect_registry
from kfp_components.release import Command, Lease, Release, ReleaseStore, Watcher, local_holder
from kfp_components.request import ModelTarget, PromoteRequest
from kfp_components.traffic import TrafficStrategy

if TYPE_CHECKING:
    import httpx

PATIENCE_S = 30.0
"""How long the Kubernetes API and the registry may give no answer before the release is left as it stands."""

DOOR_PATIENCE_S = 2.0
"""The same before a release is this run's: a wrong address is told at once."""

T = TypeVar("T")


def nobody(_release: Release) -> None:
    """The watcher of a release that nobody looks at."""


@dataclass
class Run:
    """One run's view of a release. ``record`` is the release record as this run read or wrote it last."""

    request: PromoteRequest
    cluster: Cluster
    registry: ModelRegistry
    router: TrafficStrategy
    store: ReleaseStore
    lease: Lease
    clock: Clock
    holder: str
    in_one_process: bool
    patience: Patience
    transport: httpx.BaseTransport | None = None
    watch: Watcher = nobody
    reading: Tell = nobody_hears
    """Hears how far an artifact is read."""
    source: dict[str, str] = field(default_factory=dict)
    notifier: notify.Notifier = field(default_factory=notify.Notifier, repr=False)
    record: Release | None = field(default=None, repr=False)
    epoch: int = 0
    """The release's as this run took it over; 0 before."""
    obey: Callable[[Command], None] | None = field(default=None, repr=False)
    """What is done about a command on the Lease; None while nobody listens."""

    @property
    def registered_name(self) -> str:
        """Name of the model in the registry."""
        return names.registered(self.request.model, self.request.namespace)

    @property
    def address(self) -> names.Address:
        """What clients call: as the release has it, before there is one as the request asks for."""
        return self.router.address

    @address.setter
    def address(self, address: names.Address) -> None:
        self.router.address = address

    @property
    def rayservice(self) -> Ref:
        """The RayService that serves the model."""
        return Ref("RayService", self.request.rayservice, self.request.namespace)

    def for_request(self, request: PromoteRequest) -> Run:
        """The same surroundings for another request."""
        holder = None if self.in_one_process else self.holder
        return open_run(
            request,
            self.cluster,
            holder=holder,
            watch=self.watch,
            reading=self.reading,
            clock=self.clock,
            registry=self.registry,
            transport=self.transport,
        )

    def persist(self, call: Callable[[], T]) -> T:
        """``call()``, tried again while nobody answers, as long as patience lasts."""
        return persist(call, self.clock, self.patience)

    def keep(self) -> None:
        """Look at the Lease, renew it when it is time, and obey what it asks. Raises `ReleaseHeld` when another run has taken it, `Aborted`.

        That it cannot be renewed just now stops nobody: it is seen when it can, and what this run writes carries its epoch.
        """
        with contextlib.suppress(errors.Unreachable):
            self.lease.keep()
        self.heed()

    def heed(self) -> None:
        """Obey what the Lease asks, as it was seen last. Raises `Aborted`."""
        if self.obey is not None and (command := self.lease.command) is not None:
            self.obey(command)

    @property
    def tick_s(self) -> float:
        """Seconds after which the Lease is looked at again while something is waited for."""
        return min(max(1.0, self.request.options.judge.tick_s), self.request.options.lease_s / 4)

    def pause(self, seconds: float) -> None:
        """Wait, and keep the Lease meanwhile where this run has it (who only looks has none). Raises as `keep`."""
        end = self.clock.monotonic() + seconds
        while True:
            if self.lease.taken:
                self.keep()
            left_s = end - self.clock.monotonic()
            if left_s <= 0:
                return
            self.clock.sleep(min(left_s, self.tick_s))


def open_run(
    request: PromoteRequest,
    cluster: Cluster | None = None,
    *,
    holder: str | None = None,
    watch: Watcher = nobody,
    reading: Tell = nobody_hears,
    source: dict[str, str] | None = None,
    clock: Clock | None = None,
    registry: ModelRegistry | None = None,
    transport: httpx.BaseTransport | None = None,
) -> Run:
    """Connect everything; nothing is written.

    ``holder`` names the run in the Lease when its steps are processes of their own (a KFP run id; default: this process). ``source`` is recorded in
    the registry (run id, URL, commit). ``reading`` hears how far the artifact is read, which can take minutes. ``clock`` and ``transport`` (of HTTP)
    are for simulations.
    Raises `NotFound` when no cluster is configured.
    """
    cluster = cluster or _connected()
    clock = clock or SystemClock()
    patience = Patience(DOOR_PATIENCE_S)
    run_name = holder or local_holder()
    options = request.options
    router = traffic.connect("ray_router", cluster, request, clock, transport)
    router.address = request.address
    return Run(
        request=request,
        cluster=patient(cluster, clock, patience),
        registry=patient(registry or connect_registry(options.registry_uri), clock, patience),
        router=router,
        store=ReleaseStore(cluster, request.model, request.namespace, clock),
        lease=Lease(cluster, request.model, request.namespace, run_name, options.lease_s, clock),
        clock=clock,
        holder=run_name,
        in_one_process=holder is None,
        patience=patience,
        transport=transport,
        watch=watch,
        reading=reading,
        source=source or {},
        notifier=notify.Notifier(options.notify, notify.reader(cluster, request.namespace)),
    )


def open_rollback(
    target: ModelTarget,
    cluster: Cluster | None = None,
    *,
    holder: str | None = None,
    watch: Watcher = nobody,
    clock: Clock | None = None,
    registry: ModelRegistry | None = None,
    transport: httpx.BaseTransport | None = None,
) -> Run:
    """A run for `roll_back`, `finish_release` and commands: the request is the one in the release record. Nothing is written.

    A registry that cannot be connected stops nobody here: what it was to be told is left behind. Raises `NotFound` when there is no release record,
    `RequestInvalid` when it is on another RayService, or another version of the library wrote one that this one does not take.
    """
    cluster = cluster or _connected()
    steady = patient(cluster, clock or SystemClock(), Patience(DOOR_PATIENCE_S))
    record = ReleaseStore(steady, target.model, target.namespace, clock).load()
    if record is None:
        raise errors.NotFound(f"model {target.namespace}/{target.model}: there is no release of it, so there is nothing to end or to steer")
    if record.rayservice != target.rayservice:
        raise errors.RequestInvalid(
            f"model {target.namespace}/{target.model}: its release is on RayService {record.rayservice}, not on {target.rayservice}"
        )
    asked = record.asked()
    if registry is None:
        try:
            registry = connect_registry(asked.options.registry_uri)
        except errors.InputError as why:
            registry = Absent(why)
    return open_run(asked, cluster, holder=holder, watch=watch, clock=clock, registry=registry, transport=transport)


def _connected() -> Cluster:
    """The cluster of this process's surroundings."""
    from kfp_components.cluster.kubernetes import KubernetesCluster  # only who needs it pays for the client's import

    return KubernetesCluster()
