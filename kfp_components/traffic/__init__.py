"""How a share of the requests reaches the candidate: four verbs, one file per data plane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kfp_components import errors, names
from kfp_components.clock import Clock
from kfp_components.cluster import Cluster, Manifest
from kfp_components.cluster.changes import Edit
from kfp_components.request import ModelTarget
from kfp_components.traffic.router_source import Source

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class Split:
    """Who answers. ``weight_percent`` is the candidate's share; ``lease_expires_unix_s`` when it lapses (None: never, weight 0).

    ``lease_s`` is how long it then holds after each heartbeat (`TrafficStrategy.renew`), None when nobody is going to send any.
    """

    stable: str
    candidate: str | None = None
    weight_percent: float = 0.0
    lease_expires_unix_s: float | None = None
    sticky_header: str | None = None
    request_timeout_s: float | None = None
    lease_s: float | None = None
    applications: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Version -> name of its application, where that is not ``{model}-{version}``."""

    def __post_init__(self) -> None:
        """Raises `RequestInvalid` for a share that is none, before anything is written."""
        if not 0.0 <= self.weight_percent <= 100.0:
            raise errors.RequestInvalid(f"weight {self.weight_percent:g} %: a share of the requests is between 0 and 100 percent")

    def application(self, model: str, version: str) -> str:
        """Name of the Serve application that holds a version of the model."""
        return self.applications.get(version) or names.application(model, version)

    @property
    def shares(self) -> dict[str, float]:
        """Version -> percent, for the stub."""
        if self.candidate is None:
            return {self.stable: 100.0}
        return {self.stable: 100.0 - self.weight_percent, self.candidate: self.weight_percent}


Renewal = Literal["renewed", "lapsed", "refused"]
"""What a heartbeat came to: the weight holds on; it holds again and had lapsed; another split stands there, or another run's."""


class TrafficStrategy(Protocol):
    """Set and verify are two verbs: `set_weight` writes what is wanted, `observed_weight` reads what the data plane does.

    ``epoch`` is the release's, raised by whoever takes it over; it is written beside the split, and a writer with a lower one is refused.
    """

    epoch: int
    address: names.Address
    """What clients call."""

    runtime_env: Mapping[str, Any]
    """Of the data plane's own application: the choice that the release began with."""

    def source(self, found: Manifest) -> Source:
        """Where that application comes from, by the RayService as it was read. Raises `RequestInvalid` when it cannot be had."""

    def prepare(self, serve_config: str, split: Split) -> str:
        """``serveConfigV2`` with the data plane's own application in it, routing by ``split``, beside the others: no user reaches it yet."""

    def change(self, split: Split) -> Edit:
        """What `set_weight` writes."""

    def set_weight(self, split: Split) -> None:
        """Write the split, in one write; nothing else changes.

        Raises `ApplicationRemoved` when a version that it names is not there, `ReleaseHeld` when another run has taken the release over.
        """

    def renew(self, split: Split) -> Renewal:
        """Make the weight that this run wrote hold for ``lease_s`` more, without a write. Raises `Unreachable`: nobody knows whether it does.

        ``refused``: `set_weight` has to write it anew, or says who has taken it over.
        """

    def assert_there(self, split: Split) -> None:
        """Raises `ApplicationRemoved` when a version that the split names, the data plane, or the public route was taken away.

        `Unreachable` when nobody can say.
        """

    def written_in(self, found: Manifest | None) -> Split | None:
        """The split in a RayService that was read, None when the data plane has no application of its own there."""

    def observed_owner(self) -> str | None:
        """The application that Serve gives the public route now, None when none has it. Raises `Unreachable`."""

    def observed_weight(self) -> Split:
        """The split that the data plane applies now. Raises `Unreachable` when it does not answer."""

    def refused_config(self) -> str | None:
        """Why the data plane goes on with another configuration than the one that it was given last, None when it does not. Raises `Unreachable`."""

    def wait_until_applied(self, split: Split, timeout_s: float) -> float:
        """Seconds until `observed_weight` was the split that was written. Raises `WaitTimeout` saying what it is instead."""

    def in_flight(self) -> int:
        """Requests that wait for their answer in it now. Raises `Unreachable`."""

    def ledger(self) -> dict[str, Any]:
        """Exact counts per version, cumulative. Raises `Unreachable`."""


def _router(cluster: Cluster, target: ModelTarget, clock: Clock, transport: httpx.BaseTransport | None) -> TrafficStrategy:
    from kfp_components.traffic.ray_router import RayRouter

    return RayRouter(cluster, target, clock, transport)


Connect = Callable[[Cluster, ModelTarget, Clock, "httpx.BaseTransport | None"], TrafficStrategy]
STRATEGIES: Mapping[str, Connect] = {"ray_router": _router}


def connect(name: str, cluster: Cluster, target: ModelTarget, clock: Clock, transport: httpx.BaseTransport | None = None) -> TrafficStrategy:
    """The strategy of that name. Raises `RequestInvalid` listing the known ones."""
    if name not in STRATEGIES:
        raise errors.RequestInvalid(f"traffic strategy {name!r} is not known; known are {', '.join(STRATEGIES)}")
    return STRATEGIES[name](cluster, target, clock, transport)
