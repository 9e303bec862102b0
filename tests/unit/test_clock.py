"""The clocks."""

import time

import pytest

from kfp_components.clock import ManualClock, SystemClock


def test_manual_clock_moves_only_when_somebody_sleeps() -> None:
    clock = ManualClock(start_unix_s=100.0)
    assert (clock.now_unix_s(), clock.monotonic()) == (100.0, 0.0)
    started = time.monotonic()
    clock.sleep(3600)
    clock.sleep(0)
    clock.sleep(0.5)
    assert (clock.now_unix_s(), clock.monotonic()) == (3700.5, 3600.5)
    assert time.monotonic() - started < 60


def test_system_clock_is_the_systems() -> None:
    clock = SystemClock()
    assert abs(clock.now_unix_s() - time.time()) < 60
    before = clock.monotonic()
    clock.sleep(0.01)
    assert clock.monotonic() - before >= 0.01


@pytest.mark.parametrize("clock", [ManualClock(), SystemClock()])
def test_no_sleep_of_negative_length(clock: ManualClock | SystemClock) -> None:
    with pytest.raises(ValueError, match=r"must be non-negative|must not be negative"):
        clock.sleep(-1)
