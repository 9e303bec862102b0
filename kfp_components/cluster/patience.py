"""Patience with the surroundings: calls that got no answer are made again for a while, before anybody calls it a fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from kfp_components import errors
from kfp_components.clock import Clock

T = TypeVar("T")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 4.0


@dataclass
class Patience:
    """For how many seconds a call is made again, whoever holds this."""

    seconds: float


def patient(obj: T, clock: Clock, patience: Patience) -> T:
    """``obj`` whose methods are called again when they raise `Unreachable`, for ``patience`` from the first failure; then that is raised.

    A write whose answer was lost may have taken effect, so it may be made twice: right for everything here that is an apply, a compare-and-swap or a
    deletion. A create that was made answers `Conflict` then, which its caller has to bear anyway.
    """
    return cast(T, _Patient(obj, clock, patience))


def persist(call: Callable[[], T], clock: Clock, patience: Patience) -> T:
    """``call()``, and again when it raises `Unreachable`, for ``patience`` from the first failure; then that is raised."""
    end: float | None = None
    wait_s = FIRST_WAIT_S
    while True:
        try:
            return call()
        except errors.Unreachable:
            end = clock.monotonic() + patience.seconds if end is None else end
            if clock.monotonic() + wait_s > end:
                raise
        clock.sleep(wait_s)
        wait_s = min(LONGEST_WAIT_S, 2 * wait_s)


class _Patient:
    def __init__(self, obj: Any, clock: Clock, patience: Patience) -> None:
        self._obj, self._clock, self._patience = obj, clock, patience

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._obj, name)
        return partial(self._again, found) if callable(found) and not name.startswith("_") else found

    def _again(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return persist(partial(call, *args, **options), self._clock, self._patience)
