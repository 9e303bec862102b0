"""Latency: e-processes on how often requests are slower than the stable version's p50, p95 and p99.

The three bounds are fixed from stable's history before they are used. The candidate is measured against the bound times (1 + margin), so that a
version within the margin is not failed: FAIL's null is P(candidate > q*(1+margin)) <= P(stable > q), PASS's null the opposite.
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
HISTORY_REQUESTS = 200
"""Stable requests before its quantiles are fixed: p99 of 200 is their second slowest."""

EXACT_SUPPORT = 4000
"""Up to so many possible outcomes the exact hypergeometric normaliser is summed; above, the binomial bound is used."""


def start() -> dict[str, Any]:
    """State at the beginning: no bounds yet, log e-values per quantile and theta."""
    zeros = [[0.0] * len(FAIL_THETAS) for _ in QUANTILES]
    return {"bounds": None, "history": [], "fail": zeros, "pass": [list(row) for row in zeros]}


def update(state: dict[str, Any], tick: Tick, margins_percent: Sequence[float]) -> dict[str, Any]:
    """One tick. Until stable's history is long enough it only adds to that history."""
    if state["bounds"] is None:
        return learn(state, tick.stable.latency_counts, tick.bounds_s, margins_percent)
    fails, passes = [], []
    for row, (stable_from, candidate_from) in enumerate(state["bounds"]):
        x_s = sum(tick.stable.latency_counts[stable_from:])
        x_c = sum(tick.candidate.latency_counts[candidate_from:])
        n_c, n_s = tick.candidate.requests, tick.stable.requests
        fails.append(_step(state["fail"][row], FAIL_THETAS, n_c, n_s, x_c, x_s))
        passes.append(_step(state["pass"][row], PASS_THETAS, n_c, n_s, x_c, x_s))
    return {**state, "fail": fails, "pass": passes}


def learn(state: dict[str, Any], latency_counts: Sequence[int], bounds_s: Sequence[float], margins_percent: Sequence[float]) -> dict[str, Any]:
    """Add stable's latencies to the history; fix the bounds once it is long enough. Bucket indices: first bucket that is too slow, per arm."""
    if not latency_counts:
        return state
    old = state["history"] or [0] * len(latency_counts)
    history = [a + b for a, b in zip(old, latency_counts, strict=True)]
    if sum(history) < HISTORY_REQUESTS:
        return {**state, "history": history}
    bounds = []
    for quantile, margin in zip(QUANTILES, margins_percent, strict=True):
        limit = quantile_s(history, bounds_s, quantile)
        assert limit is not None
        wider = bisect.bisect_left(bounds_s, limit * (1 + margin / 100) * (1 - 1e-9))  # rounded up to a bucket: in the candidate's favour
        bounds.append([bisect.bisect_left(bounds_s, limit) + 1, wider + 1])
    return {**state, "bounds": bounds, "history": []}


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
