"""How long tests wait: for conditions, never for a time, and the longer the slower this machine is just now.

One factor for the whole suite, from a short calibration at its start: how long a known piece of work takes here, against an idle machine. Every limit in
the tests is ``patience.seconds(...)`` of what is ample on an idle one. No test asserts that something is fast: that is for ``benchmarks/``.
"""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

IDLE_S = 0.45
"""The piece of work on an idle machine (two cores at about 3 GHz): start Python, import a library, hash for a while."""

WORK = "import hashlib, json, pydantic\nfor number in range(150_000): hashlib.sha256(json.dumps([number]).encode()).digest()"
RUNS = 3
MOST = 10.0
ENVIRONMENT = "KFP_SERVING_TEST_PATIENCE"


@dataclass(frozen=True)
class Patience:
    """``factor`` is at least 1; ``took_s`` is None when the factor was given in the environment."""

    factor: float
    took_s: float | None

    def __str__(self) -> str:
        if self.took_s is None:
            return f"patience: x {self.factor:.1f} (from {ENVIRONMENT})"
        return f"patience: x {self.factor:.1f} (a piece of work that takes {IDLE_S:g} s on an idle machine took {self.took_s:.2f} s here, mean of {RUNS})"


@functools.cache
def calibrated() -> Patience:
    """Measured once in a process; KFP_SERVING_TEST_PATIENCE gives it instead."""
    if given := os.environ.get(ENVIRONMENT):
        return Patience(max(1.0, float(given)), None)
    began = time.perf_counter()
    for _ in range(RUNS):
        subprocess.run([sys.executable, "-c", WORK], check=True)
    took_s = (time.perf_counter() - began) / RUNS
    return Patience(min(MOST, max(1.0, took_s / IDLE_S)), took_s)


def seconds(idle_s: float) -> float:
    """A limit that is ample on an idle machine, for this one."""
    return idle_s * calibrated().factor


def until(check: Callable[[], T], what: str, idle_s: float = 60.0) -> T:
    """Wait until ``check()`` is true, and return it. An error that it raises counts as "not yet" and is told at the end.

    ``check`` is asked once more after the time is over: a machine that stood still meanwhile gets its chance.
    """
    deadline = time.monotonic() + seconds(idle_s)
    late = False
    while True:
        found: object
        try:
            if found := check():
                return found
        except Exception as error:
            found = error
        if late:
            raise AssertionError(f"waited {seconds(idle_s):.0f} s for {what}; the last look gave {found!r}")
        time.sleep(0.05)
        late = time.monotonic() > deadline
