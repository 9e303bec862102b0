"""How a share of the requests reaches the candidate: four verbs, one file per data plane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kfp_components import errors
from kfp_components.cluster import Cluster
from kfp_components.request import ModelTarget


@dataclass(frozen=True)
class Split:
    """Who answers. ``weight_percent`` is the candidate's share; ``lease_expires_unix_s`` when it lapses (None: never, weight 0)."""

    stable: str
    candidate: str | None = None
    weight_percent: float = 0.0
    lease_expires_unix_s: float | None = None
    sticky_header: str | None = None
    request_timeout_s: float = 60.0

    @property
    def shares(self) -> dict[str, float]:
        """Version -> percent, for the stub."""
        if self.candidate is None:
            return {self.stable: 100.0}
        return {self.stable: 100.0 - self.weight_percent, self.candidate: self.weight_percent}


class TrafficStrategy(Protocol):
    """Set and verify are two verbs: `set_weight` writes what is wanted, `observed_weight` reads what the data plane does."""

    def prepare(self, serve_config: str, split: Split) -> str:
        """``serveConfigV2`` with the data plane's own application in it, routing by ``split``."""

    def set_weight(self, split: Split) -> None:
        """Write the split, in one write; nothing else changes."""

    def current(self) -> Split | None:
        """The split as it is written, None when the model has no public route yet."""

    def observed_weight(self) -> Split:
        """The split that the data plane applies now. Raises `Unreachable` when it does not answer."""

    def wait_until_applied(self, split: Split, timeout_s: float) -> float:
        """Seconds until `observed_weight` was the split that was written. Raises `WaitTimeout` saying what it is instead."""

    def ledger(self) -> dict[str, Any]:
        """Exact counts per version, cumulative. Raises `Unreachable`."""

    def remove(self, serve_config: str) -> str:
        """``serveConfigV2`` without the data plane's own application."""


def _router(cluster: Cluster, target: ModelTarget) -> TrafficStrategy:
    from kfp_components.traffic.ray_router import RayRouter

    return RayRouter(cluster, target)


STRATEGIES: Mapping[str, Callable[[Cluster, ModelTarget], TrafficStrategy]] = {"ray_router": _router}


def connect(name: str, cluster: Cluster, target: ModelTarget) -> TrafficStrategy:
    """The strategy of that name. Raises `RequestInvalid` listing the known ones."""
    if name not in STRATEGIES:
        raise errors.RequestInvalid(f"traffic strategy {name!r} is not known; known are {', '.join(STRATEGIES)}")
    return STRATEGIES[name](cluster, target)
