"""Exact counts per version, cumulative since this replica started. Readers take differences per replica, so a restart is never negative."""

from __future__ import annotations

import bisect
from typing import Any

LATENCY_BOUNDS_S = tuple(0.0005 * 1.1**step for step in range(131))
"""Upper bounds of the latency buckets, 0.5 ms to 120 s, 10 % apart; one more bucket holds what is slower."""

FAILURE_CLASSES = ("http_5xx", "overloaded", "timeout", "connect", "stream_broken")


class VersionCounts:
    """Counts of one version. ``requests`` are answered unpinned ones; those whose client went away are only in ``client_disconnects``."""

    def __init__(self) -> None:
        self.requests = 0
        self.failures = 0
        self.by_class = dict.fromkeys(FAILURE_CLASSES, 0)
        self.client_errors_4xx = 0
        self.client_disconnects = 0
        self.pinned = 0
        self.pinned_failures = 0
        self.in_flight = 0
        self.latency_counts = [0] * (len(LATENCY_BOUNDS_S) + 1)

    def count(self, seconds: float, status: int, failure: str | None, pinned: bool) -> None:
        """One answered request: time from its arrival to its last byte, its status, the class of its failure or None."""
        if pinned:
            self.pinned += 1
            self.pinned_failures += failure is not None
            return
        self.requests += 1
        self.latency_counts[bisect.bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        if failure is not None:
            self.failures += 1
            self.by_class[failure] += 1
        elif 400 <= status < 500:
            self.client_errors_4xx += 1

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return dict(vars(self))
