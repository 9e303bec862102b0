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
    """One version's part of a tick: answered requests, failures and client errors (4xx) among them, and requests per latency bucket.

    ``routed`` are the requests that arrived for it, answered or not (None: as many as ended); ``waiting`` have no answer at the look. The clients of
    ``disconnects`` gave up before their answer was whole: those are not in ``requests``.
    """

    requests: int = 0
    failures: int = 0
    latency_counts: tuple[int, ...] = ()
    routed: int | None = None
    waiting: int = 0
    client_errors: int = 0
    disconnects: int = 0

    @property
    def ended(self) -> int:
        """Requests that are over: answered, or given up by their clients."""
        return self.requests + self.disconnects

    @property
    def arrived(self) -> int:
        """Requests that the split is tested on: an answer that is late must not look like a request that never came."""
        return self.ended if self.routed is None else self.routed

    def __add__(self, other: ArmCounts) -> ArmCounts:
        return ArmCounts(
            self.requests + other.requests,
            self.failures + other.failures,
            _sum(self.latency_counts, other.latency_counts),
            self.arrived + other.arrived,
            self.waiting + other.waiting,
            self.client_errors + other.client_errors,
            self.disconnects + other.disconnects,
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
    return {replica: _kept(found["versions"]) for replica, found in page["replicas"].items()}


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
            client_errors, disconnects = (now.get(key, 0) - before.get(key, 0) for key in ("client_errors_4xx", "client_disconnects"))
            latency = _difference(now["latency_counts"], before.get("latency_counts", ()))
            if min(requests, failures, client_errors, disconnects, *latency) < 0 or failures + client_errors > requests:
                broken = f"router replica {replica} counted backwards for version {version}"
                continue
            routed = max(0, _arrived(now) - _arrived(before))  # a pinned request that was waiting is not
            arms[version] += ArmCounts(requests, failures, latency, routed, now.get("in_flight", 0), client_errors, disconnects)
        following[replica] = _kept(found["versions"])
    return Tick(arms[stable], arms[candidate], tuple(page["latency_bounds_s"]), broken), following


def history(page: Mapping[str, Any], version: str) -> ArmCounts:
    """What a version did last: the outcomes that each replica remembers of it, without latency.

    A page of an older router has no such memory; there it is all that was counted since the replica started.
    """
    found = dict.fromkeys(("requests", "failures", "client_errors", "disconnects"), 0)
    for counted in _of_version(page, version):
        older = {"client_errors": counted.get("client_errors_4xx", 0), "disconnects": counted.get("client_disconnects", 0)}
        recent = counted.get("recent", {**counted, **older})
        for key in found:
            found[key] += recent.get(key, 0)
    return ArmCounts(found["requests"], found["failures"], client_errors=found["client_errors"], disconnects=found["disconnects"])


def total_requests(page: Mapping[str, Any], version: str) -> int:
    """Answered unpinned requests of a version so far."""
    return sum(int(counted["requests"]) for counted in _of_version(page, version))


def requests_at(cursor: Mapping[str, Mapping[str, Mapping[str, Any]]], version: str) -> int:
    """Answered unpinned requests of a version up to a cursor, over all replicas that it knows."""
    return sum(int(versions[version].get("requests", 0)) for versions in cursor.values() if version in versions)


def quantile_s(latency_counts: Sequence[int], bounds_s: Sequence[float], quantile: float) -> float | None:
    """Upper bound of the bucket that holds the quantile, in seconds; None without requests."""
    total = sum(latency_counts)
    if total == 0:
        return None
    bucket = bisect.bisect_left(list(itertools.accumulate(latency_counts)), quantile * total)
    return bounds_s[min(bucket, len(bounds_s) - 1)]


def _of_version(page: Mapping[str, Any], version: str) -> list[Mapping[str, Any]]:
    return [found["versions"][version] for found in page["replicas"].values() if version in found["versions"]]


def _kept(versions: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A replica's totals as the cursor keeps them: all but its memory of recent outcomes, which is no total."""
    return {version: {key: value for key, value in counted.items() if key != "recent"} for version, counted in versions.items()}


def _arrived(counted: Mapping[str, Any]) -> int:
    return sum(int(counted.get(key, 0)) for key in ("requests", "in_flight", "client_disconnects"))


def _sum(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    if not a or not b:
        return tuple(a or b)
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _difference(now: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
    return tuple(now) if not before else tuple(x - y for x, y in zip(now, before, strict=True))
