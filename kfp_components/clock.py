"""What time it is and how to wait, as a protocol: the system's clock, and one that a test or a simulation moves by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

_SINCE_BOOT: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class Clock(Protocol):
    """Time and waiting; seconds everywhere."""

    def now_unix_s(self) -> float:
        """Seconds since 1970, for what is written down."""

    def monotonic(self) -> float:
        """Seconds since some start, for measuring; never goes back."""

    def sleep(self, s: float) -> None:
        """Return after ``s`` seconds."""


def rfc3339(unix_s: float) -> str:
    """A time as Kubernetes writes it: ``2026-11-27T12:00:00Z``."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc(unix_s: float) -> str:
    """A time as people read it: ``2026-11-27 12:00:00 UTC``."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class SystemClock:
    """The clock of this machine."""

    def now_unix_s(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some start; never goes back. While the machine sleeps they are counted where the system can: nobody renews a Lease then."""
        return time.clock_gettime(_SINCE_BOOT) if _SINCE_BOOT is not None else time.monotonic()

    def sleep(self, s: float) -> None:
        """Return after ``s`` seconds. Raises ValueError when that is negative."""
        time.sleep(s)


class ManualClock:
    """A clock that stands still until somebody sleeps; a sleep returns at once, that much later."""

    def __init__(self, start_unix_s: float = 1_750_000_000.0) -> None:
        self._start_unix_s, self._passed_s = start_unix_s, 0.0

    def now_unix_s(self) -> float:
        """The start and what was slept since."""
        return self._start_unix_s + self._passed_s

    def monotonic(self) -> float:
        """What was slept since the start."""
        return self._passed_s

    def sleep(self, s: float) -> None:
        """Move the time on. Raises ValueError when ``s`` is negative, as `time.sleep` does."""
        if s < 0:
            raise ValueError(f"sleep: {s} s; a length of time must not be negative")
        self._passed_s += s
