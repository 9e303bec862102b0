"""Failure rates: a conditional rate-ratio e-process for FAIL, a non-inferiority e-process for PASS.

An e-process is a product whose expectation is at most 1 while its null hypothesis holds, whenever one stops (Ville 1939): reaching 1/alpha has a
chance of at most alpha. Both are kept as logarithms per grid point and mixed (averaged) when read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

KAPPAS = np.array([1.25, 1.5, 2, 3, 4, 6, 10, 20, 50, 200])
"""Alternatives of FAIL: how many times more often the candidate fails."""

RATES = np.array([0.0002, 0.001, 0.003, 0.01, 0.03, 0.1])
"""Alternatives of PASS: the failure rate that both share."""

Logs = NDArray[np.float64]


def fail_start() -> list[float]:
    """State at the beginning: log e-value of each kappa."""
    return [0.0] * len(KAPPAS)


def fail_update(logs: Sequence[float], n_c: int, n_s: int, x_c: int, x_s: int) -> list[float]:
    """One tick with ``n`` requests and ``x`` failures in candidate and stable.

    Null: the candidate does not fail more often. Given m failures in both arms, each is the candidate's with chance n_c/(n_c+n_s) at
    most, so ``kappa^x_c * ((n_c+n_s)/(kappa*n_c+n_s))^m`` has expectation 1 at most. Batches are valid, because the hypergeometric is
    dominated by the binomial in convex order (Hoeffding 1963). Related: Lindon & Malek, Anytime-valid inference for multinomial count
    data (NeurIPS 2022).
    """
    m = x_c + x_s
    if m == 0 or n_c == 0 or n_s == 0:
        return list(logs)
    step = x_c * np.log(KAPPAS) + m * np.log((n_c + n_s) / (KAPPAS * n_c + n_s))
    return list(map(float, np.asarray(logs) + step))


def pass_start() -> list[float]:
    """State at the beginning: log e-value of each shared rate."""
    return [0.0] * len(RATES)


def pass_update(logs: Sequence[float], n_c: int, n_s: int, x_c: int, x_s: int, margin: float) -> list[float]:
    """One tick for PASS. Null: the candidate's failure rate is higher by at least ``margin`` (a fraction).

    Likelihood ratio of a shared rate p against the null's nearest point (a, a+margin), the reverse information projection: Turner & Gruenwald, Exact
    anytime-valid confidence intervals for contingency tables (2023); Turner, Ly & Gruenwald, safe two-sample tests (2024).
    """
    if n_c + n_s == 0:
        return list(logs)
    a = projection(n_c / (n_c + n_s), margin)
    stable = x_s * np.log(RATES / a) + (n_s - x_s) * np.log((1 - RATES) / (1 - a))
    b = a + margin
    candidate = x_c * np.log(RATES / b) + (n_c - x_c) * np.log((1 - RATES) / (1 - b))
    return list(map(float, np.asarray(logs) + stable + candidate))


@lru_cache(maxsize=4096)
def projection(w: float, margin: float) -> Logs:
    """For each shared rate p the a that minimises (1-w)*KL(p||a) + w*KL(p||a+margin), which is convex: Newton's method, kept in bounds."""
    low, high = np.full_like(RATES, 1e-12), np.full_like(RATES, 1 - margin - 1e-9)
    a = np.clip(RATES - w * margin, RATES / 10, high)
    for _ in range(60):
        b = a + margin
        slope = (1 - w) * ((1 - RATES) / (1 - a) - RATES / a) + w * ((1 - RATES) / (1 - b) - RATES / b)
        curve = (1 - w) * ((1 - RATES) / (1 - a) ** 2 + RATES / a**2) + w * ((1 - RATES) / (1 - b) ** 2 + RATES / b**2)
        low, high = np.where(slope < 0, a, low), np.where(slope < 0, high, a)
        step = a - slope / curve
        following = np.where((step >= low) & (step <= high), step, (low + high) / 2)
        if np.all(np.abs(following - a) <= 1e-9 * a):
            break
        a = following
    a.flags.writeable = False  # it is shared by later calls
    return a


def mixed(logs: Sequence[float]) -> float:
    """The e-value: the average over the grid."""
    values = np.asarray(logs)
    top = float(values.max())
    return float(np.exp(min(top, 600.0)) * np.mean(np.exp(values - top)))
