"""Latency: e-processes on how often requests are slower than the stable version's p50, p95 and p99.

The three bounds of a tick are taken from stable's requests of the ticks before it, in the same canary: so they are fixed before they are used, which
is all that validity asks for, and they follow a load that changes for both. PASS measures the candidate against the bound times (1 + margin): its
null is P(candidate > q*(1+margin)) >= P(stable > q). FAIL uses a smaller margin (half of it by default), with the opposite null: so a version that
is a little slower is not failed, one beyond the margin is not passed, and in between the evidence for both stays low.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kfp_components.judge.counts import Tick, quantile_s

QUANTILES = (0.5, 0.95, 0.99)
FAIL_THETAS = np.array([1.25, 1.5, 2, 3, 4, 6, 10, 20, 50])
PASS_THETAS = 1 / np.array([1.25, 1.5, 2, 3, 4, 6, 10, 20, 50])
PASS_ROWS = (0, 1)
"""PASS asks for p50 and p95 each. Averaged over the quantiles p50 alone decides, and 10 of 12 simulated candidates with a tail 50 % slower passed;
p99 too would take five times as many requests (765 against 162 of the candidate's). FAIL looks at all three."""

HISTORY_REQUESTS = 100
"""Stable requests before the first test."""

EXACT_SUPPORT = 4000
"""Up to so many possible outcomes the exact hypergeometric normaliser is summed; above, the binomial bound is used."""


def start() -> dict[str, Any]:
    """State at the beginning: no history, log e-values per quantile and theta."""
    return {"history": [], **{side: [[0.0] * len(FAIL_THETAS) for _ in QUANTILES] for side in ("fail", "pass")}}


def update(state: dict[str, Any], tick: Tick, *, fail_margins: Sequence[float], pass_margins: Sequence[float]) -> dict[str, Any]:
    """One tick (or batch of ticks): tested against the bounds of the history, then added to it. Margins in percent, of p50, p95 and p99."""
    if not tick.stable.latency_counts:
        return state
    counted = tick.stable.latency_counts
    following = {**state, "history": [a + b for a, b in zip(state["history"] or [0] * len(counted), counted, strict=True)]}
    n_c, n_s = sum(tick.candidate.latency_counts), sum(counted)
    if sum(state["history"]) < HISTORY_REQUESTS or n_c == 0:
        return following
    updated: dict[str, list[list[float]]] = {}
    for side, thetas, margins in (("fail", FAIL_THETAS, fail_margins), ("pass", PASS_THETAS, pass_margins)):
        limits = bounds(state["history"], tick.bounds_s, margins)
        updated[side] = [
            _step(logs, thetas, n_c, n_s, sum(tick.candidate.latency_counts[wide:]), sum(counted[near:]))
            for logs, (near, wide) in zip(state[side], limits, strict=True)
        ]
    return {**following, **updated}


def bounds(history: Sequence[int], bounds_s: Sequence[float], margins_percent: Sequence[float]) -> list[tuple[int, int]]:
    """For each quantile the first bucket that is too slow: for stable, and for the candidate, whose bound is wider by the margin."""
    found = []
    for quantile, margin in zip(QUANTILES, margins_percent, strict=True):
        limit = quantile_s(history, bounds_s, quantile)
        assert limit is not None
        wider = bisect.bisect_left(bounds_s, limit * (1 + margin / 100) * (1 - 1e-9))  # rounded up to a bucket: in the candidate's favour
        found.append((bisect.bisect_left(bounds_s, limit) + 1, wider + 1))
    return found


def _step(logs: Sequence[float], thetas: NDArray[np.float64], n_c: int, n_s: int, x_c: int, x_s: int) -> list[float]:
    """``theta^x_c / E[theta^X]``, X hypergeometric: the candidate's share of the m slow requests when both arms are alike."""
    m = x_c + x_s
    if m == 0 or n_c == 0 or n_s == 0 or m == n_c + n_s:
        return list(logs)
    return list(map(float, np.asarray(logs) + x_c * np.log(thetas) - _log_mgf(thetas, n_c, n_s, m)))


def _log_mgf(thetas: NDArray[np.float64], n_c: int, n_s: int, m: int) -> NDArray[np.float64]:
    low, high = max(0, m - n_s), min(m, n_c)
    if high - low > EXACT_SUPPORT:
        return np.asarray(m * np.log((thetas * n_c + n_s) / (n_c + n_s)))  # Hoeffding 1963: at least the hypergeometric one
    x = np.arange(low, high + 1)
    log_mass = np.array([_log_choose(n_c, int(k)) + _log_choose(n_s, m - int(k)) for k in x]) - _log_choose(n_c + n_s, m)
    terms = log_mass[None, :] + np.log(thetas)[:, None] * x[None, :]
    top = terms.max(axis=1)
    return np.asarray(top + np.log(np.exp(terms - top[:, None]).sum(axis=1)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
