"""What happened since the last look, from the router's cumulative counts."""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Cursor = dict[str, dict[str, dict[str, Any]]]
"""Router replica -> version -> the totals seen last; under `TIMES` when the replica started and when it answered last, by its own clock."""

TIMES = "@"
"""No version is called so."""


@dataclass(frozen=True)
class ArmCounts:
    """One version's part of a tick: answered requests, failures and client errors (4xx) among them, and requests per latency bucket.

    ``routed`` are the requests that arrived for it, answered or not (None: as many as ended); ``waiting`` have no answer at the look, the oldest of
    them for ``waits_s`` (an older router does not tell). The clients of ``disconnects`` gave up before their answer was whole: those are not in
    ``requests``.
    """

    requests: int = 0
    failures: int = 0
    latency_counts: tuple[int, ...] = ()
    routed: int | None = None
    waiting: int = 0
    client_errors: int = 0
    disconnects: int = 0
    waits_s: tuple[float, ...] = ()

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
            self.waits_s + other.waits_s,
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
    return {replica: _kept(found, page) for replica, found in page["replicas"].items()}


def advance(cursor: Cursor, page: Mapping[str, Any], stable: str, candidate: str) -> tuple[Tick, Cursor]:
    """What happened since ``cursor``, and the next cursor.

    Counts are per replica and only grow: a replica that is gone is left at its last totals, one that came after the last look counts in full. Two
    that live at the same time break the meter: of each other's requests they know nothing, and nothing of them is added.
    """
    arms = {stable: ArmCounts(), candidate: ArmCounts()}
    broken = None
    following = dict(cursor)
    for replica, found in page["replicas"].items():
        following[replica] = _kept(found, page)
        if another := _lives_beside(cursor, replica, found):
            broken = (
                f"the router has several replicas, {another} and {replica}, and each counts for itself; take num_replicas and autoscaling_config "
                "out of the router's deployment in serveConfigV2"
            )
            continue
        for version, now in found["versions"].items():
            if version not in arms:
                continue
            before = cursor.get(replica, {}).get(version, {})
            requests = now["requests"] - before.get("requests", 0)
            failures = now["failures"] - before.get("failures", 0)
            client_errors, disconnects = (now.get(key, 0) - before.get(key, 0) for key in ("client_errors_4xx", "client_disconnects"))
            latency = _difference(now["latency_counts"], unpack(before.get("latency_counts", ())))
            if min(requests, failures, client_errors, disconnects, *latency) < 0 or failures + client_errors > requests:
                broken = f"router replica {replica} counted backwards for version {version}"
                continue
            routed = max(0, _arrived(now) - _arrived(before))
            waits_s = tuple(now.get("waits_s", ()))
            arms[version] += ArmCounts(requests, failures, latency, routed, _in_flight(now), client_errors, disconnects, waits_s)
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


def pack(latency_counts: Sequence[int]) -> dict[str, Any]:
    """Requests per bucket as small JSON: nearly all of the buckets are empty. ``of`` is how many there are."""
    return {"of": len(latency_counts), "counts": [[bucket, number] for bucket, number in enumerate(latency_counts) if number]}


def unpack(packed: Mapping[str, Any] | Sequence[int]) -> tuple[int, ...]:
    """What `pack` made, or the plain list that older versions stored."""
    if not isinstance(packed, Mapping):
        return tuple(packed)
    found = [0] * packed["of"]
    for bucket, number in packed["counts"]:
        found[bucket] = number
    return tuple(found)


@lru_cache(maxsize=16)
def pack_bounds(bounds_s: tuple[float, ...]) -> dict[str, Any] | list[float]:
    """Bounds of buckets as small JSON: those of the router are a geometric series, ``first * ratio**step``. Others as they are."""
    if len(bounds_s) > 2:
        packed = {"first": bounds_s[0], "ratio": round(bounds_s[1] / bounds_s[0], 9), "of": len(bounds_s)}
        if unpack_bounds(packed) == bounds_s:
            return packed
    return list(bounds_s)


def unpack_bounds(packed: Mapping[str, Any] | Sequence[float]) -> tuple[float, ...]:
    """What `pack_bounds` made, or the plain list that older versions stored."""
    if not isinstance(packed, Mapping):
        return tuple(packed)
    return _geometric(packed["first"], packed["ratio"], packed["of"])


@lru_cache(maxsize=16)
def _geometric(first: float, ratio: float, of: int) -> tuple[float, ...]:
    return tuple(first * ratio**step for step in range(of))


def _of_version(page: Mapping[str, Any], version: str) -> list[Mapping[str, Any]]:
    return [found["versions"][version] for found in page["replicas"].values() if version in found["versions"]]


def _lives_beside(cursor: Cursor, replica: str, found: Mapping[str, Any]) -> str | None:
    """Another replica that answered after this one had started, and that this one does not merely follow; pages of older routers do not tell."""
    started = found.get("started_unix_s")
    if started is None:
        return None
    moment = "seen_unix_s" if replica not in cursor else "started_unix_s"  # one that is known answers again: no younger one may have come
    others = ((name, versions[TIMES]) for name, versions in cursor.items() if name != replica and TIMES in versions)
    return next((name for name, times in others if times[moment] > started), None)


def _kept(found: Mapping[str, Any], page: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A replica's totals as the cursor keeps them: small, and without its memory of recent outcomes, which is no total."""
    versions = {version: {key: value for key, value in counted.items() if key != "recent"} for version, counted in found["versions"].items()}
    kept = {version: {**counted, "latency_counts": pack(counted["latency_counts"])} for version, counted in versions.items()}
    if "started_unix_s" in found and "now_unix_s" in page:
        kept[TIMES] = {"started_unix_s": found["started_unix_s"], "seen_unix_s": page["now_unix_s"]}
    return kept


def _arrived(counted: Mapping[str, Any]) -> int:
    return int(counted.get("requests", 0)) + int(counted.get("client_disconnects", 0)) + _in_flight(counted)


def _in_flight(counted: Mapping[str, Any]) -> int:
    """Of users; a router of an older version does not tell how many of all are pinned."""
    return int(counted.get("in_flight", 0)) - int(counted.get("pinned_in_flight", 0))


def _sum(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    if not a or not b:
        return tuple(a or b)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} latency buckets cannot be added")
    return tuple(map(operator.add, a, b))


def _difference(now: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
    return tuple(now) if not before else tuple(x - y for x, y in zip(now, before, strict=True))
