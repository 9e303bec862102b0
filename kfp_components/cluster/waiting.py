"""Waiting for an object, over the states that one look after the other gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

from kfp_components import errors
from kfp_components.clock import Clock
from kfp_components.cluster import Manifest, Ref

LOOK_S = 1.0
"""Between two looks."""


def looks(look: Callable[[], Manifest | None], *, timeout_s: float, meanwhile: Callable[[], None], clock: Clock) -> Iterator[Manifest | None]:
    """What ``look`` gives, now and once a second until ``timeout_s`` is over; ``meanwhile`` is called between two looks."""
    end = clock.monotonic() + timeout_s
    while True:
        yield look()
        left_s = end - clock.monotonic()
        if left_s <= 0:
            return
        clock.sleep(min(LOOK_S, left_s))
        meanwhile()


def first_ready(
    states: Iterable[Manifest | None],
    ref: Ref,
    *,
    ready: Callable[[Manifest], bool],
    failed: Callable[[Manifest], str | None],
    timeout_s: float,
) -> Manifest:
    """The first state that is ready. Raises `DeployFailed` with the diagnosis, or `WaitTimeout` with the last state when there are no more."""
    last: Manifest | None = None
    for state in states:
        last = state
        if state is None:
            continue
        if ready(state):
            return state
        diagnosis = failed(state)
        if diagnosis:
            raise errors.DeployFailed(diagnosis)
    found = "it does not exist" if last is None else f"its last status was {json.dumps(last.get('status', {}))[:600]}"
    raise errors.WaitTimeout(f"{ref}: not ready within {timeout_s:g} s; {found}; raise ready_timeout_s if it only needs longer")
