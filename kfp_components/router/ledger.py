"""Exact counts per version, cumulative since this replica started. Readers take differences per replica, so a restart is never negative."""

from __future__ import annotations

import bisect
import itertools
import time
from collections import deque
from typing import Any

LATENCY_BOUNDS_S = tuple(0.0005 * 1.02**step for step in range(799))
"""Upper bounds of the latency buckets, 0.5 ms to an hour, 2 % apart (a margin of 10 % is tested as 8 % at least); one more holds what is slower."""

FAILURE_CLASSES = ("http_5xx", "overloaded", "timeout", "connect", "stream_broken")

RECENT_REQUESTS = 2000
"""Unpinned requests of a version whose outcomes are remembered: how it does now, not how it did in an outage last week."""

OLDEST_WAITING = 20
"""Requests of a version of which a page tells how long they have waited, the oldest first."""


class VersionCounts:
    """Counts of one version. ``requests`` are answered unpinned ones; those whose client went away are only in ``client_disconnects``.

    ``recent`` are the same outcomes among the last `RECENT_REQUESTS` unpinned requests, answered or given up. ``in_flight`` are all that are not over
    yet, streams, WebSockets and the ``pinned_in_flight`` too; ``waiting`` are the unpinned ones whose answer has not begun, the oldest since
    ``waits_s``.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.failures = 0
        self.by_class = dict.fromkeys(FAILURE_CLASSES, 0)
        self.client_errors_4xx = 0
        self.client_disconnects = 0
        self.pinned = 0
        self.pinned_failures = 0
        self.pinned_disconnects = 0
        self.pinned_in_flight = 0
        self.in_flight = 0
        self.latency_counts = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.recent = dict.fromkeys(("requests", "failures", "client_errors", "disconnects"), 0)
        self._outcomes: deque[str | None] = deque()
        self._waiting: dict[Counting, float] = {}  # since when, the oldest first

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
            self._remember("failures")
        elif 400 <= status < 500:
            self.client_errors_4xx += 1
            self._remember("client_errors")
        else:
            self._remember(None)

    def count_disconnect(self, pinned: bool) -> None:
        """One request whose client went away before its answer was whole. A probe (pinned) that does so is no user who gave up."""
        if pinned:
            self.pinned_disconnects += 1
            return
        self.client_disconnects += 1
        self._remember("disconnects")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        now = time.perf_counter()
        waits_s = [now - since for since in itertools.islice(self._waiting.values(), OLDEST_WAITING)]
        found = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        return {**found, "waiting": len(self._waiting), "waits_s": waits_s}

    def _remember(self, outcome: str | None) -> None:
        if len(self._outcomes) == RECENT_REQUESTS:
            self._add_recent(self._outcomes.popleft(), -1)
        self._outcomes.append(outcome)
        self._add_recent(outcome, 1)

    def _add_recent(self, outcome: str | None, number: int) -> None:
        if outcome != "disconnects":
            self.recent["requests"] += number
        if outcome is not None:
            self.recent[outcome] += number


class Counting:
    """One request, from its choice of a version to its end, which is counted once whatever comes together."""

    def __init__(self, counts: VersionCounts, pinned: bool) -> None:
        self._counts = counts
        self._pinned = pinned
        self._started = time.perf_counter()
        self._handshake_s: float | None = None
        counts.in_flight += 1
        counts.pinned_in_flight += pinned
        if not pinned:
            counts._waiting[self] = self._started

    def begun(self, *, socket: bool = False) -> None:
        """The head of the answer is here. Of a WebSocket (``socket``) that is the time that counts: how long it stays open is up to the client."""
        self._counts._waiting.pop(self, None)
        if socket:
            self._handshake_s = time.perf_counter() - self._started

    def done(self, status: int, failure: str | None) -> None:
        """It was answered."""
        seconds = time.perf_counter() - self._started if self._handshake_s is None else self._handshake_s
        self._counts.count(seconds, status, failure, self._pinned)

    def gone(self) -> None:
        """Its client went away."""
        self._counts.count_disconnect(self._pinned)

    def over(self) -> None:
        """It is not in flight any more."""
        self._counts._waiting.pop(self, None)
        self._counts.in_flight -= 1
        self._counts.pinned_in_flight -= self._pinned
