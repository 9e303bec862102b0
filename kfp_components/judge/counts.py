"""What happened since the last look, from the router's cumulative counts."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Cursor = dict[str, dict[str, dict[str, Any]]]
"""Router replica -> version -> the totals seen last."""


@dataclass(frozen=True)
class ArmCounts:
    """One version's part of a tick: answered requests, failures among them, and requests per latency bucket.

    ``routed`` are the requests that arrived for it, answered or not (None: as many as were answered); ``waiting`` have no answer at the look.
    """

    requests: int = 0
    failures: int = 0
    latency_counts: tuple[int, ...] = ()
    routed: int | None = None
    waiting: int = 0

    @property
    def arrived(self) -> int:
        """Requests that the split is tested on: an answer that is late must not look like a request that never came."""
        return self.requests if self.routed is None else self.routed

    def __add__(self, other: ArmCounts) -> ArmCounts:
        return ArmCounts(
            self.requests + other.requests,
            self.failures + other.failures,
            _sum(self.latency_counts, other.latency_counts),
            self.arrived + other.arrived,
            self.waiting + other.waiting,
        )


@dataclass(frozen=True)
class Tick:
    """Both versions since the last look. ``broken`` says why the counts cannot be trusted, None when they can."""

    stable: ArmCounts
    candidate: ArmCounts
    bounds_s: tuple[float, ...] = ()
    broken: str | None = None


def start(page: Mapping[str, Any]) -> Cursor:
    """The cursor of a canary that begins now: what was counted before is not judged."""
    return {replica: dict(found["versions"]) for replica, found in page["replicas"].items()}


def advance(cursor: Cursor, page: Mapping[str, Any], stable: str, candidate: str) -> tuple[Tick, Cursor]:
    """What happened since ``cursor``, and the next cursor.

    Counts are per replica and only grow: a replica that is gone is left at its last totals, a new one counts in full. A page may hold some of the
    replicas only (one answers for itself); the others' requests arrive with a later page.
    """
    arms = {stable: ArmCounts(), candidate: ArmCounts()}
    broken = None
    following = dict(cursor)
    for replica, found in page["replicas"].items():
        for version, now in found["versions"].items():
            if version not in arms:
                continue
            before = cursor.get(replica, {}).get(version, {})
            requests = now["requests"] - before.get("requests", 0)
            failures = now["failures"] - before.get("failures", 0)
            latency = _difference(now["latency_counts"], before.get("latency_counts", ()))
            if requests < 0 or failures < 0 or min(latency, default=0) < 0 or failures > requests:
                broken = f"router replica {replica} counted backwards for version {version}"
                continue
            routed = max(0, _arrived(now) - _arrived(before))  # a pinned request that was waiting is not
            arms[version] += ArmCounts(requests, failures, latency, routed, now.get("in_flight", 0))
        following[replica] = dict(found["versions"])
    return Tick(arms[stable], arms[candidate], tuple(page["latency_bounds_s"]), broken), following


def history(page: Mapping[str, Any], version: str) -> ArmCounts:
    """All that was counted of a version so far."""
    total = ArmCounts()
    for found in page["replicas"].values():
        counted = found["versions"].get(version)
        if counted:
            total += ArmCounts(counted["requests"], counted["failures"], tuple(counted["latency_counts"]))
    return total


def total_requests(page: Mapping[str, Any], version: str) -> int:
    """Answered unpinned requests of a version so far."""
    return history(page, version).requests


def requests_at(cursor: Cursor, version: str) -> int:
    """Answered unpinned requests of a version at a look."""
    return sum(int(found[version]["requests"]) for found in cursor.values() if version in found)


def quantile_s(latency_counts: Sequence[int], bounds_s: Sequence[float], quantile: float) -> float | None:
    """Upper bound of the bucket that holds the quantile, in seconds; None without requests."""
    total = sum(latency_counts)
    if total == 0:
        return None
    bucket = bisect.bisect_left(list(itertools.accumulate(latency_counts)), quantile * total)
    return bounds_s[min(bucket, len(bounds_s) - 1)]


def _arrived(counted: Mapping[str, Any]) -> int:
    return sum(int(counted.get(key, 0)) for key in ("requests", "in_flight", "client_disconnects"))


def _sum(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    if not a or not b:
        return tuple(a or b)
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _difference(now: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
    return tuple(now) if not before else tuple(x - y for x, y in zip(now, before, strict=True))
