"""Which version answers a request: pure functions over the router's ``user_config``.

::

    {"stable": {"version": "v7", "route": "/.versions/whisper/v7", "application": "whisper-v7"},
     "candidate": {"version": "v8", "route": "/.versions/whisper/v8"},   optional, as is the application of each: where that is now (see `routes`)
     "weight_percent": 10.0,               the candidate's share of unpinned requests
     "lease_expires_unix_s": 1780000000.0, after which the share is 0 (dead-man's switch), unless a heartbeat came
     "lease_s": 60.0,                      how long each heartbeat makes it hold, by the router's clock (see `control`)
     "heartbeat_sha256": "5d0b...",        hex SHA-256 of the token that a heartbeat must know; with lease_s or not at all
     "sticky_header": "x-user-id",         optional: equal values see the same version
     "request_timeout_s": 60.0,            between two pieces of an answer; missing or null: no limit, as Serve itself has none
     "epoch": 3}                           of the release that wrote it; one with a lower epoch than that in force is refused: its run was taken over
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEYS = {
    *("stable", "candidate", "weight_percent", "lease_expires_unix_s", "lease_s", "heartbeat_sha256"),
    *("sticky_header", "request_timeout_s", "epoch"),
}
BACKEND_KEYS = {"version", "route", "application"}
PROTOCOL = 2
"""Raised whenever a key comes to `KEYS` or `BACKEND_KEYS`, or may hold something that it could not."""

SHA256 = re.compile(r"[0-9a-f]{64}")
BUCKETS = 1_000_000


@dataclass(frozen=True)
class Backend:
    """One version: its name, the internal route prefix of its application, and that application's name in Serve, by which it is found elsewhere."""

    version: str
    route: str
    application: str | None = None


@dataclass(frozen=True)
class Policy:
    """A checked ``user_config``."""

    stable: Backend
    candidate: Backend | None
    weight_percent: float
    lease_expires_unix_s: float | None
    sticky_header: str | None
    request_timeout_s: float | None
    digest: str
    epoch: int = 0
    lease_s: float | None = None
    heartbeat_sha256: str | None = field(default=None, repr=False)

    def known(self) -> dict[str, Backend]:
        """Versions that a request may be pinned to."""
        return {backend.version: backend for backend in (self.stable, self.candidate) if backend is not None}

    def choose(self, sticky_value: str | None, draw: float, weight_percent: float) -> Backend:
        """The backend of an unpinned request at the share that applies now. ``draw`` is uniform in [0, 1); a sticky value replaces it by its own.

        That one does not depend on the weight, so a user on the candidate stays there when the weight grows.
        """
        if self.candidate is None:
            return self.stable
        point = draw if sticky_value is None else fixed_draw(sticky_value)
        return self.candidate if point * 100.0 < weight_percent else self.stable


def parse(config: Mapping[str, Any]) -> Policy:
    """Check a ``user_config``. Raises ValueError, which Serve shows as the deployment's message."""
    unknown = sorted(set(config) - KEYS)
    if unknown:
        raise ValueError(f"router user_config: {unknown[0]!r} is not a known key; known are {', '.join(sorted(KEYS))}")
    if "stable" not in config:
        raise ValueError("router user_config: 'stable' is missing")
    weight = float(config.get("weight_percent", 0.0))
    if not 0.0 <= weight <= 100.0:
        raise ValueError(f"router user_config: weight_percent {weight:g} is not within 0 and 100")
    stable = _backend(config["stable"])
    candidate = _backend(config["candidate"]) if config.get("candidate") else None
    if candidate is not None and candidate.version == stable.version:
        raise ValueError(f"router user_config: stable and candidate are both {stable.version}")
    expires = config.get("lease_expires_unix_s")
    sticky = config.get("sticky_header")
    lease_s, heartbeat_sha256 = _heartbeat(config)
    return Policy(
        stable=stable,
        candidate=candidate,
        weight_percent=weight,
        lease_expires_unix_s=None if expires is None else float(expires),
        sticky_header=str(sticky).lower() if sticky else None,
        request_timeout_s=_request_timeout_s(config.get("request_timeout_s")),
        digest=hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        epoch=int(config.get("epoch") or 0),
        lease_s=lease_s,
        heartbeat_sha256=heartbeat_sha256,
    )


def fixed_draw(value: str) -> float:
    """A number in [0, 1) that depends on the value alone."""
    return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big") % BUCKETS / BUCKETS


def _request_timeout_s(value: Any) -> float | None:
    if value is None:
        return None
    found = float(value)
    if not 0.0 < found < math.inf:
        raise ValueError(f"router user_config: request_timeout_s {found:g} is not a positive number of seconds; leave it out for no limit")
    return found


def _heartbeat(config: Mapping[str, Any]) -> tuple[float | None, str | None]:
    lease, sha256 = config.get("lease_s"), config.get("heartbeat_sha256")
    if (lease is None) != (sha256 is None):
        raise ValueError("router user_config: lease_s and heartbeat_sha256 go together; one of them is missing")
    if lease is None or sha256 is None:
        return None, None
    lease_s = float(lease)
    if not 0.0 < lease_s < math.inf:
        raise ValueError(f"router user_config: lease_s {lease_s:g} is not a positive number of seconds")
    if not SHA256.fullmatch(str(sha256)):
        raise ValueError("router user_config: heartbeat_sha256 is not a SHA-256 in 64 small hexadecimal digits")
    return lease_s, str(sha256)


def _backend(value: Mapping[str, Any]) -> Backend:
    version, route = value.get("version"), value.get("route")
    if not version or not isinstance(route, str) or not route.startswith("/"):
        raise ValueError(f"router user_config: {dict(value)!r} needs a version and a route that starts with /")
    unknown = sorted(set(value) - BACKEND_KEYS)
    if unknown:
        raise ValueError(f"router user_config: {unknown[0]!r} of {version} is not a known key; known are {', '.join(sorted(BACKEND_KEYS))}")
    application = value.get("application")
    return Backend(str(version), route.rstrip("/"), str(application) if application else None)
