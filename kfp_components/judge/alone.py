"""A version that has all traffic: is it worse than stable was beside it?

Nobody is left to compare with, so its outcomes since the switch are held against a fixed rate p0: the upper confidence bound of stable's rate in the
canary, plus the metric's margin. Per metric, with n outcomes of which x count against it,

    E = mean_j (p_j / p0)^x * ((1 - p_j) / (1 - p0))^(n - x),    p_j = p0 + g_j * (1 - p0)

whose expectation is at most 1 at every look while the rate is at most p0, whatever came before: the mixture of Wald's likelihood ratios (Robbins,
Statistical methods related to the law of the iterated logarithm, 1970; Ville 1939 for stopping at any time). FAIL when the average of the metrics
reaches 1/alpha. The bound is Chernoff's: the greatest p with n * KL(x/n || p) <= log(1 / `BOUND_ALPHA`). The state is JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kfp_components.judge import error_rate
from kfp_components.judge.counts import ArmCounts
from kfp_components.judge.verdict import FAIL_SHARES, RATES

BOUND_ALPHA = 0.01
"""Chance that stable's true rate is above the bound. The margin comes on top, so a false alarm takes both to be wrong."""

GRID = np.array([0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 0.95, 0.999])
"""Alternatives: how far the rate is from p0 on the way to 1."""

HOPELESS = 0.99
"""From this p0 on nothing can be worse."""


def upper_bound(x: float, n: int, alpha: float = BOUND_ALPHA) -> float:
    """Of a rate of which ``x`` in ``n`` were seen; the true one is above it with a chance of ``alpha`` at most. 1 when nothing was seen."""
    if n == 0 or x >= n:
        return 1.0
    rate = x / n
    low, high = rate, 1.0
    for _ in range(50):
        p = (low + high) / 2
        low, high = (p, high) if n * divergence(rate, p) <= math.log(1 / alpha) else (low, p)
    return high


def divergence(rate: float, p: float) -> float:
    """KL(rate || p) of two Bernoulli variables, p between 0 and 1, in nats."""
    hit = rate * math.log(rate / p) if rate > 0 else 0.0
    return hit + ((1 - rate) * math.log((1 - rate) / (1 - p)) if rate < 1 else 0.0)


def start(judge: Mapping[str, Any]) -> dict[str, Any]:
    """State at the switch, from the state of the canary's judge."""
    stable = judge["stable"]
    seen = ArmCounts(int(stable["requests"]), int(stable["failures"]), (), None, 0, int(stable["client_errors"]), int(stable["disconnects"]))
    bounds = {name: upper_bound(*_outcomes(name, seen)) + judge["rates"][name]["margin"] for name in RATES}
    return {"p0": bounds, "logs": {name: [0.0] * len(GRID) for name in RATES}, **dict.fromkeys(("requests", "failures", *RATES[1:]), 0)}


def update(state: Mapping[str, Any], since: ArmCounts) -> dict[str, Any]:
    """One look: what became of the version's requests since the last one."""
    logs = {}
    for name in RATES:
        x, n = _outcomes(name, since)
        p0 = state["p0"][name]
        if p0 >= HOPELESS:
            logs[name] = state["logs"][name]
            continue
        p = p0 + GRID * (1 - p0)
        step = x * np.log(p / p0) + (n - x) * np.log((1 - p) / (1 - p0))
        logs[name] = [float(max(-700.0, value)) for value in np.asarray(state["logs"][name]) + step]
    counted = {key: state[key] + getattr(since, key) for key in ("requests", "failures", *RATES[1:])}
    return {"p0": state["p0"], "logs": logs, **counted}


def evidence(state: Mapping[str, Any]) -> dict[str, float]:
    """The e-value of each metric that it is worse."""
    return {name: error_rate.mixed(state["logs"][name]) for name in RATES}


def combined(metrics: Mapping[str, float]) -> tuple[float, str]:
    """The average of the metrics by their parts in the judge's, and the one that has most of it."""
    parts = {name: FAIL_SHARES[name] * value / sum(FAIL_SHARES[other] for other in RATES) for name, value in metrics.items()}
    return sum(parts.values()), max(parts, key=lambda name: parts[name])


def _outcomes(name: str, counted: ArmCounts) -> tuple[int, int]:
    """Those that count against it, and all."""
    if name == "errors":
        return counted.failures, counted.requests
    if name == "client_errors":
        return counted.client_errors, counted.requests
    return counted.disconnects, counted.ended
