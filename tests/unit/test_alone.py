"""A version with all traffic against stable's record: how soon it is found, and how often it is blamed for nothing. Seeds are fixed."""

from typing import Any

import numpy as np
import pytest

from kfp_components.judge import alone
from kfp_components.judge.counts import ArmCounts


def canary(requests: int, failures: int = 0, client_errors: int = 0, disconnects: int = 0, margin: float = 0.005) -> dict[str, Any]:
    """The state of a judge, as far as it is read."""
    stable = {"requests": requests, "failures": failures, "client_errors": client_errors, "disconnects": disconnects}
    return {"stable": stable, "rates": {name: {"margin": margin} for name in ("errors", "client_errors", "disconnects")}}


def looks_until_fail(state: dict[str, Any], look: ArmCounts, most: int = 1000) -> int | None:
    for number in range(1, most + 1):
        state = alone.update(state, look)
        if alone.combined(alone.evidence(state))[0] >= 100:
            return number
    return None


@pytest.mark.parametrize(
    "failed", [ArmCounts(requests=1, failures=1), ArmCounts(requests=1, client_errors=1), ArmCounts(disconnects=1)], ids=["5xx", "4xx", "hangs"]
)
@pytest.mark.parametrize("stable", [(100, 0), (300, 3), (10_000, 10)], ids=str)
def test_d6_what_fails_everything_is_found_within_ten_requests(stable: tuple[int, int], failed: ArmCounts) -> None:
    requests, bad = stable
    found = looks_until_fail(alone.start(canary(requests, bad, bad, bad)), failed)
    assert found is not None and found <= 10


def test_where_stable_failed_everything_nothing_is_worse() -> None:
    assert looks_until_fail(alone.start(canary(300, 300)), ArmCounts(requests=1, failures=1)) is None
    assert looks_until_fail(alone.start(canary(0)), ArmCounts(requests=1, failures=1)) is None, "nothing is known of it"


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("worse_by", [0.0, 1.0], ids=["equal", "on the margin"])
def test_d6_false_alarms_after_the_switch(rate: float, worse_by: float) -> None:
    """1,000 versions each, 2,000 requests each, a look after every ten: at most alpha are blamed, whatever stable's luck in the canary was."""
    rng, margin, blamed = np.random.default_rng(15), 0.01, 0
    for _ in range(1000):
        p0 = alone.upper_bound(int(rng.binomial(300, rate)), 300) + margin
        x = np.cumsum(rng.binomial(10, rate + worse_by * margin, size=200))[:, None]
        n = 10 * np.arange(1, 201)[:, None]
        p = p0 + alone.GRID * (1 - p0)
        e = np.exp(np.minimum(x * np.log(p / p0) + (n - x) * np.log((1 - p) / (1 - p0)), 600)).mean(axis=1)
        blamed += bool((e >= 100).any())  # of one metric alone, which is more than of their average
    assert blamed <= 10


def test_the_state_is_what_the_formula_says() -> None:
    state = alone.start(canary(300))
    for look in (ArmCounts(requests=30, failures=1), ArmCounts(requests=10, client_errors=2, disconnects=5)):
        state = alone.update(state, look)
    p0 = state["p0"]["errors"]
    p = p0 + alone.GRID * (1 - p0)
    assert alone.evidence(state)["errors"] == pytest.approx(float(np.mean((p / p0) * ((1 - p) / (1 - p0)) ** 39)))
    assert (state["requests"], state["failures"], state["client_errors"], state["disconnects"]) == (40, 1, 2, 5)
    assert alone.upper_bound(0, 300) == pytest.approx(1 - 0.01 ** (1 / 300), abs=1e-9), "as Clopper-Pearson's where nothing was seen"
